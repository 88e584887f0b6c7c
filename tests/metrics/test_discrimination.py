from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scstate_lora.metrics import discrimination_score


def _by_sorting(pred, real):
    """1 - rank / n, the rank by cosine distance: the definition of the cell-eval package, without ties."""
    order = np.argsort(cdist(pred, real, metric="cosine"), axis=1)
    rank = np.argmax(order == np.arange(len(pred))[:, None], axis=1)
    return 1 - rank / len(pred)


def test_by_hand():
    real = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    pred = np.array([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1]])
    # Nearest to the prediction is the first effect, then the second, then the third.
    np.testing.assert_allclose(discrimination_score(pred, real), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(discrimination_score(pred, real, rank_by="all"), [1.0, 2 / 3, 1 / 3])


def test_perfect_prediction_scores_one_whatever_its_size():
    real = np.random.default_rng(0).normal(size=(12, 30))
    np.testing.assert_array_equal(discrimination_score(real, real), np.ones(12))
    np.testing.assert_array_equal(discrimination_score(1e-4 * real, real), np.ones(12))
    assert discrimination_score(-real, real).max() < 0.2


def test_agrees_with_the_rank_by_cosine_distance():
    rng = np.random.default_rng(1)
    real = rng.normal(size=(25, 40))
    pred = 0.4 * real + rng.normal(size=real.shape)
    scores = discrimination_score(pred, real, rank_by="all")
    np.testing.assert_allclose(scores, _by_sorting(pred, real))
    assert 0.6 < scores.mean() < 0.999
    np.testing.assert_allclose(1 - scores, (1 - discrimination_score(pred, real)) * 24 / 25)


def test_one_prediction_for_all_scores_half_on_average():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(17, 30)) + 1
    scores = discrimination_score(np.tile(real.mean(0), (17, 1)), real)
    assert scores.mean() == pytest.approx(0.5)
    assert scores.std() > 0.2


def test_ties_count_half():
    real = np.tile([1.0, 2.0, 0.0], (5, 1)) * np.arange(1, 6)[:, None]  # one direction
    np.testing.assert_allclose(discrimination_score(np.random.default_rng(0).normal(size=(5, 3)), real), 0.5)
    real = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(discrimination_score(real, real), [0.75, 0.75, 1.0])


def test_no_change_is_nan_and_leaves_the_others_alone():
    real = np.random.default_rng(0).normal(size=(4, 10))
    pred = real.copy()
    pred[1] = 0
    scores = discrimination_score(pred, real)
    assert np.isnan(scores[1])
    np.testing.assert_array_equal(scores[[0, 2, 3]], 1.0)


def test_excluded_gene_is_not_seen():
    rng = np.random.default_rng(0)
    rest = rng.normal(size=(6, 8))
    real = np.hstack([-9 * np.eye(6), rest])  # every perturbed gene gives its perturbation away
    pred = np.hstack([-9 * np.eye(6), rng.normal(size=(6, 8))])
    assert discrimination_score(pred, real).mean() == 1.0
    own = [[i] for i in range(6)]
    masked = discrimination_score(pred, real, excluded=own)
    expected = []
    for i in range(6):
        kept = np.arange(14) != i
        expected.append(discrimination_score(np.tile(pred[i, kept], (6, 1)), real[:, kept])[i])
    np.testing.assert_allclose(masked, expected)
    assert masked.mean() < 1.0


def test_unusable_effects_raises():
    good = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"found \(3, 4\) predicted and \(3, 5\) measured"):
        discrimination_score(good, np.ones((3, 5)))
    with pytest.raises(ValueError, match="at least two"):
        discrimination_score(good[:1], good[:1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        discrimination_score(good, np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="excluded has 2 entries for 3"):
        discrimination_score(good, good, excluded=[[0], [1]])
    with pytest.raises(ValueError, match="none of the 4 genes"):
        discrimination_score(good, good, excluded=[[0, 1, 2, 3], [], []])
    with pytest.raises(ValueError, match="rank_by='n'"):
        discrimination_score(good, good, rank_by="n")
