"""What the State Transition model's training starts from: the mean shift, and how far contexts can be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.data.sets import Group


def mean_shifts(x: sparse.csr_matrix, groups: list[Group], n_perturbations: int) -> np.ndarray:
    """Mean over contexts of (mean perturbed - mean control), by perturbation.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``.
    groups
        Training groups.
    n_perturbations
        Perturbations, the control among them.

    Returns
    -------
    float32 ``(n_perturbations, n_genes)``; zero for the control and for what has no group.
    """
    shifts = np.zeros((n_perturbations, x.shape[1]), dtype=np.float32)
    deltas = _deltas(x, groups)
    perts = np.array([g.pert for g in groups])
    for pert in set(perts):
        shifts[pert] = deltas[perts == pert].mean(axis=0)
    return shifts


def shrinkage(x: sparse.csr_matrix, groups: list[Group]) -> float:
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
        log1p expression, CSR ``(n_cells, n_genes)``.
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


def _deltas(x: sparse.csr_matrix, groups: list[Group]) -> np.ndarray:
    return np.array([_mean(x, g.perturbed) - _mean(x, g.control) for g in groups])


def _mean(x: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
    return np.asarray(x[rows].mean(axis=0), dtype=np.float64).ravel()


def _variance(x: sparse.csr_matrix, rows: np.ndarray) -> float:
    """Variance of cells summed over genes, unbiased."""
    cells = x[rows]
    squares = np.asarray(cells.multiply(cells).sum(axis=0), dtype=np.float64).ravel()
    total = squares - len(rows) * _mean(x, rows) ** 2
    return float(total.sum() / max(1, len(rows) - 1))
