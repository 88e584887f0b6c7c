from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scstate_lora.metrics import (
    bootstrap_interval,
    ceiling,
    energy_distance,
    goodness,
    mae,
    mean_distance,
    mse,
    pearson_delta,
    pearson_delta_top,
    skill,
    spearman_brown,
    split_halves,
    variance_ratio,
)


def _reference_energy_distance(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_energy_distance_is_the_v_statistic_wherever_the_origin_is(offset, dtype, chunk):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 25)) + offset).astype(dtype)
    y = (rng.normal(size=(31, 25)) * 1.3 + offset + 0.2).astype(dtype)
    assert energy_distance(x, y, chunk=chunk) == pytest.approx(_reference_energy_distance(x, y), rel=1e-9)


def test_energy_distance_of_equal_sets_is_zero_and_of_one_profile_is_right():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 10)) + 5
    profile = np.tile(x.mean(axis=0), (8, 1))
    assert energy_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    assert energy_distance(profile, profile) == 0.0
    assert energy_distance(profile, x) == pytest.approx(_reference_energy_distance(profile, x), rel=1e-6)


def test_energy_distance_of_one_cell_against_one_is_twice_their_distance():
    assert energy_distance([[0.0, 0.0]], [[3.0, 4.0]]) == pytest.approx(10.0)


def test_mean_distance_within_counts_the_diagonal():
    x = np.array([[0.0], [1.0], [4.0]])
    assert mean_distance(x, chunk=2) == pytest.approx((1 + 4 + 3) * 2 / 9)


def test_energy_distance_other_genes_raises():
    with pytest.raises(ValueError, match="3 genes and y has 2"):
        energy_distance(np.zeros((4, 3)), np.zeros((4, 2)))


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.full((2, 3), np.nan)])
def test_energy_distance_unusable_cells_raises(bad):
    with pytest.raises(ValueError, match=r"^y "):
        energy_distance(np.zeros((4, 3)), bad)


def test_pearson_delta_agrees_with_numpy():
    rng = np.random.default_rng(0)
    pred, real, control = rng.normal(size=(3, 40)) + 3
    assert pearson_delta(pred, real, control) == pytest.approx(np.corrcoef(pred - control, real - control)[0, 1])
    assert pearson_delta(real, real, control) == pytest.approx(1.0)


def test_pearson_delta_against_other_controls_does_not_count_their_noise():
    rng = np.random.default_rng(0)
    pred, real, controls, others = rng.normal(size=(4, 3000))
    assert pearson_delta(pred, real, controls) == pytest.approx(0.5, abs=0.05)
    assert pearson_delta(pred, real, controls, real_control_mean=others) == pytest.approx(0, abs=0.05)
    top = pearson_delta_top(pred, real, controls, n_top=20, real_control_mean=others)
    chosen = np.argsort(-np.abs(real - others))[:20]
    assert top == pytest.approx(np.corrcoef((pred - controls)[chosen], (real - others)[chosen])[0, 1])


def test_pearson_delta_without_a_change_raises():
    control = np.arange(5.0)
    real = control + np.array([0, 1, 0, 2, 0])
    with pytest.raises(ValueError, match="predicted delta is the same in all 5 genes"):
        pearson_delta(control, real, control)
    with pytest.raises(ValueError, match="measured delta is the same in all 5 genes"):
        pearson_delta(real, control + 1, control)


def test_pearson_delta_top_uses_the_largest_measured_changes():
    control = np.zeros(6)
    real = np.array([3.0, -2.0, 1.0, 0.1, 0.1, 0.1])
    pred = np.array([3.0, -2.0, 1.0, 9.0, -9.0, 4.0])
    assert pearson_delta_top(pred, real, control, n_top=3) == pytest.approx(1.0)
    assert pearson_delta(pred, real, control) < 0.5


def test_pearson_delta_top_too_few_genes_raises():
    with pytest.raises(ValueError, match="top 20 genes"):
        pearson_delta_top(np.arange(5.0), np.arange(5.0), np.zeros(5))


def test_mae_and_mse():
    assert mae([1.0, 2.0, 3.0], [1.0, 4.0, 2.0]) == pytest.approx(1.0)
    assert mse([1.0, 2.0, 3.0], [1.0, 4.0, 2.0]) == pytest.approx(5 / 3)


@pytest.mark.parametrize(("pred", "real"), [([1.0, 2.0], [1.0]), ([], []), ([1.0, np.nan], [1.0, 2.0])])
def test_unusable_means_raises(pred, real):
    for score in (mae, mse):
        with pytest.raises(ValueError, match=r"[Mm]ean"):
            score(pred, real)


