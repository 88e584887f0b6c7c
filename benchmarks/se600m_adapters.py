"""Adapt a base of the size of SE-600M: what is trained, what a file of adapters takes, and one step's time and memory.

    python benchmarks/se600m_adapters.py [--cells 4] [--tokens 2048] [--no-checkpointing]

The base has random weights, allocated here: no checkpoint is read. It takes 3 GB of memory and the step some more; one
step of four cells is about 30 TFLOP, minutes on a CPU. Where there is CUDA, training there is measured as well, in
bf16, 16 cells per batch.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.lora import adapter_state, add_lora, delete_adapter, load_adapter_state
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

SE600M = SEConfig(
    token_dim=5120,
    d_model=2048,
    n_layers=16,
    n_heads=16,
    d_hid=2048,
    output_dim=2048,
    n_tokens=2048,
    dataset_correction=True,
    cls_gene=3,
)
N_GENES, N_TARGETS = 19_790, 64
LORA = {"r": 16, "alpha": 32, "dropout": 0.1, "targets": ("q", "v")}
COVARIATES = {"condition": CovariateSpec(2), "time_days": CovariateSpec(None)}
LIMIT = 20e6
"""Bytes that a file of adapters may take."""

Batch = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=4, help="in the step on the CPU")
    parser.add_argument("--tokens", type=int, default=SE600M.n_tokens, help="in a cell's sentence")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    network = make_network()
    print_parameters(network)
    checkpointing = not args.no_checkpointing
    network.encoder.transformer_encoder.gradient_checkpointing = checkpointing
    with torch.no_grad():
        network.encoder.token_table()  # made once for all steps
    built = peak_memory()
    seconds = train(network, make_batch(args.cells, args.tokens), n_steps=1)
    print(
        f"\none step of {args.cells} cells x {args.tokens} tokens on the CPU, {args.threads} threads, float32, "
        f"{'with' if checkpointing else 'without'} checkpointing: {seconds:.0f} s; "
        f"peak {peak_memory() / 1e9:.2f} GB, of which {built / 1e9:.2f} GB before it",
        flush=True,
    )
    check_files(network)
    if torch.cuda.is_available():
        train_on_cuda(network, args.tokens)


def make_network() -> ConditionedSE:
    """Return the base of random weights with fresh adapters and conditioning."""
    torch.manual_seed(0)
    encoder = SEEncoder(SE600M, 0.2 * torch.randn(N_GENES, SE600M.token_dim))
    return adapt(encoder.eval())


def adapt(encoder: SEEncoder) -> ConditionedSE:
    add_lora(encoder, **LORA)
    return ConditionedSE(encoder, Conditioning(COVARIATES, SE600M.output_dim)).eval()


def print_parameters(network: ConditionedSE) -> None:
    """Print how many numbers each part has, its share, and whether it is trained."""
    adapters = sum(tensor.numel() for tensor in adapter_state(network.encoder, "default").values())
    parts = {
        "base, frozen": count(network.encoder) - adapters,
        "LoRA, q and v, r=16": adapters,
        "covariate encoder, two covariates": count(network.conditioning.covariate_encoder),
        "projection": count(network.conditioning.conditioner),
        "heads of the covariates": count(network.conditioning.heads),
    }
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    for name, n in {**parts, "trained": trained, "all": count(network)}.items():
        print(f"{name:36}{n:>13,}{n / count(network):>9.2%}", flush=True)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_batch(n_cells: int, n_tokens: int) -> Batch:
    """Return random cells with the targets of a step."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(n_cells, n_tokens, generator=generator).pow(8)  # few genes have most of the counts
    return {
        "genes": torch.stack([torch.randperm(N_GENES, generator=generator)[: n_tokens - 1] for _ in range(n_cells)]),
        "values": 100 * values / values.sum(1, keepdim=True),
        "condition": torch.arange(n_cells) % 2,
        "time_days": torch.randn(n_cells, generator=generator),
        "target_genes": torch.randperm(N_GENES, generator=generator)[:N_TARGETS],
        "targets": 3 * torch.rand(n_cells, N_TARGETS, generator=generator),
        "read_depth": torch.full((n_cells,), 1.5),
        "base": F.normalize(torch.randn(n_cells, SE600M.output_dim, generator=generator)),
    }


