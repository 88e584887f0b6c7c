"""What the State Transition model's training starts from: the mean shift, and how far contexts can be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.linear_model import RidgeCV

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.data.sets import Group

_PENALTIES = np.logspace(-3, 4, 22)
_UNPENALISED = 1e3  # a column this large needs a coefficient so small that its penalty does not count


def mean_shifts(x: sparse.csr_matrix | np.ndarray, groups: list[Group], perts: np.ndarray) -> np.ndarray:
    """Fit what each number that describes a perturbation adds to the mean of cells.

    Of every perturbation the differences of its contexts are averaged. Where each has a column of its own, these are
    the mean shifts themselves. Features are given coefficients by ridge regression, with the penalty that predicts a
    perturbation best from all others; their first column is hardly penalised.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, ``(n_cells, n_columns)``.
    groups
        Training groups.
    perts
        What describes the perturbation of each code, ``(n_codes, pert_dim)``.

    Returns
    -------
    float32 ``(pert_dim, n_columns)``; zero for a column that no group has.
    """
    return shifts_of(group_statistics(x, groups).delta, perts[[g.pert for g in groups]]).astype(np.float32)


def shifts_of(deltas: np.ndarray, told: np.ndarray) -> np.ndarray:
    """As :func:`mean_shifts`, of groups' differences ``(n_groups, n_columns)`` and perturbations' descriptions."""
    rows, codes = np.unique(told, axis=0, return_inverse=True)
    means = np.array([deltas[codes == i].mean(axis=0) for i in range(len(rows))])  # (n_trained, n_columns)
    described = rows.astype(np.float64)  # (n_trained, pert_dim)
    if ((described == 0) | (described == 1)).all() and (described.sum(axis=1) == 1).all():
        return described.T @ means
    scale = np.ones(described.shape[1])
    scale[0] = _UNPENALISED
    ridge = RidgeCV(alphas=_PENALTIES, fit_intercept=False).fit(described * scale, means)
    return (ridge.coef_ * scale).T


def shrinkage(stats: GroupStatistics, perts: np.ndarray, expected: np.ndarray) -> float:
    """How strongly a context's own deviation from what is expected of it should be held back.

    The deviations that are seen consist of true differences between contexts and of sampling noise, whose size follows
    from the cells' variance and number. For a normal prior and noise the best weight of ``|deviation|^2`` beside an
    energy distance is ``(noise / true differences) / spread``: the distance between two clouds of cells that differ by
    a small shift d is about ``|d|^2 / spread``, spread being the mean distance between two cells (empirical Bayes;
    Efron & Morris 1973, doi:10.1080/01621459.1973.10481350). Few cells a context, or contexts that respond as
    expected, give a large weight, and the model stays near that.

    Parameters
    ----------
    stats
        Of the training groups.
    perts
        Code of each group's perturbation, ``(n_groups,)``.
    expected
        Difference that is expected of each group: the mean shift, or more, ``(n_groups, n_columns)``.

    Returns
    -------
    The weight, positive. Where no perturbation has two contexts, noise and differences are taken as equal.
    """
    noise = float(stats.noise.sum(axis=1).mean())
    freedom = len(perts) - len(set(perts.tolist()))
    squares = float(np.square(stats.delta - expected).sum())
    differences = squares / freedom - noise if freedom else noise
    # At least a tenth of the noise: estimates near or below zero mean that contexts cannot be told apart.
    return noise / max(differences, 0.1 * noise, 1e-12) / max(float(stats.spread.mean()), 1e-12)


class GroupStatistics(NamedTuple):
    """What groups are, as far as their means and variances tell."""

    control: np.ndarray
    """Mean of the control cells, float64 ``(n_groups, n_columns)``."""
    delta: np.ndarray
    """Mean of the perturbed cells minus that, ``(n_groups, n_columns)``."""
    noise: np.ndarray
    """Expected squared error of the difference, ``(n_groups, n_columns)``."""
    spread: np.ndarray
    """About the mean distance of two control cells, ``(n_groups,)``."""


def group_statistics(x: sparse.csr_matrix | np.ndarray, groups: list[Group]) -> GroupStatistics:
    """Read means and variances of groups of cells."""
    control = np.array([_mean(x, g.control) for g in groups])
    perturbed = np.array([_mean(x, g.perturbed) for g in groups])
    noise, spread = [], []
    for group in groups:
        before, after = _variances(x, group.control), _variances(x, group.perturbed)
        noise.append(before / len(group.control) + after / len(group.perturbed))
        spread.append(np.sqrt(2 * before.sum()))
    return GroupStatistics(control, perturbed - control, np.array(noise), np.array(spread))


def _mean(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(x[rows].mean(axis=0), dtype=np.float64).ravel()


def _variances(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Unbiased variance of cells, ``(n_columns,)``."""
    cells = x[rows]
    squared = np.square(cells) if isinstance(cells, np.ndarray) else cells.multiply(cells)
    squares = np.asarray(squared.sum(axis=0), dtype=np.float64).ravel()
    # Rounding may leave a gene that never varies a little below zero.
    return np.maximum(squares - len(rows) * np.square(_mean(x, rows)), 0) / max(1, len(rows) - 1)
