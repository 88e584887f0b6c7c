"""What the plots share: names of metrics in words, scanpy's colours for a category, the shape of a grid of panels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MISSING_COLOR = "lightgray"
_METRIC_NAMES = {
    "de_direction50": "direction of the top 50 DE genes",
    "de_overlap50": "overlap of the top 50 DE genes",
    "de_precision50": "precision of the top 50 DE genes",
    "discrimination": "discrimination score",
    "e_distance": "E-distance",
    "knn_accuracy": "kNN accuracy",
    "mae": "MAE of means",
    "mmd": "MMD",
    "mse": "MSE of means",
    "mse_de_weighted": "MSE of means, weighted by DE",
    "nearest_distance": "distance to the nearest cell",
    "nearest_distance_relative": "distance to the nearest cell, relative",
    "pearson_delta": "Pearson of delta",
    "pearson_delta_top20": "Pearson of delta, top 20 genes",
    "pearson_delta_top50": "Pearson of delta, top 50 genes",
    "probe_r2": "probe R²",
}


def metric_name(metric: str) -> str:
    """Write the name of a metric as people do."""
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


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
