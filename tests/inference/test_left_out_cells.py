from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from scstate_lora.data.label_tree import LabelTree
from scstate_lora.inference.left_out_cells import LeftOutCells, LeftOutNumbers
from scstate_lora.metrics.calibration import fit_temperature

TREE = LabelTree.from_nested({"T cell": ["CD4", "CD8"], "B": None})


def _cells(n=600, *, offset=2.0, sharpness=3.0, seed=0):
    """Logits of three classes, too sharp, in two folds of which the second is shifted."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    p = softmax(logits, axis=1)
    classes = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    fold = np.arange(n) % 2
    offsets = np.array([[0.0, 0, 0], [offset, -offset, 0]])
    return LeftOutCells(
        logits=(sharpness * logits + offsets[fold]).astype(np.float32),
        allowed=classes[:, None] == np.arange(3),
        fold=fold,
        offsets=offsets,
        energy=rng.normal(size=n),
        distance=rng.gamma(2, 1, n),
    )


def test_the_shift_of_each_fold_is_taken_off_before_anything_is_fitted():
    shifted, plain = _cells(), _cells(offset=0)
    np.testing.assert_allclose(shifted.shifted, plain.shifted, atol=1e-5)
    assert shifted.temperature == pytest.approx(plain.temperature, rel=1e-3)
    assert fit_temperature(shifted.logits, shifted.allowed) != pytest.approx(plain.temperature, rel=1e-2)


def test_the_temperature_undoes_what_is_too_sharp():
    cells = _cells(3000)
    assert cells.temperature == pytest.approx(3, rel=0.15)
    np.testing.assert_allclose(cells.probabilities.sum(axis=1), 1)
    assert cells.probabilities.max(axis=1).mean() == pytest.approx(cells.correct.mean(), abs=0.03)
    assert cells.reliability.error < 0.05


def test_a_coarse_label_is_met_by_any_of_its_classes():
    cells = _cells()
    coarse = cells.allowed | (cells.allowed[:, :1] | cells.allowed[:, 1:2]) & [True, True, False]
    again = LeftOutCells(**{**cells.arrays(), "allowed": coarse})
    best = cells.shifted.argmax(axis=1)
    np.testing.assert_array_equal(again.correct, (best < 2) == coarse[:, 0])
    assert again.correct.mean() > cells.correct.mean()


def test_the_threshold_keeps_its_promise_and_falls_with_it():
    cells, new = _cells(3000), _cells(3000, seed=1)
    thresholds = [cells.threshold(TREE, error) for error in (0.1, 0.2, 0.3)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[2]
    for error, threshold in zip((0.1, 0.2, 0.3), thresholds, strict=True):
        nodes = TREE.probabilities(softmax(new.shifted / cells.temperature, axis=1))
        given = TREE.deepest(nodes, threshold)
        assert (given > 0).mean() > 0.1
        wrong = ~(TREE.members[given] & new.allowed).any(axis=1)
        assert wrong[given > 0].mean() <= error + 0.01


def test_sets_hold_the_true_label_as_often_as_they_say():
    cells, new = _cells(3000), _cells(3000, seed=1)
    for coverage in (0.8, 0.95):
        sets = cells.label_sets(coverage).sets(softmax(new.shifted / cells.temperature, axis=1))
        assert (sets & new.allowed).any(axis=1).mean() == pytest.approx(coverage, abs=0.03)


def test_as_many_known_cells_as_said_are_above_the_threshold_of_novelty():
    cells = _cells()
    scale = cells.novelty(rejected=0.1)
    assert (scale.score(cells.energy, cells.distance) > scale.threshold).mean() == pytest.approx(0.1, abs=0.01)
    assert cells.novelty(rejected=0.02).threshold > scale.threshold


def test_a_sample_keeps_cells_together():
    cells = _cells()
    sample = cells.sample(100)
    assert len(sample) == 100
    rows = [int(np.flatnonzero(cells.energy == energy)[0]) for energy in sample.energy]
    np.testing.assert_array_equal(sample.shifted, cells.shifted[rows])
    np.testing.assert_array_equal(sample.allowed, cells.allowed[rows])
    np.testing.assert_array_equal(sample.fold, cells.fold[rows])
    assert len(set(sample.fold)) == 2
    assert cells.sample(600) is cells


def test_the_same_after_arrays():
    cells = _cells()
    again = LeftOutCells.from_arrays(cells.arrays())
    assert again.temperature == cells.temperature
    np.testing.assert_array_equal(again.probabilities, cells.probabilities)


def test_intervals_of_numbers_hold_as_many_as_they_say():
    rng = np.random.default_rng(0)
    errors = LeftOutNumbers(np.abs(rng.normal(size=2000)))
    new = np.abs(rng.normal(size=2000))
    for coverage in (0.5, 0.9):
        assert (new <= errors.half_width(coverage)).mean() == pytest.approx(coverage, abs=0.03)
    assert LeftOutNumbers(np.array([1.0, 2.0, 3.0])).half_width(0.95) == 3  # fewer than it takes: the largest seen
    assert LeftOutNumbers(np.arange(1.0, 20)).half_width(0.95) == 19
    assert LeftOutNumbers(np.arange(1.0, 20)).half_width(0.5) == 10
