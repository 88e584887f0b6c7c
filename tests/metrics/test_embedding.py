from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from scstate_lora.metrics import (
    categorical_probe,
    continuous_probe,
    in_large_class,
    knn_accuracy,
    majority_share,
)


def _clusters(*, n=60, n_dims=8, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(["a", "b", "c"], [n, n, 2 * n])
    centres = {"a": 0.0, "b": 1.5, "c": 3.0}
    x = rng.normal(size=(len(labels), n_dims)) * spread + np.array([centres[label] for label in labels])[:, None]
    return x.astype(np.float32), labels


def test_knn_accuracy_agrees_with_sklearn():
    x, labels = _clusters(spread=2.5)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    expected = cross_val_score(KNeighborsClassifier(10, algorithm="brute"), x, labels, cv=folds)
    sizes = [len(held_out) for _, held_out in folds.split(x, labels)]
    assert 0.5 < knn_accuracy(x, labels, seed=3) < 0.99
    assert knn_accuracy(x, labels, seed=3) == pytest.approx(np.average(expected, weights=sizes), abs=1e-12)


def test_knn_accuracy_separated_clusters_is_one():
    x, labels = _clusters(spread=0.05)
    assert knn_accuracy(x, labels) == 1.0


def test_knn_accuracy_of_noise_is_near_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 200)
    assert abs(knn_accuracy(rng.normal(size=(400, 10)), labels) - 0.5) < 0.1


@pytest.fixture
def compiled_pynndescent():
    """Let pynndescent compile itself, which takes minutes if each step of the compiler is traced for coverage."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        knn_accuracy(*_clusters(n=100, spread=2.0), search="approximate")
    finally:
        sys.settrace(tracer)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_pynndescent")
def test_knn_accuracy_approximate_agrees_with_exact():
    x, labels = _clusters(n=100, spread=2.0)
    exact = knn_accuracy(x, labels, search="exact")
    approximate = knn_accuracy(x, labels, search="approximate")
    assert abs(exact - approximate) < 0.01


def test_knn_accuracy_leaves_rare_classes_and_missing_labels_out():
    x, labels = _clusters(spread=0.05)
    odd = np.array(["rare"] * 3 + [None, np.nan], dtype=object)
    with_odd = np.concatenate([labels.astype(object), odd])
    more = np.concatenate([x, np.zeros((5, x.shape[1]), dtype=np.float32)])
    assert in_large_class(with_odd).sum() == len(labels)
    assert knn_accuracy(more, with_odd) == 1.0
    assert majority_share(with_odd) == 0.5


def test_knn_accuracy_one_class_raises():
    with pytest.raises(ValueError, match=r"two classes.*'a' \(20\).*'b' \(2\)"):
        knn_accuracy(np.zeros((22, 3)), ["a"] * 20 + ["b"] * 2)


def test_knn_accuracy_too_few_cells_raises():
    with pytest.raises(ValueError, match=r"n_neighbors=10.*leave 8"):
        knn_accuracy(np.zeros((10, 3)), ["a"] * 5 + ["b"] * 5)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros(10), "shape"),
        (np.zeros((10, 0)), "shape"),
        (np.zeros((9, 2)), "9 cells and there are 10 labels"),
        (np.full((10, 2), np.nan), "10 of 10 cells"),
    ],
)
def test_unusable_embedding_raises(x, said):
    labels = ["a"] * 5 + ["b"] * 5
    for score in (knn_accuracy, categorical_probe, continuous_probe):
        with pytest.raises(ValueError, match=said):
            score(x, np.arange(10.0) if score is continuous_probe else labels)


def test_categorical_probe_finds_a_linear_signal_and_reports_the_majority():
    x, labels = _clusters(spread=0.5)
    score = categorical_probe(x, labels)
    assert score.value > 0.98
    assert score.baseline == 0.5


def test_categorical_probe_of_noise_is_near_the_majority():
    rng = np.random.default_rng(1)
    labels = np.repeat(["a", "b"], [300, 100])
    score = categorical_probe(rng.normal(size=(400, 5)), labels)
    assert score.baseline == 0.75
    assert abs(score.value - score.baseline) < 0.05


def test_categorical_probe_does_not_depend_on_the_features_units():
    x, labels = _clusters(spread=2.5)
    assert categorical_probe(x, labels).value == pytest.approx(categorical_probe(x * 1e4 + 7, labels).value, abs=0.01)


def test_continuous_probe_finds_a_linear_signal():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    score = continuous_probe(x, x @ np.arange(6) + rng.normal(size=300))
    assert 0.95 < score.value < 1.0
    assert score.baseline == 0.0


def test_continuous_probe_of_a_constant_embedding_is_exactly_the_mean():
    values = np.random.default_rng(0).normal(size=50)
    assert continuous_probe(np.ones((50, 3)), values).value == pytest.approx(0.0, abs=1e-12)


def test_continuous_probe_leaves_missing_values_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3))
    values = x[:, 0].copy()
    values[:10] = np.nan
    assert continuous_probe(x, values) == continuous_probe(x[10:], values[10:])


def test_continuous_probe_of_a_constant_raises():
    with pytest.raises(ValueError, match="have the value 3"):
        continuous_probe(np.zeros((10, 2)), np.full(10, 3.0))


def test_continuous_probe_fewer_cells_than_folds_raises():
    with pytest.raises(ValueError, match="4 cells have a value"):
        continuous_probe(np.zeros((4, 2)), np.arange(4.0))
