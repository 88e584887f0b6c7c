"""Write model folders in the forms of Arc's state transition models, with random weights, and arc-state's numbers.

Run it with a Python that has arc-state (0.11.1 made what is in ``tests/data/arc_st``), which needs nothing of ours::

    path/to/python benchmarks/make_arc_st_checkpoints.py OUT_DIR [FORM ...]

Every folder is what arc-state's own ``tx train`` leaves after one step on simulated cells: ``config.yaml``,
``checkpoints/*.ckpt``, ``var_dims.pkl``, the one-hot maps and ``data_module.torch``. The weights are then replaced by
seeded random numbers, layer norms included, so that every tensor matters, and the checkpoint is written again by
Lightning; that of ``trained`` keeps the optimiser's state. ``expected.npz`` holds control cells, perturbations and
batches, and what arc-state's own ``predict_step`` makes of them, in float32 on the CPU: ``preds``, and where there are
such, ``genes`` (of the gene decoder) and ``confidence``.

The form ``gpt2`` needs transformers 4.52.4: with 5.23 arc-state's GPT-2 stops at ``block.attn.bias``, which is no
longer there. Its numbers are those of eager attention, where every cell attends to every other, as arc-state means it.
Under SDPA, the default of transformers 4.52.4, and with 4.57.1 in any case, a cell attends only to those before it, and
its result depends on the order of cells. All other forms were made with 5.23.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import lightning
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from state.__main__ import load_hydra_config
from state._cli import run_tx_train
from state.tx.models.state_transition import StateTransitionPerturbationModel

N_GENES, N_HVG, N_STATE = 30, 12, 16
HIDDEN, HEADS, SET = 16, 2, 4
BACKBONE = "model.kwargs.transformer_backbone_kwargs."
LLAMA = [
    f"{BACKBONE}hidden_size={HIDDEN}",
    f"{BACKBONE}intermediate_size=16",
    f"{BACKBONE}num_hidden_layers=2",
    f"{BACKBONE}num_attention_heads={HEADS}",
    f"{BACKBONE}num_key_value_heads={HEADS}",
    f"{BACKBONE}head_dim=6",  # not hidden / heads
    f"+{BACKBONE}vocab_size=8",  # of a table that is never read: 32,000 rows of zeros otherwise
    "model.kwargs.n_encoder_layers=2",
    "model.kwargs.n_decoder_layers=3",
    "+model.kwargs.decoder_hidden_dims=[12,10]",
]
HVG = ["data.kwargs.embed_key=X_hvg", "data.kwargs.output_space=gene"]
STATE = ["data.kwargs.embed_key=X_state"]
FORMS = {
    "trained": ["model=state", *LLAMA, *HVG],
    "bare_basal": [
        *("model=state_sm", *LLAMA, *HVG, "model.kwargs.n_encoder_layers=4", "model.kwargs.n_decoder_layers=1"),
        *("model.kwargs.lora.enable=true", "model.kwargs.lora.r=3"),
    ],
    "decoder": ["model=tahoe_best", *LLAMA, *STATE, "data.kwargs.output_space=gene", "model.kwargs.n_encoder_layers=1"],
    "residual_decoder": [
        *("model=state", *LLAMA, *STATE, "data.kwargs.output_space=all", "model.kwargs.residual_decoder=true"),
        "model.kwargs.decoder_hidden_dims=[12,12,12,12]",
    ],
    "embedding": [
        *("model=state", *LLAMA, *STATE, "data.kwargs.output_space=embedding", "model.kwargs.predict_residual=false"),
        "+model.kwargs.activation=leakyrelu",
    ],
    "raw": ["model=state", *LLAMA, "data.kwargs.embed_key=null", "data.kwargs.output_space=all"],
    "batch_encoder": ["model=state", *LLAMA, *HVG, "model.kwargs.batch_encoder=true"],
    "tokens": [
        *("model=state", *LLAMA, *HVG, "model.kwargs.use_batch_token=true", "model.kwargs.confidence_token=true"),
        "data.kwargs.basal_mapping_strategy=batch",
    ],
    "gpt2": [
        *("model=pertsets", *HVG, f"{BACKBONE}n_layer=2", f"{BACKBONE}n_head={HEADS}", f"+{BACKBONE}vocab_size=8"),
        *(
            "model.kwargs.n_encoder_layers=2",
            "model.kwargs.n_decoder_layers=1",
            "model.kwargs.decoder_hidden_dims=[12,10]",
        ),
        *("+model.kwargs.lora.enable=true", "+model.kwargs.lora.r=3"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("forms", nargs="*", metavar="FORM", default=[form for form in FORMS if form != "gpt2"])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        toml = write_cells(Path(scratch))
        for seed, form in enumerate(FORMS):
            if form in arguments.forms:
                write_form(arguments.out / form, toml, Path(scratch) / "runs", seed=seed)
                sys.stdout.write(f"{arguments.out / form}\n")


def write_cells(folder: Path) -> Path:
    """Simulate cells of two types under three perturbations and a control, and say to arc-state which train."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        [
            (f"type{t}", pert, f"batch{b}")
            for t in range(2)
            for pert in ("non-targeting", "TP53", "IFNG", "MYC+KRAS")
            for b in range(3)
            for _ in range(6)
        ],
        columns=["cell_type", "gene", "gem_group"],
    ).astype("category")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(
        {"gene_name": [f"GENE{i}" for i in range(N_GENES)]}, index=[f"ENSG{i:011}" for i in range(N_GENES)]
    )
    var["highly_variable"] = np.arange(N_GENES) % 5 < 2  # 12 of 30
    x = np.log1p(rng.poisson(1.0, (len(obs), N_GENES))).astype(np.float32)
    cells = ad.AnnData(sp.csr_matrix(x), obs=obs, var=var)
    cells.obsm["X_hvg"] = x[:, var["highly_variable"]]
    cells.obsm["X_state"] = rng.normal(size=(len(obs), N_STATE)).astype(np.float32)
    (folder / "cells").mkdir()
    cells.write_h5ad(folder / "cells" / "simulated.h5ad")
    toml = folder / "split.toml"
    toml.write_text(
        f'[datasets]\nsimulated = "{folder / "cells"}"\n\n[training]\nsimulated = "train"\n\n'
        '[fewshot]\n\n[fewshot."simulated.type1"]\nval = ["TP53"]\ntest = ["IFNG"]\n'
    )
    return toml


