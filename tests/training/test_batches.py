from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from scstate_lora.data.tokens import Tokenizer, cell_seeds
from scstate_lora.inference.arrays import take, to_tensors
from scstate_lora.training.batches import make_loader
from scstate_lora.training.se.cell_batches import CellBatches


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 3, (23, 12)) * (rng.random((23, 12)) < 0.6)
    return sparse.csr_matrix(values.astype(np.float32))


def _batches(x, rows=None, **kwargs):
    seeds = cell_seeds([f"c{i}" for i in range(x.shape[0])], 0)
    rows = np.arange(x.shape[0]) if rows is None else rows
    tokenizer = kwargs.pop("tokenizer", Tokenizer.of_columns(x.shape[1], n_tokens=6))
    options = {"batch_size": 5, "n_targets": 4, "seed": 0, "extra": {"row": np.arange(x.shape[0])}}
    return CellBatches(x, seeds, rows, tokenizer=tokenizer, **{**options, **kwargs}), seeds


def test_an_epoch_takes_every_cell_at_most_once_and_only_the_rows_asked_for(x):
    rows = np.arange(3, 21)
    batches, _ = _batches(x, rows)
    assert batches.steps_per_epoch == 3
    for epoch in range(2):
        seen = np.concatenate([batches[3 * epoch + i]["row"] for i in range(3)])
        assert len(set(seen)) == len(seen) == 15
        assert set(seen) <= set(rows)
    assert batches[0]["row"].tolist() != batches[3]["row"].tolist()


def test_a_batch_holds_the_cells_sentences_targets_and_depth(x):
    batches, seeds = _batches(x)
    batch = batches[1]
    genes, values, _ = Tokenizer.of_columns(12, n_tokens=6)(x[batch["row"]], seeds[batch["row"]])
    np.testing.assert_array_equal(batch["genes"], genes)
    np.testing.assert_array_equal(batch["values"], values)
    dense = x.toarray()[batch["row"]][:, batch["target_genes"]]
    np.testing.assert_array_equal(batch["targets"], dense)
    assert len(set(batch["target_genes"])) == 4
    means = [row[row > 0].mean() for row in x.toarray()[batch["row"]]]
    np.testing.assert_allclose(batch["read_depth"], means, rtol=1e-6)


def test_genes_that_the_network_does_not_know_are_neither_read_nor_asked_for(x):
    vocabulary = np.array([-1, 30, -1, 7, 8, 9, -1, 2, 0, 1, 40, -1])
    batches, _ = _batches(x, tokenizer=Tokenizer(vocabulary, 6), n_targets=99)
    batch = batches[1]
    assert sorted(batch["target_genes"]) == sorted(vocabulary[vocabulary >= 0])
    assert np.isin(batch["genes"], vocabulary[vocabulary >= 0]).all()
    column = {gene: i for i, gene in enumerate(vocabulary)}
    dense = x.toarray()[batch["row"]]
    np.testing.assert_array_equal(batch["targets"], dense[:, [column[g] for g in batch["target_genes"]]])


def test_a_batch_depends_on_seed_and_number_alone(x):
    batches, _ = _batches(x)
    later = [batches[i]["row"] for i in (7, 2)]
    again, _ = _batches(x)
    np.testing.assert_array_equal(again[2]["row"], later[1])
    np.testing.assert_array_equal(again[7]["row"], later[0])
    other, _ = _batches(x, seed=1)
    assert other[2]["row"].tolist() != later[1].tolist()


def test_highly_expressed_genes_are_asked_for_more_often(x):
    weighted = x.tolil()
    weighted[:, 0] = 30.0
    batches, _ = _batches(sparse.csr_matrix(weighted), n_targets=1)
    drawn = [int(batches[i]["target_genes"][0]) for i in range(300)]
    assert 0.4 < np.mean(np.array(drawn) == 0) < 0.65  # about half its share of the expression, plus 1/24
    assert len(set(drawn)) == 12


def test_fewer_cells_than_a_batch_and_fewer_genes_than_targets(x):
    batches, _ = _batches(x, np.arange(3), n_targets=99)
    assert batches.steps_per_epoch == 1
    assert batches[0]["targets"].shape == (3, 12)


def test_cells_without_any_expression_still_make_a_batch(x):
    batches, _ = _batches(sparse.csr_matrix(x.shape, dtype=np.float32))
    assert np.isfinite(batches[0]["read_depth"]).all()
    np.testing.assert_allclose(batches.targets.weights, 1 / 12)


def test_loader_goes_on_from_where_its_run_is_and_without_a_run_starts_again(x):
    batches, _ = _batches(x)
    rows = [batches[i]["row"].tolist() for i in range(14)]
    progress = SimpleNamespace(total=SimpleNamespace(ready=0))
    loader = make_loader(batches, train=True, start=2, progress=progress)
    assert len(loader) == 4
    for done, expected in ((0, rows[2:6]), (4, rows[6:10]), (4, rows[6:10]), (7, rows[9:10])):
        progress.total.ready = done
        assert [b["row"].tolist() for b in loader] == expected
    again = make_loader(batches, train=False)
    assert [b["row"].tolist() for b in again] == [b["row"].tolist() for b in again] == rows[:4]


def test_arrays_in_nested_dicts_are_taken_and_become_tensors(x):
    taken = take({"a": np.arange(5), "b": {"c": x}}, np.array([3, 1]))
    assert taken["a"].tolist() == [3, 1]
    np.testing.assert_array_equal(taken["b"]["c"], x.toarray()[[3, 1]])
    tensors = to_tensors(taken)
    assert torch.equal(tensors["b"]["c"], torch.from_numpy(x.toarray()[[3, 1]]))
