"""Arc's own state embedding models with random weights, and what arc-state makes of some cells with them.

Needs arc-state, which our package neither needs nor copies: the models, the tokens and the numbers all come from it.
Everything runs in float32 on the CPU and without autocast.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from omegaconf import DictConfig, OmegaConf
from state.emb.data.loader import VCIDatasetSentenceCollator, create_dataloader
from state.emb.nn.model import StateEmbeddingModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

READ_DEPTH = 4.0
"""What arc-state asks its expression head for at inference."""


@dataclass(frozen=True)
class Sizes:
    """Sizes and switches of one state embedding model."""

    token_dim: int
    d_model: int
    n_layers: int
    n_heads: int
    d_hid: int
    output_dim: int
    n_tokens: int
    n_genes: int
    n_datasets: int = 3
    dataset_correction: bool = True
    rda: bool = True
    counts: bool = True


@dataclass(frozen=True)
class Cells:
    """A table of cells: values (cells, genes), float32, and the gene names."""

    x: np.ndarray
    genes: np.ndarray


def make_config(sizes: Sizes, *, name: str, task_genes: int = 4) -> DictConfig:
    """Return the part of an arc-state configuration that a model and its loader read.

    As in Arc's files, one value is an interpolation, ``N`` needs quoting in YAML, and the paths lead nowhere.
    """
    return OmegaConf.create(
        {
            "experiment": {"name": "pretrain_${loss.name}_${model.nlayers}", "compiled": False},
            "embeddings": {
                "current": name,
                name: {
                    "all_embeddings": f"/data/{name}/protein_embeddings.pt",
                    "ds_emb_mapping": f"/data/{name}/gene_mapping.torch",
                    "valid_genes_masks": None,
                    "size": sizes.token_dim,
                    "num": sizes.n_genes,
                },
            },
            "dataset": {
                "name": "vci",
                "seed": 42,
                "current": name,
                name: {"ds_type": "h5ad", "train": f"/data/{name}/train.csv", "num_datasets": sizes.n_datasets},
                "pad_length": sizes.n_tokens,
                "pad_token_idx": 0,
                "cls_token_idx": 3,
                "P": task_genes,
                "N": task_genes,
                "S": task_genes,
            },
            "tokenizer": {"token_dim": sizes.token_dim},
            "model": {
                "name": "vci",
                "batch_size": 8,
                "emsize": sizes.d_model,
                "d_hid": sizes.d_hid,
                "nhead": sizes.n_heads,
                "nlayers": sizes.n_layers,
                "dropout": 0.1,
                "output_dim": sizes.output_dim,
                "rda": sizes.rda,
                "counts": sizes.counts,
                "dataset_correction": sizes.dataset_correction,
                "num_downsample": 1,
                "batch_tabular_loss": False,
            },
            "optimizer": {"max_lr": 1e-3, "weight_decay": 0.01, "start": 0.33, "end": 1.0},
            "loss": {"name": "tabular", "apply_normalization": False, "kernel": "energy"},
        }
    )


def make_model(
    cfg: DictConfig, sizes: Sizes, *, seed: int, compiled: bool = False, collater: Any = None
) -> StateEmbeddingModel:
    """Return a model of arc-state's with seeded random weights, none of which is 0 or 1 throughout.

    Attention and count embeddings are made strong, or else all cells would get nearly the same embedding.
    """
    torch.manual_seed(seed)
    model = StateEmbeddingModel(
        token_dim=sizes.token_dim,
        d_model=sizes.d_model,
        nhead=sizes.n_heads,
        d_hid=sizes.d_hid,
        nlayers=sizes.n_layers,
        output_dim=sizes.output_dim,
        dropout=0.1,
        compiled=compiled,
        emb_cnt=sizes.n_genes,
        emb_size=sizes.token_dim,
        cfg=cfg,
        collater=collater,
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(0.2 * torch.randn_like(module.weight))
                module.bias.add_(0.2 * torch.randn_like(module.bias))
        for name, parameter in model.named_parameters():
            if name.endswith("qkv_proj.weight"):
                parameter.mul_(2.0)
            elif name == "count_encoder.2.weight":
                parameter.mul_(3.0)
            elif name == "bin_encoder.weight":
                parameter.mul_(0.5 * sizes.d_model**0.5)
    return model


def load_model(
    path: Path, cfg: DictConfig, protein_embeddings: Mapping[str, torch.Tensor], *, compiled: bool = False
) -> StateEmbeddingModel:
    """Load a checkpoint as arc-state's own inference does, in float32 on the CPU.

    Dropout must be set to 0 here, as arc-state does: its attention drops out in evaluation as well.
    """
    model = StateEmbeddingModel.load_from_checkpoint(
        path, dropout=0.0, strict=False, cfg=cfg, compiled=compiled, weights_only=False, map_location="cpu"
    )
    table = torch.vstack(list(protein_embeddings.values()))
    model.pe_embedding = torch.nn.Embedding.from_pretrained(table)
    model.protein_embeds = dict(protein_embeddings)
    return model.float().eval()


def make_cells(vocabulary: list[str], *, n_cells: int, n_kept: int, kind: str, seed: int, n_unknown: int = 6) -> Cells:
    """Return random cells over genes of the vocabulary, in another order than it, among genes that are not in it.

    Parameters
    ----------
    kind
        ``counts``: raw counts that arc-state takes for such (some cells by their highest count, some by their sum);
        ``low``: raw counts so small that arc-state takes them for log1p values; ``log``: log1p of counts per 10,000.
    """
    rng = np.random.default_rng(seed)
    genes = np.array([*rng.permutation(vocabulary)[:n_kept], *(f"AC{900_000 + i}.1" for i in range(n_unknown))])
    genes = genes[rng.permutation(len(genes))]
    known = np.flatnonzero(np.isin(genes, vocabulary))
    rate = rng.gamma(0.5, 2.0 if kind == "low" else 4.0, size=(n_cells, len(genes)))
    x = rng.poisson(rate).astype(np.float32)
    x[:, known[-2:]] = 0.0  # arc-state draws unexpressed genes where it has too few, so there must be some
    if kind == "low":
        x = np.minimum(x, 12)
    else:
        x[np.arange(n_cells), rng.choice(known[:-2], n_cells)] = rng.integers(36, 200, n_cells)
    if kind == "counts":
        x[0] = np.minimum(x[0], 18)  # below 35, but beyond 5 million when taken for log1p values
        x[-1, known] = 0.0  # nothing that the model knows is expressed
        x[-1, np.flatnonzero(~np.isin(genes, vocabulary))[0]] = 60
    if kind == "log":
        x = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)).astype(np.float32)
    return Cells(x, genes)


def tokenize(
    cfg: DictConfig, cells: Cells, protein_embeddings: Mapping[str, torch.Tensor], *, seed: int
) -> tuple[Any, ...]:
    """Return the batch that arc-state's own loader and collator make of the cells."""
    loader = make_loader(cfg, cells, protein_embeddings)
    torch.manual_seed(seed)
    return loader.collate_fn([loader.dataset[i] for i in range(len(cells.x))])


