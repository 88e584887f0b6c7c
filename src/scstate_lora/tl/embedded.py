"""Embeddings and columns that scores of embeddings read: any matrix of ``obsm``, and a PCA of the same cells beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api import types as pdt

from scstate_lora._constants import OBSM_BASE, OBSM_SE, OBSM_ST, OBSM_STATE
from scstate_lora._utils import did_you_mean
from scstate_lora.data import log_expression
from scstate_lora.data.fields import MAX_NUMERIC_LEVELS, obs_column
from scstate_lora.data.labels import as_labels
from scstate_lora.metrics.components import sparse_pca
from scstate_lora.metrics.embedding import PCA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry


def embedding_keys(adata: AnnData, embeddings: str | Sequence[str] | None) -> list[str]:
    """Return keys of ``adata.obsm`` that exist: those given, or the package's own; never the PCA.

    Raises
    ------
    KeyError
        If a key does not exist; the message suggests similar ones.
    """
    if embeddings is None:
        return [key for key in (OBSM_STATE, OBSM_BASE, OBSM_SE, OBSM_ST) if key in adata.obsm]
    names = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    for name in names:
        if name != PCA and name not in adata.obsm:
            msg = f"adata.obsm[{name!r}] does not exist. {did_you_mean(name, adata.obsm.keys())}"
            raise KeyError(msg)
    return [name for name in dict.fromkeys(names) if name != PCA]


def embedding_matrices(adata: AnnData, names: Sequence[str], *, n_pcs: int, seed: int) -> dict[str, np.ndarray]:
    """Return embeddings by name, ``(n_cells, n_dims)`` each, the PCA of log1p expression last."""
    matrices = {}
    for name in names:
        stored = adata.obsm[name]
        matrices[name] = stored.toarray() if hasattr(stored, "toarray") else np.asarray(stored)
    return matrices | {PCA: _pca(adata, n_pcs=n_pcs, seed=seed)}


def scored_cells(adata: AnnData, cells: np.ndarray | None) -> np.ndarray:
    """Return the mask ``(n_cells,)`` of the cells to score, all by default.

    Raises
    ------
    ValueError
        If `cells` is not one bool per cell.
    """
    mask = np.ones(adata.n_obs, dtype=bool) if cells is None else np.asarray(cells)
    if mask.dtype != bool or mask.shape != (adata.n_obs,):
        msg = f"cells must be {adata.n_obs} bools, one per cell; found shape {mask.shape} of {mask.dtype}."
        raise ValueError(msg)
    return mask


def probe_target(adata: AnnData, key: str, registry: Registry) -> tuple[np.ndarray, bool]:
    """Return what a probe predicts, ``(n_cells,)``: numbers with NaN or labels with None where missing, and which."""
    column = obs_column(adata, key, allow_missing=may_miss(registry, key))
    if is_continuous(column, registry):
        return pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64), True
    labels = as_labels(column, lambda value: registry.level_of(key, value))
    return labels.where(column.notna(), None).to_numpy(dtype=object), False


def may_miss(registry: Registry, key: str) -> bool:
    """Whether a covariate was declared to have missing values."""
    return any(c.name == key and c.allow_missing for c in registry.covariates)


def is_continuous(column: pd.Series, registry: Registry) -> bool:
    """Whether a column holds numbers to regress on: as registered, else if it has many different ones."""
    for covariate in registry.covariates:
        if covariate.name == column.name:
            return covariate.kind == "continuous"
    return pdt.is_numeric_dtype(column) and not pdt.is_bool_dtype(column) and column.nunique() > MAX_NUMERIC_LEVELS


def labels_with_missing(adata: AnnData, key: str) -> np.ndarray:
    """Return a column as labels ``(n_cells,)``, None where the value is missing."""
    column = obs_column(adata, key, allow_missing=True)
    return as_labels(column).where(column.notna(), None).to_numpy(dtype=object)


def _pca(adata: AnnData, *, n_pcs: int, seed: int) -> np.ndarray:
    """Coordinates on the first components of the centred log1p expression, ``(n_cells, n_components)``."""
    expression = log_expression(adata)
    if min(expression.shape) < 2:
        return np.zeros((adata.n_obs, 1), dtype=np.float32)  # one cell or one gene has no principal direction
    return sparse_pca(expression, n_pcs, seed=seed).transform(expression)
