from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.metrics import DETable, direction_fidelity_yield, direction_reach, lfc_nmae, sig_jaccard

SCORES = (sig_jaccard, direction_fidelity_yield, direction_reach, lfc_nmae)


def _table(lfc, p, genes=None):
    lfc, p = np.atleast_2d(lfc).astype(float), np.atleast_2d(p).astype(float)
    return DETable(np.arange(lfc.shape[1]) if genes is None else np.array(genes), lfc, p, p)


@pytest.fixture
def real():
    # Five genes change: up, up, up, down, down; three do not.
    return _table([2, 1, 1, -1, -2, 0.1, -0.1, 0], [0.001, 0.002, 0.01, 0.01, 0.001, 0.5, 0.6, 1.0])


@pytest.fixture
def pred():
    # Called: 0 right, 1 right, 3 wrong, 5 right by its sign though it does not change, 7 without measured direction.
    return _table([1, 1, 0, 3, -1, 2, 0, 5], [0.001, 0.02, 0.4, 0.01, 0.3, 0.01, 1.0, 0.001])


def test_jaccard_by_hand(pred, real):
    # Called 0, 1, 3, 5, 7; changed 0, 1, 2, 3, 4.
    assert sig_jaccard(pred, real) == pytest.approx(3 / 7)
    assert sig_jaccard(pred, real, targets=[0]) == pytest.approx(2 / 6)
    assert sig_jaccard(pred, real, fdr=0.005) == pytest.approx(1 / 4)  # 0, 7 and 0, 1, 4


def test_fidelity_yield_by_hand(pred, real):
    # Of the called, gene 7 has no measured direction; 0, 1 and 5 move the measured way; 5 genes change.
    assert direction_fidelity_yield(pred, real) == pytest.approx(3 / 5)
    assert direction_fidelity_yield(pred, real, targets=[0]) == pytest.approx(2 / 4)
    assert direction_fidelity_yield(pred, real, targets=[4]) == pytest.approx(3 / 4)  # not 3 of 5: gene 7 is no call


def test_reach_by_hand(pred, real):
    # The changed genes by confidence: 0 (right), 3 (wrong), 1 (right), 4 (right), 2 (no direction predicted: wrong).
    assert direction_reach(pred, real) == pytest.approx(1 / 5)
    assert direction_reach(pred, real, purity=0.75) == pytest.approx(4 / 5)  # 3 of the first 4
    assert direction_reach(pred, real, targets=[3]) == pytest.approx(3 / 4)


def test_reach_puts_called_genes_in_order_of_p_value_and_then_fold_change():
    real = _table([1, 1, 1], [0.01] * 3)
    pred = DETable(np.arange(3), np.array([[-3.0, 1, 2]]), np.array([[0.02, 0.01, 0.01]]), np.full((1, 3), 0.02))
    assert direction_reach(pred, real) == pytest.approx(2 / 3)  # the wrong one is last by its p-value
    pred = pred._replace(p_value=np.full((1, 3), 0.01))
    assert direction_reach(pred, real) == 0  # and first by its fold change


def test_nmae_by_hand(pred, real):
    error, size = 1 + 0 + 1 + 4 + 1, 2 + 1 + 1 + 1 + 2
    assert lfc_nmae(pred, real, min_genes=5) == pytest.approx(error / size)
    assert lfc_nmae(pred, real, targets=[3], min_genes=4) == pytest.approx((error - 4) / (size - 1))
    assert np.isnan(lfc_nmae(pred, real))
    assert np.isnan(lfc_nmae(pred, real, targets=[3], min_genes=5))


def test_the_measured_table_itself_is_perfect(real):
    assert [
        float(score(real, real, **extra)[0])
        for score, extra in zip(SCORES, ({}, {}, {}, {"min_genes": 1}), strict=True)
    ] == [
        1,
        1,
        1,
        0,
    ]


def test_no_change_calls_nothing_and_is_worth_nothing(real):
    nothing = _table(np.zeros(8), np.ones(8))
    assert sig_jaccard(nothing, real) == 0
    assert direction_fidelity_yield(nothing, real) == 0
    assert direction_reach(nothing, real) == 0
    assert lfc_nmae(nothing, real, min_genes=1) == 1
    # Where nothing changes, calling nothing is right, and there is no direction to score.
    assert sig_jaccard(nothing, nothing) == 1
    assert np.isnan([score(nothing, nothing)[0] for score in SCORES[1:]]).all()


def test_twice_the_fold_change_costs_as_much_as_none(real):
    assert lfc_nmae(real._replace(lfc=2 * real.lfc), real, min_genes=1) == pytest.approx(1)
    assert direction_reach(real._replace(lfc=-real.lfc), real) == 0


def test_targets_are_positions_among_all_genes(pred, real):
    genes = np.arange(8) * 10
    pred, real = pred._replace(genes=genes), real._replace(genes=genes)
    assert sig_jaccard(pred, real, targets=[30]) == pytest.approx(2 / 6)
    assert sig_jaccard(pred, real, targets=[3]) == sig_jaccard(pred, real, targets=[-1]) == pytest.approx(3 / 7)


@pytest.mark.parametrize("score", SCORES)
def test_tables_that_do_not_fit_raise(score, pred, real):
    with pytest.raises(ValueError, match="same perturbations and tested genes"):
        score(pred._replace(genes=pred.genes + 1), real)
    with pytest.raises(ValueError, match="one gene position for each of the 1 perturbations"):
        score(pred, real, targets=[1, 2])


def test_a_combination_hides_the_genes_of_all_its_parts():
    rng = np.random.default_rng(0)
    tables = [DETable(np.arange(20), rng.normal(size=(3, 20)), *rng.random((2, 3, 20)) ** 4) for _ in range(2)]
    several = np.array([[2, -1], [3, 4], [-1, -1]])
    found = lfc_nmae(*tables, targets=several, min_genes=1)
    kept = np.setdiff1d(np.arange(20), [3, 4])
    parts = [DETable(table.genes[kept], *(column[1:2, kept] for column in table[1:])) for table in tables]
    assert found[1] == pytest.approx(lfc_nmae(*parts, min_genes=1)[0])
    assert found[0] == lfc_nmae(*tables, targets=np.array([2, -1, -1]), min_genes=1)[0]
