"""Named adapters: side by side on one base, each with a conditioning and a history of its own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import scstate_lora as ssl
from scstate_lora.config import SELoraConfig
from scstate_lora.data.bound import BoundData
from scstate_lora.model.se.adapters import Adapter
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.lora import check_adapter_name
from tests.builders import QUICK, latent


@pytest.fixture(scope="module")
def make(wound, setup, make_se, trained):
    """Make a model on the shared base, of 200 cells."""

    def new(**options):
        adata = wound[:200].copy()
        ssl.LoRACovariateSE.setup_anndata(adata, **setup)
        return make_se(adata, base=trained[1].base, **options)

    return new


@pytest.fixture(scope="module")
def several(make):
    """A model with three trained adapters, one of them without LoRA, and the embedding by each. Not to be changed."""
    model, embeddings = make(), {}
    for name, options in (("default", {}), ("wide", {"lora": {"r": 4, "targets": ["q", "linear1"]}}), ("bare", {})):
        if name == "bare":
            model.add_adapter(name, lora=False)
        elif name != "default":
            model.add_adapter(name, **options)
        model.train(max_epochs=2 if name == "wide" else 1, lr=3e-3, restore_best=False, **QUICK)
        embeddings[name] = latent(model)
    return model, embeddings


def _conditioning():
    return Conditioning({"day": CovariateSpec(None, 4)}, 6, hidden_dims=(5,))


def test_every_adapter_keeps_what_it_learned(several):
    model, embeddings = several
    assert model.adapter_names == ["default", "wide", "bare"]
    assert model.active_adapter == "bare"
    assert all(np.abs(embeddings[a] - embeddings["default"]).max() > 1e-4 for a in ("wide", "bare"))
    plain = model.base.embed(BoundData(model.registry, model.adata))
    for name in ("default", "bare", "wide", "bare"):
        model.set_adapter(name)
        assert model.active_adapter == name
        np.testing.assert_array_equal(latent(model), embeddings[name])
        np.testing.assert_array_equal(model.base.embed(BoundData(model.registry, model.adata)), plain)


def test_every_adapter_has_a_history_of_its_own(several):
    model, _ = several
    epochs = {}
    for name in ("default", "wide", "bare"):
        model.set_adapter(name)
        assert model.history["step"].min() == 1
        epochs[name] = model.history["epoch"].max() + 1
    # The first three of those with LoRA are of the conditioning alone.
    assert epochs == {"default": 4, "wide": 5, "bare": 1}


def test_only_the_active_adapter_is_trainable(several):
    model, _ = several
    for active in ("default", "wide", "bare"):
        model.set_adapter(active)
        lora = {n for n, p in model.base.encoder.named_parameters() if p.requires_grad}
        assert all(f".{active}." in name for name in lora)
        assert bool(lora) == (active != "bare")
        for adapter in model.adapters:
            assert all(p.requires_grad == (adapter.name == active) for p in adapter.conditioning.parameters())


def test_all_are_saved_and_loaded(several, tmp_path):
    model, embeddings = several
    model.set_adapter("wide")
    model.save(tmp_path / "se")
    files = {file.name for file in (tmp_path / "se").iterdir()}
    assert files == {
        "model.json",
        "NOTICE",
        "base.safetensors",
        "base_cells.safetensors",
        "base_history.csv",
        *(f"conditioning.{name}.safetensors" for name in embeddings),
        *(f"history.{name}.csv" for name in embeddings),
        "lora.default.safetensors",
        "lora.wide.safetensors",
        "split.safetensors",
    }
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=model.adata)
    assert loaded.adapter_names == model.adapter_names
    assert loaded.active_adapter == "wide"
    assert repr(loaded) == repr(model)
    for name, embedding in embeddings.items():
        loaded.set_adapter(name)
        model.set_adapter(name)
        np.testing.assert_array_equal(latent(loaded), embedding)
        pd.testing.assert_frame_equal(loaded.history, model.history, check_exact=True)


def test_merged_it_embeds_the_same_and_unmerged_to_the_bit(several, tmp_path):
    model, embeddings = several
    model.set_adapter("wide")
    sha256 = model.base.sha256()
    model.merge_adapter()
    try:
        np.testing.assert_allclose(latent(model), embeddings["wide"], atol=1e-5)
        model.save(tmp_path / "merged")
        assert model.base.sha256() == sha256
        with pytest.raises(ValueError, match=r"'wide' is merged: cannot train now\. Call unmerge_adapter\(\)"):
            model.train(max_epochs=1, **QUICK)
        with pytest.raises(ValueError, match="cannot switch adapters"):
            model.set_adapter("default")
        with pytest.raises(ValueError, match="cannot add adapters"):
            model.add_adapter("more")
    finally:
        model.unmerge_adapter()
    assert model.adapter_names == ["default", "wide", "bare"]
    np.testing.assert_array_equal(latent(model), embeddings["wide"])
    loaded = ssl.LoRACovariateSE.load(tmp_path / "merged", adata=model.adata)
    np.testing.assert_array_equal(latent(loaded), embeddings["wide"])


def test_an_adapter_is_deleted_with_its_weights(make):
    model = make()
    model.add_adapter("second")
    n = sum(p.numel() for p in model.base.encoder.parameters())
    model.set_adapter("default")
    model.delete_adapter("second")
    assert model.adapter_names == ["default"]
    assert sum(p.numel() for p in model.base.encoder.parameters()) < n
    assert not any("second" in name for name, _ in model.base.encoder.named_parameters())
    model.add_adapter("second")  # the name is free again


def test_training_another_adapter_says_it_is_not_trained_yet_raises(make):
    model = make()
    model.train(max_epochs=1, **QUICK)
    model.add_adapter("second")
    assert not model.is_trained
    with pytest.raises(ValueError, match="not trained"):
        latent(model)


def test_names_that_do_not_do_raise(several):
    model, _ = several
    model.set_adapter("default")
    with pytest.raises(ValueError, match=r"'wide' exists already"):
        model.add_adapter("wide")
    with pytest.raises(ValueError, match=r"'../wide' cannot be an adapter's name"):
        model.add_adapter("../wide")
    for act in (model.set_adapter, model.delete_adapter):
        with pytest.raises(KeyError, match=r"no adapter 'wild'.*'wide'"):
            act("wild")
    with pytest.raises(ValueError, match=r"'default' is the active one.*\['wide', 'bare'\]"):
        model.delete_adapter("default")
    with pytest.raises(ValueError, match="lora: there is no option 'ranks'"):
        model.add_adapter("third", lora={"ranks": 3})
    assert model.adapter_names == ["default", "wide", "bare"]
    assert model.active_adapter == "default"


def test_merging_what_has_no_lora_raises(several):
    model, _ = several
    model.set_adapter("bare")
    with pytest.raises(ValueError, match="'bare' has no LoRA: there is nothing to merge"):
        model.merge_adapter()
    model.unmerge_adapter()  # nothing to undo


def test_without_a_base_there_is_nothing_to_adapt_raises(wound, setup, make_se):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    model = make_se(adata)
    assert model.adapter_names == []
    for act in (lambda: model.add_adapter("second"), model.merge_adapter):
        with pytest.raises(ValueError, match=r"no base yet: call \.train\(\), or \.train_base\(\)"):
            act()


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "ä"])
def test_names_that_are_no_part_of_a_file_name_raise(name):
    with pytest.raises(ValueError, match="cannot be an adapter's name"):
        check_adapter_name(name)


def test_tensors_by_file():
    adapter = Adapter("day14", SELoraConfig(), _conditioning())
    files = adapter.tensors(None)  # a base from obsm has no encoder
    assert list(files) == ["conditioning.day14"]
    for name, tensor in adapter.conditioning.state_dict().items():
        assert torch.equal(files["conditioning.day14"][name], tensor)
    assert adapter.history.empty
