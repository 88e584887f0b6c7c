"""Whether an embedding follows time within cell types: `temporal_coherence`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data import Registry
from scstate_lora.data.fields import obs_column
from scstate_lora.data.results import TEMPORAL_COHERENCE, write_result
from scstate_lora.metrics.embedding import checked_embedding
from scstate_lora.metrics.registry import METRICS
from scstate_lora.metrics.temporal import TEMPORAL, TemporalScore, temporal_score, time_distances
from scstate_lora.tl.embedded import embedding_keys, embedding_matrices, labels_with_missing, scored_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_ALL = "all"
_COLUMNS = [
    *("embedding", "metric", "key", "cell_type", "value", "baseline", "p_value"),
    *("direction", "lowest", "highest", "n_cells", "n_times", "reason"),
]


def temporal_coherence(
    adata: AnnData,
    embeddings: str | Sequence[str] | None = None,
    *,
    time_key: str,
    label_key: str | None = None,
    cells: np.ndarray | None = None,
    min_cells: int = 10,
    n_permutations: int = 1000,
    n_pcs: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Score whether the cells of a type move through an embedding in the order of time, beside a PCA.

    From the distances between the mean cells of all times of a type, without what the noise of few cells adds:

    * ``gap_correlation``: rank correlation of the distance between two times with the gap between them;
    * ``monotonicity``: share of all threes of times whose first and last are the farthest apart;
    * ``smoothness``: distance from the first to the last time over the way through all times. A response that rises and
      ends has a low one in the best of embeddings: compare embeddings, not experiments.

    The baseline is the mean score when times change places as wholes: times that merely differ, as batches do, do not
    exceed it. Few times allow few orders, and of evenly spaced ones the reverse scores alike: ``p_value`` is 1/3 at
    least of three times, 1/60 of five.

    An embedding conditioned on the time (``X_scstate_lora``) follows it by construction.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`.
    embeddings
        Keys of ``adata.obsm``, as in :func:`evaluate`. The PCA is always added.
    time_key
        Column of ``adata.obs`` with numbers, or with ordered categories, which then count as equally spaced unless they
        are numbers written as text.
    label_key
        Column with the cell type; by default the registered one. Cells without a value are left out.
    cells
        Cells to score, a mask of shape ``(n_cells,)``; all by default.
    min_cells
        Cells that a time of a type needs to count.
    n_permutations
        Orders of the times to draw where there are more.
    n_pcs
        Components of the PCA.
    seed
        Seed of the orders and the PCA.

    Returns
    -------
    One row per embedding, metric and cell type, and one for their average (``cell_type`` ``"all"``): ``embedding``,
    ``metric``, ``key`` (the column of time), ``cell_type``, ``value``, ``baseline``, ``p_value`` (share of orders that
    score at least as high), ``direction``, ``lowest`` and ``highest`` possible value, ``n_cells``, ``n_times``, and
    ``reason``: why a value is NaN, or which cells were left out, else empty.

    Adds ``adata.uns["scstate_lora"]["temporal_coherence"]``, the same table.

    Raises
    ------
    KeyError
        If `adata` was not set up, or a key is not in ``adata.obsm`` or ``adata.obs``.
    ValueError
        If there is no cell type, the times are neither numbers nor ordered, or fewer than three differ.
    """
    registry = Registry.from_adata(adata)
    names = embedding_keys(adata, embeddings)
    label_key = registry.cell_type_key if label_key is None else label_key
    if label_key is None:
        msg = "No cell type is registered, within which times are compared. Give label_key=, a column of adata.obs."
        raise ValueError(msg)
    mask = scored_cells(adata, cells)
    labels = labels_with_missing(adata, label_key)
    time = _times(adata, time_key)
    is_known = mask & ~pd.isna(labels) & np.isfinite(time)
    times, codes = np.unique(time[is_known], return_inverse=True)
    if len(times) < 3:
        msg = f"adata.obs[{time_key!r}] has {len(times)} times among the scored cells: an order needs three."
        raise ValueError(msg)
    n_missing = int((mask & ~is_known).sum())
    note = f"left out: {n_missing} cells without a value" if n_missing else ""
    known_labels = labels[is_known].astype(str)
    types = [str(name) for name in np.unique(known_labels)]
    rows = []
    for name, matrix in embedding_matrices(adata, names, n_pcs=n_pcs, seed=seed).items():
        try:
            x = checked_embedding(matrix[is_known], int(is_known.sum()))
        except ValueError as error:
            rows += [_row(name, metric, _ALL, None, len(codes), 0, str(error)) for metric in TEMPORAL]
            continue
        distances = {
            t: time_distances(x[known_labels == t], codes[known_labels == t], len(times), min_cells=min_cells)
            for t in types
        }
        for metric in TEMPORAL:
            for group in (_ALL, *types):
                chosen = list(distances.values()) if group == _ALL else [distances[group]]
                n_cells = len(codes) if group == _ALL else int((known_labels == group).sum())
                n_times = int(np.any([~np.isnan(np.diag(d)) for d in chosen], axis=0).sum())
                try:
                    score = temporal_score(metric, chosen, times, n_permutations=n_permutations, seed=seed)
                    rows.append(_row(name, metric, group, score, n_cells, n_times, note))
                except ValueError as error:
                    reason = f"{error}: {n_times} have {min_cells} cells"
                    rows.append(_row(name, metric, group, None, n_cells, n_times, reason))
    table = pd.DataFrame(rows).assign(key=time_key)
    table = table.join(pd.DataFrame([METRICS[metric].columns() for metric in table["metric"]]))[_COLUMNS]
    write_result(adata, TEMPORAL_COHERENCE, table)
    return table


def _times(adata: AnnData, key: str) -> np.ndarray:
    """Return the times as numbers ``(n_cells,)``, NaN where missing."""
    column = obs_column(adata, key, allow_missing=True)
    numbers = pd.to_numeric(column.astype(object), errors="coerce")
    unread = column[numbers.isna() & column.notna()]
    if unread.empty:
        return numbers.to_numpy(dtype=np.float64)
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.ordered:
        return column.cat.codes.where(column.notna(), np.nan).to_numpy(dtype=np.float64)
    msg = (
        f"adata.obs[{key!r}] must hold times as numbers; found {unread.iloc[0]!r}. Write numbers, or make an "
        "ordered category of it: pd.Categorical(column, categories=[first, ..., last], ordered=True)."
    )
    raise ValueError(msg)


def _row(
    embedding: str, metric: str, cell_type: str, score: TemporalScore | None, n_cells: int, n_times: int, reason: str
) -> dict[str, object]:
    numbers = TemporalScore(np.nan, np.nan, np.nan) if score is None else score
    names = {"embedding": embedding, "metric": metric, "cell_type": cell_type}
    return names | numbers._asdict() | {"n_cells": n_cells, "n_times": n_times, "reason": reason}