def train(network: ConditionedSE, batch: Batch, *, n_steps: int) -> float:
    """Take optimiser steps on reconstruction, preservation and the covariates; seconds per step."""
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    start = time.perf_counter()
    for _ in range(n_steps):
        adapted, conditioned = forward(network, batch)
        asked = batch["target_genes"], batch["read_depth"]
        reconstruction = F.mse_loss(network.predict_expression(adapted, conditioned, *asked), batch["targets"])
        preservation = (1 - F.cosine_similarity(conditioned, batch["base"])).mean()
        told = network.conditioning.heads.loss(conditioned, {name: batch[name] for name in COVARIATES})
        optimizer.zero_grad()
        (reconstruction + preservation + told).backward()
        optimizer.step()
    if batch["genes"].is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / n_steps
    network.eval()
    still = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None and "unknown" not in n]
    if still:
        msg = f"No gradient reached {', '.join(still)}."
        raise RuntimeError(msg)
    return seconds


def forward(network: ConditionedSE, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    covariates = {name: batch[name] for name in COVARIATES}
    return network(batch["genes"], batch["values"], covariates)


def check_files(network: ConditionedSE) -> None:
    """Write adapters and conditioning, read them into fresh ones, and compare the embeddings bit for bit."""
    batch = make_batch(2, 256)
    with torch.no_grad():
        before = forward(network, batch)
    encoder = network.encoder
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.safetensors" for name in ("adapters", "conditioning")}
        save_file(adapter_state(encoder, "default"), files["adapters"])
        save_file(network.conditioning.state_dict(), files["conditioning"])
        sizes = {name: file.stat().st_size for name, file in files.items()}
        delete_adapter(encoder, "default")
        torch.manual_seed(5)
        fresh = adapt(encoder)
        with torch.no_grad():
            started = forward(fresh, batch)
        load_adapter_state(encoder, "default", load_file(files["adapters"]))
        fresh.conditioning.load_state_dict(load_file(files["conditioning"]))
    with torch.no_grad():
        after = forward(fresh, batch)
    for name, size in sizes.items():
        print(f"{name}.safetensors: {size / 1e6:.1f} MB", flush=True)
    if sizes["adapters"] > LIMIT:
        msg = f"The file of adapters takes more than {LIMIT / 1e6:.0f} MB."
        raise RuntimeError(msg)
    same = all(map(torch.equal, before, after))
    moved = not any(map(torch.equal, before, started))
    print(f"saved and loaded, the embedding is {'the same, bit for bit' if same and moved else 'ANOTHER'}", flush=True)


def train_on_cuda(network: ConditionedSE, n_tokens: int, *, n_cells: int = 16) -> None:
    """Print cells per second and memory of training in bf16, with checkpointing and without where it fits."""
    network.to("cuda")
    batch = {name: tensor.to("cuda") for name, tensor in make_batch(n_cells, n_tokens).items()}
    for checkpointing in (True, False):
        network.encoder.transformer_encoder.gradient_checkpointing = checkpointing
        what = f"{n_cells} cells x {n_tokens} tokens, bf16, {'with' if checkpointing else 'without'} checkpointing"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                train(network, batch, n_steps=2)  # the first chooses kernels
                seconds = train(network, batch, n_steps=5)
        except torch.OutOfMemoryError:
            print(f"{torch.cuda.get_device_name()}: {what}: does not fit", flush=True)
            network.zero_grad()
            continue
        memory = torch.cuda.max_memory_allocated()
        print(
            f"{torch.cuda.get_device_name()}: {what}: {n_cells / seconds:.1f} cells/s, {memory / 1e9:.1f} GB",
            flush=True,
        )


def peak_memory() -> int:
    """Bytes this process has had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


if __name__ == "__main__":
    main()
