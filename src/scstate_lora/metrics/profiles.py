"""Expression of each perturbation from its summed counts, with its sampling noise, and errors corrected for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

from scstate_lora.metrics.counts import CountGroups, checked_targets, in_threads
from scstate_lora.metrics.set_pairs import is_one_profile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from scstate_lora.metrics.counts import Counts

DEPTH = 5e4
"""Counts that the sum over a perturbation's cells is scaled to."""
_TIE = 1e-9  # cosines that differ by less count as equal
_LARGE = 0.01  # relative change above which the short series of log1p is not exact
_ZERO = 1e-10  # length of an effect that is rounding


class CountProfiles(NamedTuple):
    """Expression of every perturbation, from counts that were summed over its cells."""

    expression: np.ndarray
    """log1p of the counts of all cells together, scaled to 50,000; float64 ``(n_perturbations, n_genes)``."""
    noise: np.ndarray
    """Variance of the expression that comes from the choice of cells, summed over genes, ``(n_perturbations,)``."""


def count_profiles(cells: Counts, perturbation: ArrayLike | None = None) -> CountProfiles:
    """Sum counts over the cells of each perturbation, take logs once, and estimate the noise by a jackknife.

    The jackknife leaves out one cell at a time: with ``v_i`` the expression without cell ``i``, the noise is
    ``(n - 1) / n * sum_i |v_i - mean v|^2``; 0 for a single cell.

    Parameters
    ----------
    cells
        Raw counts, ``(n_cells, n_genes)``, sparse or dense.
    perturbation
        Perturbation of each cell, numbers from 0 on, ``(n_cells,)``; None: one group, for the control cells.

    Raises
    ------
    ValueError
        If a count is negative or not finite, or a perturbation has no cell.

    References
    ----------
    The expression comparator ``bulk_lognorm`` of the ``cell-eval2`` package 0.20 (2026); Efron and Stein (1981), The
    jackknife estimate of variance.
    """
    groups = CountGroups.one(cells, name="cells") if perturbation is None else CountGroups.of(cells, perturbation)
    sums = groups.sums
    totals = sums.sum(axis=1, keepdims=True)
    expression = np.log1p(DEPTH * sums / np.where(totals > 0, totals, 1.0))
    matrix = groups.cells

    def noise(group: int) -> float:
        rows = groups.order[groups.starts[group] : groups.starts[group + 1]]
        return _jackknife(matrix.data, matrix.indices, matrix.indptr, rows, sums[group], np.exp(-expression[group]))

    return CountProfiles(expression, np.array(in_threads(noise, range(len(sums)))))


def profile_of(cells: np.ndarray) -> CountProfiles:
    """Profile of one set of cells, dense counts ``(n, n_genes)``, as :func:`count_profiles`: one row."""
    sums, libraries = cells.sum(axis=0, dtype=np.float64), cells.sum(axis=1, dtype=np.float64)
    total = float(sums.sum())
    expression = np.log1p(DEPTH * sums / (total if total > 0 else 1.0))
    noise = 0.0 if is_one_profile(cells) else _dense_jackknife(cells, libraries, sums, np.exp(-expression))
    return CountProfiles(expression[None], np.array([noise]))


