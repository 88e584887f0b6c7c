"""Write checkpoints in the forms of Arc's state embedding models, with random weights, and arc-state's numbers.

Run it with a Python that has arc-state (0.11.1 made what is in ``tests/data/arc``), which needs nothing of ours::

    path/to/python benchmarks/make_arc_checkpoints.py OUT_DIR [--sizes small|parity|se600m]

``small`` made ``tests/data/arc``: one tiny model per form of checkpoint. ``parity`` makes seven sizes up to 512 wide
and 8 layers deep. ``se600m`` makes one model of the full size of SE-600M: 3 GB on disk, 12 GB of memory, some minutes.

Weights are seeded random numbers, layer norms included, so that every tensor matters; nothing of Arc's is in them.
arc-state itself builds each model, Lightning writes its checkpoint (the trained one after an optimiser step of
arc-state's own training loop), and arc-state's own loader, collator and forward pass give the numbers, in float32 on
the CPU without autocast. See ``expect`` in ``_arc_oracle.py`` for what ``expected.npz`` holds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_model

from _arc_oracle import Cells, Sizes, expect, load_model, make_cells, make_config, make_loader, make_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from state.emb.nn.model import StateEmbeddingModel

GENES = """
TP53 ACTB GAPDH CD3D CD4 CD8A MS4A1 CD19 NKG7 GNLY LYZ CD14 FCGR3A IL7R CCR7 S100A8 S100A9 HLA-DRA HLA-DRB1 CD74 IL2RA
FOXP3 GATA3 TBX21 STAT1 STAT3 IRF1 IFNG TNF IL6 IL10 CXCL8 CCL5 MKI67 TOP2A PCNA CDK1 MYC KRAS EGFR PTEN BRCA1 RB1 VIM
KRT18 EPCAM COL1A1 PECAM1 PTPRC MALAT1 RPL13A RPS6 EEF1A1 MT-CO1 MT-ND1 HBB ALB SOX2 NANOG C1orf43
""".split()

TINY = Sizes(token_dim=24, d_model=16, n_layers=1, n_heads=2, d_hid=16, output_dim=8, n_tokens=20, n_genes=len(GENES))
WIDER = replace(TINY, d_model=32, n_layers=2, n_heads=4, d_hid=48, output_dim=16)

PARITY = {
    "d64_l1_h2": Sizes(96, 64, 1, 2, 64, 32, 32, 400),
    "d64_l2_h16_plain": Sizes(96, 64, 2, 16, 128, 64, 64, 400, dataset_correction=False),
    "d128_l3_h8": Sizes(128, 128, 3, 8, 256, 128, 256, 400),
    "d128_l4_h4_no_rda": Sizes(128, 128, 4, 4, 128, 64, 200, 400, dataset_correction=False, rda=False),
    "d256_l6_h16": Sizes(320, 256, 6, 16, 256, 128, 256, 400),
    "d512_l8_h16": Sizes(640, 512, 8, 16, 1024, 512, 256, 400),
    "d512_l2_h8_no_counts": Sizes(640, 512, 2, 8, 512, 256, 128, 400, counts=False),
}

SE600M = Sizes(5120, 2048, 16, 16, 2048, 2048, 2048, 19_790, n_datasets=14_420)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--sizes", choices=("small", "parity", "se600m"), default="small")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    {"small": write_small, "parity": write_parity, "se600m": write_se600m}[arguments.sizes](arguments.out)


def write_small(out: Path) -> None:
    """Write one folder for each form of checkpoint."""
    proteins = make_protein_embeddings(GENES, TINY, seed=0)
    cells = small_cells(TINY, GENES, n_cells=6)

    folder, cfg = start(out / "folder", TINY)
    models = {epoch: make_model(cfg, TINY, seed=epoch) for epoch in (4, 16)}
    for epoch, model in models.items():
        path = folder / f"se_tiny_epoch{epoch}.ckpt"
        save_checkpoint(model, path, snapshot=epoch == 16)
        write_expected(path, cfg, TINY, cells, proteins, name="expected" if epoch == 16 else "expected_epoch4")
    save_model(models[16], folder / "model.safetensors")
    OmegaConf.save(cfg, folder / "config.yaml")
    torch.save(proteins, folder / "protein_embeddings.pt")

    folder, cfg = start(out / "ckpt_embedded", WIDER)
    model = make_model(cfg, WIDER, seed=1)
    model.protein_embeds = proteins
    save_checkpoint(model, folder / "model.ckpt")
    write_expected(folder / "model.ckpt", cfg, WIDER, cells, proteins)

    folder, cfg = start(out / "ckpt_bare", TINY)
    save_checkpoint(make_model(cfg, TINY, seed=2), folder / "model.ckpt", snapshot=False)
    torch.save(proteins, folder / "protein_embeddings.pt", _use_new_zipfile_serialization=False)
    write_expected(folder / "model.ckpt", cfg, TINY, cells, proteins)

    sizes = replace(TINY, d_hid=40)
    folder, cfg = start(out / "safetensors", sizes)
    model = make_model(cfg, sizes, seed=3)
    save_model(model, folder / "model.safetensors")
    OmegaConf.save(cfg, folder / "config.yaml")
    torch.save(proteins, folder / "protein_embeddings.pt")
    with tempfile.TemporaryDirectory() as scratch:
        save_checkpoint(model, Path(scratch) / "model.ckpt")
        write_expected(Path(scratch) / "model.ckpt", cfg, sizes, cells, proteins, folder=folder)

    folder, cfg = start(out / "ckpt_trained", TINY)
    save_trained_checkpoint(folder / "model.ckpt", cfg, TINY, cells["free"], proteins)
    write_expected(folder / "model.ckpt", cfg, TINY, cells, proteins)

    switched = {
        "compiled": TINY,
        "no_dataset": replace(TINY, dataset_correction=False),
        "no_rda": replace(TINY, rda=False),
        "no_counts": replace(TINY, counts=False),
    }
    for seed, (form, sizes) in enumerate(switched.items(), start=5):
        write_embedded(out / form, sizes, cells, proteins, seed=seed, compiled=form == "compiled")


def write_parity(out: Path) -> None:
    """Write some sizes of model as lone checkpoints, with eight cells each."""
    for seed, (name, sizes) in enumerate(PARITY.items(), start=100):
        vocabulary = [f"GENE{i}" for i in np.random.default_rng(seed).permutation(sizes.n_genes)]
        proteins = make_protein_embeddings(vocabulary, sizes, seed=seed)
        write_embedded(out / name, sizes, small_cells(sizes, vocabulary, n_cells=8), proteins, seed=seed)


def write_se600m(out: Path) -> None:
    """Write one checkpoint of the full size, its protein embeddings beside it, and two cells."""
    folder, cfg = start(out, SE600M, name="se600m")
    vocabulary = [f"GENE{i}" for i in np.random.default_rng(0).permutation(SE600M.n_genes)]
    proteins = make_protein_embeddings(vocabulary, SE600M, seed=0)
    torch.save(proteins, folder / "protein_embeddings.pt")
    OmegaConf.save(cfg, folder / "config.yaml")
    save_checkpoint(make_model(cfg, SE600M, seed=0), folder / "se600m_epoch16.ckpt")
    cells = {
        "exact": make_cells(vocabulary, n_cells=2, n_kept=SE600M.n_tokens - 1, kind="counts", seed=0),
        "free": make_cells(vocabulary, n_cells=2, n_kept=18_000, kind="counts", seed=1),
    }
    write_expected(folder / "se600m_epoch16.ckpt", cfg, SE600M, cells, proteins)


def small_cells(sizes: Sizes, vocabulary: list[str], *, n_cells: int) -> dict[str, Cells]:
    """Return the tables of cells that every small model is tried on."""
    full, more, few = sizes.n_tokens - 1, int(0.75 * sizes.n_genes), sizes.n_tokens // 2
    plan = {"exact": (full, "counts"), "free": (more, "counts"), "few": (few, "counts")}
    plan |= {"low": (full, "low"), "log": (full, "log")}
    return {
        name: make_cells(vocabulary, n_cells=n_cells, n_kept=n_kept, kind=kind, seed=seed)
        for seed, (name, (n_kept, kind)) in enumerate(plan.items())
    }


def make_protein_embeddings(vocabulary: list[str], sizes: Sizes, *, seed: int) -> dict[str, torch.Tensor]:
    """Return gene to random vector, each in a storage of its own, about as long as those of ESM2."""
    generator = torch.Generator().manual_seed(seed)
    return {gene: 0.2 * torch.randn(sizes.token_dim, generator=generator) for gene in vocabulary}


def start(folder: Path, sizes: Sizes, *, name: str = "tiny") -> tuple[Path, DictConfig]:
    """Make the folder and the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder, make_config(sizes, name=name, task_genes=512 if name == "se600m" else 4)


