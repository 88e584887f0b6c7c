"""Scores of the embeddings in an AnnData, each beside a PCA of the same cells: `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api import types as pdt

from scstate_lora._constants import OBSM_BASE, OBSM_SE, OBSM_ST, OBSM_STATE
from scstate_lora._utils import did_you_mean
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.fields import MAX_NUMERIC_LEVELS, obs_column
from scstate_lora.data.labels import as_labels
from scstate_lora.data.results import EVALUATE, write_result
from scstate_lora.metrics import (
    Score,
    categorical_probe,
    continuous_probe,
    in_large_class,
    knn_accuracy,
    majority_share,
)
from scstate_lora.metrics.components import sparse_pca
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_N_FOLDS = 5


def evaluate(
    adata: AnnData,
    embeddings: str | Sequence[str] | None = None,
    *,
    label_key: str | None = None,
    covariate_keys: str | Sequence[str] | None = None,
    cells: np.ndarray | None = None,
    n_pcs: int = 50,
    n_neighbors: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Score every embedding beside a PCA of log1p expression, and every score beside that of ignoring the embedding.

    * ``knn_accuracy``: held-out accuracy of the cell type by vote of the nearest neighbours, 5 stratified folds;
      baseline the share of the commonest type.
    * ``probe_accuracy``: cross-validated logistic regression of a categorical covariate; baseline the commonest level.
    * ``probe_r2``: cross-validated ridge regression of a continuous covariate; baseline the mean, 0.

    The model behind ``X_scstate_lora`` is conditioned on the covariates of every cell, so its probe of a covariate is
    high by construction: it shows that the condition can be read from the embedding, not that the expression predicts
    it. For that, compare probes of plain embeddings (``X_scstate_base``, PCA). ``X_scstate_st`` comes from sets of
    cells of one context, so it is conditioned on the cell type as well.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`.
    embeddings
        Keys of ``adata.obsm``. By default all of ``X_state``, ``X_scstate_base``, ``X_scstate_lora`` and
        ``X_scstate_st`` that exist. The PCA is always added, and not written to `adata`.
    label_key
        Column of ``adata.obs`` with the cell type; by default the registered one.
    covariate_keys
        Columns to probe; by default the registered covariates and the perturbation.
    cells
        Cells to score, a mask of shape ``(n_cells,)``: for instance those that no model was trained on. The PCA is
        always of all cells.
    n_pcs
        Components of the PCA, fewer if there are not as many cells or genes.
    n_neighbors
        Neighbours that vote.
    seed
        Seed of the folds and the PCA.

    Returns
    -------
    One row per embedding and metric: ``embedding``, ``metric``, ``key`` (the column of obs), ``value``, ``baseline``,
    ``direction`` (``"higher"`` is better), ``lowest`` and ``highest`` possible value, ``n_cells`` that were scored,
    ``reason``: why a value is NaN, or which cells were left out, else empty.

    Adds ``adata.uns["scstate_lora"]["evaluate"]``, the same table.

    Raises
    ------
    KeyError
        If `adata` was not set up, or a key is not in ``adata.obsm`` or ``adata.obs``.
    ValueError
        If there is neither a cell type nor a covariate to score, or `cells` is not one bool per cell.
    """
    registry = Registry.from_adata(adata)
    names = _embedding_keys(adata, embeddings)
    if label_key is None:
        label_key = registry.cell_type_key
    probed = _covariate_keys(registry, covariate_keys)
    if label_key is None and not probed:
        msg = (
            "Nothing can be scored: no cell type and no covariate is registered. "
            "Give label_key= or covariate_keys=, columns of adata.obs."
        )
        raise ValueError(msg)
    for key in probed:  # all keys are checked before any work is done
        obs_column(adata, key, allow_missing=_may_miss(registry, key))
    if label_key is not None:
        obs_column(adata, label_key)

    mask = np.ones(adata.n_obs, dtype=bool) if cells is None else np.asarray(cells)
    if mask.dtype != bool or mask.shape != (adata.n_obs,):
        msg = f"cells must be {adata.n_obs} bools, one per cell; found shape {mask.shape} of {mask.dtype}."
        raise ValueError(msg)

    matrices = {name: _embedding_matrix(adata, name) for name in names}
    matrices[PCA] = _pca(adata, n_pcs=n_pcs, seed=seed)
    scored = adata[mask]
    rows = []
    for name, matrix in matrices.items():
        x = matrix[mask]
        if label_key is not None:
            rows.append(_score_label(scored, x, label_key, n_neighbors=n_neighbors, seed=seed) | {"embedding": name})
        rows += [_score_covariate(scored, x, key, registry=registry, seed=seed) | {"embedding": name} for key in probed]
    table = pd.DataFrame(rows)
    table = table.join(pd.DataFrame([METRICS[name].columns() for name in table["metric"]]))
    table["n_cells"] = int(mask.sum())
    columns = ["embedding", "metric", "key", "value", "baseline", "direction", "lowest", "highest", "n_cells", "reason"]
    table = table[columns]
    write_result(adata, EVALUATE, table)
    return table


