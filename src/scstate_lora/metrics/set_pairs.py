"""Predicted beside measured cells, with the distances between them computed once for all metrics that need them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from scstate_lora.metrics.changes import Moments

MAX_CELLS = 1000
"""Cells of a set that distances are computed between; of a larger set so many are drawn."""
_ROUNDING = np.float32(4e-6)  # of the squared lengths, beyond which float32 cannot tell cells apart
_SCALES = (16, 4, 1)  # powers of the widest kernel that give bandwidths of a half, one and two times the mean distance


class Spread(NamedTuple):
    """What the distances within a set of cells tell."""

    mean: float
    """Mean distance of all pairs, a cell's zero distance to itself included."""
    nearest: float
    """Mean distance to the nearest other cell; NaN of a single one."""


class CellSet:
    """A set of cells, centred, with its moments and the distances within it.

    Parameters
    ----------
    cells
        Cells, shape ``(n, n_genes)``. Equal rows of a broadcast array count as one cell in distances.
    moments
        Their moments.
    origin
        Point that distances are computed from, ``(n_genes,)``: near all cells, as squares of large numbers lose
        precision in float32.
    seed
        Seed of the cells drawn of a large set.
    """

    def __init__(self, cells: np.ndarray, moments: Moments, *, origin: np.ndarray, seed: int = 0) -> None:
        self.cells, self.moments, self.origin = cells, moments, origin
        self.drawn = np.arange(len(cells))
        if is_one_profile(cells):
            self.drawn = self.drawn[:1]
        elif len(cells) > MAX_CELLS:
            self.drawn = np.sort(np.random.default_rng(seed).choice(len(cells), MAX_CELLS, replace=False))

    @cached_property
    def centred(self) -> np.ndarray:
        """Cells that distances are computed between, float32 ``(n_drawn, n_genes)``."""
        return np.asarray(self.cells[self.drawn] - self.origin, dtype=np.float32)

    @cached_property
    def squared(self) -> np.ndarray:
        """Squared distances within, float32 ``(n_drawn, n_drawn)``."""
        distances = squared_distances(self.centred, self.centred)
        np.fill_diagonal(distances, 0.0)
        return distances

    @cached_property
    def spread(self) -> Spread:
        """Distances within, in a few numbers."""
        return spread_of(self.squared)

    @cached_property
    def detection(self) -> np.ndarray:
        """Share of the cells in which each gene is above 0, ``(n_genes,)``."""
        return np.asarray((self.cells > 0).mean(axis=0))

    def half(self, mask: np.ndarray, moments: Moments) -> CellSet:
        """Return some of the cells, bool ``(n,)``, with the distances that are known."""
        half = CellSet.__new__(CellSet)
        half.cells, half.moments, half.origin = self.cells[mask], moments, self.origin
        position = np.cumsum(mask) - 1
        rows = np.flatnonzero(mask[self.drawn])
        half.drawn = position[self.drawn[rows]]
        half.squared = self.squared[np.ix_(rows, rows)]
        return half

    def moved(self, by: np.ndarray, moments: Moments) -> CellSet:
        """Return the cells moved by one vector ``(n_genes,)``, with the distances within and the detection unmoved."""
        moved = CellSet.__new__(CellSet)
        moved.cells, moved.moments, moved.origin = self.cells + by.astype(self.cells.dtype), moments, self.origin
        moved.drawn, moved.squared, moved.detection = self.drawn, self.squared, self.detection
        return moved


class SetPair:
    """A predicted and a measured set of cells.

    Parameters
    ----------
    predicted, measured
        The sets, with the same origin.
    """

    def __init__(self, predicted: CellSet, measured: CellSet) -> None:
        self.predicted, self.measured = predicted, measured

    @classmethod
    def of_halves(cls, whole: CellSet, mask: np.ndarray, halves: tuple[CellSet, CellSet]) -> Self:
        """Pair the half of a mask, bool ``(n,)``, with the other one."""
        pair = cls(*halves)
        chosen = mask[whole.drawn]
        pair.squared = whole.squared[np.ix_(np.flatnonzero(chosen), np.flatnonzero(~chosen))]
        return pair

    @cached_property
    def squared(self) -> np.ndarray:
        """Squared distances of predicted and measured cells, float32 ``(n_predicted, n_measured)``."""
        return squared_distances(self.predicted.centred, self.measured.centred)


