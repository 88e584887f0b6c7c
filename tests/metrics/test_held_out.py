from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, r2_score

from scstate_lora.metrics import held_out_categorical_probe, held_out_continuous_probe, held_out_knn_accuracy


def make_cells(n=300, *, signal=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b"], dtype=object)[(rng.random(n) < 0.2).astype(int)]
    x = rng.normal(size=(n, 6))
    x[:, 0] += signal * (labels == "b")
    return x, labels


def test_categorical_probe_is_the_balanced_accuracy_of_a_logistic_regression():
    x, labels = make_cells()
    score = held_out_categorical_probe(x[:200], labels[:200], x[200:], labels[200:])
    z = (x - x[:200].mean(0)) / x[:200].std(0)
    expected = []
    for c in (1e-3, 3e-2, 1.0):
        model = LogisticRegression(C=c, class_weight="balanced", tol=1e-3, max_iter=1000)
        predicted = model.fit(z[:200], labels[:200].astype(str)).predict(z[200:])
        expected.append(balanced_accuracy_score(labels[200:].astype(str), predicted))
    assert min(abs(score.value - e) for e in expected) < 1e-12
    assert score.baseline == 0.5
    assert score.low < score.value < score.high


def test_categorical_probe_finds_what_is_spread_over_more_dimensions_than_cells():
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b"], 1000)
    hidden = rng.normal(size=(1000, 50)) * np.linspace(3, 0.5, 50)
    hidden[:, 10] += 2.5 * (labels == "b")
    x = hidden @ rng.normal(size=(50, 1000)) / 7 + 0.5 * rng.normal(size=(1000, 1000))
    score = held_out_categorical_probe(x[:500], labels[:500], x[500:], labels[500:])
    by_heart = LogisticRegression(C=1.0, max_iter=1000).fit(x[:500], labels[:500]).score(x[500:], labels[500:])
    assert score.value > by_heart + 0.01
    assert score.low > score.baseline


def test_categorical_probe_of_a_handful_of_cells_works():
    x, labels = make_cells(60)
    few = np.r_[np.flatnonzero(labels == "a")[:2], np.flatnonzero(labels == "b")[:1]]
    score = held_out_categorical_probe(x[few], labels[few], x, labels)
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_intervals_narrow_with_more_cells_and_a_lower_level():
    x, labels = make_cells(3000)
    few = held_out_categorical_probe(x[:500], labels[:500], x[500:700], labels[500:700])
    many = held_out_categorical_probe(x[:500], labels[:500], x[500:], labels[500:])
    lower = held_out_categorical_probe(x[:500], labels[:500], x[500:], labels[500:], level=0.5)
    assert few.high - few.low > 2 * (many.high - many.low) > 2 * (lower.high - lower.low)


def test_intervals_of_labels_that_mean_nothing_hold_the_baseline_about_as_often_as_they_say():
    missed = 0
    for seed in range(60):
        x, labels = make_cells(160, signal=0.0, seed=seed)
        score = held_out_categorical_probe(x[:80], labels[:80], x[80:], labels[80:], level=0.9, n_boot=500)
        missed += not score.low <= score.baseline <= score.high
    assert missed <= 15  # 6 expected


def test_a_class_with_few_held_out_cells_is_not_scored():
    x, labels = make_cells()
    labels = labels.copy()
    labels[:10], labels[200:204] = "c", "c"
    score = held_out_categorical_probe(x[:200], labels[:200], x[200:], labels[200:])
    assert score.baseline == 0.5
    with pytest.raises(ValueError, match=r"two classes with 5 held-out cells each are needed; found .*'c' \(4\)"):
        held_out_categorical_probe(x[:200], labels[:200], x[200:204], labels[200:204])
    with pytest.raises(ValueError, match="no training cell is of the class 'b'"):
        held_out_categorical_probe(x[:200], np.full(200, "a"), x[200:], labels[200:])


def test_continuous_probe_is_r2_against_the_mean_of_the_fitted_cells():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = x @ np.array([1.0, -1, 0, 0, 0]) + rng.normal(size=400)
    score = held_out_continuous_probe(x[:300], y[:300], x[300:], y[300:])
    assert score.low < 0.67 < score.high
    assert score.baseline == 0
    least_squares = np.linalg.lstsq(np.c_[x[:300], np.ones(300)], y[:300], rcond=None)[0]
    assert score.value == pytest.approx(r2_score(y[300:], np.c_[x[300:], np.ones(100)] @ least_squares), abs=0.02)
    shuffled = held_out_continuous_probe(x[:300], rng.permutation(y[:300]), x[300:], y[300:])
    assert shuffled.low <= 0
    assert shuffled.value == pytest.approx(0, abs=0.05)


def test_continuous_probe_holds_back_in_more_dimensions_than_cells():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(150, 300)), rng.normal(size=150)
    assert held_out_continuous_probe(x[:100], y[:100], x[100:], y[100:]).value > -0.3


@pytest.mark.parametrize("equal", [slice(0, 50), slice(50, 100)])
def test_continuous_probe_of_equal_numbers_raises(equal):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 3)), rng.normal(size=100)
    y[equal] = 1.0
    with pytest.raises(ValueError, match="two different values are needed"):
        held_out_continuous_probe(x[:50], y[:50], x[50:], y[50:])


def test_knn_votes_with_the_fitted_cells_only():
    x, labels = make_cells(signal=8.0)
    score = held_out_knn_accuracy(x[:200], labels[:200], x[200:], labels[200:], n_neighbors=5)
    assert score.value > 0.95
    assert score.baseline == pytest.approx((labels[200:] == "a").mean())
    blind = held_out_knn_accuracy(x[:3], np.array(["a", "a", "b"]), x[200:], labels[200:], n_neighbors=10)
    assert blind.value == blind.baseline  # three voters, and "a" has two votes of them


def test_bad_embeddings_raise():
    x, labels = make_cells(60)
    with pytest.raises(ValueError, match="has 40 cells and there are 30 labels"):
        held_out_knn_accuracy(x[:40], labels[:30], x[40:], labels[40:])
    x[50, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite numbers in 1 of 20"):
        held_out_knn_accuracy(x[:40], labels[:40], x[40:], labels[40:])