def make_loader(cfg: DictConfig, cells: Cells, protein_embeddings: Mapping[str, torch.Tensor]) -> Any:
    """Return arc-state's own loader of the cells."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    cfg.model.counts = cfg.model.rda = True  # the collator stops without them; the network then ignores the values
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(cells.x))])
    adata = ad.AnnData(sp.csr_matrix(cells.x), obs=obs, var=pd.DataFrame(index=cells.genes))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many genes it found
        return create_dataloader(
            cfg, adata=adata, adata_name="cells", protein_embeds=dict(protein_embeddings), precision=torch.float32
        )


@torch.no_grad()
def run(model: StateEmbeddingModel, batch: tuple[Any, ...], decoder_genes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (cells, output_dim [+ 10]) and predicted expression (cells, genes), float32.

    arc-state's ``decode_from_adata`` hands the dataset columns to its decoder twice, which then does not fit; here they
    are split off first.
    """
    fields = list(batch)
    if not model.cfg.model.counts:
        fields[7] = None
    _, _, _, cell, dataset = model._compute_embedding_for_batch(fields)
    dataset = model.dataset_embedder(dataset) if dataset is not None else None
    depth = torch.full((len(cell),), READ_DEPTH) if model.cfg.model.rda else None
    merged = StateEmbeddingModel.resize_batch(
        cell, model.get_gene_embedding(decoder_genes), task_counts=depth, ds_emb=dataset
    )
    embedding = cell if dataset is None else torch.cat([cell, dataset], dim=1)
    return embedding.numpy(), model.binary_decoder(merged).squeeze(-1).numpy()


def _taken_for_counts(row: np.ndarray) -> bool:
    """Whether arc-state takes the values of this cell for raw counts."""
    return VCIDatasetSentenceCollator.is_raw_integer_counts(None, torch.from_numpy(row))


def expect(
    model: StateEmbeddingModel,
    cfg: DictConfig,
    sizes: Sizes,
    cells: Mapping[str, Cells],
    protein_embeddings: Mapping[str, torch.Tensor],
    *,
    seed: int,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Return everything that ``expected.npz`` holds, for each table of cells under its own prefix."""
    vocabulary = list(protein_embeddings)
    decoder_genes = vocabulary[1 :: max(1, len(vocabulary) // 8)][:8]
    out: dict[str, np.ndarray] = {key: np.array(value) for key, value in asdict(sizes).items()}
    out |= {"datasets": np.array(list(cells)), "decoder_genes": np.array(decoder_genes)}
    out["read_depth"] = np.array(READ_DEPTH, dtype=np.float32)
    for name, table in cells.items():
        batch = tokenize(cfg, table, protein_embeddings, seed=seed)
        parts = [
            run(model, tuple(None if f is None else f[i : i + batch_size] for f in batch), decoder_genes)
            for i in range(0, len(table.x), batch_size)
        ]
        out |= {
            f"{name}_x": table.x,
            f"{name}_genes": table.genes,
            f"{name}_cells": np.array([f"cell{i}" for i in range(len(table.x))]),
            f"{name}_tokens": batch[0].numpy(),
            f"{name}_values": batch[7].numpy(),
            f"{name}_taken_for_counts": np.array([_taken_for_counts(row) for row in table.x]),
            f"{name}_embedding": np.concatenate([part[0] for part in parts]),
            f"{name}_predictions": np.concatenate([part[1] for part in parts]),
        }
    return out
