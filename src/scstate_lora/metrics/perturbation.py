"""How well predicted cells match measured perturbed cells, and the replicate ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike


def pearson_delta(pred_mean: ArrayLike, real_mean: ArrayLike, control_mean: ArrayLike) -> float:
    """Pearson correlation, over genes, of the predicted and the measured change of the mean.

    The change (delta) is the mean of perturbed cells minus the mean of measured control cells. Between -1 and 1. Both
    deltas share the control mean, so noise in it counts as agreement; a shift common to all genes is ignored.

    Parameters
    ----------
    pred_mean, real_mean, control_mean
        Mean expression of the predicted, the measured perturbed and the measured control cells, shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or a delta is the same in every gene (to 1e-6, float32's precision).
    """
    pred, real, control = _checked_means(pred_mean, real_mean, control_mean)
    deviations = []
    for name, delta in (("predicted", pred - control), ("measured", real - control)):
        deviation = delta - delta.mean()
        if np.abs(deviation).max() <= 1e-6 * max(1.0, np.abs(control).max()):
            msg = f"The {name} delta is the same in all {len(delta)} genes: it correlates with nothing."
            raise ValueError(msg)
        deviations.append(deviation / np.linalg.norm(deviation))
    return float(np.clip(deviations[0] @ deviations[1], -1.0, 1.0))


def pearson_delta_top(pred_mean: ArrayLike, real_mean: ArrayLike, control_mean: ArrayLike, *, n_top: int = 20) -> float:
    """:func:`pearson_delta` over the genes whose measured delta is largest in absolute value.

    Parameters
    ----------
    pred_mean, real_mean, control_mean
        As in :func:`pearson_delta`.
    n_top
        Number of genes; the earlier gene wins a tie.

    Raises
    ------
    ValueError
        As in :func:`pearson_delta`, and if there are fewer than `n_top` genes.
    """
    pred, real, control = _checked_means(pred_mean, real_mean, control_mean)
    if len(real) < n_top:
        msg = f"The top {n_top} genes were requested, but there are only {len(real)}."
        raise ValueError(msg)
    top = np.argsort(-np.abs(real - control), kind="stable")[:n_top]
    return pearson_delta(pred[top], real[top], control[top])


def mae(pred_mean: ArrayLike, real_mean: ArrayLike) -> float:
    """Mean over genes of the absolute difference between the mean expressions; in units of the expression.

    Parameters
    ----------
    pred_mean, real_mean
        Mean expression of the predicted and the measured perturbed cells, shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If shapes differ or a number is not finite.
    """
    pred, real = _checked_means(pred_mean, real_mean)
    return float(np.abs(pred - real).mean())


def mse(pred_mean: ArrayLike, real_mean: ArrayLike) -> float:
    """Mean over genes of the squared difference between the mean expressions; in squared units of the expression.

    Parameters
    ----------
    pred_mean, real_mean
        Mean expression of the predicted and the measured perturbed cells, shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If shapes differ or a number is not finite.
    """
    pred, real = _checked_means(pred_mean, real_mean)
    return float(np.square(pred - real).mean())


def mean_distance(x: ArrayLike, y: ArrayLike | None = None, *, chunk: int = 1024) -> float:
    """Mean Euclidean distance between all pairs of a cell of `x` and a cell of `y`.

    Computed in float64 on centred data, `chunk` by `chunk` pairs at a time.

    Parameters
    ----------
    x, y
        Cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``. Without `y`, all n * n pairs within `x`, a cell's zero
        distance to itself included.
    chunk
        Cells per block.

    Raises
    ------
    ValueError
        If `x` and `y` do not have the same genes, one is empty, or a number is not finite.
    """
    cells = checked_cells(x, "x")
    others = cells if y is None else checked_cells(y, "y")
    if cells.shape[1] != others.shape[1]:
        msg = f"x has {cells.shape[1]} genes and y has {others.shape[1]}; they must be the same genes."
        raise ValueError(msg)
    return _mean_distance(cells, others, within=y is None, chunk=chunk)


def energy_distance(x: ArrayLike, y: ArrayLike, *, chunk: int = 1024) -> float:
    """Energy distance of two sets of cells: ``2 E|x - y| - E|x - x'| - E|y - y'|``, Euclidean over all genes.

    The V-statistic, which counts a cell's zero distance to itself: the value is never negative and is 0 for equal sets,
    but two samples of one population score above 0, the more so the fewer cells they have. Not halved, and no root is
    taken. In units of the expression.

    Parameters
    ----------
    x, y
        Cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``.
    chunk
        Cells per block; memory grows with its square, time with ``(n + m)^2 * n_genes``.

    Raises
    ------
    ValueError
        If `x` and `y` do not have the same genes, one is empty, or a number is not finite.

    References
    ----------
    Székely and Rizzo (2013), Energy statistics: a class of statistics based on distances.
    """
    value = 2 * mean_distance(x, y, chunk=chunk) - mean_distance(x, chunk=chunk) - mean_distance(y, chunk=chunk)
    return max(0.0, value)


def variance_ratio(pred: ArrayLike, real: ArrayLike) -> float:
    """Total variance of the predicted cells over that of the measured ones: the sum over genes of each, divided.

    1 is right, 0 is a prediction that collapsed to one profile, and above 1 the spread is too large. Sums are compared
    rather than genes, so that a rarely expressed gene cannot dominate. Variances are divided by n.

    Parameters
    ----------
    pred, real
        Cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``.

    Raises
    ------
    ValueError
        If either side has fewer than two cells, a number is not finite, or the measured cells are all equal.
    """
    totals = []
    for name, side in (("pred", pred), ("real", real)):
        cells = checked_cells(side, name)
        if len(cells) < 2:
            msg = f"A variance needs at least two cells; {name} has {len(cells)}."
            raise ValueError(msg)
        totals.append(float(np.var(cells, axis=0, dtype=np.float64).sum()))
    if totals[1] == 0:
        msg = "The measured cells are all equal: their variance is 0."
        raise ValueError(msg)
    return totals[0] / totals[1]


def ceiling(
    real: np.ndarray, score: Callable[[np.ndarray, np.ndarray], float], *, n_splits: int = 5, seed: int = 0
) -> float:
    """Score that a replicate of the experiment would get: one random half of the measured cells against the other.

    A half has half the cells, so where a score depends on their number (:func:`energy_distance`) the ceiling is
    slightly pessimistic, and a very good model can exceed it.

    Parameters
    ----------
    real
        Measured perturbed cells, shape ``(n, n_genes)``.
    score
        Function of predicted and measured cells, for instance :func:`energy_distance`.
    n_splits
        Random splits, whose scores are averaged.
    seed
        Seed of the splits; one seed gives the same halves for every score.

    Raises
    ------
    ValueError
        If there are fewer than two cells, or `score` raises it.
    """
    if len(real) < 2:
        msg = f"Two halves need at least two measured cells; there is {len(real)}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(n_splits):
        order = rng.permutation(len(real))
        half = len(real) // 2
        scores.append(score(real[order[:half]], real[order[half:]]))
    return float(np.mean(scores))


def goodness(values: ArrayLike, *, direction: Literal["higher", "lower", "one"]) -> np.ndarray:
    """Turn scores so that larger is better.

    Parameters
    ----------
    values
        Scores of any shape.
    direction
        ``"higher"`` or ``"lower"`` is better, or ``"one"`` is best (minus the distance to 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if direction == "one":
        return -np.abs(array - 1.0)
    return -array if direction == "lower" else array


def skill(good: ArrayLike, *, floor: ArrayLike, ceiling: ArrayLike) -> np.ndarray:
    """Place a score between a naive baseline (0) and the replicate ceiling (1): ``(good - floor) / (ceiling - floor)``.

    Parameters
    ----------
    good, floor, ceiling
        Scores of the model, the baseline and the ceiling, larger being better (:func:`goodness`); shapes broadcast.

    Returns
    -------
    Array of the common shape; NaN where the ceiling is not above the floor, as the scale is then meaningless. Values
    below 0 are worse than the baseline.
    """
    floor = np.asarray(floor, dtype=np.float64)
    gap = np.asarray(ceiling, dtype=np.float64) - floor
    return (np.asarray(good, dtype=np.float64) - floor) / np.where(gap > 0, gap, np.nan)


def bootstrap_interval(
    values: ArrayLike, *, n_boot: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; NaN for both ends with fewer than two values.

    Parameters
    ----------
    values
        One number per context, shape ``(n,)``, all finite.
    n_boot
        Bootstrap samples.
    level
        Share of the samples' means within the interval.
    seed
        Seed of the samples; one seed draws the same contexts for every score.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(array), size=(n_boot, len(array)))
    low, high = np.quantile(array[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean_distance(x: np.ndarray, y: np.ndarray, *, within: bool, chunk: int) -> float:
    # Distances do not depend on the origin, but |a|^2 - 2ab + |b|^2 loses precision far from it.
    origin = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
    total = 0.0
    for i in range(0, len(x), chunk):
        a = x[i : i + chunk] - origin
        a_sq = np.einsum("ij,ij->i", a, a)
        for j in range(i if within else 0, len(y), chunk):
            b = y[j : j + chunk] - origin
            sq = a_sq[:, None] + np.einsum("ij,ij->i", b, b)[None, :] - 2 * (a @ b.T)
            if within and i == j:
                np.fill_diagonal(sq, 0.0)
            # Within one set the blocks above the diagonal also stand for those below it.
            weight = 2.0 if within and i != j else 1.0
            total += weight * float(np.sqrt(np.maximum(sq, 0.0)).sum())
    return total / (len(x) * len(y))


def _checked_means(*means: ArrayLike) -> list[np.ndarray]:
    arrays = [np.asarray(m, dtype=np.float64) for m in means]
    shapes = [a.shape for a in arrays]
    if arrays[0].ndim != 1 or not arrays[0].size or len(set(shapes)) > 1:
        msg = f"Means must be vectors with one number per gene, of the same genes; found shapes {shapes}."
        raise ValueError(msg)
    if not all(np.isfinite(a).all() for a in arrays):
        msg = "A mean expression is NaN or infinite."
        raise ValueError(msg)
    return arrays


def checked_cells(cells: ArrayLike, name: str) -> np.ndarray:
    """Return cells as an array ``(n_cells, n_genes)``; a ValueError if there are none, or a number is not finite."""
    cells = np.asarray(cells)
    if cells.ndim != 2 or not cells.size:
        msg = f"{name} must have shape (n_cells, n_genes) and at least one cell; its shape is {cells.shape}."
        raise ValueError(msg)
    if not np.isfinite(cells).all():
        msg = f"{name} has NaN or infinite numbers."
        raise ValueError(msg)
    return cells
