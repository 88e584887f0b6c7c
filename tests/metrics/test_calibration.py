from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from scstate_lora import metrics


def _cells(n, temperature, *, seed=0, n_classes=4):
    """Logits that are too sure by a factor, and labels drawn from the probabilities that are right."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(scale=2, size=(n, n_classes))
    draws = rng.random((n, 1)) > np.cumsum(softmax(honest, axis=1), axis=1)
    return honest * temperature, np.minimum(draws.sum(axis=1), n_classes - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered_and_calibrates(temperature):
    logits, labels = _cells(20_000, temperature)
    found = metrics.fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    p = softmax(logits / found, axis=1)
    assert metrics.expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == labels) < 0.012


def test_temperature_by_weights_and_by_coarse_labels():
    sharp, hot = _cells(5000, 3.0), _cells(5000, 1.0, seed=1)
    logits, labels = np.concatenate([sharp[0], hot[0]]), np.concatenate([sharp[1], hot[1]])
    only_first = np.repeat([1.0, 0.0], 5000)
    assert metrics.fit_temperature(logits, labels, weights=only_first) == pytest.approx(3, rel=0.1)
    fine = labels[:, None] == np.arange(4)
    assert metrics.fit_temperature(logits, fine) == metrics.fit_temperature(logits, labels)
    # Classes 0 and 1 are one coarse label; the likelihood of the others still knows the temperature.
    coarse = fine | (fine[:, :2].any(axis=1, keepdims=True) & (np.arange(4) < 2))
    assert metrics.fit_temperature(sharp[0], coarse[:5000]) == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("n", [3, 30, 300])
def test_a_model_that_is_right_about_few_cells_is_not_sure_of_all(n):
    labels = np.arange(n) % 3
    temperature = metrics.fit_temperature(np.eye(3)[labels], labels)
    stated = softmax(np.eye(3) / temperature, axis=1).max(axis=1)
    # Of n + 1 cells, one is evenly of three classes: two thirds of a cell are wrong.
    np.testing.assert_allclose(stated, 1 - 2 / 3 / (n + 1), rtol=1e-3)


def test_logits_without_information_are_hot():
    rng = np.random.default_rng(0)
    assert metrics.fit_temperature(rng.normal(size=(3000, 3)), rng.integers(0, 3, 3000)) > 20


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_label_sets_cover_new_cells_as_promised_even_of_a_bad_model(coverage):
    shares = []
    for seed in range(40):
        logits, labels = _cells(1300, 5.0, seed=seed)
        p = softmax(logits, axis=1)
        fitted = metrics.fit_label_sets(p[:300], labels[:300], coverage=coverage)
        sets = fitted.sets(p[300:])
        assert sets.any(axis=1).all()
        shares.append(sets[np.arange(1000), labels[300:]].mean())
    assert coverage - 0.01 <= np.mean(shares) <= coverage + 0.03
    assert metrics.fit_label_sets(p, labels, coverage=coverage).n_cells == 1300


def test_a_sure_and_right_model_has_sets_of_one():
    p = np.full((50, 3), 0.05) + 0.85 * np.eye(3)[np.arange(50) % 3]
    sets = metrics.fit_label_sets(p, np.arange(50) % 3).sets(p)
    assert (sets.sum(axis=1) == 1).all()


def test_sets_take_classes_by_falling_probability_up_to_the_mass():
    fitted = metrics.LabelSets(threshold=0.7, coverage=0.9, n_cells=10)
    p = np.array([[0.1, 0.6, 0.3], [0.05, 0.75, 0.2], [0.3, 0.3, 0.4]])
    np.testing.assert_array_equal(fitted.sets(p), [[False, True, True], [False, True, False], [True, True, True]])


def test_error_threshold_keeps_its_promise():
    """The error among kept cells of a huge new sample exceeds the aim in at most a tenth of the draws."""
    rng = np.random.default_rng(0)
    broken, kept = 0, []
    new = rng.beta(4, 1, 200_000)
    for _ in range(200):
        confidence = rng.beta(4, 1, 500)
        found = metrics.error_threshold(confidence, rng.random(500) < confidence, max_error=0.1)
        labelled = new[new >= found.threshold]
        kept.append(len(labelled) / len(new))
        broken += bool(len(labelled)) and float(np.mean(1 - labelled)) > 0.1
    assert broken <= 0.14 * 200
    assert np.mean(kept) > 0.4  # 0.67 would do with endless held-out cells


def test_error_threshold_by_hand():
    correct = np.repeat([True, False], [400, 100])
    confidence = np.linspace(1, 0, 500)
    found = metrics.error_threshold(confidence, correct)
    assert found.error <= found.bound <= 0.05
    assert found.kept == pytest.approx(0.80, abs=0.03)
    assert metrics.error_threshold(confidence, np.ones(500, dtype=bool)).kept == 1
    # 44 cells, all right: the exact bound is 1 - 0.1 ** (1 / 44) = 0.051, above 0.05; with 45 cells it is below.
    few = metrics.error_threshold(confidence[:44], correct[:44])
    assert (few.threshold, few.kept) == (np.inf, 0)
    assert metrics.error_threshold(confidence[:45], correct[:45]).bound == pytest.approx(1 - 0.1 ** (1 / 45))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: metrics.fit_temperature(np.zeros((2, 3)), np.zeros(3, dtype=int)), "must be"),
        (lambda: metrics.fit_temperature(np.zeros((2, 3)), np.array([0, 3])), "from 0 to 2"),
        (lambda: metrics.fit_temperature(np.full((2, 3), -np.inf), np.array([0, 1])), "blocked"),
        (lambda: metrics.fit_temperature(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool)), "2 cells have no class"),
        (lambda: metrics.fit_label_sets(np.full((18, 2), 0.5), np.zeros(18, dtype=int)), "it takes 19"),
        (lambda: metrics.fit_label_sets(np.full((18, 2), 0.5), np.zeros(18, dtype=int), coverage=1.0), "between"),
        (lambda: metrics.error_threshold(np.array([np.nan]), np.array([True])), "no NaN"),
        (lambda: metrics.error_threshold(np.array([0.5]), np.array([True]), max_error=0), "max_error=0"),
    ],
)
def test_unusable_input_raises(call, match):
    with pytest.raises(ValueError, match=match):
        call()
