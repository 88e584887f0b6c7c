"""How well predicted cells match measured perturbed cells, and the replicate ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

Direction = Literal["higher", "lower", "one"]
"""Whether higher or lower scores are better, or those near one."""

N_SPLITS = 5  # random halves to average over


def pearson_delta(
    pred_mean: ArrayLike,
    real_mean: ArrayLike,
    control_mean: ArrayLike,
    *,
    real_control_mean: ArrayLike | None = None,
) -> float:
    """Pearson correlation, over genes, of the predicted and the measured change of the mean.

    The change (delta) is the mean of perturbed cells minus the mean of measured control cells. Between -1 and 1. Both
    deltas share the control mean unless `real_control_mean` is of other control cells, so noise in it counts as
    agreement. A shift common to all genes is ignored.

    Parameters
    ----------
    pred_mean, real_mean, control_mean
        Mean expression of the predicted, the measured perturbed and the measured control cells, shape ``(n_genes,)``.
    real_control_mean
        Mean of the control cells that the measured change is against; by default `control_mean`.

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or a delta is the same in every gene (to 1e-6, float32's precision).
    """
    real_control_mean = control_mean if real_control_mean is None else real_control_mean
    pred, real, control, real_control = _checked_means(pred_mean, real_mean, control_mean, real_control_mean)
    deviations = []
    for name, delta in (("predicted", pred - control), ("measured", real - real_control)):
        deviation = delta - delta.mean()
        if np.abs(deviation).max() <= 1e-6 * max(1.0, np.abs(control).max()):
            msg = f"The {name} delta is the same in all {len(delta)} genes: it correlates with nothing."
            raise ValueError(msg)
        deviations.append(deviation / np.linalg.norm(deviation))
    return float(np.clip(deviations[0] @ deviations[1], -1.0, 1.0))


def pearson_delta_top(
    pred_mean: ArrayLike,
    real_mean: ArrayLike,
    control_mean: ArrayLike,
    *,
    n_top: int = 20,
    real_control_mean: ArrayLike | None = None,
) -> float:
    """:func:`pearson_delta` over the genes whose measured delta is largest in absolute value.

    Parameters
    ----------
    pred_mean, real_mean, control_mean, real_control_mean
        As in :func:`pearson_delta`.
    n_top
        Number of genes; the earlier gene wins a tie.

    Raises
    ------
    ValueError
        As in :func:`pearson_delta`, and if there are fewer than `n_top` genes.
    """
    real_control_mean = control_mean if real_control_mean is None else real_control_mean
    pred, real, control, real_control = _checked_means(pred_mean, real_mean, control_mean, real_control_mean)
    if len(real) < n_top:
        msg = f"The top {n_top} genes were requested, but there are only {len(real)}."
        raise ValueError(msg)
    top = np.argsort(-np.abs(real - real_control), kind="stable")[:n_top]
    return pearson_delta(pred[top], real[top], control[top], real_control_mean=real_control[top])


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


def split_halves(n_cells: int, *, n_splits: int = N_SPLITS, seed: int = 0) -> np.ndarray:
    """Split cells in two random halves, several times.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_splits
        Number of splits.
    seed
        Seed; one seed gives the same halves of as many cells.

    Returns
    -------
    Which cells each half has, bool ``(2 * n_splits, n_cells)``: rows ``2 * i`` and ``2 * i + 1`` are the halves of one
    split; of an odd number of cells the second has one more.

    Raises
    ------
    ValueError
        If there are fewer than two cells.
    """
    if n_cells < 2:
        msg = f"Two halves need at least two measured cells; there is {n_cells}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    halves = np.zeros((2 * n_splits, n_cells), dtype=bool)
    for first in halves[::2]:
        first[rng.permutation(n_cells)[: n_cells // 2]] = True
    halves[1::2] = ~halves[::2]
    return halves


def ceiling(
    real: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float],
    *,
    full_depth: Callable[[np.ndarray], np.ndarray] | None = None,
    n_splits: int = N_SPLITS,
    seed: int = 0,
) -> float:
    """Score that a replicate of the experiment would get: one random half of the measured cells against the other.

    A half has half the cells, and more noise than the whole. `full_depth` corrects for this where it is known how, for
    instance :func:`spearman_brown` for correlations.

    Parameters
    ----------
    real
        Measured perturbed cells, shape ``(n, n_genes)``.
    score
        Function of predicted and measured cells, for instance :func:`energy_distance`.
    full_depth
        Turns the score of halves into the score that whole sets of cells would have; None leaves it.
    n_splits
        Random splits, whose scores are averaged.
    seed
        Seed of the splits; one seed gives the same halves for every score.

    Raises
    ------
    ValueError
        If there are fewer than two cells, or `score` raises it.
    """
    halves = split_halves(len(real), n_splits=n_splits, seed=seed)
    value = np.asarray(np.mean([score(real[a], real[b]) for a, b in zip(halves[::2], halves[1::2], strict=True)]))
    return float(value if full_depth is None else full_depth(value))


def spearman_brown(correlation: ArrayLike) -> np.ndarray:
    """Correlation of two whole sets of cells from that of their halves: ``2 r / (1 + r)``; one below 0 is left as is.

    Parameters
    ----------
    correlation
        Correlations of any shape.

    References
    ----------
    Spearman (1910), Correlation calculated from faulty data; Brown (1910), Some experimental results in the
    correlation of mental abilities.
    """
    r = np.asarray(correlation, dtype=np.float64)
    return np.where(r > 0, 2 * r / (1 + np.maximum(r, 0)), r)


def goodness(values: ArrayLike, *, direction: Direction) -> np.ndarray:
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


def skill(good: ArrayLike, *, floor: ArrayLike, ceiling: ArrayLike, noise: ArrayLike = 0.0) -> np.ndarray:
    """Place a score between a naive baseline (0) and the replicate ceiling (1): ``(good - floor) / (ceiling - floor)``.

    Parameters
    ----------
    good, floor, ceiling
        Scores of the model, the baseline and the ceiling, larger being better (:func:`goodness`); shapes broadcast.
    noise
        Standard deviation of ``ceiling - floor``.

    Returns
    -------
    Array of the common shape; NaN where the ceiling is not above the floor by more than twice the noise, as the scale
    is then meaningless. Values below 0 are worse than the baseline.
    """
    floor = np.asarray(floor, dtype=np.float64)
    gap = np.asarray(ceiling, dtype=np.float64) - floor
    is_clear = gap > 2 * np.asarray(noise, dtype=np.float64)
    return (np.asarray(good, dtype=np.float64) - floor) / np.where(is_clear, gap, np.nan)


def bootstrap_interval(
    values: ArrayLike, *, weights: ArrayLike | None = None, n_boot: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; NaN for both ends with fewer than two values.

    Parameters
    ----------
    values
        One number per context, shape ``(n,)``, all finite.
    weights
        Weight of each, shape ``(n,)``, all above 0; equal by default.
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
    weight = np.ones(len(array)) if weights is None else np.asarray(weights, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(array), size=(n_boot, len(array)))
    means = (array * weight)[drawn].sum(axis=1) / weight[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
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
