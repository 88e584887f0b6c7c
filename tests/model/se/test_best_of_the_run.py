"""The weights of the whole run with the lowest validation loss are kept, also where adapters do not lower it."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import scstate_lora as ssl
from scstate_lora.reporting.sections import model_sections
from tests.builders import QUICK, SMALL_SE, latent, wound

NO_EFFECT = "without effect: the validation loss is lowest without it"


@pytest.fixture
def said(caplog, monkeypatch):
    """What the package says."""
    monkeypatch.setattr(logging.getLogger("scstate_lora"), "propagate", True)
    with caplog.at_level(logging.INFO, "scstate_lora"):
        yield caplog


@pytest.fixture
def cells():
    adata = wound(300, seed=4)
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition"], cell_type_key="cell_type", val_size=0.2)
    return adata


def _make(adata, n_steps=40):
    conditioning = {"n_steps": n_steps, "hidden_dims": [16]}
    return ssl.LoRACovariateSE(adata, compact={**SMALL_SE, "output_dim": 8}, conditioning=conditioning, lora={})


def _validation(se):
    return se.history.query("phase == 'val'")["loss"]


def _note(se, part):
    return se.summary().set_index("part").loc[part, "note"]


@pytest.mark.slow  # trains until adapters hurt
@pytest.mark.parametrize("mhc", [None, True])
def test_adapters_that_hurt_are_left_without_effect(cells, said, mhc, tmp_path):
    se = _make(cells)
    options = {} if mhc is None else {"mhc": True}
    se.train(2, lr=3.0, warmup_steps=0, **QUICK, **options)  # the conditioning is trained with it, too
    held = _validation(se)
    assert held.iloc[-2:].min() > held.iloc[:-2].min()
    assert f"lowest without LoRA{'' if mhc is None else ' and hyper-connections'}: left without effect" in said.text
    assert "Restored the weights of epoch" not in said.text.rpartition("No epoch had a lower")[2]
    parts = ["LoRA"] + ([] if mhc is None else ["hyper-connections"])
    for part in parts:
        assert _note(se, part).endswith(NO_EFFECT)
    tables = model_sections([se])[0].blocks
    assert any(NO_EFFECT in str(block.rows) for block in tables if block.kind == "table")
    switched_on = latent(se)
    with se.adapters.lora_off():
        without = latent(se)
    np.testing.assert_allclose(without, switched_on, atol=1e-6)
    se.save(tmp_path / "se")
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=cells)
    for part in parts:
        assert _note(loaded, part).endswith(NO_EFFECT)
    best = _validation(loaded).min()
    loaded.train(1, lr=1e-12, **QUICK)  # starts from the kept weights
    assert _validation(loaded).iloc[-1] == pytest.approx(best, rel=1e-3)


def test_adapters_that_help_are_kept_and_no_further_training_undoes_them(cells, said):
    se = _make(cells, n_steps=5)
    se.train(6, lr=3e-3, **QUICK)
    assert NO_EFFECT not in _note(se, "LoRA")
    assert _validation(se).iloc[-6:].min() < _validation(se).iloc[:-6].min()
    best, before = _validation(se).min(), latent(se)
    se.train(1, lr=3.0, warmup_steps=0, **QUICK)
    assert "No epoch had a lower validation loss than the start" in said.text
    np.testing.assert_array_equal(latent(se), before)
    assert NO_EFFECT not in _note(se, "LoRA")
    se.train(1, lr=1e-12, **QUICK)
    assert _validation(se).iloc[-1] == pytest.approx(best, rel=1e-3)


@pytest.mark.slow  # three trainings
def test_a_resumed_run_keeps_the_start_of_its_stage(cells, tmp_path):
    whole, first, second = _make(cells), _make(cells), _make(cells)
    options = {"lr": 3.0, "warmup_steps": 0, "accelerator": "cpu", "progress_bar": False}
    whole.train(3, logger=False, **options)
    first.train(2, run_folder=tmp_path / "run", **options)
    second.train_base(**QUICK)
    second.train(3, resume_from=tmp_path / "run", **options)
    np.testing.assert_allclose(latent(second), latent(whole), atol=1e-5)
    assert _note(second, "LoRA").endswith(NO_EFFECT)


def test_without_validation_cells_the_last_weights_are_kept():
    adata = wound(200, seed=4)
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition"], val_size=0.0)
    se = _make(adata)
    se.train(1, lr=0.3, warmup_steps=0, **QUICK)
    assert not se.history["best"].any()
    assert NO_EFFECT not in _note(se, "LoRA")


def test_the_last_weights_are_kept_where_that_is_requested(cells):
    se = _make(cells)
    se.train(1, lr=3.0, warmup_steps=0, restore_best=False, **QUICK)
    assert NO_EFFECT not in _note(se, "LoRA")
