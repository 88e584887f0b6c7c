"""Rows of `evaluate` with the metrics of scIB: cell types kept apart, batches mixed, and their totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora.metrics.embedding import checked_embedding
from scstate_lora.metrics.integration import (
    BATCH,
    BIO,
    INTEGRATION,
    TOTAL,
    IntegratedCells,
    total_scores,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARTS = {BIO: (BIO,), BATCH: (BATCH,), TOTAL: (BIO, BATCH)}


class IntegrationColumns(NamedTuple):
    """Cell types and batches of the scored cells, ``(n_cells,)`` each, None where missing, and their columns."""

    label_key: str
    labels: np.ndarray
    batch_key: str | None
    batches: np.ndarray | None

    @property
    def is_known(self) -> np.ndarray:
        """Mask of the cells that have a type and, if there are batches, a batch."""
        known = ~pd.isna(self.labels)
        return known if self.batches is None else known & ~pd.isna(self.batches)

    def key_of(self, metric: str) -> str:
        """Columns that a metric is about."""
        if metric == TOTAL:
            return f"{self.label_key}, {self.batch_key}"
        is_of_batches = INTEGRATION[metric].is_of_batches if metric in INTEGRATION else metric == BATCH
        return str(self.batch_key) if is_of_batches else self.label_key


def score_integration(
    x: np.ndarray, columns: IntegrationColumns, chosen: Sequence[str], *, unintegrated: np.ndarray
) -> tuple[list[dict[str, object]], np.ndarray | None]:
    """Score an embedding ``(n_cells, n_dims)`` by the chosen metrics.

    Parameters
    ----------
    x
        The embedding.
    columns
        Types and batches.
    chosen
        Names of metrics; a mean takes those that it averages along.
    unintegrated
        Principal components of the cells before integration, ``(n_cells, n_components)``.

    Returns
    -------
    Rows of the table, and the nearest cells of all cells where those were searched, else None.
    """
    parts = {part for name in chosen if name in _PARTS for part in _PARTS[name]}
    needed = [name for name, metric in INTEGRATION.items() if name in chosen or metric.part_of in parts]
    is_known = columns.is_known
    without = (~is_known).sum()
    note = f"left out: {without} cells without a value" if without else ""
    reasons = dict.fromkeys(needed, note)
    values = dict.fromkeys(needed, np.nan)
    cells = None
    try:
        if not is_known.any():
            msg = "no cell has a value"
            raise ValueError(msg)
        cells = IntegratedCells(
            checked_embedding(x, len(is_known))[is_known].astype(np.float32),
            columns.labels[is_known],
            np.zeros(int(is_known.sum()), dtype=int) if columns.batches is None else columns.batches[is_known],
            unintegrated[is_known],
        )
    except ValueError as error:
        reasons = dict.fromkeys(needed, str(error))
    if cells is not None:
        for name in needed:
            try:
                values[name] = INTEGRATION[name].score(cells)
            except (ValueError, ArithmeticError, RuntimeError) as error:  # the other metrics go on
                reasons[name] = "; ".join(filter(None, (str(error), note)))
    totals = total_scores(values)
    for name in _PARTS:
        failed = [part for part in needed if INTEGRATION[part].part_of in _PARTS[name] and np.isnan(values[part])]
        values[name] = totals[name]
        reasons[name] = f"no value of {', '.join(failed)}" if failed else note
    rows = [
        {
            "metric": name,
            "key": columns.key_of(name),
            "value": values[name],
            "baseline": np.nan,
            "reason": reasons[name],
        }
        for name in (*needed, *_PARTS)
        if name in chosen
    ]
    has_all = cells is not None and is_known.all() and "neighbors" in cells.__dict__
    return rows, cells.neighbors[0] if has_all and cells is not None else None
