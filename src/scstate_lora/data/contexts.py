"""Labels of cells, and the names of contexts: the combinations of labels within which cells are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data.fields import as_labels, obs_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MISSING = "(missing)"
"""Label of cells whose value of a covariate is missing."""
_JOINED_BY = " | "


def column_labels(adata: AnnData, key: str, *, allow_missing: bool = False) -> np.ndarray:
    """Return a column of ``adata.obs`` as strings, shape ``(n_cells,)``; missing values as ``"(missing)"``.

    Raises
    ------
    KeyError, TypeError, ValueError
        As in :func:`~scstate_lora.data.fields.obs_column`.
    """
    column = obs_column(adata, key, allow_missing=allow_missing)
    return as_labels(column).where(column.notna(), MISSING).to_numpy(dtype=object)


def join_labels(columns: Sequence[np.ndarray], n_cells: int) -> np.ndarray:
    """Name the combination of several labels of every cell, shape ``(n_cells,)``; ``"all"`` of no labels.

    Parameters
    ----------
    columns
        Labels, ``(n_cells,)`` each.
    n_cells
        Number of cells.
    """
    if not columns:
        return np.full(n_cells, "all", dtype=object)
    if len(columns) == 1:
        return np.array([str(label) for label in columns[0]], dtype=object)
    # Each combination is named once: joining the labels of every cell would take most of the time of a set-up.
    combined = np.zeros(n_cells, dtype=np.int64)
    for column in columns:
        codes, levels = pd.factorize(column)
        combined, _ = pd.factorize(combined * len(levels) + codes)
    _, first = np.unique(combined, return_index=True)  # a cell of each combination
    names = [_JOINED_BY.join(str(column[cell]) for column in columns) for cell in first]
    return np.array(names, dtype=object)[combined]