def write_embedded(
    folder: Path,
    sizes: Sizes,
    cells: Mapping[str, Cells],
    proteins: Mapping[str, torch.Tensor],
    *,
    seed: int,
    compiled: bool = False,
) -> None:
    """Write a lone checkpoint that holds everything, and what to expect of it."""
    folder, cfg = start(folder, sizes)
    model = make_model(cfg, sizes, seed=seed, compiled=compiled)
    model.protein_embeds = dict(proteins)
    save_checkpoint(model, folder / "model.ckpt")
    write_expected(folder / "model.ckpt", cfg, sizes, cells, proteins, compiled=compiled)


def save_checkpoint(model: StateEmbeddingModel, path: Path, *, snapshot: bool = True) -> None:
    """Have Lightning write the checkpoint; without ``snapshot`` as before arc-state put anything in it by itself."""
    if not snapshot:
        model.on_save_checkpoint = lambda checkpoint: None
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


def save_trained_checkpoint(
    path: Path, cfg: DictConfig, sizes: Sizes, cells: Cells, proteins: Mapping[str, torch.Tensor]
) -> None:
    """Take one optimiser step as arc-state trains, with what its training leaves in a checkpoint.

    That is: the protein embeddings once more, as ``pe_embedding.weight``; the state of the optimiser, of its schedules
    and of callbacks; and, among the hyperparameters, the object that put the training batches together.
    """
    loader = make_loader(cfg, cells, proteins)
    loader = torch.utils.data.DataLoader(loader.dataset, batch_size=3, collate_fn=loader.collate_fn)
    model = make_model(cfg, sizes, seed=4, collater=loader.collate_fn)
    model.pe_embedding = torch.nn.Embedding.from_pretrained(torch.vstack(list(proteins.values())))
    model.protein_embeds = dict(proteins)
    with tempfile.TemporaryDirectory() as scratch:
        keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=scratch, save_last=True)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            callbacks=[keep],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader)
        trainer.save_checkpoint(path)


def write_expected(
    checkpoint: Path,
    cfg: DictConfig,
    sizes: Sizes,
    cells: Mapping[str, Cells],
    proteins: Mapping[str, torch.Tensor],
    *,
    name: str = "expected",
    folder: Path | None = None,
    compiled: bool = False,
) -> None:
    """Load the checkpoint as arc-state does and keep what it makes of the cells."""
    with torch.compiler.set_stance("force_eager"):
        model = load_model(checkpoint, cfg, proteins, compiled=compiled)
        expected = expect(model, cfg, sizes, cells, proteins, seed=0)
    np.savez_compressed((folder or checkpoint.parent) / f"{name}.npz", **expected)
    sys.stdout.write(f"{checkpoint}\n")


if __name__ == "__main__":
    main()
