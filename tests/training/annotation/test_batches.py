from __future__ import annotations

import numpy as np

from scstate_lora.training.annotation.batches import LabelledBatches, LabelledCells, LeftOutBatches
from scstate_lora.training.annotation.heads import HeadCells


def _cells(n=20):
    numbers = np.arange(n, dtype=np.float32)
    goal = (np.arange(n) % 2)[:, None] == np.arange(2)
    target = HeadCells(numbers[:, None], np.stack([numbers, -numbers], axis=1), goal, numbers / 10)
    return LabelledCells(lambda rows: {"genes": rows.copy()}, {"type": target})


def test_a_batch_holds_the_same_cells_in_all_parts():
    batch = LabelledBatches(_cells(), np.arange(20), batch_size=6, seed=0)[1]
    rows = batch["tokens"]["genes"]
    assert len(rows) == 6
    np.testing.assert_array_equal(batch["start"]["type"][:, 0], rows)
    np.testing.assert_array_equal(batch["goal"]["type"].argmax(axis=1), rows % 2)
    np.testing.assert_allclose(batch["weights"]["type"], rows / 10, rtol=1e-6)


def test_an_epoch_draws_no_cell_twice_and_the_next_another_order():
    batches = LabelledBatches(_cells(), np.arange(3, 20), batch_size=5, seed=0)
    assert batches.steps_per_epoch == 3
    epochs = [np.concatenate([batches[3 * e + i]["tokens"]["genes"] for i in range(3)]) for e in range(2)]
    for drawn in epochs:
        assert len(set(drawn)) == 15
        assert drawn.min() >= 3
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(batches[4]["tokens"]["genes"], batches[4]["tokens"]["genes"])


def test_short_epochs_go_on_where_the_last_one_ended():
    cut = LabelledBatches(_cells(), np.arange(20), batch_size=5, seed=0, steps_per_epoch=2)
    whole = LabelledBatches(_cells(), np.arange(20), batch_size=5, seed=0)
    assert cut.steps_per_epoch == 2
    drawn = np.concatenate([cut[i]["tokens"]["genes"] for i in range(4)])
    assert sorted(drawn) == list(range(20))
    np.testing.assert_array_equal(cut[3]["tokens"]["genes"], whole[3]["tokens"]["genes"])


def test_frozen_epochs_read_embeddings_and_no_tokens():
    batches = LabelledBatches(_cells(), np.arange(20), batch_size=5, seed=0, steps_per_epoch=2, frozen_epochs=1)
    assert ["tokens" in batches[i] for i in range(4)] == [False, False, True, True]
    np.testing.assert_array_equal(batches[0]["embedding"][:, 0], batches[0]["start"]["type"][:, 0])


def test_fewer_cells_than_a_batch_are_one():
    batches = LabelledBatches(_cells(), np.array([4, 8, 2]), batch_size=64, seed=0)
    assert batches.steps_per_epoch == 1
    assert sorted(batches[0]["tokens"]["genes"]) == [2, 4, 8]


def test_left_out_cells_come_once_each_and_count_alike():
    left_out = LeftOutBatches(_cells(), np.arange(0, 20, 2), batch_size=4)
    assert left_out.steps_per_epoch == 3
    drawn = [left_out[i] for i in range(3)]
    assert {len(batch["tokens"]["genes"]) for batch in drawn} == {3, 4}
    assert sorted(np.concatenate([batch["tokens"]["genes"] for batch in drawn])) == list(range(0, 20, 2))
    weights = np.concatenate([batch["weights"]["type"] for batch in drawn])
    assert sorted(weights) == [0, *[1] * 9]  # a cell without a label stays out
