"""Shared by the plots: colours of categories, grids of panels, checks of tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MISSING_COLOR = "lightgray"


def grid_shape(n_panels: int, *, widest: int) -> tuple[int, int]:
    """Rows and columns for a number of panels, as even as ``widest`` columns allow."""
    n_rows = math.ceil(n_panels / widest)
    return n_rows, math.ceil(n_panels / n_rows)


def color_cycle(n_colors: int) -> list[str]:
    """Return scanpy's default colours for that many categories."""
    from scanpy.plotting import palettes

    for palette in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n_colors <= len(palette):
            return list(palette[:n_colors])
    return [palettes.default_102[i % len(palettes.default_102)] for i in range(n_colors)]


def category_colors(adata: AnnData, key: str, categories: pd.Index) -> list[str]:
    """Return the colours in ``adata.uns[f"{key}_colors"]`` where they suffice, scanpy's defaults otherwise."""
    kept = adata.uns.get(f"{key}_colors")
    if kept is not None and len(kept) >= len(categories):
        return [str(color) for color in kept[: len(categories)]]
    return color_cycle(len(categories))