def is_one_profile(cells: np.ndarray) -> bool:
    """Whether cells are one profile, broadcast over the rows."""
    return len(cells) > 0 and cells.strides[0] == 0


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of centred cells, float32 ``(n, m)``; 0 where only rounding tells two cells apart."""
    lengths = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
    distances = lengths - 2 * (x @ y.T)
    distances[distances < _ROUNDING * lengths] = 0
    return np.asarray(distances)


def spread_of(squared: np.ndarray) -> Spread:
    """Sum up the distances within a set from their squares ``(n, n)``."""
    mean = float(np.sqrt(squared).mean(dtype=np.float64))
    if len(squared) < 2:
        return Spread(mean, np.nan)
    others = squared + np.diag(np.full(len(squared), np.inf, dtype=squared.dtype))
    return Spread(mean, float(np.sqrt(others.min(axis=1)).mean(dtype=np.float64)))


def e_distance_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.energy_distance` of a pair, of at most :data:`MAX_CELLS` cells on either side."""
    between = float(np.sqrt(pair.squared).mean(dtype=np.float64))
    return max(0.0, 2 * between - pair.predicted.spread.mean - pair.measured.spread.mean)


def mmd_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.mmd` of a pair, of at most :data:`MAX_CELLS` cells on either side."""
    n = len(pair.measured.drawn)
    width = pair.measured.spread.mean * n / max(1, n - 1)
    if not width > 0:
        msg = f"A distance between cells needs two that differ; found {n} equal ones."
        raise ValueError(msg)
    similarity = _similarity(width)
    squares = (pair.predicted.squared, pair.measured.squared, pair.squared)
    return max(0.0, sum(w * similarity(square) for w, square in zip((1.0, 1.0, -2.0), squares, strict=True)))


def relative_nearest_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.relative_nearest_distance` of a pair, of at most :data:`MAX_CELLS` cells each."""
    n = len(pair.measured.drawn)
    if n < 2:
        msg = f"A distance between cells needs two; there is {n}."
        raise ValueError(msg)
    if not pair.measured.spread.nearest > 0:
        msg = f"A distance between cells needs two that differ; found {n} equal ones."
        raise ValueError(msg)
    return float(np.sqrt(pair.squared.min(axis=1)).mean(dtype=np.float64)) / pair.measured.spread.nearest


def variance_ratio_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.variance_ratio` of a pair."""
    totals = []
    for name, side in (("pred", pair.predicted), ("real", pair.measured)):
        n, _, variance = side.moments
        if n < 2:
            msg = f"A variance needs at least two cells; {name} has {n}."
            raise ValueError(msg)
        totals.append(float(variance.sum()) * (n - 1) / n)
    if totals[1] == 0:
        msg = "The measured cells are all equal: their variance is 0."
        raise ValueError(msg)
    return totals[0] / totals[1]


def mae_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.mae` of the means of a pair."""
    return float(np.abs(pair.predicted.moments.mean - pair.measured.moments.mean).mean())


def mse_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.mse` of the means of a pair."""
    return float(np.square(pair.predicted.moments.mean - pair.measured.moments.mean).mean())


def _similarity(width: float) -> Callable[[np.ndarray], float]:
    """Mean of the Gaussian kernels over all pairs, of their squared distances."""

    def similarity(squared: np.ndarray) -> float:
        widest = np.exp(squared / np.float32(-8 * width**2))
        return float(np.mean([(widest**power).mean(dtype=np.float64) for power in _SCALES]))

    return similarity
