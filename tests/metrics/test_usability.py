from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.metrics import baseline_saturation, dynamic_range_fraction, interpolated_duplicate, mse


def test_the_duplicate_keeps_the_genes_that_surely_differ():
    np.testing.assert_allclose(interpolated_duplicate([2.0, 2, 2], [0.0, 1, 4], [0, 1, 0.5]), [2, 1, 3])
    two = interpolated_duplicate(np.full((2, 3), 2.0), [0.0, 1, 4], np.ones((2, 3)))
    np.testing.assert_array_equal(two, [[0, 1, 4]] * 2)
    for half, base, fdr in (([1.0], [1.0, 2], [0.5]), ([1.0, 1], [1.0, 2], [0.5]), ([1.0], [1.0], [1.5])):
        with pytest.raises(ValueError, match="FDR"):
            interpolated_duplicate(half, base, fdr)


def test_the_duplicate_beats_the_half_where_few_genes_change():
    rng = np.random.default_rng(0)
    truth = np.zeros(200)
    truth[:5] = 1
    half = truth + rng.normal(0, 0.3, 200)
    fdr = np.where(truth > 0, 0.0, 0.9)
    base = np.zeros(200)
    assert mse(half, truth) > mse(base, truth) > mse(interpolated_duplicate(half, base, fdr), truth)


def test_dynamic_range_by_hand():
    np.testing.assert_allclose(dynamic_range_fraction([0.9, 0.2, -3], [0.5, 0.4, 0.5], perfect=1), [0.8, -1 / 3, -1])
    np.testing.assert_allclose(dynamic_range_fraction([0.1, 3.0], [0.5, 0.5], perfect=0), [0.8, -1])
    assert np.isnan(dynamic_range_fraction(0.5, 1.0, perfect=1))


def test_saturation_by_hand():
    np.testing.assert_allclose(baseline_saturation([0.6, 0.0, 1.0], control=0.2, replicate=0.8), [2 / 3, -1 / 3, 4 / 3])
    assert np.isnan(baseline_saturation(0.5, control=0.8, replicate=0.8))
    assert baseline_saturation(-0.2, control=-0.5, replicate=0.0) == pytest.approx(0.6)  # minus an error


def test_without_a_perfect_score_there_is_no_dynamic_range():
    assert np.isnan(dynamic_range_fraction([0.5], [0.2], perfect=np.inf)).all()