def write_form(folder: Path, toml: Path, runs: Path, *, seed: int) -> None:
    """Have arc-state train for a step, replace the weights, and keep what arc-state predicts with them."""
    overrides = [
        *FORMS[folder.name],
        *(f"data.kwargs.toml_config_path={toml}", "data.kwargs.num_workers=0", "data.kwargs.pin_memory=false"),
        *("data.kwargs.control_pert=non-targeting", f"model.kwargs.cell_set_len={SET}"),
        *(f"model.kwargs.hidden_dim={HIDDEN}", "training.max_steps=1", "training.val_freq=1", "training.batch_size=2"),
        *("use_wandb=false", f"output_dir={runs}", f"name={folder.name}"),
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_tx_train(load_hydra_config("tx", overrides))
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.yaml", "var_dims.pkl", "pert_onehot_map.pt", "data_module.torch"):
            shutil.copy(runs / folder.name / name, folder)
        for name in ("cell_type_onehot_map.torch", "batch_onehot_map.torch"):
            shutil.copy(runs / folder.name / name, folder)
        (folder / "checkpoints").mkdir(exist_ok=True)
        replace_weights(
            runs / folder.name / "checkpoints" / "last.ckpt", folder / "checkpoints" / "final.ckpt", seed=seed
        )
        write_expected(folder, seed=seed)
    machine = str(toml.parent)
    config, module = folder / "config.yaml", folder / "data_module.torch"
    config.write_text(config.read_text().replace(machine, "/scratch"))
    torch.save(without(machine, torch.load(module, weights_only=False)), module)


def replace_weights(trained: Path, path: Path, *, seed: int) -> None:
    """Write the checkpoint again with random weights; all but one form without the optimiser's state."""
    checkpoint = torch.load(trained, map_location="cpu", weights_only=False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in checkpoint["state_dict"].items():
        if "wte" in name or "wpe" in name or "embed_tokens" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        tensor.copy_(
            1 + 0.2 * noise if is_norm else noise * (0.3 if tensor.ndim < 2 else 1.2 / tensor.shape[-1] ** 0.5)
        )
        if name == "confidence_token.confidence_projection.8.bias":
            tensor.fill_(2.0)  # past the ReLU
    if path.parent.parent.name == "trained":
        checkpoint["callbacks"] = without(str(trained.parents[3]), checkpoint["callbacks"])
        torch.save(checkpoint, path)
        return
    model = StateTransitionPerturbationModel(**checkpoint["hyper_parameters"])
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)


def write_expected(folder: Path, *, seed: int) -> None:
    """Load the folder as arc-state's ``tx infer`` does and keep what it predicts for two perturbations."""
    model = StateTransitionPerturbationModel.load_from_checkpoint(
        folder / "checkpoints" / "final.ckpt", map_location="cpu", weights_only=False
    ).eval()
    onehot = torch.load(folder / "pert_onehot_map.pt", weights_only=False)
    rng = np.random.default_rng(seed)
    kept = {}
    is_gpt2 = model.transformer_backbone_key == "GPT2"
    if is_gpt2:
        model.transformer_backbone.base_model.model.config._attn_implementation = "eager"
    # arc-state's GPT-2 reads no more cells than it has positions.
    for i, (pert, n_cells) in enumerate((("TP53", SET), ("MYC+KRAS", 3 if is_gpt2 else 7))):
        control = np.log1p(rng.poisson(1.0, (n_cells, model.input_dim))).astype(np.float32)
        if folder.name in ("decoder", "residual_decoder", "embedding"):
            control = rng.normal(size=control.shape).astype(np.float32)
        batches = rng.integers(0, 3, n_cells)
        batch = {
            "ctrl_cell_emb": torch.from_numpy(control),
            "pert_emb": onehot[pert].float()[None].repeat(n_cells, 1),
            "pert_name": [pert] * n_cells,
            "batch": torch.from_numpy(batches),
        }
        with torch.no_grad():
            out = model.predict_step(batch, 0, padded=False)
        kept |= {f"pert_{i}": np.asarray(pert), f"control_{i}": control, f"batch_{i}": batches}
        for ours, theirs in (
            ("preds", "preds"),
            ("genes", "pert_cell_counts_preds"),
            ("confidence", "confidence_pred"),
        ):
            if out.get(theirs) is not None:
                kept[f"{ours}_{i}"] = out[theirs].numpy()
    np.savez_compressed(folder / "expected.npz", **kept)


def without(machine: str, value: object) -> object:
    """Replace the path of the scratch folder wherever it stands."""
    if isinstance(value, str):
        return value.replace(machine, "/scratch")
    if isinstance(value, dict):
        return type(value)((without(machine, key), without(machine, item)) for key, item in value.items())
    return [without(machine, item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
