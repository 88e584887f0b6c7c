from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.training.annotation.folds import make_folds


def _sizes(folds):
    return np.bincount(folds.number)


def test_batches_are_left_out_as_wholes():
    batches = np.repeat([4, 0, 9], [30, 20, 10])
    folds = make_folds(np.zeros(60), batches, seed=0)
    assert folds.kind == "left-out batches"
    assert len(folds) == 3
    for inside, outside in folds:
        assert len(set(batches[outside])) == 1
        assert not set(batches[outside]) & set(batches[inside])
        assert sorted([*inside, *outside]) == list(range(60))


def test_the_first_fold_is_the_largest_batch():
    batches = np.repeat([0, 1, 2], [5, 30, 10])
    assert set(batches[make_folds(np.zeros(45), batches, seed=0).rows(0)[1]]) == {1}


def test_more_than_five_batches_share_five_folds_of_like_size():
    batches = np.repeat(np.arange(9), [50, 40, 30, 20, 10, 10, 20, 30, 40])
    folds = make_folds(np.zeros(len(batches)), batches, seed=0)
    assert len(folds) == 5
    assert all(len(set(folds.number[batches == b])) == 1 for b in range(9))
    assert _sizes(folds).tolist() == [50, 50, 50, 50, 50]


@pytest.mark.parametrize("batches", [None, np.zeros(50, dtype=int), np.full(50, -1)])
def test_cells_are_left_out_where_there_are_no_several_batches(batches):
    strata = np.repeat([0, 1], [30, 20])
    folds = make_folds(strata, batches, seed=3)
    assert folds.kind == "left-out cells"
    assert _sizes(folds).tolist() == [10] * 5
    assert np.bincount(folds.number[strata == 0]).tolist() == [6] * 5


def test_cells_of_an_unknown_batch_are_a_batch():
    folds = make_folds(np.zeros(6), np.array([0, 0, 0, 0, -1, -1]), seed=0)
    assert folds.kind == "left-out batches"
    assert folds.number.tolist() == [0, 0, 0, 0, 1, 1]


def test_the_same_folds_for_a_seed_and_others_for_another():
    one, same, other = (make_folds(np.zeros(50), None, seed=seed).number for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_validation_cells_are_the_only_fold():
    is_val = np.arange(10) >= 7
    folds = make_folds(np.zeros(10), np.arange(10) % 2, is_val=is_val, seed=0)
    assert folds.kind == "validation cells"
    assert len(folds) == 1
    inside, outside = folds.rows(0)
    assert outside.tolist() == [7, 8, 9]
    assert inside.tolist() == list(range(7))
    assert make_folds(np.zeros(10), np.arange(10) % 2, is_val=np.zeros(10, dtype=bool), seed=0).kind != folds.kind


def test_rare_labels_do_not_all_end_in_the_first_fold():
    strata = np.concatenate([np.zeros(20), np.arange(1, 11)])  # ten labels of one cell each
    folds = make_folds(strata, None, seed=0)
    assert np.bincount(folds.number[20:], minlength=5).tolist() == [2] * 5


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_cells_make_no_empty_fold(n):
    folds = make_folds(np.arange(n), None, seed=0)
    assert _sizes(folds).tolist() == [1] * n


def _one_hot(classes):
    return np.asarray(classes)[:, None] == np.arange(max(classes) + 1)


def test_cells_are_learnable_if_others_have_one_of_their_labels():
    folds = make_folds(np.zeros(6), np.array([0, 0, 1, 1, 2, 2]), seed=0)
    allowed = _one_hot([0, 1, 0, 1, 2, 0])
    assert folds.learnable(allowed).tolist() == [True, True, True, True, False, True]
    allowed[4] = [False, True, True]  # a coarse label that leaves open what others have
    assert folds.learnable(allowed).all()


def test_the_first_fold_has_labels_that_others_have():
    batches = np.repeat([0, 1, 2], [9, 6, 4])
    classes = np.concatenate([np.full(9, 2), np.arange(10) % 2])
    folds = make_folds(classes, batches, seed=0)
    assert set(batches[folds.number == 0]) == {0}
    begun = folds.starting_learnable(_one_hot(classes))
    assert [set(batches[begun.number == i]) for i in range(3)] == [{1}, {0}, {2}]
    assert begun.kind == folds.kind
    assert begun.starting_learnable(_one_hot(classes)) is begun
    mixed = np.arange(19) % 3
    assert folds.starting_learnable(_one_hot(mixed)) is folds
