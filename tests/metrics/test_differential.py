from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scstate_lora.metrics import de_direction, de_overlap, de_precision, gene_changes, weighted_mse
from scstate_lora.metrics.changes import Change


def _cells(*, n=60, n_genes=40, moved=10, seed=0):
    """Control cells, and cells in which the first genes move: alternately up and down, the first one most."""
    rng = np.random.default_rng(seed)
    delta = np.zeros(n_genes)
    delta[:moved] = np.linspace(4, 2, moved) * np.where(np.arange(moved) % 2, -1, 1)
    return rng.normal(5, 0.5, (n, n_genes)), rng.normal(5, 0.5, (n, n_genes)) + delta, delta


def test_gene_changes_agree_with_scipy():
    control, real, _ = _cells(n=25)
    changes = gene_changes(real[:14], control)
    expected = stats.ttest_ind(real[:14], control, equal_var=False)
    np.testing.assert_allclose(changes.t, expected.statistic)
    np.testing.assert_allclose(changes.fdr, stats.false_discovery_control(expected.pvalue))
    strongest = Change.of(real[:14], control).strongest(3)
    assert list(strongest) == list(np.argsort(-np.abs(changes.delta))[:3])


def test_gene_that_never_varies():
    control, real, _ = _cells()
    control[:, 0], real[:, 0] = 1.0, 1.0
    control[:, 1], real[:, 1] = 1.0, 3.0
    changes = gene_changes(real, control)
    assert (changes.t[0], changes.t[1]) == (0, np.inf)
    assert changes.fdr[0] > 0.5
    assert changes.fdr[1] == 0
    assert np.isfinite(weighted_mse(control, real, control))


def test_perfect_opposite_and_no_prediction():
    control, real, delta = _cells()
    for score in (de_overlap, de_precision, de_direction):
        assert score(real, real, control, n_top=10) == 1
    opposite = control - delta
    assert de_direction(opposite, real, control, n_top=10) == 0
    assert de_overlap(opposite, real, control, n_top=10) > 0.9  # the right genes, the wrong way
    assert de_overlap(control, real, control, n_top=10) == 0
    assert de_direction(control, real, control, n_top=10) == 0
    with pytest.raises(ValueError, match="No gene changes in the predicted"):
        de_precision(control, real, control)


def test_overlap_and_precision_by_hand():
    control, real, delta = _cells()
    half = np.where(np.arange(40) < 5, delta, 0)
    half[30:35] = 5  # five genes right, five wrong
    pred = control + half
    assert de_overlap(pred, real, control, n_top=10) == 0.5
    assert de_precision(pred, real, control, n_top=10) == 0.5
    assert de_precision(pred, real, control, n_top=5) == 0
    assert de_direction(pred, real, control, n_top=5) == 1
    assert de_direction(pred, real, control, n_top=10) == 0.5


def test_weighted_mse_counts_the_genes_that_change():
    control, real, delta = _cells()
    mean = real.mean(0)
    missed, invented = np.tile(mean, (3, 1)), np.tile(mean, (3, 1))
    missed[:, :4] -= delta[:4]
    invented[:, 20:24] += delta[:4]
    plain = [np.square(cells.mean(0) - mean).mean() for cells in (missed, invented)]
    assert plain[0] == pytest.approx(plain[1])
    assert weighted_mse(missed, real, control) > 50 * weighted_mse(invented, real, control)
    assert weighted_mse(real, real, control) == 0
    t = np.square(stats.ttest_ind(real, control, equal_var=False).statistic)
    expected = np.average(np.square(missed.mean(0) - mean), weights=t)
    assert weighted_mse(missed, real, control) == pytest.approx(expected)


def test_nothing_measured_raises():
    control, real, _ = _cells()
    same = np.random.default_rng(9).permutation(control)
    for score in (de_overlap, de_precision, de_direction):
        with pytest.raises(ValueError, match="No gene changes in the measured"):
            score(real, same, control)
    with pytest.raises(ValueError, match="No gene differs"):
        weighted_mse(real, np.ones((3, 40)), np.ones((4, 40)))
    with pytest.raises(ValueError, match="two cells on either side; there are 1 and 60"):
        gene_changes(real[:1], control)
    with pytest.raises(ValueError, match="40 genes and control 3"):
        gene_changes(real, control[:, :3])