def _embedding_keys(adata: AnnData, embeddings: str | Sequence[str] | None) -> list[str]:
    if embeddings is None:
        return [key for key in (OBSM_STATE, OBSM_BASE, OBSM_SE, OBSM_ST) if key in adata.obsm]
    names = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    for name in names:
        if name != PCA and name not in adata.obsm:
            msg = f"adata.obsm[{name!r}] does not exist. {did_you_mean(name, adata.obsm.keys())}"
            raise KeyError(msg)
    return [name for name in dict.fromkeys(names) if name != PCA]


def _covariate_keys(registry: Registry, covariate_keys: str | Sequence[str] | None) -> list[str]:
    if isinstance(covariate_keys, str):
        return [covariate_keys]
    if covariate_keys is not None:
        return list(dict.fromkeys(covariate_keys))
    keys = [covariate.name for covariate in registry.covariates]
    return keys if registry.pert_key is None or registry.pert_key in keys else [*keys, registry.pert_key]


def _embedding_matrix(adata: AnnData, name: str) -> np.ndarray:
    stored = adata.obsm[name]
    return stored.toarray() if hasattr(stored, "toarray") else np.asarray(stored)


def _pca(adata: AnnData, *, n_pcs: int, seed: int) -> np.ndarray:
    """Coordinates on the first components of the centred log1p expression, ``(n_cells, n_components)``."""
    expression = log_expression(adata)
    if min(expression.shape) < 2:
        return np.zeros((adata.n_obs, 1), dtype=np.float32)  # one cell or one gene has no principal direction
    return sparse_pca(expression.shape, n_pcs, seed=seed).fit_transform(expression)


def _score_label(adata: AnnData, x: np.ndarray, key: str, *, n_neighbors: int, seed: int) -> dict[str, object]:
    labels = as_labels(obs_column(adata, key)).to_numpy(dtype=object)
    try:
        score = Score(
            knn_accuracy(x, labels, n_neighbors=n_neighbors, n_folds=_N_FOLDS, seed=seed),
            majority_share(labels, n_folds=_N_FOLDS),
        )
    except ValueError as error:
        return _row("knn_accuracy", key, Score(np.nan, np.nan), str(error))
    return _row("knn_accuracy", key, score, _left_out(labels))


def _score_covariate(adata: AnnData, x: np.ndarray, key: str, *, registry: Registry, seed: int) -> dict[str, object]:
    column = obs_column(adata, key, allow_missing=_may_miss(registry, key))
    has_value = column.notna().to_numpy()
    column, x = column[has_value], x[has_value]
    without = "" if has_value.all() else f"left out: {(~has_value).sum()} cells without a value"
    if _is_continuous(column, registry):
        try:
            values = pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64)
            return _row("probe_r2", key, continuous_probe(x, values, n_folds=_N_FOLDS, seed=seed), without)
        except (ValueError, np.linalg.LinAlgError) as error:
            return _row("probe_r2", key, Score(np.nan, np.nan), str(error))
    labels = as_labels(column, lambda value: registry.level_of(key, value)).to_numpy(dtype=object)
    try:
        score = categorical_probe(x, labels, n_folds=_N_FOLDS, seed=seed)
        return _row("probe_accuracy", key, score, "; ".join(filter(None, (without, _left_out(labels)))))
    except (ValueError, np.linalg.LinAlgError) as error:
        return _row("probe_accuracy", key, Score(np.nan, np.nan), str(error))


def _may_miss(registry: Registry, key: str) -> bool:
    return any(c.name == key and c.allow_missing for c in registry.covariates)


def _is_continuous(column: pd.Series, registry: Registry) -> bool:
    for covariate in registry.covariates:
        if covariate.name == column.name:
            return covariate.kind == "continuous"
    return pdt.is_numeric_dtype(column) and not pdt.is_bool_dtype(column) and column.nunique() > MAX_NUMERIC_LEVELS


def _left_out(labels: np.ndarray) -> str:
    rare = pd.Series(labels[~in_large_class(labels, n_folds=_N_FOLDS)]).value_counts()
    if rare.empty:
        return ""
    sizes = ", ".join(f"{name} ({size})" for name, size in rare.items())
    return f"left out, fewer than {_N_FOLDS} cells: {sizes}"


def _row(metric: str, key: str, score: Score, reason: str) -> dict[str, object]:
    return {"metric": metric, "key": key, "value": score.value, "baseline": score.baseline, "reason": reason}
