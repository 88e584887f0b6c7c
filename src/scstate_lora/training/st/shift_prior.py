"""Where training of the State Transition model starts: the mean shift, and the shrinkage towards it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.linear_model import RidgeCV

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.data.sets import Group

_PENALTIES = np.logspace(-3, 4, 22)
_UNPENALISED = 1e3  # a column scaled by this needs a coefficient so small that its penalty is negligible


def mean_shifts(x: sparse.csr_matrix | np.ndarray, groups: list[Group], perts: np.ndarray) -> np.ndarray:
    """Fit the shift of the mean cell per unit of each entry of a perturbation vector.

    The differences of a perturbation's contexts are averaged. If perturbation vectors are one-hot, these averages are
    the shifts. For features, ridge regression gives the coefficients, with the penalty that predicts a perturbation
    best from all others; the first column is hardly penalised.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, ``(n_cells, n_columns)``.
    groups
        Training groups.
    perts
        Perturbation vector of each code, ``(n_codes, pert_dim)``.

    Returns
    -------
    float32 ``(pert_dim, n_columns)``; zero for an entry that is zero in all groups.
    """
    return shifts_of(group_statistics(x, groups).delta, perts[[g.pert for g in groups]]).astype(np.float32)


def shifts_of(deltas: np.ndarray, pert_vectors: np.ndarray) -> np.ndarray:
    """As :func:`mean_shifts`, from the groups' differences ``(n_groups, n_columns)`` and perturbation vectors."""
    rows, codes = np.unique(pert_vectors, axis=0, return_inverse=True)
    means = np.array([deltas[codes == i].mean(axis=0) for i in range(len(rows))])  # (n_trained, n_columns)
    distinct = rows.astype(np.float64)  # (n_trained, pert_dim)
    if ((distinct == 0) | (distinct == 1)).all() and (distinct.sum(axis=1) == 1).all():
        return distinct.T @ means
    scale = np.ones(distinct.shape[1])
    scale[0] = _UNPENALISED
    ridge = RidgeCV(alphas=_PENALTIES, fit_intercept=False).fit(distinct * scale, means)
    return (ridge.coef_ * scale).T


def shrinkage(stats: GroupStatistics, perts: np.ndarray, expected: np.ndarray) -> float:
    """Estimate how strongly a context's deviation from its expected shift should be shrunk.

    Observed deviations consist of true differences between contexts and of sampling noise, whose variance follows from
    the variance and number of the cells. For a normal prior and noise, the best weight of ``|deviation|^2`` beside an
    energy distance is ``(noise / true differences) / spread``: the distance between two clouds of cells that differ by
    a small shift d is about ``|d|^2 / spread``, where spread is the mean distance between two cells (empirical Bayes;
    Efron & Morris 1973, doi:10.1080/01621459.1973.10481350). Few cells per context, or contexts that respond as
    expected, give a large weight, which keeps the model near the expected shifts.

    Parameters
    ----------
    stats
        Of the training groups.
    perts
        Code of each group's perturbation, ``(n_groups,)``.
    expected
        Expected difference of each group: the mean shift, or more, ``(n_groups, n_columns)``.

    Returns
    -------
    The weight, positive. If no perturbation has two contexts, noise and differences are assumed equal.
    """
    noise = float(stats.noise.sum(axis=1).mean())
    freedom = len(perts) - len(set(perts.tolist()))
    squares = float(np.square(stats.delta - expected).sum())
    differences = squares / freedom - noise if freedom else noise
    # At least a tenth of the noise: estimates near or below zero mean that contexts do not differ measurably.
    return noise / max(differences, 0.1 * noise, 1e-12) / max(float(stats.spread.mean()), 1e-12)


class GroupStatistics(NamedTuple):
    """Means and variances of groups of cells."""

    control: np.ndarray
    """Mean of the control cells, float64 ``(n_groups, n_columns)``."""
    delta: np.ndarray
    """Mean of the perturbed cells minus that of the control cells, ``(n_groups, n_columns)``."""
    noise: np.ndarray
    """Expected squared error of the difference, ``(n_groups, n_columns)``."""
    spread: np.ndarray
    """Approximate mean distance between two control cells, ``(n_groups,)``."""


def group_statistics(x: sparse.csr_matrix | np.ndarray, groups: list[Group]) -> GroupStatistics:
    """Read means and variances of groups of cells."""
    control = np.array([mean_of(x, g.control) for g in groups])
    perturbed = np.array([mean_of(x, g.perturbed) for g in groups])
    noise, spread = [], []
    for group in groups:
        before, after = variances_of(x, group.control), variances_of(x, group.perturbed)
        noise.append(before / len(group.control) + after / len(group.perturbed))
        spread.append(np.sqrt(2 * before.sum()))
    return GroupStatistics(control, perturbed - control, np.array(noise), np.array(spread))


def mean_of(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean of cells, ``(n_columns,)``."""
    return np.asarray(x[rows].mean(axis=0), dtype=np.float64).ravel()


def variances_of(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Unbiased variance of cells, ``(n_columns,)``."""
    cells = x[rows]
    squared = np.square(cells) if isinstance(cells, np.ndarray) else cells.multiply(cells)
    squares = np.asarray(squared.sum(axis=0), dtype=np.float64).ravel()
    # Rounding may put a gene that never varies slightly below zero.
    return np.maximum(squares - len(rows) * np.square(mean_of(x, rows)), 0) / max(1, len(rows) - 1)
