"""Similarity of two sets of cells beyond their means: maximum mean discrepancy and nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.perturbation import checked_cells, mean_distance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike


def mmd(
    x: ArrayLike,
    y: ArrayLike,
    *,
    bandwidth: float | None = None,
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    chunk: int = 1024,
) -> float:
    """Squared maximum mean discrepancy of two sets of cells, averaged over Gaussian kernels.

    The V-statistic ``E k(x, x') + E k(y, y') - 2 E k(x, y)`` with ``k = exp(-|a - b|^2 / (2 s^2))``: between 0 and 2, 0
    for equal sets; two samples of one population score a little above 0, the more so the fewer cells they have.

    Parameters
    ----------
    x, y
        Cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``; `y` are the measured ones.
    bandwidth
        By default the mean distance between two cells of `y`, which does not depend on the prediction.
    scales
        Multiples of the bandwidth, one kernel each.
    chunk
        Cells per block.

    Returns
    -------
    The squared discrepancy, a mean over the kernels.

    Raises
    ------
    ValueError
        If `x` and `y` do not have the same genes, one is empty, a number is not finite, or the cells of `y` are all
        equal and no bandwidth is given.

    References
    ----------
    Gretton et al. (2012), A kernel two-sample test.
    """
    cells, others = _same_genes(x, y)
    width = mean_distance_between(others, chunk=chunk) if bandwidth is None else float(bandwidth)
    if not width > 0:
        msg = f"The bandwidth must be above 0, found {width}."
        raise ValueError(msg)
    total = 0.0
    for a, b, weight in ((cells, cells, 1.0), (others, others, 1.0), (cells, others, -2.0)):
        similarity = sum(
            float(np.exp(-block / (2 * (scale * width) ** 2)).sum())
            for block in _squared_distances(a, b, chunk)
            for scale in scales
        )
        total += weight * similarity / (len(a) * len(b) * len(scales))
    return max(0.0, total)


def nearest_distance(x: ArrayLike, y: ArrayLike, *, chunk: int = 1024) -> float:
    """Mean over the cells of `x` of the Euclidean distance to the nearest cell of `y`; in units of the expression.

    A set that collapsed to one likely profile scores well, so read this beside
    :func:`scstate_lora.metrics.variance_ratio`.

    Parameters
    ----------
    x, y
        Predicted and measured cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``.
    chunk
        Cells per block.

    Raises
    ------
    ValueError
        If `x` and `y` do not have the same genes, one is empty, or a number is not finite.
    """
    cells, others = _same_genes(x, y)
    nearest = [
        np.min([block.min(axis=1) for block in _squared_distances(cells[i : i + chunk], others, chunk)], axis=0)
        for i in range(0, len(cells), chunk)
    ]
    return float(np.sqrt(np.concatenate(nearest)).mean())


def relative_nearest_distance(x: ArrayLike, y: ArrayLike, *, chunk: int = 1024) -> float:
    """:func:`nearest_distance` divided by the mean distance of a cell of `y` to the nearest other cell of `y`.

    1 if cells of `x` lie as near to those of `y` as these to each other. A set that collapsed to one likely profile is
    below 1, and so are copies of cells of `y`.

    Parameters
    ----------
    x, y, chunk
        As in :func:`nearest_distance`.

    Raises
    ------
    ValueError
        As in :func:`nearest_distance`, and if `y` has fewer than two cells, or each has an equal.
    """
    between = nearest_distance_within(y, chunk=chunk)
    return nearest_distance(x, y, chunk=chunk) / between


def nearest_distance_within(x: ArrayLike, *, chunk: int = 1024) -> float:
    """Mean Euclidean distance of a cell to the nearest other cell of the same set.

    Parameters
    ----------
    x
        Cells, shape ``(n, n_genes)``.
    chunk
        Cells per block.

    Raises
    ------
    ValueError
        If there are fewer than two cells, or each has an equal.
    """
    cells = checked_cells(x, "the set")
    if len(cells) < 2:
        msg = f"A distance between cells needs two; there is {len(cells)}."
        raise ValueError(msg)
    cells = cells - cells.mean(axis=0, dtype=np.float64)
    nearest = []
    for i in range(0, len(cells), chunk):
        rows = np.concatenate(list(_squared_distances(cells[i : i + chunk], cells, chunk)), axis=1)
        rows[np.arange(len(rows)), np.arange(i, i + len(rows))] = np.inf
        nearest.append(rows.min(axis=1))
    distance = float(np.sqrt(np.concatenate(nearest)).mean())
    if not distance > 0:
        msg = f"A distance between cells needs two that differ; found {len(cells)} equal ones."
        raise ValueError(msg)
    return distance


def mean_distance_between(x: ArrayLike, *, chunk: int = 1024) -> float:
    """Mean Euclidean distance between two different cells of one set.

    Parameters
    ----------
    x
        Cells, shape ``(n, n_genes)``.
    chunk
        Cells per block.

    Raises
    ------
    ValueError
        If there are fewer than two different cells.
    """
    cells = checked_cells(x, "the set")
    distance = mean_distance(cells, chunk=chunk) * len(cells) / max(1, len(cells) - 1)
    if not distance > 0:
        msg = f"A distance between cells needs two that differ; found {len(cells)} equal ones."
        raise ValueError(msg)
    return distance


def _same_genes(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Check two sets of cells and centre them, which keeps the precision of their distances."""
    cells, others = checked_cells(x, "x"), checked_cells(y, "y")
    if cells.shape[1] != others.shape[1]:
        msg = f"x has {cells.shape[1]} genes and y has {others.shape[1]}; they must be the same genes."
        raise ValueError(msg)
    origin = others.mean(axis=0, dtype=np.float64)
    return cells - origin, others - origin


def _squared_distances(x: np.ndarray, y: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """Squared distances of centred cells, in blocks of at most ``chunk * chunk`` pairs."""
    for i in range(0, len(x), chunk):
        a = x[i : i + chunk]
        a_sq = np.einsum("ij,ij->i", a, a)[:, None]
        for j in range(0, len(y), chunk):
            b = y[j : j + chunk]
            yield np.maximum(a_sq + np.einsum("ij,ij->i", b, b)[None, :] - 2 * (a @ b.T), 0.0)
