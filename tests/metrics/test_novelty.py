from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scstate_lora import metrics


def test_entropy_runs_from_certain_to_all_alike():
    p = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(metrics.normalized_entropy(p), [0, 1, 0.5], atol=1e-12)


def test_energy_sees_how_much_evidence_there_is():
    found = metrics.logit_energy(np.array([[0.0, 0, 0], [5, 0, 0], [9, 4, 4], [0, 9, 0]]))
    np.testing.assert_allclose(found[0], -np.log(3))
    assert found[1] == pytest.approx(found[2])  # a constant for all classes says nothing
    assert found[0] > found[1] > found[3]


def _types(n=400, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.array([[2.0, 0.3, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.5]])
    centres = np.array([[0, 0, 0], [8, 0, 0], [0, 5, 5.0]])
    classes = rng.integers(0, 3, n)
    return centres[classes] + rng.normal(size=(n, 3)) @ mix, classes, centres, mix


def test_distance_is_that_of_mahalanobis_to_the_closest_mean():
    x, classes, _, _ = _types(200_000)
    fitted = metrics.fit_class_distances(x, classes)
    within = x - fitted.means[classes]
    inverse = np.linalg.inv(within.T @ within / len(x))  # with so many cells nothing is shrunk
    new = np.random.default_rng(1).normal(scale=5, size=(10_000, 3))  # more than one block
    expected = cdist(new, fitted.means, metric="mahalanobis", VI=inverse).min(axis=1)
    np.testing.assert_allclose(fitted.nearest(new), expected, rtol=1e-3)


def test_fewer_cells_than_dimensions_have_distances():
    rng = np.random.default_rng(0)
    fitted = metrics.fit_class_distances(rng.normal(size=(20, 60)), np.arange(20) % 2)
    assert np.isfinite(fitted.nearest(rng.normal(size=(5, 60)))).all()
    constant = metrics.fit_class_distances(np.ones((20, 3)), np.arange(20) % 2)
    assert np.isfinite(constant.nearest(np.ones((2, 3)))).all()


def test_both_signals_find_what_one_misses_and_known_cells_are_rejected_as_said():
    rng = np.random.default_rng(0)
    rates, far_found, unsure_found = [], [], []
    for _ in range(30):
        energy, distance = rng.normal(-6, 1, 700), rng.lognormal(1, 0.2, 700)
        scale = metrics.fit_novelty_scale(energy[:200], distance[:200])
        rates.append(np.mean(scale.score(energy[200:], distance[200:]) > scale.threshold))
        far_found.append(np.mean(scale.score(energy[200:], 3 * distance[200:]) > scale.threshold))
        unsure_found.append(np.mean(scale.score(energy[200:] + 5, distance[200:]) > scale.threshold))
    assert 0.03 < np.mean(rates) <= 0.055
    assert np.mean(far_found) > 0.9
    assert np.mean(unsure_found) > 0.9


def test_check_by_hand():
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.25, 0.9])
    unknown = np.array([False, False, False, False, True, True])
    found = metrics.novelty_check(score, unknown)
    assert found == (pytest.approx(6 / 8), 0.5, 2, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: metrics.normalized_entropy(np.ones((3, 1))), "two classes"),
        (lambda: metrics.normalized_entropy(np.array([[2.0, 1.0]])), "softmax"),
        (lambda: metrics.normalized_entropy(np.array([[np.nan, 1.0]])), "NaN"),
        (lambda: metrics.logit_energy(np.array([[-np.inf, 1.0]])), "finite"),
        (lambda: metrics.fit_class_distances(np.zeros((3, 2)), np.arange(3)), "3 classes"),
        (lambda: metrics.fit_class_distances(np.full((3, 2), np.nan), np.zeros(3)), "finite"),
        (lambda: metrics.fit_class_distances(*_types()[:2]).nearest(np.zeros((2, 4))), "classes have 3 dimensions"),
        (lambda: metrics.fit_novelty_scale(np.ones(18), np.ones(18)), "it takes 19"),
        (lambda: metrics.fit_novelty_scale(np.ones(18), np.ones(17)), "n_cells"),
        (lambda: metrics.novelty_check(np.ones(3), np.zeros(3, dtype=bool)), "0 of 3 cells"),
        (lambda: metrics.novelty_check(np.ones(2), np.array([True, False]), rejected=1.0), "rejected=1"),
    ],
)
def test_unusable_input_raises(call, match):
    with pytest.raises(ValueError, match=match):
        call()
