"""Scores of the embeddings in an AnnData, each beside a PCA of the same cells: `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data import Registry
from scstate_lora.data.fields import obs_column
from scstate_lora.data.results import EVALUATE, write_result
from scstate_lora.metrics import (
    Score,
    categorical_probe,
    continuous_probe,
    in_large_class,
    knn_accuracy,
    majority_share,
)
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.integration import BATCH, BIO, INTEGRATION, TOTAL
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.embedded import (
    embedding_keys,
    embedding_matrices,
    labels_with_missing,
    may_miss,
    probe_target,
    scored_cells,
)
from scstate_lora.tl.integration_scores import IntegrationColumns, score_integration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_N_FOLDS = 5
_KNN, _PROBES = "knn_accuracy", ("probe_accuracy", "probe_r2")
_QUICK = (_KNN, *_PROBES)
_SCIB = (*INTEGRATION, BIO, BATCH, TOTAL)
_GROUPS = {"quick": _QUICK, "scib": _SCIB, "all": (*_QUICK, *_SCIB)}


def evaluate(
    adata: AnnData,
    embeddings: str | Sequence[str] | None = None,
    *,
    metrics: str | Sequence[str] = "quick",
    label_key: str | None = None,
    batch_key: str | None = None,
    covariate_keys: str | Sequence[str] | None = None,
    cells: np.ndarray | None = None,
    n_pcs: int = 50,
    n_neighbors: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Score every embedding beside a PCA of log1p expression, and every score beside that of ignoring the embedding.

    The quick metrics:

    * ``knn_accuracy``: held-out accuracy of the cell type by vote of the nearest neighbours, 5 stratified folds;
      baseline the share of the commonest type.
    * ``probe_accuracy``: cross-validated logistic regression of a categorical covariate; baseline the commonest level.
    * ``probe_r2``: cross-validated ridge regression of a continuous covariate; baseline the mean, 0.

    The metrics of scIB :cite:p:`luecken2022`, with the values of scib-metrics, all from 0 to 1 where 1 is best:

    * cell types kept apart: ``isolated_labels``, ``nmi_kmeans`` and ``ari_kmeans`` (k-means clusters, as many as
      types), ``silhouette_label``, ``clisi``; their mean is ``bio_conservation``;
    * batches mixed: ``bras``, ``ilisi``, ``kbet``, ``graph_connectivity``, ``pcr_comparison`` (against the PCA); their
      mean is ``batch_correction``;
    * ``scib_total``, 0.6 and 0.4 of the two means of raw values; and ``silhouette_batch``, which BRAS replaces in them.

    The model behind ``X_scstate_lora`` is conditioned on the covariates of every cell, so its probe of a covariate is
    high by construction: it shows that the condition can be read from the embedding, not that the expression predicts
    it. For that, compare probes of plain embeddings (``X_scstate_base``, PCA). ``X_scstate_st`` comes from sets of
    cells of one context, so it is conditioned on the cell type as well.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`.
    embeddings
        Keys of ``adata.obsm``, whatever wrote them. By default all of ``X_state``, ``X_scstate_base``,
        ``X_scstate_lora`` and ``X_scstate_st`` that exist. The PCA is always added, and not written to `adata`.
    metrics
        ``"quick"``, ``"scib"``, ``"all"`` (both), or names of metrics. Those of scIB load jax and look at all pairs of
        cells: seconds for thousands of cells, minutes for a hundred thousand.
    label_key
        Column of ``adata.obs`` with the cell type; by default the registered one. Cells without a value are left out.
    batch_key
        Column with the batch; by default the registered one. Without a batch, types are scored and mixing is not, and
        all types count as equally isolated.
    covariate_keys
        Columns to probe; by default the registered covariates and the perturbation.
    cells
        Cells to score, a mask of shape ``(n_cells,)``: for instance those that no model was trained on. The PCA is
        always of all cells.
    n_pcs
        Components of the PCA, fewer if there are not as many cells or genes.
    n_neighbors
        Neighbours that vote. The metrics of scIB have neighbour counts of their own: 90 for LISI, 50 for kBET, 15 for
        the connectivity, the cell itself among them.
    seed
        Seed of the folds and the PCA.

    Returns
    -------
    One row per embedding and metric: ``embedding``, ``metric``, ``key`` (the column of obs), ``value``, ``baseline``
    (NaN for those of scIB), ``direction`` (``"higher"`` is better), ``lowest`` and ``highest`` possible value,
    ``n_cells`` that were scored, ``reason``: why a value is NaN, or which cells were left out, else empty.

    Adds ``adata.uns["scstate_lora"]["evaluate"]``, the same table.

    Raises
    ------
    KeyError
        If `adata` was not set up, or a key is not in ``adata.obsm`` or ``adata.obs``.
    ValueError
        If there is nothing to score, `cells` is not one bool per cell, or a metric is unknown or lacks its column.
    """
    registry = Registry.from_adata(adata)
    names = embedding_keys(adata, embeddings)
    label_key = registry.cell_type_key if label_key is None else label_key
    batch_key = registry.batch_key if batch_key is None else batch_key
    chosen = _chosen_metrics(metrics, label_key=label_key, batch_key=batch_key)
    probed = _covariate_keys(registry, covariate_keys) if set(_PROBES) & set(chosen) else []
    if not probed and not set(chosen) - set(_PROBES):
        msg = (
            "Nothing can be scored: no cell type and no covariate is registered. "
            "Give label_key= or covariate_keys=, columns of adata.obs."
        )
        raise ValueError(msg)
    for key in probed:  # all keys are checked before any work is done
        obs_column(adata, key, allow_missing=may_miss(registry, key))
    for grouping in (label_key, batch_key):
        if grouping is not None:
            obs_column(adata, grouping, allow_missing=True)

    mask = scored_cells(adata, cells)
    matrices = embedding_matrices(adata, names, n_pcs=n_pcs, seed=seed)
    scored = adata[mask]
    labels = None if label_key is None else labels_with_missing(scored, label_key)
    columns = None
    if label_key is not None and labels is not None and set(_SCIB) & set(chosen):
        batches = None if batch_key is None else labels_with_missing(scored, batch_key)
        columns = IntegrationColumns(label_key, labels, batch_key, batches)
    rows = []
    for name, matrix in matrices.items():
        x = matrix[mask]
        integration: list[dict[str, object]] = []
        neighbors = None
        if columns is not None:
            integration, neighbors = score_integration(x, columns, chosen, unintegrated=matrices[PCA][mask])
        mine = []
        if _KNN in chosen and label_key is not None and labels is not None:
            mine.append(_score_label(x, label_key, labels, neighbors, n_neighbors=n_neighbors, seed=seed))
        mine += [_score_covariate(scored, x, key, registry=registry, seed=seed) for key in probed]
        rows += [row | {"embedding": name} for row in (*mine, *integration) if row["metric"] in chosen]
    table = pd.DataFrame(rows)
    table = table.join(pd.DataFrame([METRICS[name].columns() for name in table["metric"]]))
    table["n_cells"] = int(mask.sum())
    order = ["embedding", "metric", "key", "value", "baseline", "direction", "lowest", "highest", "n_cells", "reason"]
    table = table[order]
    write_result(adata, EVALUATE, table)
    return table


