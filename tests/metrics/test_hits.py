from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from scstate_lora.metrics import (
    hit_recall_at_budget,
    hit_recall_at_fdr,
    hit_recall_at_predicted_fdr,
    hits_found_at_budget,
    hits_found_at_fdr,
)

HITS = np.array([True, False, True, True, False, False])


def test_recall_at_a_budget_by_hand():
    scores = [6, 5, 4, 3, 2, 1]
    assert [hit_recall_at_budget(scores, HITS, n_tested=n) for n in range(1, 7)] == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3, 1, 1, 1]
    )


def test_ties_share_their_hits():
    scores = [2, 2, 2, 1, 1, 1]  # two of the first three are hits, one of the others
    assert [hit_recall_at_budget(scores, HITS, n_tested=n) for n in (1, 2, 3, 4)] == pytest.approx(
        [2 / 9, 4 / 9, 6 / 9, 7 / 9]
    )
    assert hit_recall_at_budget(np.ones(6), HITS, n_tested=2) == pytest.approx(2 / 6)


def test_recall_at_an_fdr_by_hand():
    scores = [6, 5, 4, 3, 2, 1]  # false shares: 0, 1/2, 1/3, 1/4, 2/5, 1/2
    assert hit_recall_at_fdr(scores, HITS, fdr=0) == pytest.approx(1 / 3)
    assert hit_recall_at_fdr(scores, HITS, fdr=0.3) == 1  # past a depth at which it was higher
    assert hit_recall_at_fdr(-np.array(scores), HITS, fdr=0.1) == 0


def test_recall_at_an_fdr_averages_over_the_orders_of_ties():
    scores = np.array([2, 2, 2, 1, 1, 1])
    exact = []
    for first in permutations(range(3)):
        for second in permutations(range(3, 6)):
            exact.append(hit_recall_at_fdr(-np.argsort(np.array(first + second)), HITS, fdr=0.3))
    assert len(set(exact)) > 1
    assert hit_recall_at_fdr(scores, HITS, fdr=0.3, n_draws=4000) == pytest.approx(np.mean(exact), abs=0.02)
    assert hit_recall_at_fdr(scores, HITS, fdr=0.3) == hit_recall_at_fdr(scores, HITS, fdr=0.3)


def test_recall_at_a_predicted_fdr():
    recall, realized = hit_recall_at_predicted_fdr([0.01, 0.05, 0.1, 0.2, 0.5, 0.9], HITS, fdr=0.1)
    assert recall == pytest.approx(2 / 3)
    assert realized == pytest.approx(1 / 3)
    recall, realized = hit_recall_at_predicted_fdr(np.ones(6), HITS)
    assert recall == 0
    assert np.isnan(realized)


def test_perfect_and_random_scores():
    rng = np.random.default_rng(0)
    hits = rng.random(300) < 0.1
    assert hit_recall_at_budget(hits + 0.1 * rng.random(300), hits, n_tested=int(hits.sum())) == 1
    assert hit_recall_at_fdr(hits + 0.1 * rng.random(300), hits, fdr=0) == 1
    by_chance = np.mean([hit_recall_at_budget(rng.random(300), hits, n_tested=60) for _ in range(50)])
    assert by_chance == pytest.approx(0.2, abs=0.03)


def test_what_does_not_fit_raises():
    scores = np.arange(6.0)
    with pytest.raises(ValueError, match="n_tested=7 is not between 1 and the 6"):
        hit_recall_at_budget(scores, HITS, n_tested=7)
    for score in (hit_recall_at_fdr, hit_recall_at_predicted_fdr):
        with pytest.raises(ValueError, match="None of the 6 perturbations is a hit"):
            score(scores, ~(HITS | True))
        with pytest.raises(ValueError, match=r"fdr=2 is not between"):
            score(scores, HITS, fdr=2)
        with pytest.raises(ValueError, match=r"\(1 NaN\)"):
            score(np.array([0, 1, 2, 3, 4, np.nan]), HITS)
        with pytest.raises(ValueError, match="one True or False"):
            score(scores, HITS.astype(int))


def test_which_hits_are_found_adds_up_to_the_recall():
    rng = np.random.default_rng(0)
    hits = rng.random(40) < 0.3
    for scores in (rng.normal(size=40), rng.integers(4, size=40).astype(float), np.ones(40)):
        found = hits_found_at_budget(scores, hits, n_tested=10)
        np.testing.assert_array_equal(np.isnan(found), ~hits)
        assert np.nanmean(found) == hit_recall_at_budget(scores, hits, n_tested=10)
        found = hits_found_at_fdr(scores, hits, fdr=0.4)
        np.testing.assert_array_equal(np.isnan(found), ~hits)
        assert np.nanmean(found) == hit_recall_at_fdr(scores, hits, fdr=0.4)
    np.testing.assert_array_equal(hits_found_at_budget([3, 2, 1, 1, 1, 1], HITS, n_tested=3)[HITS], [1, 0.25, 0.25])
    np.testing.assert_array_equal(hits_found_at_fdr([6, 1, 5, 2, 4, 3], HITS, fdr=0)[HITS], [1, 1, 0])