def pds_cosine(pred_effects: ArrayLike, real_effects: ArrayLike, *, targets: ArrayLike | None = None) -> np.ndarray:
    """Perturbation discrimination score by cosine, without the genes that any of the perturbations acts on.

    As :func:`discrimination_score`, ranked among the n - 1 others, but the target genes of **all** perturbations are
    out of every comparison, so that a prediction cannot be told apart by the targets of others, and a zero effect,
    which is equally near to all, scores 0.5.

    Parameters
    ----------
    pred_effects, real_effects
        Change of every perturbation against the measured controls, for instance the difference of
        :attr:`CountProfiles.expression`, ``(n_perturbations, n_genes)``, the same perturbation in the same row.
    targets
        For every perturbation the position of the gene that it acts on, or -1, ``(n_perturbations,)`` or, of
        combinations, ``(n_perturbations, n_positions)``; None leaves out no gene.

    Returns
    -------
    float64 ``(n_perturbations,)``.

    Raises
    ------
    ValueError
        If shapes differ, there are fewer than two perturbations, a number is not finite, or no gene is left.

    References
    ----------
    ``pds_cosine`` of the ``cell-eval2`` package 0.20 (2026).
    """
    pred, real = _checked_effects(pred_effects, real_effects)
    own = checked_targets(targets, *real.shape)
    kept = np.setdiff1d(np.arange(real.shape[1]), own)
    if not len(kept):
        msg = f"Every one of the {real.shape[1]} genes is the target of a perturbation: none is left to compare."
        raise ValueError(msg)
    smallest = _ZERO * max(1.0, float(np.linalg.norm(real[:, kept], axis=1).max()))
    directions, of_real = (_directions(side[:, kept], smallest) for side in (pred, real))
    gaps = directions @ of_real.T
    gaps -= np.diag(gaps).copy()[:, None]
    nearer = (gaps > _TIE).sum(axis=1) + 0.5 * ((np.abs(gaps) <= _TIE).sum(axis=1) - 1)
    return 1 - nearer / (len(real) - 1)


class UnbiasedErrors(NamedTuple):
    """Squared errors and effects of every perturbation without the part that is sampling noise, means over genes."""

    error: np.ndarray
    """Squared distance of the predicted from the measured expression, ``(n_perturbations,)``; may be below 0."""
    effect: np.ndarray
    """Squared distance of the measured expression from that of the controls, ``(n_perturbations,)``."""

    @property
    def normalized(self) -> float:
        """Sum of the errors over the sum of the effects: 0 is right, 1 is what the controls get."""
        total = float(self.effect.sum())
        return float(self.error.sum()) / total if total > 0 else np.nan


def unbiased_errors(
    pred: CountProfiles, real: CountProfiles, control: CountProfiles, *, targets: ArrayLike | None = None
) -> UnbiasedErrors:
    """Squared error of the predicted expression, corrected for the noise of both sides; its ratio to the effect.

    ``error = (|p - r|^2 - a min(noise_p, noise_r) - noise_r) / n_genes`` and
    ``effect = (|r - c|^2 - noise_r - noise_c) / n_genes``, without the perturbation's own target gene. The prediction
    cannot claim more noise than the measured cells have, nor, over all perturbations, more than its perturbations
    differ from each other: the factor ``a <= 1`` sees to that.

    Parameters
    ----------
    pred, real
        Profiles of the predicted and the measured cells (:func:`count_profiles`), the same perturbation in the same
        row.
    control
        Profile of the measured control cells, one row.
    targets
        As in :func:`pds_cosine`.

    Returns
    -------
    The errors; :attr:`UnbiasedErrors.normalized` is the score. With a single perturbation ``a`` is 0.

    Raises
    ------
    ValueError
        If the profiles or `targets` do not fit each other.

    References
    ----------
    ``expr_mse_unbiased_capped``, ``expr_distance_unbiased`` and their ratio ``expr_mse_unbiased_capped_norm`` of the
    ``cell-eval2`` package 0.20 (2026).
    """
    if pred.expression.shape != real.expression.shape or control.expression.shape != (1, real.expression.shape[1]):
        msg = (
            "Predicted and measured profiles must have the same shape, and the control profile one row of the same "
            f"genes; found {pred.expression.shape}, {real.expression.shape} and {control.expression.shape}."
        )
        raise ValueError(msg)
    n, n_genes = real.expression.shape
    own = checked_targets(targets, n, n_genes)
    kept = np.ones((n, n_genes))
    kept[np.nonzero(own >= 0)[0], own[own >= 0]] = 0
    n_kept = kept.sum(axis=1)
    if not n_kept.all():
        msg = "The only genes are targets of one perturbation: none is left to compare."
        raise ValueError(msg)
    claimed = np.minimum(pred.noise, real.noise)
    total = float((claimed / n_kept).sum())
    if total > 0:
        claimed = claimed * min(1.0, _spread(pred.expression, kept / n_kept[:, None]) / total)
    error = (kept * np.square(pred.expression - real.expression)).sum(axis=1) - claimed - real.noise
    effect = (kept * np.square(real.expression - control.expression)).sum(axis=1) - real.noise - control.noise
    return UnbiasedErrors(error / n_kept, effect / n_kept)


