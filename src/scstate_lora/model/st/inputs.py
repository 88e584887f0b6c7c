"""What STTransition reads of an AnnData: cells in the model's space, groups of a split, genes, velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy import sparse

from scstate_lora._utils import did_you_mean
from scstate_lora.data.genes import match_genes, take_columns
from scstate_lora.data.sets import make_groups

if TYPE_CHECKING:
    from anndata import AnnData

    from scstate_lora.config import STObjectiveConfig
    from scstate_lora.data.registry import Registry
    from scstate_lora.data.sets import Group


def expression(adata: AnnData, registry: Registry, genes: list[str]) -> sparse.csr_matrix:
    """log1p expression of some registered genes, CSR ``(n_cells, n_genes)``."""
    return take_columns(registry.log_expression(adata), match_genes(registry.var_names, genes))


def choose_genes(adata: AnnData, registry: Registry, rows: np.ndarray, limit: int | None) -> tuple[list[str], str]:
    """Choose the most variable genes of the training cells, and say what was done."""
    names = registry.var_names
    if limit is None or len(names) <= limit:
        return names, f"all {len(names)} genes"
    cells = ad.AnnData(registry.log_expression(adata)[rows], var=pd.DataFrame(index=names))
    threads = torch.get_num_threads()
    sc.pp.highly_variable_genes(cells, n_top_genes=limit)
    torch.set_num_threads(threads)  # scanpy's numba shares torch's thread pool, and resizes it
    chosen = cells.var["highly_variable"].to_numpy()
    note = f"the {chosen.sum()} most variable of {len(names)} genes"
    return [n for n, c in zip(names, chosen, strict=True) if c], note


def choose_set_len(groups: list[Group], asked: int | None) -> tuple[int, str]:
    """Choose the cells of a set by the groups that train, and say why.

    Raises
    ------
    ValueError
        More cells are asked for than any group has.
    """
    sizes = [min(len(g.control), len(g.perturbed)) for g in groups]
    if asked is not None:
        if asked > max(sizes):
            msg = (
                f"cell_set_len={asked}, but the largest context has only {max(sizes)} control and perturbed "
                "training cells. Use at most that many, or leave it out."
            )
            raise ValueError(msg)
        return asked, f"sets of {asked} cells, as asked"
    largest = 256 if torch.cuda.is_available() else 64
    median = int(np.median(sizes))
    length = int(min(largest, max(8, 2 ** int(np.log2(median)))))
    return length, f"sets of {length} cells: the median of {len(groups)} training contexts has {median}"


def split_groups(
    adata: AnnData,
    registry: Registry,
    perts: np.ndarray,
    rows: dict[str, np.ndarray],
    split: str,
    *,
    min_cells: int,
    by_type: bool = False,
) -> list[Group]:
    """Find the groups of a split's perturbed cells; validation ones are predicted from training controls too.

    Parameters
    ----------
    adata, registry
        The data and its registry.
    perts
        Code of every cell's perturbation, as in ``registry.perturbations``.
    rows
        Rows of ``"train"`` and ``"val"``.
    split
        Which of them.
    min_cells
        Groups with fewer control or perturbed cells are left out.
    by_type
        Take the cell type alone as the context, where there is one.
    """
    control = registry.perturbations.index(str(registry.control))
    cells = np.zeros(adata.n_obs, dtype=bool)
    cells[rows[split]] = True
    if split == "val":
        cells[rows["train"][perts[rows["train"]] == control]] = True
    contexts = registry.contexts(adata)
    if by_type and registry.cell_type_key is not None:
        contexts = registry.labels(adata, registry.cell_type_key)
    return make_groups(contexts, perts, control, cells, min_cells=min_cells)


def read_velocity(
    adata: AnnData, registry: Registry, objective: STObjectiveConfig, *, genes: list[str] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """RNA velocity in the space of the model, and its confidence.

    Parameters
    ----------
    adata, registry
        The data and its registry.
    objective
        Names the velocity.
    genes
        Genes of the model, whose velocities are a layer's; None where cells are an embedding, theirs are in obsm.

    Returns
    -------
    float32 ``(n_cells, n_columns)``, of log1p expression or as stored, NaN where unknown; ``(n_cells,)`` from
    ``adata.obs["<key>_confidence"]``, where that exists.

    Raises
    ------
    KeyError
        There is no such layer or key of obsm.
    ValueError
        Its width is not that of the embedding.
    """
    key = str(objective.velocity_key)
    where, stored = ("layers", adata.layers) if genes is not None else ("obsm", adata.obsm)
    if key not in stored:
        msg = (
            f"objective.velocity_key={key!r}: adata.{where}[{key!r}] does not exist. {did_you_mean(key, stored)} "
            "ssl.pp.velocity(adata) computes it."
        )
        raise KeyError(msg)
    values = stored[key]
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)
    if genes is not None:
        columns = match_genes([str(name) for name in _names(adata, registry)], genes)
        # What the layer holds is the change of counts per 10,000; that of their log1p is divided by 1 + s.
        log = expression(adata, registry, genes).toarray()
        values = values[:, columns] / np.exp(log)
        values[:, columns < 0] = np.nan
    elif values.shape[1] != registry.embedding(adata).shape[1]:
        width = registry.embedding(adata).shape[1]
        msg = f"adata.obsm[{key!r}] has {values.shape[1]} columns, the embedding {registry.embed_key!r} {width}."
        raise ValueError(msg)
    confidence = adata.obs.get(f"{key.split('_X_')[0]}_confidence")
    return values, None if confidence is None else confidence.to_numpy(dtype=np.float32)


def _names(adata: AnnData, registry: Registry) -> pd.Index:
    return adata.var_names if registry.gene_key is None else pd.Index(adata.var[registry.gene_key])
