"""Labels of cells, and names of contexts: combinations of labels within which cells are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data.fields import obs_column
from scstate_lora.data.labels import as_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MISSING = "(missing)"
"""Label of cells with a missing value."""
_JOINED_BY = " | "


def column_labels(adata: AnnData, key: str, *, allow_missing: bool = False) -> np.ndarray:
    """Return a column of ``adata.obs`` as strings, shape ``(n_cells,)``; missing values become ``"(missing)"``.

    Raises
    ------
    KeyError, TypeError, ValueError
        As in :func:`~scstate_lora.data.fields.obs_column`.
    """
    column = obs_column(adata, key, allow_missing=allow_missing)
    return as_labels(column).where(column.notna(), MISSING).to_numpy(dtype=object)


def join_labels(columns: Sequence[np.ndarray], n_cells: int) -> np.ndarray:
    """Join several labels of every cell into one name, shape ``(n_cells,)``; ``"all"`` if there are no labels.

    Parameters
    ----------
    columns
        Labels, each of shape ``(n_cells,)``.
    n_cells
        Number of cells.
    """
    if not columns:
        return np.full(n_cells, "all", dtype=object)
    if len(columns) == 1:
        return np.array([str(label) for label in columns[0]], dtype=object)
    # Each combination is named once: joining labels cell by cell would dominate the set-up time.
    combined = np.zeros(n_cells, dtype=np.int64)
    for column in columns:
        codes, levels = pd.factorize(column)
        combined, _ = pd.factorize(combined * len(levels) + codes)
    _, first = np.unique(combined, return_index=True)  # one cell per combination
    names = [_JOINED_BY.join(str(column[cell]) for column in columns) for cell in first]
    return np.array(names, dtype=object)[combined]
