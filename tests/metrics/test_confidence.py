from __future__ import annotations

import numpy as np
import pytest

from scstate_lora import metrics


def test_wilson_interval_as_published():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    low, high = metrics.wilson_interval(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)
    assert np.isnan(metrics.wilson_interval(0, 0)).all()
    all_of_them = metrics.wilson_interval(7, 7)
    assert all_of_them[1] == 1.0


def test_reliability_and_its_error_by_hand():
    confidence = np.array([0.05, 0.95, 0.91, 1.0, 0.5])
    correct = np.array([False, True, True, False, True])
    found = metrics.reliability(confidence, correct, n_bins=10)
    np.testing.assert_allclose(found.confidence, [0.05, 0.5, (0.95 + 0.91 + 1.0) / 3])
    np.testing.assert_allclose(found.accuracy, [0, 1, 2 / 3])
    assert found.n_cells.tolist() == [1, 1, 3]
    expected = (0.05 + 0.5 + 3 * abs(2 / 3 - 2.86 / 3)) / 5
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_a_calibrated_confidence_has_little_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 50_000)
    correct = rng.random(50_000) < confidence
    assert metrics.expected_calibration_error(confidence, correct) < 0.01
    assert metrics.expected_calibration_error(confidence, np.zeros(50_000, dtype=bool)) == pytest.approx(0.65, abs=0.01)


@pytest.mark.parametrize(
    ("confidence", "correct", "n_bins", "match"),
    [
        ([], [], 10, "with a cell"),
        ([0.5], [True, False], 10, "shape"),
        ([1.5], [True], 10, "probabilities"),
        ([np.nan], [True], 10, "probabilities"),
        ([0.5], [True], 0, "n_bins=0"),
    ],
)
def test_unusable_confidence_raises(confidence, correct, n_bins, match):
    with pytest.raises(ValueError, match=match):
        metrics.reliability(np.array(confidence), np.array(correct), n_bins=n_bins)