def test_variance_ratio_compares_totals():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 4)) + 10
    assert variance_ratio(real, real) == pytest.approx(1.0)
    assert variance_ratio((real - real.mean(0)) * 0.5, real) == pytest.approx(0.25)
    assert variance_ratio(np.tile(real.mean(0), (5, 1)), real) == pytest.approx(0.0, abs=1e-12)


def test_variance_ratio_without_variance_raises():
    with pytest.raises(ValueError, match="pred has 1"):
        variance_ratio(np.zeros((1, 3)), np.eye(3))
    with pytest.raises(ValueError, match="all equal"):
        variance_ratio(np.eye(3), np.zeros((4, 3)))


def test_ceiling_averages_disjoint_halves_reproducibly():
    real = np.arange(11.0)[:, None]
    halves = []

    def score(a, b):
        halves.append((a, b))
        return energy_distance(a, b)

    value = ceiling(real, score, n_splits=3, seed=1)
    assert len(halves) == 3
    for a, b in halves:
        assert sorted(np.concatenate([a, b]).ravel()) == list(range(11))
        assert (len(a), len(b)) == (5, 6)
    assert value == pytest.approx(np.mean([energy_distance(a, b) for a, b in halves]))
    assert ceiling(real, score, n_splits=3, seed=1) == value
    assert ceiling(real, score, n_splits=3, seed=2) != value


def test_halves_are_disjoint_and_the_same_for_as_many_cells():
    halves = split_halves(11, n_splits=4, seed=3)
    assert halves.shape == (8, 11)
    assert (halves[::2] ^ halves[1::2]).all()
    assert list(halves.sum(axis=1)) == [5, 6] * 4
    assert (halves == split_halves(11, n_splits=4, seed=3)).all()
    assert len(np.unique(halves[::2], axis=0)) > 1


def test_ceiling_at_full_depth():
    def correlation(a, b):
        return np.corrcoef(a.mean(0), b.mean(0))[0, 1]

    rng = np.random.default_rng(0)
    truth = rng.normal(size=2000)
    cells, replicate = truth + rng.normal(0, 5, (2, 30, 2000))
    reached = correlation(cells, replicate)
    assert ceiling(cells, correlation) < reached - 0.1
    assert ceiling(cells, correlation, full_depth=spearman_brown) == pytest.approx(reached, abs=0.03)


def test_spearman_brown():
    np.testing.assert_allclose(spearman_brown([0.0, 0.5, 1.0, -0.2, np.nan]), [0, 2 / 3, 1, -0.2, np.nan])


def test_ceiling_one_cell_raises():
    with pytest.raises(ValueError, match="there is 1"):
        ceiling(np.zeros((1, 3)), energy_distance)


def test_goodness_and_skill():
    np.testing.assert_allclose(goodness([0.2, 3.0], direction="higher"), [0.2, 3.0])
    np.testing.assert_allclose(goodness([0.2, 3.0], direction="lower"), [-0.2, -3.0])
    np.testing.assert_allclose(goodness([0.2, 3.0], direction="one"), [-0.8, -2.0])
    np.testing.assert_allclose(skill([0.5, 0.75, 1.0, 0.0], floor=0.5, ceiling=1.0), [0.0, 0.5, 1.0, -1.0])
    assert np.isnan(skill(0.7, floor=0.9, ceiling=0.8))
    assert np.isnan(skill(0.7, floor=0.9, ceiling=0.9))
    assert skill(0.7, floor=0.6, ceiling=0.8, noise=0.09) == pytest.approx(0.5)
    assert np.isnan(skill(0.7, floor=0.6, ceiling=0.8, noise=0.11))


def test_bootstrap_interval_holds_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=6), rng.normal(size=600)
    low, high = bootstrap_interval(few, seed=1)
    assert low < few.mean() < high
    assert (low, high) == bootstrap_interval(few, seed=1)
    assert np.ptp(bootstrap_interval(many)) == pytest.approx(2 * 1.96 / np.sqrt(600), rel=0.15)
    assert np.isnan(bootstrap_interval([1.0])).all()
    assert bootstrap_interval(few, weights=np.full(6, 3.0)) == pytest.approx(bootstrap_interval(few))
    heavy, light = bootstrap_interval([0.0, 1.0], weights=[98, 2], level=0.4), bootstrap_interval([0.0, 1.0], level=0.4)
    assert heavy[1] < 0.1 < light[1]
