"""Whether groups of cells follow the order of time: distances between the means of times, against permuted times."""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike


class TemporalScore(NamedTuple):
    """A score, its mean when the times change places, and the share of such orders that score at least as high."""

    value: float
    baseline: float
    p_value: float


def time_distances(x: np.ndarray, time_codes: np.ndarray, n_times: int, *, min_cells: int = 5) -> np.ndarray:
    """Measure the distances between the mean cells of times, without what the noise of few cells adds.

    ``|m_i - m_j|^2`` of the means exceeds the squared distance of the populations by their variance over the number of
    cells, on average; that is taken off, and a negative rest is 0.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``, finite.
    time_codes
        Number of every cell's time, ``(n_cells,)``, from 0 on.
    n_times
        Times.
    min_cells
        Cells that a time needs.

    Returns
    -------
    Distances ``(n_times, n_times)``, NaN for times with too few cells.
    """
    means = np.full((n_times, x.shape[1]), np.nan)
    noise = np.full(n_times, np.nan)
    for time in range(n_times):
        cells = x[time_codes == time].astype(np.float64)
        if len(cells) >= max(min_cells, 2):
            means[time] = cells.mean(axis=0)
            noise[time] = cells.var(axis=0, ddof=1).sum() / len(cells)
    squared = ((means[:, None] - means[None]) ** 2).sum(axis=-1) - noise[:, None] - noise[None]
    np.fill_diagonal(squared, np.where(np.isnan(noise), np.nan, 0.0))
    return np.sqrt(np.maximum(squared, 0))


def gap_correlation(distances: np.ndarray, times: np.ndarray) -> float:
    """Spearman correlation of the distances between times and the gaps between them, -1 to 1; 0 without any spread.

    Parameters
    ----------
    distances
        Distances between times, ``(n_times, n_times)``.
    times
        The times, ``(n_times,)``.
    """
    upper = np.triu_indices(len(times), 1)
    a = rankdata(distances[upper])
    b = rankdata(np.abs(times[upper[0]] - times[upper[1]]))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def monotonicity(distances: np.ndarray, times: np.ndarray) -> float:
    """Share of all threes of times whose first and last are the farthest apart, 0 to 1; one third by chance.

    Parameters
    ----------
    distances, times
        As in :func:`gap_correlation`.
    """
    order = np.argsort(times)
    in_order = distances[np.ix_(order, order)]
    threes = np.array(list(combinations(range(len(times)), 3)))
    first, middle, last = threes.T
    outer = in_order[first, last]
    inner = np.maximum(in_order[first, middle], in_order[middle, last])
    return float(((outer > inner) + (outer == inner) / 3).mean())


def smoothness(distances: np.ndarray, times: np.ndarray) -> float:
    """Distance from the first to the last time over the way through all times: 1 if straight, 0 if it leads nowhere.

    Parameters
    ----------
    distances, times
        As in :func:`gap_correlation`.
    """
    order = np.argsort(times)
    way = float(distances[order[:-1], order[1:]].sum())
    return min(1.0, float(distances[order[0], order[-1]]) / way) if way > 0 else 0.0


TEMPORAL: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "gap_correlation": gap_correlation,
    "monotonicity": monotonicity,
    "smoothness": smoothness,
}
"""Scores of the order of times by name, each of distances and times."""


def temporal_score(
    name: str, distances: Sequence[np.ndarray], times: ArrayLike, *, n_permutations: int = 1000, seed: int = 0
) -> TemporalScore:
    """Average a score over groups of cells, beside its average over orders of the times.

    The times change places as wholes, the same way in every group: cells of one time stay together, so that a batch
    effect between times does not pass as an order. All orders are taken if there are at most `n_permutations`.

    Parameters
    ----------
    name
        ``"gap_correlation"``, ``"monotonicity"`` or ``"smoothness"``.
    distances
        Of every group, distances between all times, ``(n_times, n_times)``; NaN for times that it lacks.
    times
        The times, ``(n_times,)``.
    n_permutations
        Orders to draw if there are more.
    seed
        Seed of the orders.

    Raises
    ------
    ValueError
        If no group has three times.
    """
    known = np.asarray(times, dtype=np.float64)
    groups = [(d, np.flatnonzero(~np.isnan(np.diag(d)))) for d in distances]
    groups = [(d[np.ix_(has, has)], has) for d, has in groups if len(has) >= 3]
    if not groups:
        msg = "an order needs three times with enough cells"
        raise ValueError(msg)
    score = TEMPORAL[name]
    value = float(np.mean([score(d, known[has]) for d, has in groups]))
    rng = np.random.default_rng(seed)
    orders = (
        [np.array(order) for order in permutations(range(len(known)))]
        if len(known) <= 10 and factorial(len(known)) <= n_permutations
        else [np.arange(len(known)), *(rng.permutation(len(known)) for _ in range(n_permutations))]
    )
    null = np.array([np.mean([score(d, known[order][has]) for d, has in groups]) for order in orders])
    return TemporalScore(value, float(null.mean()), float((null >= value - 1e-12).mean()))
