"""Shared by the plots: colours of categories, grids of panels, checks of tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import pandas as pd
    from anndata import AnnData

MISSING_COLOR = "lightgray"


def grid_shape(n_panels: int, *, widest: int) -> tuple[int, int]:
    """Rows and columns for a number of panels, at most ``widest`` columns, as even as possible."""
    n_rows = math.ceil(n_panels / widest)
    return n_rows, math.ceil(n_panels / n_rows)


def panels(
    n_panels: int,
    *,
    widest: int,
    size: tuple[float, float],
    beside: tuple[float, float] = (0.0, 0.0),
    h_pad: float | None = None,
    w_pad: float | None = None,
    **subplots: Any,
) -> np.ndarray[Any, np.dtype[Any]]:
    """Make a new figure with a grid of panels.

    Parameters
    ----------
    n_panels
        Number of panels.
    widest
        Panels per row at most.
    size, beside
        Width and height of a panel, and of what lies beside all of them, in inches.
    h_pad, w_pad
        Padding between panels, in inches; matplotlib's by default.
    subplots
        As for :func:`matplotlib.pyplot.subplots`.

    Returns
    -------
    Array of ``n_panels`` Axes.
    """
    n_rows, n_columns = grid_shape(n_panels, widest=widest)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(size[0] * n_columns + beside[0], size[1] * n_rows + beside[1]),
        squeeze=False,
        layout="constrained",
        **subplots,
    )
    figure.get_layout_engine().set(h_pad=h_pad, w_pad=w_pad)
    axes = grid.ravel()
    for unused in axes[n_panels:]:
        unused.remove()
    return axes[:n_panels]


def require_columns(table: pd.DataFrame, columns: Iterable[str], *, tools: str) -> None:
    """Check that a table has columns and rows.

    Parameters
    ----------
    table
        The table.
    columns
        Columns that it must have.
    tools
        Functions that return such a table, for the error message.

    Raises
    ------
    ValueError
        If it lacks a column, or has no row.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        msg = f"The table lacks the columns {missing}; it has {list(table.columns)}. Give the table of {tools}."
        raise ValueError(msg)
    if table.empty:
        msg = "The table has no rows: nothing was scored."
        raise ValueError(msg)


def color_cycle(n_colors: int) -> list[str]:
    """Return scanpy's default colours for that many categories."""
    from scanpy.plotting import palettes

    for palette in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n_colors <= len(palette):
            return list(palette[:n_colors])
    return [palettes.default_102[i % len(palettes.default_102)] for i in range(n_colors)]


def category_colors(adata: AnnData, key: str, categories: pd.Index) -> list[str]:
    """Return the colours in ``adata.uns[f"{key}_colors"]`` if they suffice, scanpy's defaults otherwise."""
    stored = adata.uns.get(f"{key}_colors")
    if stored is not None and len(stored) >= len(categories):
        return [str(color) for color in stored[: len(categories)]]
    return color_cycle(len(categories))
