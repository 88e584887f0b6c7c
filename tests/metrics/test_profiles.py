from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.metrics import CountProfiles, count_profiles, discrimination_score, pds_cosine, unbiased_errors


def _log_share(counts):
    return np.log1p(5e4 * counts / counts.sum())


def _jackknife(cells):
    """Leave out one cell after the other."""
    left_out = np.array([_log_share(np.delete(cells, i, axis=0).sum(axis=0)) for i in range(len(cells))])
    return (len(cells) - 1) ** 2 / len(cells) * left_out.var(axis=0, ddof=1).sum()


def test_profiles_by_a_loop():
    rng = np.random.default_rng(0)
    cells = rng.poisson(rng.gamma(1, 1, size=25), size=(40, 25)).astype(np.float32)
    cells[:, 0] = 0
    code = rng.integers(0, 3, size=40)
    profiles = count_profiles(sparse.csr_matrix(cells), code)
    for row in range(3):
        own = cells[code == row].astype(np.float64)
        np.testing.assert_allclose(profiles.expression[row], _log_share(own.sum(axis=0)), rtol=1e-12)
        assert profiles.noise[row] == pytest.approx(_jackknife(own), rel=1e-9)
    whole = count_profiles(cells)
    assert whole.expression.shape == (1, 25)
    assert whole.noise[0] == pytest.approx(_jackknife(cells.astype(np.float64)), rel=1e-9)


def test_one_cell_has_no_noise_and_all_counts_in_one_cell_are_allowed():
    assert count_profiles(np.array([[1, 2, 3]])).noise == 0
    assert count_profiles(np.zeros((3, 4))).noise == 0
    np.testing.assert_array_equal(count_profiles(np.zeros((3, 4))).expression, 0)
    assert np.isfinite(count_profiles(np.array([[1, 2, 3], [0, 0, 0]])).noise).all()


def test_noise_is_the_variance_of_the_expression():
    rng = np.random.default_rng(1)
    rates = rng.gamma(2, 1, size=30)
    draws = [count_profiles(rng.poisson(rates, size=(50, 30))) for _ in range(200)]
    variance = np.var([draw.expression[0] for draw in draws], axis=0, ddof=1).sum()
    assert np.mean([draw.noise for draw in draws]) == pytest.approx(variance, rel=0.1)


def _effects(n=12, n_genes=40):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(n, n_genes))
    return 0.4 * real + rng.normal(size=real.shape), real


def test_pds_without_targets_is_the_discrimination_score():
    pred, real = _effects()
    np.testing.assert_allclose(pds_cosine(pred, real), discrimination_score(pred, real))
    np.testing.assert_array_equal(pds_cosine(3 * real, real), 1.0)


def test_the_targets_of_all_are_out_of_every_comparison():
    pred, real = _effects()
    targets = np.array([*range(11), -1])
    np.testing.assert_allclose(pds_cosine(pred, real, targets=targets), pds_cosine(pred[:, 11:], real[:, 11:]))
    # Knowing only the targets of the others is worth nothing: one's own target is out, theirs gives them away.
    marked = real.copy()
    marked[np.arange(11), np.arange(11)] = -30
    cheat = np.zeros_like(real)
    cheat[:, :11] = 1 - np.eye(12, 11)
    np.testing.assert_array_equal(pds_cosine(cheat, marked, targets=targets), 0.5)
    assert discrimination_score(cheat, marked, excluded=[[i] for i in range(11)] + [[]])[:11].mean() > 0.9


def test_no_effect_is_as_near_to_all():
    pred, real = _effects()
    pred[3] = 1e-14  # rounding
    scores = pds_cosine(pred, real)
    assert scores[3] == 0.5
    np.testing.assert_array_equal(np.delete(scores, 3), np.delete(discrimination_score(pred, real), 3))
    np.testing.assert_array_equal(pds_cosine(np.zeros_like(real), real), 0.5)


