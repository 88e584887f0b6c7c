"""What hyper-connections cost and whether they move: each kind around each backbone and the SE encoder.

    python benchmarks/hyper_connections.py [--hidden 256 --layers 4 --sets 8 --cells 64]

``start``: largest difference of the wrapped from the plain network before training. ``share``: parameters that the
connections add. ``step``: forward, backward and AdamW, and ``forward`` alone without gradient, in times the plain
network's: the two take turns, and the table has the ratio of medians. ``still``: parameters of the connections without
a gradient by the second step, or unmoved after 20. ``sums``: the largest difference of a row's or a column's sum of a
residual mapping from one after those steps. ``identity``: how far the mappings are from it then, by norm, on average.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from scstate_lora.nn import apply_mhc_to_transformer, mhc_diagnostics, mhc_parameters
from scstate_lora.nn.backbones import BACKBONES, BackboneConfig, make_backbone
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

KINDS: dict[str, dict[str, Any]] = {
    "streams": {"kind": "streams"},
    "streams, of the input": {"kind": "streams", "dynamic": True},
    "features": {"kind": "features"},
    "features, of the input": {"kind": "features", "dynamic": True},
}
N_GENES, OUTPUT = 1000, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--sets", type=int, default=8, help="sets (sentences for the SE encoder) per batch")
    parser.add_argument("--cells", type=int, default=64, help="cells per set, or tokens per sentence")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--networks", nargs="+", default=[*BACKBONES, "se"], choices=[*BACKBONES, "se"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.networks:
        for kind, options in KINDS.items():
            rows.append({"network": name, "kind": kind, **_measure(name, options, args)})
            print(rows[-1], flush=True)
    print(f"\n{pd.DataFrame(rows).set_index(['network', 'kind']).to_string(float_format='{:.3g}'.format)}")


def _network(name: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[nn.Module], Tensor], Tensor]:
    """Return a network, a function that runs it on a batch, and the target."""
    torch.manual_seed(0)
    if name != "se":
        cells, target = torch.randn(2, args.sets, args.cells, args.hidden)
        network = make_backbone(BackboneConfig(name, args.hidden, args.layers, args.heads))
        return network, lambda made: made(cells), target
    sizes = SEConfig(
        token_dim=OUTPUT,
        d_model=args.hidden,
        n_layers=args.layers,
        n_heads=args.heads,
        d_hid=4 * args.hidden,
        output_dim=OUTPUT,
        n_tokens=args.cells,
    )
    network = SEEncoder(sizes, torch.randn(N_GENES, OUTPUT))
    genes, values = torch.randint(N_GENES, (args.sets, args.cells - 1)), torch.rand(args.sets, args.cells)
    target = torch.nn.functional.normalize(torch.randn(args.sets, OUTPUT), dim=1)
    return network, lambda made: made(genes, values), target


def _measure(name: str, options: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    plain, run, target = _network(name, args)
    wrapped = apply_mhc_to_transformer(copy.deepcopy(plain), **options)
    with torch.no_grad():
        start = float((run(wrapped) - run(plain)).abs().max())
    connections = mhc_parameters(wrapped)
    before = {key: p.detach().clone() for key, p in connections.items()}
    share = sum(p.numel() for p in connections.values()) / sum(p.numel() for p in plain.parameters())
    heard: set[str] = set()
    networks = {"plain": plain, "wrapped": wrapped}
    optimizers = {key: torch.optim.AdamW(n.parameters(), lr=1e-3, weight_decay=0.0) for key, n in networks.items()}
    steps: dict[str, list[float]] = {key: [] for key in networks}
    forwards: dict[str, list[float]] = {key: [] for key in networks}
    for step in range(args.steps):
        for key, network in networks.items():
            began = time.perf_counter()
            optimizers[key].zero_grad()
            (run(network) - target).square().mean().backward()
            optimizers[key].step()
            steps[key].append(time.perf_counter() - began)
            began = time.perf_counter()
            with torch.no_grad():
                run(network)
            forwards[key].append(time.perf_counter() - began)
        if step < 2:
            heard |= {key for key, p in connections.items() if p.grad is not None and p.grad.any()}
    unmoved = {key for key, p in connections.items() if torch.equal(p.detach(), before[key])}
    found = mhc_diagnostics(wrapped, lambda: run(wrapped))
    return {
        "start": start,
        "share": share,
        "step": median(steps["wrapped"]) / median(steps["plain"]),
        "forward": median(forwards["wrapped"]) / median(forwards["plain"]),
        "still": len((set(connections) - heard) | unmoved),
        "sums": max(max(d.row_error, d.column_error) for d in found),
        "identity": sum(d.distance_from_identity for d in found) / len(found),
    }


if __name__ == "__main__":
    main()
