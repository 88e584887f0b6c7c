from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scstate_lora.metrics import centroid_accuracy, pearson_delta, pearson_delta_centroid


@pytest.fixture
def means():
    rng = np.random.default_rng(0)
    common = 3 * rng.normal(size=50)
    real = rng.normal(size=(9, 50)) + common
    return 0.1 * real + rng.normal(size=real.shape) + 0.9 * common, real, common


def test_by_independent_loops(means):
    pred, real, _ = means
    correlations, accuracies = [], []
    for i, mean in enumerate(pred):
        reference = sum(real) / len(real)
        correlations.append(stats.pearsonr(mean - reference, real[i] - reference).statistic)
        farther = 0
        for j, other in enumerate(real):
            farther += j != i and sum((mean - other) ** 2) > sum((mean - real[i]) ** 2)
        accuracies.append(farther / (len(real) - 1))
    np.testing.assert_allclose(pearson_delta_centroid(pred, real), correlations)
    np.testing.assert_allclose(centroid_accuracy(pred, real), accuracies)
    assert 0.5 < np.mean(accuracies) < 1


def test_what_all_perturbations_do_counts_for_nothing(means):
    _, real, common = means
    rng = np.random.default_rng(1)
    only_common = common + 0.01 * rng.normal(size=real.shape)
    assert min(pearson_delta(pred, truth, np.zeros(50)) for pred, truth in zip(only_common, real, strict=True)) > 0.8
    assert abs(pearson_delta_centroid(only_common, real, reference=common).mean()) < 0.2
    assert abs(centroid_accuracy(only_common, real).mean() - 0.5) < 0.2


def test_perfect_prediction_and_shuffled(means):
    real = means[1]
    np.testing.assert_allclose(pearson_delta_centroid(real, real), 1)
    np.testing.assert_array_equal(centroid_accuracy(real, real), 1)
    assert centroid_accuracy(np.roll(real, 1, axis=0), real).max() < 1
    assert pearson_delta_centroid(np.roll(real, 1, axis=0), real).max() < 0.5


def test_the_reference_and_further_perturbations_may_be_given(means):
    pred, real, _ = means
    reference = real[5:].mean(axis=0)
    expected = [stats.pearsonr(p - reference, r - reference).statistic for p, r in zip(pred[:5], real[:5], strict=True)]
    np.testing.assert_allclose(pearson_delta_centroid(pred[:5], real[:5], reference=reference), expected)
    np.testing.assert_array_equal(
        centroid_accuracy(pred, real)[:5], centroid_accuracy(pred[:5], real[:5], others=real[5:])
    )
    assert centroid_accuracy(pred[:1], real[:1], others=real[1:]) == centroid_accuracy(pred, real)[0]


def test_a_prediction_of_the_reference_has_no_correlation(means):
    pred, real, _ = means
    pred[2] = real.mean(axis=0)
    assert np.isnan(pearson_delta_centroid(pred, real)).tolist() == [i == 2 for i in range(9)]


def test_what_does_not_fit_raises(means):
    pred, real, _ = means
    for score in (pearson_delta_centroid, centroid_accuracy):
        with pytest.raises(ValueError, match="the same for both"):
            score(pred[:3], real)
        with pytest.raises(ValueError, match="NaN or infinite"):
            score(np.where(pred > 3, np.nan, pred), real)
    with pytest.raises(ValueError, match="one finite number for each of the 50 genes"):
        pearson_delta_centroid(pred, real, reference=real)
    with pytest.raises(ValueError, match="there is 1"):
        centroid_accuracy(pred[:1], real[:1])