def _chosen_metrics(metrics: str | Sequence[str], *, label_key: str | None, batch_key: str | None) -> list[str]:
    """Names of the metrics to compute; of a group, those whose columns exist."""
    of_batches = {BATCH, TOTAL, *(name for name, metric in INTEGRATION.items() if metric.is_of_batches)}
    needs = {
        name: [option for option, key, is_needed in (
            ("label_key", label_key, name not in _PROBES),
            ("batch_key", batch_key, name in of_batches),
        ) if is_needed and key is None]
        for name in _GROUPS["all"]
    }  # fmt: skip
    if isinstance(metrics, str) and metrics in _GROUPS:
        return [name for name in _GROUPS[metrics] if not needs[name]]
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in needs:
            msg = f"metrics={name!r} is not known. {did_you_mean(name, [*_GROUPS, *needs])}"
            raise ValueError(msg)
        if needs[name]:
            msg = f"The metric {name!r} needs {' and '.join(needs[name])}=, a column of adata.obs; none is registered."
            raise ValueError(msg)
    return names


def _covariate_keys(registry: Registry, covariate_keys: str | Sequence[str] | None) -> list[str]:
    if isinstance(covariate_keys, str):
        return [covariate_keys]
    if covariate_keys is not None:
        return list(dict.fromkeys(covariate_keys))
    keys = [covariate.name for covariate in registry.covariates]
    return keys if registry.pert_key is None or registry.pert_key in keys else [*keys, registry.pert_key]


def _score_label(
    x: np.ndarray, key: str, labels: np.ndarray, neighbors: np.ndarray | None, *, n_neighbors: int, seed: int
) -> dict[str, object]:
    try:
        score = Score(
            knn_accuracy(x, labels, n_neighbors=n_neighbors, n_folds=_N_FOLDS, seed=seed, neighbors=neighbors),
            majority_share(labels, n_folds=_N_FOLDS),
        )
    except ValueError as error:
        return _row(_KNN, key, Score(np.nan, np.nan), str(error))
    return _row(_KNN, key, score, _left_out(labels))


def _score_covariate(adata: AnnData, x: np.ndarray, key: str, *, registry: Registry, seed: int) -> dict[str, object]:
    metric = "probe_accuracy"
    try:
        target, is_number = probe_target(adata, key, registry)
        if is_number:
            metric = "probe_r2"
            return _row(metric, key, continuous_probe(x, target, n_folds=_N_FOLDS, seed=seed), _missing(target))
        return _row(metric, key, categorical_probe(x, target, n_folds=_N_FOLDS, seed=seed), _left_out(target))
    except (ValueError, np.linalg.LinAlgError) as error:
        return _row(metric, key, Score(np.nan, np.nan), str(error))


def _missing(values: np.ndarray) -> str:
    n_missing = int(pd.isna(values).sum())
    return f"left out: {n_missing} cells without a value" if n_missing else ""


def _left_out(labels: np.ndarray) -> str:
    rare = pd.Series(labels[~in_large_class(labels, n_folds=_N_FOLDS)], dtype=object).value_counts()
    sizes = ", ".join(f"{name} ({size})" for name, size in rare.items())
    too_few = f"left out, fewer than {_N_FOLDS} cells: {sizes}" if sizes else ""
    return "; ".join(filter(None, (_missing(labels), too_few)))


def _row(metric: str, key: str, score: Score, reason: str) -> dict[str, object]:
    return {"metric": metric, "key": key, "value": score.value, "baseline": score.baseline, "reason": reason}
