"""A model keeps its split: it trains on no other, and says when it is scored with cells that it was trained on."""

from __future__ import annotations

import logging
import warnings

import anndata as ad
import numpy as np
import pytest

import scstate_lora as ssl
from scstate_lora.reporting.sections import split_section
from tests.builders import QUICK, SMALL_SE, SMALL_ST, latent, wound

KEYS = {"covariate_keys": ["condition"], "pert_key": "condition", "control": "sham"}
FOLDS = [{"cell_type": "macrophage", "condition": "burn"}, {"cell_type": "fibroblast", "condition": "burn"}]


def _set_up(adata, fold, **more):
    ssl.STTransition.setup_anndata(adata, cell_type_key="cell_type", holdout=FOLDS[fold], **KEYS, **more)


def _make(kind, adata):
    if kind is ssl.STTransition:
        return kind(adata, model=SMALL_ST)
    return kind(adata, compact={**SMALL_SE, "n_steps": 3}, conditioning={"n_steps": 3, "hidden_dims": [8]})


def _result(model):
    return model.predict(target="burn").X if isinstance(model, ssl.STTransition) else latent(model)


def _measured(adata, split):
    return adata[(adata.obs["scstate_split"] == split).to_numpy()]


@pytest.fixture
def cells():
    adata = wound(500, seed=2)
    _set_up(adata, 0)
    return adata


KINDS = pytest.mark.parametrize("kind", [ssl.STTransition, ssl.LoRACovariateSE])


@KINDS
def test_another_fold_set_up_since_is_not_trained_on_raises(cells, kind):
    model = _make(kind, cells)
    first = cells.obs["scstate_split"].to_numpy() == "train"
    _set_up(cells, 1)
    second = cells.obs["scstate_split"].to_numpy() == "train"
    leaked, held_out = int((second & ~first).sum()), int((~first).sum())
    with pytest.raises(ValueError, match=f"{leaked} of the model's {held_out} held-out cells would train"):
        model.train(1, **QUICK)
    if kind is ssl.LoRACovariateSE:
        with pytest.raises(ValueError, match=f"{leaked} of the model's {held_out} held-out cells would train"):
            model.train_base(**QUICK)
        assert model.base is None
    assert not model.is_trained
    _make(kind, cells).train(1, **QUICK)  # made anew


@KINDS
def test_the_split_can_be_restored_and_the_same_set_up_run_again(cells, kind):
    alone, model = _make(kind, cells.copy()), _make(kind, cells)
    alone.train(1, **QUICK)
    _set_up(cells, 1)
    cells.obs["scstate_split"] = model.split
    model.train(1, **QUICK)
    np.testing.assert_allclose(_result(model), _result(alone), atol=1e-5)
    _set_up(cells, 0)  # a cell of a notebook, run twice
    model.train(1, **QUICK)


@KINDS
def test_a_saved_model_keeps_its_split_raises(cells, kind, tmp_path):
    model = _make(kind, cells)
    model.train(1, **QUICK)
    model.save(tmp_path / "model")
    split = model.split
    _set_up(cells, 1)
    loaded = kind.load(tmp_path / "model", adata=cells)
    assert (loaded.split == split).all()
    with pytest.raises(ValueError, match="held-out cells would train"):
        loaded.train(1, **QUICK)
    loaded.save(tmp_path / "again")
    assert (kind.load(tmp_path / "again", adata=cells).split == split).all()


def test_cells_renamed_since_are_still_known_raises(cells):
    model = _make(ssl.STTransition, cells)
    cells.obs_names = [f"renamed-{name}" for name in cells.obs_names]
    model.train(1, **QUICK)
    model = _make(ssl.STTransition, cells)
    cells.obs_names = [f"again-{name}" for name in cells.obs_names]
    _set_up(cells, 1)
    with pytest.raises(ValueError, match="held-out cells would train"):
        model.train(1, **QUICK)


