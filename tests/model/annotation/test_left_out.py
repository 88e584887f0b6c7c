"""What a classifier leaves out to make its choices, and labels that hardly any cell has."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.builders import labelled_cells

KINDS = {
    "batches": ({}, "left-out batches"),
    "no batch_key": ({"batch_key": None}, "left-out cells"),
    "one batch": ({"batch_key": "lab"}, "left-out cells"),
    "split_key": ({"split_key": "part"}, "validation cells"),
    "val_size": ({"val_size": 0.2}, "validation cells"),
}


@pytest.mark.parametrize("strategy", ["frozen", "lora"])
@pytest.mark.parametrize("case", KINDS)
def test_what_is_left_out(classify, new_cells, case, strategy, caplog):
    setup, kind = KINDS[case]
    adata = labelled_cells(150)
    adata.obs["lab"] = "one"
    adata.obs["part"] = np.where(np.arange(150) < 110, "train", np.where(np.arange(150) < 140, "val", "test"))
    with caplog.at_level("INFO", logger="scstate_lora"):
        model = classify(adata, strategy, training={"max_epochs": 1, "restore_best": False}, **setup)
    target = model.targets["cell_type"]
    assert target.folds == kind
    assert f"cell_type: on {kind} the loss is" in caplog.text
    assert sum(target.n_labelled) == {"split_key": 140}.get(case, 150)
    expected = {"split_key": 30, "val_size": 30}.get(case)
    if strategy == "frozen":
        assert len(target.left_out) == (expected or 150)
    elif expected is None:  # a trial of the encoder leaves the first fold out
        assert 150 / 5 <= len(target.left_out) < 75
    assert (model.predict(new_cells, key_added=None)["scstate_celltype"] == new_cells.obs["cell_type"]).mean() > 0.8


def test_test_cells_are_not_read(classify, new_cells):
    adata = labelled_cells(150)
    adata.obs["part"] = np.where(np.arange(150) < 120, "train", "test")
    model = classify(adata, split_key="part")
    wrong = adata.copy()
    wrong.obs["cell_type"] = np.where(np.arange(150) < 120, adata.obs["cell_type"], "CD4")
    again = classify(wrong, split_key="part")
    np.testing.assert_array_equal(model.predict_proba(new_cells), again.predict_proba(new_cells))


def test_more_than_five_batches(classify):
    model = classify(labelled_cells(200, n_batches=8))
    assert model.targets["cell_type"].folds == "left-out batches"
    assert set(model.targets["cell_type"].left_out.fold.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("strategy", ["frozen", "full"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_type_of_hardly_any_cells(classify, query, n, strategy, caplog):
    adata = labelled_cells(150)
    kept = np.flatnonzero(adata.obs["cell_type"] != "monocyte")
    adata = adata[np.sort([*kept, *np.flatnonzero(adata.obs["cell_type"] == "monocyte")[:n]])].copy()
    with caplog.at_level("WARNING", logger="scstate_lora"):
        model = classify(adata, strategy, training={"max_epochs": 1, "restore_best": False, "check_unknown": True})
    assert f"Labels of fewer than 5 training cells: monocyte ({n})" in caplog.text
    assert sorted(model.labels) == ["B", "CD4", "CD8", "monocyte"]
    assert "monocyte" not in set(model.unknown_check["type"])
    proba = model.predict_proba(query)
    assert np.isfinite(proba.to_numpy()).all()
    is_mono = (query.obs["cell_type"] == "monocyte").to_numpy()
    assert proba["monocyte"][is_mono].mean() > proba["monocyte"][~is_mono].mean() + 0.2


@pytest.mark.parametrize("strategy", ["frozen", "full"])
def test_a_type_of_one_batch_alone(classify, query, strategy):
    """Where the largest batch, which is the first fold, is of nothing else, no cell of it can be judged."""
    adata = labelled_cells(150)
    adata.obs["donor"] = adata.obs["donor"].mask(adata.obs["cell_type"] == "monocyte", "d3")
    model = classify(adata, strategy, training={"max_epochs": 1, "restore_best": False})
    table = model.predict(query, max_error=0.2, sets=True)
    assert np.isfinite(table["scstate_celltype_confidence"]).all()
    is_mono = (query.obs["cell_type"] == "monocyte").to_numpy()
    assert (model.predict(query)["scstate_celltype"][is_mono] == "monocyte").mean() > 0.8


def test_the_largest_batch_of_one_type_alone(classify, query):
    adata = labelled_cells(150)
    mono = (adata.obs["cell_type"] == "monocyte").to_numpy()
    adata.obs["donor"] = np.where(
        mono, "d3", np.where(np.arange(150) % 4 == 0, "d0", np.where(np.arange(150) % 4 == 1, "d1", "d2"))
    )
    adata.obs.loc[adata.obs_names[~mono & (np.arange(150) % 4 == 3)], "donor"] = "d4"
    assert adata.obs["donor"].value_counts().idxmax() == "d3"
    model = classify(adata, "full", training={"max_epochs": 1, "restore_best": False})
    assert model.targets["cell_type"].folds == "left-out batches"
    assert len(model.targets["cell_type"].left_out) > 20
    assert np.isfinite(model.predict_proba(query).to_numpy()).all()


def test_each_type_in_a_batch_of_its_own(classify, query, caplog):
    adata = labelled_cells(120)
    adata.obs["donor"] = "of " + adata.obs["cell_type"]
    with caplog.at_level("WARNING", logger="scstate_lora"):
        model = classify(adata)
    assert "are in one batch only" in caplog.text
    assert model.targets["cell_type"].folds == "left-out cells"
    assert (model.predict(query)["scstate_celltype"] == query.obs["cell_type"]).mean() > 0.8


@pytest.mark.parametrize("n", [8, 16])
def test_few_cells_can_be_learned_and_labelled(classify, query, n):
    model = classify(labelled_cells(n), batch_key=None, training={"check_unknown": True})
    table = model.predict(query)
    assert (table["scstate_celltype"] == query.obs["cell_type"]).mean() > 0.4
    left_out = model.targets["cell_type"].left_out
    assert len(left_out) < 19
    assert json.loads(query.uns["scstate_lora"]["annotate"]["scstate_celltype"])["coverage"] == left_out.most < 0.95
    with pytest.raises(ValueError, match=r"held-out cells cannot promise coverage=0\.95: it takes 19"):
        model.predict(query, sets=True)
    with pytest.raises(ValueError, match=r"held-out cells cannot bound rejected=0\.05: it takes 19"):
        model.predict(query, reject_unknown=0.05)
    with pytest.raises(ValueError, match=r"held-out cells cannot promise coverage=0\.99"):
        model.predict(query, sets=0.99)


@pytest.mark.parametrize("names", [["A", "B", "C", "D"], ["A", "A", "B"], ["A", "B"]])
def test_too_few_cells_to_leave_any_out_raises(classify, names):
    adata = labelled_cells(len(names))
    adata.obs["cell_type"] = names
    n = len(set(names))
    with pytest.raises(ValueError, match=rf"{len(names)} training cells have one of the {n} labels of .*too few"):
        classify(adata, batch_key=None)
