"""Tests of what the State Transition model's training starts from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.data.sets import Group
from scstate_lora.training.st.shift_prior import group_statistics, mean_shifts, shrinkage


def _contexts(differences: float, *, n_cells: int, seed: int = 0) -> tuple[sparse.csr_matrix, list[Group], np.ndarray]:
    """Six contexts of unit-variance cells whose shifts differ by normal numbers of that standard deviation a gene."""
    rng = np.random.default_rng(seed)
    n_genes, shared = 50, rng.normal(size=50)
    cells, groups, shifts = [], [], []
    for context in range(6):
        shift = shared + differences * rng.normal(size=n_genes)
        start = 2 * n_cells * context
        cells += [rng.normal(size=(n_cells, n_genes)), rng.normal(size=(n_cells, n_genes)) + shift]
        rows = np.arange(start, start + 2 * n_cells)
        groups.append(Group(str(context), 1, rows[:n_cells], rows[n_cells:]))
        shifts.append(shift)
    return sparse.csr_matrix(np.concatenate(cells)), groups, np.array(shifts)


def _weight(x: sparse.csr_matrix, groups: list[Group]) -> float:
    """Weight where the mean shift is expected of every group."""
    stats = group_statistics(x, groups)
    return shrinkage(stats, np.array([g.pert for g in groups]), stats.delta.mean(axis=0))


def test_mean_shift_is_the_mean_over_contexts_not_over_cells() -> None:
    x = sparse.csr_matrix(np.array([[0.0], [0.0], [2.0], [2.0], [2.0], [0.0], [4.0]]))
    groups = [
        Group("a", 1, np.array([0, 1]), np.array([2, 3, 4])),
        Group("b", 1, np.array([5]), np.array([6])),
    ]
    np.testing.assert_allclose(mean_shifts(x, groups, np.eye(3)), [[0.0], [3.0], [0.0]])


@pytest.mark.parametrize("differences", [0.3, 1.0])
def test_shrinkage_is_the_ratio_of_noise_to_true_differences_over_the_spread(differences: float) -> None:
    weights = [_weight(*_contexts(differences, n_cells=40, seed=s)[:2]) for s in range(10)]
    noise, true, spread = 2 / 40, differences**2, np.sqrt(2 * 50)  # noise and differences a gene
    assert np.mean(weights) == pytest.approx(noise / true / spread, rel=0.15)


def test_shrinkage_grows_when_cells_are_few_and_contexts_alike() -> None:
    many, few = (_weight(*_contexts(0.5, n_cells=n)[:2]) for n in (200, 10))
    alike = _weight(*_contexts(0.0, n_cells=10)[:2])
    assert 0 < many < few < alike
    assert np.isfinite(alike)


def test_shrinkage_of_a_single_context_takes_noise_and_differences_as_equal() -> None:
    x, groups, _ = _contexts(0.5, n_cells=100)
    assert _weight(x, groups[:1]) == pytest.approx(1 / np.sqrt(2 * 50), rel=0.1)


def test_shrinkage_grows_when_what_is_expected_fits() -> None:
    x, groups, shifts = _contexts(1.0, n_cells=40)
    stats, perts = group_statistics(x, groups), np.ones(6)
    assert shrinkage(stats, perts, shifts) > 5 * _weight(x, groups)