def _spread(expression: np.ndarray, weights: np.ndarray) -> float:
    """Weighted squares of the differences from the mean over perturbations, summed over them and the genes."""
    total = weights.sum(axis=0)
    mean = (weights * expression).sum(axis=0) / np.where(total > 0, total, 1.0)
    return float((weights * np.square(expression - mean)).sum())


def _checked_effects(pred_effects: ArrayLike, real_effects: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    pred, real = np.asarray(pred_effects, dtype=np.float64), np.asarray(real_effects, dtype=np.float64)
    if pred.shape != real.shape or pred.ndim != 2 or len(pred) < 2 or not pred.size:
        msg = (
            "Effects must have shape (n_perturbations, n_genes), the same for both, with at least two perturbations; "
            f"found {pred.shape} predicted and {real.shape} measured."
        )
        raise ValueError(msg)
    if not (np.isfinite(pred).all() and np.isfinite(real).all()):
        msg = "An effect is NaN or infinite."
        raise ValueError(msg)
    return pred, real


def _directions(effects: np.ndarray, smallest: float) -> np.ndarray:
    """Effects of length 1, or 0 where they are no longer than `smallest`."""
    length = np.linalg.norm(effects, axis=1, keepdims=True)
    return np.where(length > smallest, effects / np.maximum(length, smallest), 0.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _jackknife(
    data: Any, indices: Any, indptr: Any, rows: Any, sums: Any, inverse: Any
) -> Any:  # pragma: no cover  (compiled)
    cell = np.zeros(len(sums))
    first, second = np.zeros(len(sums)), np.zeros(len(sums))
    total, r = sums.sum(), np.empty(len(sums))
    if total <= 0:
        return 0.0
    for row in rows:
        start, stop = indptr[row], indptr[row + 1]
        library = 0.0
        for k in range(start, stop):
            cell[indices[k]] = data[k]
            library += data[k]
        _leave_out(cell, library, sums, total, inverse, r, first, second)
        for k in range(start, stop):
            cell[indices[k]] = 0.0
    return _variance(first, second, len(rows))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dense_jackknife(cells: Any, libraries: Any, sums: Any, inverse: Any) -> Any:  # pragma: no cover  (compiled)
    first, second = np.zeros(len(sums)), np.zeros(len(sums))
    total, r = sums.sum(), np.empty(len(sums))
    if total <= 0:
        return 0.0
    for i in range(len(cells)):
        _leave_out(cells[i], libraries[i], sums, total, inverse, r, first, second)
    return _variance(first, second, len(cells))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _leave_out(
    cell: Any, library: Any, sums: Any, total: Any, inverse: Any, r: Any, first: Any, second: Any
) -> None:  # pragma: no cover  (compiled)
    # log1p(a) - log1p(b) = log1p(r) with r = (a - b) / (1 + b), which is small: no digits are lost, and a series does.
    left = total - library
    scale = DEPTH / left if left > 0 else 0.0
    change = scale - DEPTH / total
    for gene in range(len(sums)):
        r[gene] = (change * sums[gene] - scale * cell[gene]) * inverse[gene]
    for gene in range(len(sums)):
        if abs(r[gene]) >= _LARGE:
            shift = np.log1p(r[gene])
            first[gene] += shift
            second[gene] += shift * shift
            r[gene] = 0.0
    for gene in range(len(sums)):
        x = r[gene]
        shift = x * (1 + x * (-1 / 2 + x * (1 / 3 + x * (-1 / 4 + x * (1 / 5 - x / 6)))))
        first[gene] += shift
        second[gene] += shift * shift


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _variance(first: Any, second: Any, n: Any) -> Any:  # pragma: no cover  (compiled)
    if n < 2:
        return 0.0
    return max((n - 1) / n * (second - first * first / n).sum(), 0.0)
