from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.metrics.temporal import (
    gap_correlation,
    monotonicity,
    smoothness,
    temporal_score,
    time_distances,
)

TIMES = np.array([0.0, 1.0, 3.0, 7.0])


def _line(positions):
    positions = np.asarray(positions, dtype=float)
    return np.abs(positions[:, None] - positions[None])


def test_a_straight_line_in_time_has_full_scores():
    for score in (gap_correlation, monotonicity, smoothness):
        assert score(_line(TIMES), TIMES) == pytest.approx(1.0)
        assert score(_line(2 * TIMES)[::-1, ::-1], TIMES[::-1]) == pytest.approx(1.0)  # rows in any order


def test_a_line_that_leads_back_is_neither_smooth_nor_monotone():
    there_and_back = _line([0.0, 1.0, 1.0, 0.0])
    assert smoothness(there_and_back, TIMES) == 0.0
    assert monotonicity(there_and_back, TIMES) < 0.5
    assert gap_correlation(there_and_back, TIMES) < 0


def test_equal_distances_score_as_chance():
    equal = np.ones((4, 4)) - np.eye(4)
    assert monotonicity(equal, TIMES) == pytest.approx(1 / 3)
    assert gap_correlation(equal, TIMES) == 0.0
    assert smoothness(np.zeros((4, 4)), TIMES) == 0.0


def test_distances_are_those_of_the_populations():
    rng = np.random.default_rng(0)
    means = np.array([[0.0] * 10, [0.2] * 10])
    codes = np.repeat([0, 1], 60)
    found = [time_distances(means[codes] + rng.normal(size=(120, 10)), codes, 2)[0, 1] ** 2 for _ in range(300)]
    # the plain distance of means would be 0.4 + 2 * 10 / 60 = 0.73
    assert np.mean(found) == pytest.approx(0.4, abs=0.05)


def test_a_time_of_few_cells_has_no_distance():
    x = np.random.default_rng(0).normal(size=(13, 2))
    distances = time_distances(x, np.repeat([0, 1, 2], [6, 5, 2]), 4, min_cells=5)
    assert np.isnan(distances[2:]).all()
    assert np.isnan(distances[:, 2:]).all()
    assert np.isfinite(distances[:2, :2]).all()


def test_the_baseline_is_that_of_all_orders_and_the_p_value_is_exact():
    score = temporal_score("monotonicity", [_line(TIMES)], TIMES)
    assert score.value == 1.0
    assert score.baseline == pytest.approx(1 / 3)
    assert score.p_value == pytest.approx(2 / 24)  # the order and its reverse
    drawn = temporal_score("monotonicity", [_line(np.arange(8.0))], np.arange(8.0), n_permutations=500)
    assert drawn.baseline == pytest.approx(1 / 3, abs=0.02)
    assert 1 / 501 <= drawn.p_value < 0.02


def test_times_that_differ_without_order_do_not_exceed_the_baseline():
    """Every time displaced at random, as by batches: over many data sets the p-values are uniform."""
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(40):
        points = rng.normal(size=(5, 20))
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        p_values.append(temporal_score("gap_correlation", [distances], np.arange(5.0), seed=seed).p_value)
    assert np.mean(np.array(p_values) <= 0.1) < 0.25
    assert 0.35 < np.mean(p_values) < 0.7


def test_groups_without_three_times_do_not_count():
    two = np.full((4, 4), np.nan)
    two[:2, :2] = [[0, 1], [1, 0]]
    assert temporal_score("smoothness", [two, _line(TIMES)], TIMES).value == 1.0
    with pytest.raises(ValueError, match="three times"):
        temporal_score("smoothness", [two], TIMES)