def test_errors_by_hand():
    real = CountProfiles(np.array([[2.0, 1, 0], [0, 1, 3]]), np.array([0.5, 0.4]))
    pred = CountProfiles(np.array([[2.0, 0, 0], [0, 1, 1]]), np.array([0.3, 9.0]))
    control = CountProfiles(np.zeros((1, 3)), np.array([0.1]))
    errors = unbiased_errors(pred, real, control)
    # Claims of 0.3 and 0.4 (not 9) stay, as the predictions spread by 2 + 0.5 + 0.5.
    np.testing.assert_allclose(errors.error, np.array([1 - 0.3 - 0.5, 4 - 0.4 - 0.4]) / 3)
    np.testing.assert_allclose(errors.effect, np.array([5 - 0.5 - 0.1, 10 - 0.4 - 0.1]) / 3)
    assert errors.normalized == pytest.approx((0.2 + 3.2) / (4.4 + 9.5))
    own = unbiased_errors(pred, real, control, targets=[-1, 2])
    np.testing.assert_allclose(own.error, [0.2 / 3, (0 - 0.4 - 0.4) / 2])
    np.testing.assert_allclose(own.effect, [4.4 / 3, (1 - 0.4 - 0.1) / 2])


def test_perturbations_that_hardly_differ_cannot_claim_noise():
    real = CountProfiles(np.array([[2.0, 1, 0], [0, 1, 3]]), np.array([0.5, 0.4]))
    pred = CountProfiles(np.array([[1.0, 1, 1], [1, 1, 1.2]]), np.array([0.3, 0.3]))
    control = CountProfiles(np.zeros((1, 3)), np.array([0.1]))
    share = 0.02 / 0.6  # they differ by 0.1 ** 2 + 0.1 ** 2
    np.testing.assert_allclose(
        unbiased_errors(pred, real, control).error,
        np.array([1 + 0 + 1 - 0.3 * share - 0.5, 1 + 0 + 1.8**2 - 0.3 * share - 0.4]) / 3,
    )


def test_profiles_and_effects_that_do_not_fit_raise():
    pred, real = _effects()
    with pytest.raises(ValueError, match="at least two perturbations"):
        pds_cosine(pred[:1], real[:1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        pds_cosine(np.where(pred > 2, np.nan, pred), real)
    with pytest.raises(ValueError, match="Every one of the 12 genes is the target"):
        pds_cosine(pred[:, :12], real[:, :12], targets=range(12))
    with pytest.raises(ValueError, match="position among the 40 genes"):
        pds_cosine(pred, real, targets=[40] * 12)
    one = CountProfiles(real[:1], np.ones(1))
    with pytest.raises(ValueError, match="control profile one row"):
        unbiased_errors(one, one, CountProfiles(real[:2], np.ones(2)))
    with pytest.raises(ValueError, match="only gene"):
        unbiased_errors(*[CountProfiles(np.ones((1, 1)), np.ones(1))] * 3, targets=[0])


def test_a_combination_is_scored_without_the_genes_of_all_its_parts():
    pred, real = _effects()
    one, several = np.full(12, -1), np.full((12, 2), -1)
    one[:3], several[:3, 0], several[4] = [5, 6, 7], [5, 6, 7], [8, 9]
    kept = np.setdiff1d(np.arange(40), [5, 6, 7, 8, 9])
    np.testing.assert_array_equal(pds_cosine(pred, real, targets=several), pds_cosine(pred[:, kept], real[:, kept]))
    sides = [CountProfiles(values, np.zeros(12)) for values in (pred, real)]
    base = CountProfiles(np.zeros((1, 40)), np.zeros(1))
    errors = unbiased_errors(*sides, base, targets=several).error
    np.testing.assert_array_equal(errors[:4], unbiased_errors(*sides, base, targets=one).error[:4])
    rest = np.setdiff1d(np.arange(40), [8, 9])
    assert errors[4] == pytest.approx(np.square(pred[4, rest] - real[4, rest]).mean())
