from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.data.tokens import Tokenizer, cell_seeds
from scstate_lora.training.distributed import rows_of, share
from scstate_lora.training.se.batches import SEBatches, SECells

N = 211


def _cells(n=N, n_types=3, n_conditions=4, **changes):
    """Cells whose base embedding starts with their number; condition and day belong together, the mouse does not."""
    rng = np.random.default_rng(0)
    conditions = rng.integers(n_conditions, size=n)
    x = rng.uniform(0.1, 3, (n, 12)) * (rng.random((n, 12)) < 0.6)
    cells = SECells(
        base=np.column_stack([np.arange(n), rng.normal(size=(n, 3))]).astype(np.float32),
        covariates={
            "condition": conditions % 2,
            "day": (conditions // 2).astype(np.float32),
            "mouse": rng.integers(5, size=n),
        },
        unknown={"condition": 2, "day": np.nan, "mouse": 5},
        fixed=frozenset({"mouse"}),
        labels=rng.integers(4, size=n),
        types=rng.integers(n_types, size=n),
        conditions=conditions,
        batches=rng.integers(-1, 5, size=n),
        x=sparse.csr_matrix(x.astype(np.float32)),
        seeds=cell_seeds([f"c{i}" for i in range(n)], 0),
        tokenizer=Tokenizer.of_columns(12, n_tokens=6),
    )
    return replace(cells, **changes)


def _batches(cells=None, rows=None, **options):
    cells = _cells() if cells is None else cells
    given = {"batch_size": 32, "n_targets": 4, "sentences": False, "withheld": 0.0, "seed": 0, **options}
    return SEBatches(cells, np.arange(len(cells.base)) if rows is None else rows, **given)


def _rows(batch):
    return batch["base"][:, 0].astype(int)


def _epoch(batches, epoch=0):
    n = batches.steps_per_epoch
    return [batches[epoch * n + i] for i in range(n)]


def _same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            _same(value, two[name])
        else:
            np.testing.assert_array_equal(value, two[name])


def _check_moves(cells, batches, *, n_epochs=2):
    """All that holds of sides and moves; gives the share of the cells that are moved."""
    moved = []
    for epoch in range(n_epochs):
        for batch in _epoch(batches, epoch):
            rows, side, to = _rows(batch), batch["side"], batch["moved_side"]
            assert sorted(set(side)) == list(range(side.max() + 1))
            for one in set(side):
                mine = rows[side == one]
                assert len(mine) <= batches.side_len
                assert len(set(zip(cells.types[mine], cells.conditions[mine], strict=True))) == 1
            for i, row in enumerate(rows):
                own = {name: values[row] for name, values in cells.covariates.items()}
                got = {name: values[i] for name, values in batch["moved"].items()}
                if to[i] < 0:
                    np.testing.assert_equal(got, own)
                    continue
                there = rows[side == to[i]]
                assert (cells.types[there] == cells.types[row]).all()
                assert (cells.conditions[there] != cells.conditions[row]).all()
                assert got["mouse"] == own["mouse"]
                assert any(all(got[name] == cells.covariates[name][j] for name in ("condition", "day")) for j in there)
                assert (got["condition"], got["day"]) != (own["condition"], own["day"])
            moved.append(to >= 0)
    return np.concatenate(moved).mean()


@pytest.mark.parametrize("batch_size", [32, 50, 2])
def test_an_epoch_has_every_cell_once_but_for_what_fills_no_batch(batch_size):
    rows = np.arange(7, 200)
    batches = _batches(rows=rows, batch_size=batch_size)
    seen = [np.concatenate([_rows(batch) for batch in _epoch(batches, epoch)]) for epoch in (0, 1)]
    for those in seen:
        assert len(set(those)) == len(those) == len(rows) // batch_size * batch_size
        assert set(those) <= set(rows)
    assert seen[0].tolist() != seen[1].tolist()


def test_a_batch_depends_on_seed_and_number_alone():
    batches = _batches(sentences=True, withheld=0.3)
    later = [batches[i] for i in (13, 2)]
    again = _batches(sentences=True, withheld=0.3)
    _same(again[2], later[1])
    _same(again[13], later[0])
    assert _rows(_batches(seed=1)[2]).tolist() != _rows(later[1]).tolist()


def test_sides_are_of_one_type_and_combination_and_moves_go_to_another_that_was_measured():
    assert _check_moves(_cells(), _batches()) > 0.8


@pytest.mark.parametrize(
    ("kinds", "batch_size", "least"),
    [
        ({"n_types": 1}, 32, 0.8),
        ({"n_types": 3, "n_conditions": 60}, 16, 0.3),  # more combinations than cells in a batch, and few of each
        ({"n_types": 2}, 3, 0.1),  # less than two sides
        ({"n_types": 2}, 2, 0.0),
    ],
)
def test_moves_hold_for_other_numbers_of_types_and_combinations(kinds, batch_size, least):
    cells = _cells(**kinds)
    assert _check_moves(cells, _batches(cells, batch_size=batch_size)) >= least


def test_with_one_combination_nothing_moves():
    cells = _cells(n_conditions=1)
    assert _check_moves(cells, _batches(cells)) == 0


def test_large_groups_find_partners_before_small_ones_are_used_up():
    """One combination has half of the cells, five share the rest: hardly any cell is left over."""
    conditions = np.where(np.arange(N) % 2 == 0, 0, 1 + np.arange(N) % 5)
    covariates = {**_cells().covariates, "condition": conditions % 2, "day": (conditions // 2).astype(np.float32)}
    cells = _cells(n_types=1, covariates=covariates, conditions=conditions)
    assert _check_moves(cells, _batches(cells)) > 0.8


def test_numbers_move_to_numbers_that_the_other_side_has():
    rng = np.random.default_rng(1)
    days = rng.normal(size=N).astype(np.float32)
    cells = _cells(conditions=(days > 0).astype(int))
    cells = replace(cells, covariates={**cells.covariates, "day": days})
    assert _check_moves(cells, _batches(cells)) > 0.8


def test_a_move_draws_different_cells_of_the_other_side():
    days = np.random.default_rng(1).normal(size=N).astype(np.float32)
    cells = _cells(n_types=1, conditions=(days > 0).astype(int))
    cells = replace(cells, covariates={**cells.covariates, "day": days})
    batch = _batches(cells, batch_size=64)[0]
    for one in set(batch["side"]):
        to = batch["moved"]["day"][(batch["side"] == one) & (batch["moved_side"] >= 0)]
        there = len(set(batch["moved_side"][batch["side"] == one])) == 1 and (batch["side"] == one).sum()
        if len(to) and there:
            n_other = (batch["side"] == batch["moved_side"][batch["side"] == one][0]).sum()
            assert len(set(to)) >= min(len(to), n_other) // 2


def test_own_covariates_labels_and_groups_are_those_of_the_cells():
    cells, batch = _cells(), _batches()[3]
    rows = _rows(batch)
    _same(batch["own"], {name: values[rows] for name, values in cells.covariates.items()})
    np.testing.assert_array_equal(batch["labels"], cells.labels[rows])
    np.testing.assert_array_equal(batch["batches"], cells.batches[rows])
    groups = set(zip(batch["context"], cells.types[rows], cells.conditions[rows], strict=True))
    assert len(groups) == len(set(batch["context"])) == len({group[1:] for group in groups})


def test_about_the_share_asked_for_is_withheld_and_none_in_validation():
    batches = _batches(withheld=0.25)
    shares = []
    for batch in _epoch(batches) + _epoch(batches, 1):
        for name, values in batch["covariates"].items():
            hidden = np.isnan(values) if name == "day" else values == batches.cells.unknown[name]
            np.testing.assert_array_equal(values[~hidden], batch["own"][name][~hidden])
            shares.append(hidden.mean())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.04)
    for batch in _epoch(_batches(withheld=0.0)):
        _same(batch["covariates"], batch["own"])


def test_sentences_and_targets_are_those_of_the_cells():
    cells = _cells()
    plain, batch = _batches()[1], _batches(sentences=True)[1]
    assert "genes" not in plain
    assert "values" not in plain
    rows = _rows(batch)
    sentences = cells.tokenizer(cells.x[rows], cells.seeds[rows])
    np.testing.assert_array_equal(batch["genes"], sentences.genes)
    np.testing.assert_array_equal(batch["values"], sentences.values)
    np.testing.assert_array_equal(batch["targets"], cells.x.toarray()[rows][:, batch["target_genes"]])
    _same({name: batch[name] for name in plain}, plain)


def test_without_expression_batches_or_targets_nothing_of_them_is_there():
    bare = _batches(_cells(batches=None, x=None, seeds=None, tokenizer=None))[0]
    assert bare.keys() == {"base", "covariates", "own", "moved", "labels", "side", "moved_side"}
    assert "targets" not in _batches(n_targets=0)[0]


@pytest.mark.parametrize("sentences", [True, False])
def test_processes_share_out_what_the_network_reads_and_nothing_else(sentences):
    batches = _batches(sentences=sentences)
    batch = batches[0]
    assert rows_of(batch, shared=batches.shared) == 32
    parts = [share(batch, shared=batches.shared, rank=rank, n_processes=2) for rank in (0, 1)]
    cut = {"genes", "values"} if sentences else {"base"}
    for name in batch:
        if name in cut:
            assert len(parts[0][name]) == 16
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])
        else:
            assert parts[0][name] is batch[name]


def test_fewer_cells_than_a_batch_make_one():
    batches = _batches(rows=np.arange(5), batch_size=64)
    assert batches.steps_per_epoch == 1
    assert set(_rows(batches[0])) == set(range(5))
