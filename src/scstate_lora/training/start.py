"""What the State Transition model's training starts from: the mean shift, and how far contexts can be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    deltas = _deltas(x, groups)
    codes = np.array([g.pert for g in groups])
    trained = np.unique(codes)
    means = np.array([deltas[codes == pert].mean(axis=0) for pert in trained])  # (n_trained, n_columns)
    described = perts[trained].astype(np.float64)  # (n_trained, pert_dim)
    if ((described == 0) | (described == 1)).all() and (described.sum(axis=1) == 1).all():
        return (described.T @ means).astype(np.float32)
    scale = np.ones(described.shape[1])
    scale[0] = _UNPENALISED
    ridge = RidgeCV(alphas=_PENALTIES, fit_intercept=False).fit(described * scale, means)
    return (ridge.coef_ * scale).T.astype(np.float32)


def shrinkage(x: sparse.csr_matrix | np.ndarray, groups: list[Group]) -> float:
    """How strongly a context's own deviation from the mean shift should be held back.

    The deviations that are seen consist of true differences between contexts and of sampling noise, whose size follows
    from the cells' variance and number. For a normal prior and noise the best weight of ``|deviation|^2`` beside an
    energy distance is ``(noise / true differences) / spread``: the distance between two clouds of cells that differ by
    a small shift d is about ``|d|^2 / spread``, spread being the mean distance between two cells (empirical Bayes;
    Efron & Morris 1973, doi:10.1080/01621459.1973.10481350). Few cells a context, or contexts that respond alike, give
    a large weight, and the model stays near the mean shift.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, ``(n_cells, n_columns)``.
    groups
        Training groups.

    Returns
    -------
    The weight, positive. Where no perturbation has two contexts, noise and differences are taken as equal.
    """
    deltas = _deltas(x, groups)
    perts = np.array([g.pert for g in groups])
    variances = [(_variance(x, g.perturbed), _variance(x, g.control), g) for g in groups]
    noise = float(np.mean([p / len(g.perturbed) + c / len(g.control) for p, c, g in variances]))
    spread = float(np.mean([np.sqrt(2 * c) for _, c, _ in variances]))
    squares, freedom = 0.0, 0
    for pert in set(perts):
        own = deltas[perts == pert]
        squares += float(((own - own.mean(axis=0)) ** 2).sum())
        freedom += len(own) - 1
    differences = squares / freedom - noise if freedom else noise
    # At least a tenth of the noise: estimates near or below zero mean that contexts cannot be told apart.
    return noise / max(differences, 0.1 * noise, 1e-12) / max(spread, 1e-12)


def _deltas(x: sparse.csr_matrix | np.ndarray, groups: list[Group]) -> np.ndarray:
    return np.array([_mean(x, g.perturbed) - _mean(x, g.control) for g in groups])


def _mean(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(x[rows].mean(axis=0), dtype=np.float64).ravel()


def _variance(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> float:
    """Variance of cells summed over genes, unbiased."""
    cells = x[rows]
    squared = np.square(cells) if isinstance(cells, np.ndarray) else cells.multiply(cells)
    squares = np.asarray(squared.sum(axis=0), dtype=np.float64).ravel()
    total = squares - len(rows) * _mean(x, rows) ** 2
    return float(total.sum() / max(1, len(rows) - 1))