def test_cells_taken_away_or_new_to_a_loaded_model_train(cells, tmp_path):
    model = _make(ssl.STTransition, cells)
    cells._inplace_subset_obs(np.arange(cells.n_obs) % 5 > 0)  # as scanpy's filters do
    model.train(1, **QUICK)
    model.save(tmp_path / "model")
    others = wound(300, seed=9)
    others.obs_names = [f"other-{name}" for name in others.obs_names]
    _set_up(others, 0)
    loaded = ssl.STTransition.load(tmp_path / "model", adata=others)
    loaded.train(1, **QUICK)
    known = loaded.training_cells_of(["burn"])
    assert len(known) == sum(
        (a.obs["condition"] == "burn")[a.obs["scstate_split"] == "train"].sum() for a in (others,)
    ) + len(model.training_cells_of(["burn"]))
    _set_up(others, 1)
    with pytest.raises(ValueError, match="held-out cells would train"):
        loaded.train(1, **QUICK)


def test_a_run_is_not_resumed_on_another_split_raises(cells, tmp_path):
    model = _make(ssl.STTransition, cells)
    model.train(1, run_folder=tmp_path / "run", accelerator="cpu", progress_bar=False)
    _set_up(cells, 1)
    other = _make(ssl.STTransition, cells)
    with pytest.raises(ValueError, match="was trained on other cells, or on another split"):
        other.train(2, resume_from=tmp_path / "run", accelerator="cpu", progress_bar=False)


def test_scores_with_cells_that_were_trained_on_warn(cells, tmp_path):
    model = _make(ssl.STTransition, cells)
    model.train(1, **QUICK)
    model.predict(target="burn").write_h5ad(tmp_path / "pred.h5ad")
    own = _measured(cells, "test").copy()
    _set_up(cells, 1)
    other = _measured(cells, "test").copy()
    measured = other.obs["condition"] == "burn"
    trained = measured & (model.split[other.obs_names] == "train")
    assert trained.any()
    with pytest.warns(UserWarning, match=f"was trained on {trained.sum()} of the {measured.sum()} measured cells"):
        ssl.tl.evaluate_perturbation(ad.read_h5ad(tmp_path / "pred.h5ad"), other, cells, context_key=[], n_boot=10)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was trained on.*")
        ssl.tl.evaluate_perturbation(ad.read_h5ad(tmp_path / "pred.h5ad"), own, cells, context_key=[], n_boot=10)


def test_probes_use_the_split_that_the_model_keeps(cells, caplog, monkeypatch):
    model = _make(ssl.LoRACovariateSE, cells)
    model.train(1, **QUICK)
    expected = ssl.tl.covariate_information(model, n_boot=20)
    _set_up(cells, 1)
    monkeypatch.setattr(logging.getLogger("scstate_lora"), "propagate", True)
    found = ssl.tl.covariate_information(model, n_boot=20)
    assert "The split is the one that the model keeps" in caplog.text
    np.testing.assert_allclose(found["value"], expected["value"])


@pytest.mark.parametrize("saved", [False, True, "loaded"])
def test_the_base_of_another_fold_saw_cells_that_are_held_out(cells, tmp_path, caplog, saved):
    first = _make(ssl.LoRACovariateSE, cells)
    first.train(1, **QUICK)
    base = first.base
    if saved:
        first.save(tmp_path / "first")
        base = ssl.LoRACovariateSE.load(tmp_path / "first").base if saved == "loaded" else tmp_path / "first"
    trained = (first.split == "train").to_numpy()
    ssl.LoRACovariateSE(cells, base=base)
    assert "holds out" not in caplog.text  # the same split
    _set_up(cells, 1)
    n = int((trained & (cells.obs["scstate_split"] != "train").to_numpy()).sum())
    assert n
    second = ssl.LoRACovariateSE(cells, base=base, lora=False, conditioning={"n_steps": 3, "hidden_dims": [8]})
    second.train(1, **QUICK)
    second.save(tmp_path / "second")
    ssl.LoRACovariateSE(cells, base=tmp_path / "second")  # saved along with a model of this split
    assert caplog.text.count(f"The base was trained on {n} of the cells that this model holds out") == 2


def test_the_report_says_which_model_keeps_another_split(cells):
    model = _make(ssl.STTransition, cells)
    assert not any("another split" in text for text in split_section(cells, model.registry, [model]).paragraphs)
    kept = model.split
    _set_up(cells, 1)
    n = int((kept != cells.obs["scstate_split"].astype(str)).sum())
    said = split_section(cells, model.registry, [model]).paragraphs
    assert any(f"STTransition keeps another split, that of its set-up: {n} cells" in text for text in said)
