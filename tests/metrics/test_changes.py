from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.metrics.changes import Change, moments


def test_moments_of_several_sets_at_once():
    rng = np.random.default_rng(0)
    cells = (rng.normal(size=(40, 1100)) + 1000).astype(np.float32)  # more genes than a block, far from zero
    sets = rng.random((5, 40)) < 0.5
    for (n, mean, variance), rows in zip(moments(cells, sets), sets, strict=True):
        own = cells[rows].astype(np.float64)
        assert n == len(own)
        np.testing.assert_allclose(mean, own.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(variance, own.var(axis=0, ddof=1), rtol=1e-7)


def test_one_cell_has_no_variance_and_no_test():
    (single,) = moments(np.ones((3, 4)), np.array([[True, False, False]]))
    assert single.n_cells == 1
    assert (single.variance == 0).all()
    with pytest.raises(ValueError, match="two cells on either side; there are 1 and 3"):
        _ = Change(single, moments(np.ones((3, 4)), np.ones((1, 3), dtype=bool))[0]).genes


def test_what_only_rounding_moves_has_not_moved():
    cells = np.random.default_rng(0).random((30, 6)).astype(np.float32)
    change = Change.of(cells[::-1] + np.float32([1e-8, 0, 0, 0, 0, 1]), cells)
    assert list(change.moved[:5]) == [0] * 5
    assert change.moved[5] == pytest.approx(1)


@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("effect", [0.0, 0.6, 3.0])
def test_the_significant_genes_are_those_of_the_full_table(n, effect):
    rng = np.random.default_rng(n)
    control, cells = rng.normal(size=(n + 5, 600)), rng.normal(size=(n, 600))
    cells[:, :100] += effect
    cells[:, 100], control[:, 100] = 1, 0  # constant on both sides
    change = Change.of(cells, control)
    expected = np.flatnonzero(change.genes.fdr < 0.05)
    assert 100 in expected
    np.testing.assert_array_equal(change.significant, expected)
    by_size = expected[np.argsort(-np.abs(change.delta[expected]), kind="stable")]
    np.testing.assert_array_equal(change.strongest(7), by_size[:7])
