"""The one list of metrics: how each is called, which way is better, its range, and how predicted cells get it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from scstate_lora.metrics.cell_sets import mmd, nearest_distance, relative_nearest_distance
from scstate_lora.metrics.differential import de_direction, de_overlap, de_precision, weighted_mse
from scstate_lora.metrics.perturbation import (
    energy_distance,
    mae,
    mse,
    pearson_delta,
    pearson_delta_top,
    variance_ratio,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    CellScore = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Metric:
    """A metric, as tables, plots and reports show it.

    Parameters
    ----------
    label
        Its name in words.
    direction
        ``"higher"`` or ``"lower"`` is better, or it is best at ``"one"``.
    lowest, highest
        Possible values.
    score
        Score of predicted, measured and control cells, ``(n, n_genes)`` each, for
        :func:`scstate_lora.tl.evaluate_perturbation`; a ValueError says why there is none. None for a metric of
        something else.
    """

    label: str
    direction: Literal["higher", "lower", "one"] = "higher"
    lowest: float = 0.0
    highest: float = 1.0
    score: CellScore | None = None

    def columns(self) -> dict[str, str | float]:
        """Return the columns of a table that describe the metric."""
        return {"direction": self.direction, "lowest": self.lowest, "highest": self.highest}


def _of_means(score: Callable[..., float]) -> CellScore:
    """Score the mean cells, as functions of predicted, measured and control mean do."""
    return lambda pred, real, control: score(*(cells.mean(axis=0, dtype=np.float64) for cells in (pred, real, control)))


def _of_cells(score: Callable[[np.ndarray, np.ndarray], float]) -> CellScore:
    """Score predicted against measured cells, whatever the controls."""
    return lambda pred, real, _: score(pred, real)


def _correlation(label: str, score: CellScore) -> Metric:
    return Metric(label, "higher", -1.0, 1.0, score)


def _distance(label: str, score: CellScore, *, highest: float = np.inf) -> Metric:
    return Metric(label, "lower", 0.0, highest, score)


METRICS: dict[str, Metric] = {
    "pearson_delta": _correlation("Pearson of delta", _of_means(pearson_delta)),
    "pearson_delta_top20": _correlation(
        "Pearson of delta, top 20 genes", _of_means(partial(pearson_delta_top, n_top=20))
    ),
    "pearson_delta_top50": _correlation(
        "Pearson of delta, top 50 genes", _of_means(partial(pearson_delta_top, n_top=50))
    ),
    "mae": _distance("MAE of means", _of_means(lambda pred, real, _: mae(pred, real))),
    "mse": _distance("MSE of means", _of_means(lambda pred, real, _: mse(pred, real))),
    "e_distance": _distance("E-distance", _of_cells(energy_distance)),
    "variance_ratio": Metric("variance ratio", "one", 0.0, np.inf, _of_cells(variance_ratio)),
    "mse_de_weighted": _distance("MSE of means, weighted by DE", weighted_mse),
    "mmd": _distance("MMD", _of_cells(mmd), highest=2.0),
    "nearest_distance": _distance("distance to the nearest cell", _of_cells(nearest_distance)),
    "nearest_distance_relative": _distance(
        "distance to the nearest cell, relative", _of_cells(relative_nearest_distance)
    ),
    "de_overlap50": Metric("overlap of the top 50 DE genes", score=partial(de_overlap, n_top=50)),
    "de_direction50": Metric("direction of the top 50 DE genes", score=partial(de_direction, n_top=50)),
    "de_precision50": Metric("precision of the top 50 DE genes", score=partial(de_precision, n_top=50)),
    "discrimination": Metric("discrimination score"),
    "knn_accuracy": Metric("kNN accuracy"),
    "probe_accuracy": Metric("probe accuracy"),
    "probe_balanced_accuracy": Metric("probe balanced accuracy"),
    "probe_r2": Metric("probe R²", lowest=-np.inf),
}
"""All metrics of predictions and embeddings by name, those of predicted cells in the order of the table."""


def metric_label(name: str) -> str:
    """Name a metric in words."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")
