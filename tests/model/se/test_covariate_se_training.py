"""How LoRACovariateSE is trained: what is computed once, what an objective switches, resumed and shared runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scstate_lora as ssl
from scstate_lora.data.bound import BoundData
from tests.builders import NEEDS_FORK, NO_DROPOUT, QUICK, Stop, latent

OPTIONS = {**QUICK, "batch_size": 32}


@pytest.fixture(scope="module")
def make(wound, setup, make_se, trained):
    """Make a model on the shared base, of 150 cells."""

    def new(setup_options=None, **options):
        adata = wound[:150].copy()
        ssl.LoRACovariateSE.setup_anndata(adata, **{**setup, **(setup_options or {})})
        return make_se(adata, base=trained[1].base, **options)

    return new


def _terms(model):
    of_every_run = {"phase", "epoch", "step", "loss", "grad_norm", "lr", "seconds", "peak_memory_mb", "best"}
    return set(model.history.columns) - of_every_run


def test_without_adapters_the_encoder_sees_every_cell_once(make, wound):
    model, seen = make(lora=False), []
    model.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model.train(max_epochs=3, **OPTIONS)
    own = model.get_latent_representation()
    moved = latent(model, covariates={"condition": "burn"})
    model.train(max_epochs=1, **OPTIONS)
    assert sum(seen) == 150
    assert np.abs(own - moved).max() > 1e-5
    plain = model.adata.obsm["X_scstate_base"].copy()
    model.adata.obsm["X_scstate_base"][:] = 0  # the user's own
    model.get_latent_representation()
    assert sum(seen) == 150
    np.testing.assert_array_equal(model.adata.obsm["X_scstate_base"], plain)
    np.testing.assert_allclose(plain, model.base.embed(BoundData(model.registry, model.adata)), atol=1e-6)
    changed = model.adata.copy()
    changed.X = changed.X[:, ::-1].copy() if not hasattr(changed.X, "tocsr") else changed.X.tocsr()[:, ::-1].tocsr()
    assert np.abs(latent(model, changed) - latent(model)).max() > 1e-4
    assert sum(seen) >= 450  # other cells are computed anew
    assert not any("lora_" in name for name, _ in model.network.named_parameters())


def test_how_long_it_trains_unless_told(make):
    bare = make(lora=False, conditioning={"n_steps": 7})
    bare.train(**OPTIONS)  # three batches an epoch
    assert bare.history["step"].max() == 9
    adapted = make(conditioning={"n_steps": 0})
    adapted.train(**OPTIONS)
    assert adapted.history["step"].max() == 60


def test_weights_of_zero_switch_terms_off(make):
    model = make(objective={"reconstruction": 0, "counterfactual": 0, "contrastive_loss": "ntxent"})
    model.train(max_epochs=1, **OPTIONS)
    assert _terms(model) == {"contrastive", "covariates", "preservation"}
    alone = make(lora=False, objective=dict.fromkeys(("reconstruction", "contrastive", "covariates"), 0))
    alone.train(max_epochs=1, **OPTIONS)
    assert _terms(alone) == {"preservation", "counterfactual"}
    heads = alone.network.conditioning.heads
    fresh = make(lora=False).network.conditioning.heads
    assert all(torch.equal(p, q) for p, q in zip(heads.parameters(), fresh.parameters(), strict=True))


def test_an_objective_that_nothing_can_be_computed_from_raises(make):
    only_batch = {"batch": 1.0, **dict.fromkeys(("reconstruction", "contrastive", "covariates"), 0)}
    model = make(objective={**only_batch, "preservation": 0, "counterfactual": 0})
    with pytest.raises(ValueError, match="has weights for batch only, which this experiment has no data for"):
        model.train(max_epochs=1, **OPTIONS)
    assert not model.is_trained


def test_contrastive_labels_are_those_asked_for(make):
    losses = []
    for on in ("auto", "cell_type", "covariates"):
        model = make(lora=False, objective={"contrastive_on": on})
        model.train(max_epochs=1, **OPTIONS)
        losses.append(model.history["contrastive"].iloc[0])
    assert losses[0] == losses[1] != losses[2]
    untyped = make({"cell_type_key": None, "context_keys": None}, objective={"contrastive_on": "cell_type"})
    with pytest.raises(ValueError, match="contrastive_on='cell_type', but no cell_type_key was set up"):
        untyped.train(max_epochs=1, **OPTIONS)


def test_batches_are_an_input_of_their_own_and_may_be_new_later(make):
    no_covariates = {"covariate_keys": [], "pert_key": None, "control": None, "context_keys": None}
    model = make({**no_covariates, "batch_key": "mouse_id"})
    model.train(max_epochs=2, lr=1e-2, **OPTIONS)
    assert _terms(model) == {"reconstruction", "contrastive", "preservation", "batch"}
    own = latent(model)
    new = model.adata.copy()
    new.obs["mouse_id"] = "a mouse of next year"
    unknown = latent(model, new)
    assert np.isfinite(unknown).all()
    assert np.abs(unknown - own).max() > 1e-5
    del new.obs["mouse_id"]
    np.testing.assert_array_equal(latent(model, new), unknown)


def test_a_batch_beside_covariates_stays_the_cells_own(make):
    model = make({"batch_key": "mouse_id"})
    model.train(max_epochs=1, **OPTIONS)
    assert "batch" in _terms(model)
    assert "mouse_id" in repr(model)
    burn = (model.adata.obs["condition"] == "burn").to_numpy()
    np.testing.assert_allclose(latent(model, covariates={"condition": "burn"})[burn], latent(model)[burn], atol=1e-6)


def test_a_covariate_can_be_withheld(make):
    model = make()
    model.train(max_epochs=1, **OPTIONS)
    withheld = latent(model, covariates={"condition": None})
    assert np.abs(withheld - latent(model)).max() > 1e-5
    burnt = model.adata.copy()
    burnt.obs["condition"] = "burn"
    np.testing.assert_allclose(latent(model, burnt, covariates={"condition": None}), withheld, atol=1e-6)


@pytest.mark.parametrize("lora", [NO_DROPOUT, False], ids=["adapters", "none"])
def test_resumed_training_equals_an_uninterrupted_one(make, same_training, tmp_path, lora):
    options = {**OPTIONS, "max_epochs": 3, "lr": 3e-3, "logger": True}
    whole, stopped, resumed = (make(lora=lora) for _ in range(3))
    whole.train(**options, run_folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped here"):
        stopped.train(**options, run_folder=tmp_path / "part", callbacks=Stop(4))
    resumed.train(**options, resume_from=tmp_path / "part")
    same_training((whole.network, whole.history), (resumed.network, resumed.history), tolerance=1e-6)
    np.testing.assert_allclose(latent(resumed), latent(whole), atol=1e-6)


def test_recomputed_activations_change_no_weight(make, same_training):
    one, two = make(lora=NO_DROPOUT), make(lora=NO_DROPOUT)
    one.train(max_epochs=1, **OPTIONS)
    two.train(max_epochs=1, gradient_checkpointing=True, **OPTIONS)
    same_training((one.network, one.history), (two.network, two.history), tolerance=1e-6)


def test_gradients_of_several_batches_are_accumulated(make):
    model = make(lora=False)
    model.train(max_epochs=2, accumulate_grad_batches=3, **OPTIONS)
    assert model.history["step"].max() == 2


def test_it_stops_when_validation_gets_no_better(make):
    model = make(lora=False)
    model.train(max_epochs=30, lr=0.5, early_stopping=2, **OPTIONS)
    assert model.history["epoch"].max() < 29
    assert model.history["best"].sum() >= 1


@pytest.mark.slow
@NEEDS_FORK
@pytest.mark.parametrize("lora", [NO_DROPOUT, False], ids=["adapters", "none"])
def test_two_processes_train_what_one_does(make, same_training, lora):
    one, two = make({"batch_key": "mouse_id"}, lora=lora), make({"batch_key": "mouse_id"}, lora=lora)
    one.train(max_epochs=2, **OPTIONS)
    two.train(max_epochs=2, devices=2, strategy="ddp_fork", **OPTIONS)
    assert set(one.history["phase"]) == {"train", "val"}
    same_training((one.network, one.history), (two.network, two.history), tolerance=1e-4)
    np.testing.assert_allclose(latent(two), latent(one), atol=1e-4)


@NEEDS_FORK
def test_a_batch_that_devices_cannot_share_raises(make):
    model = make()
    with pytest.raises(ValueError, match=r"batch of 33 .* devices=2 .* batch_size"):
        model.train(max_epochs=1, devices=2, strategy="ddp_fork", **{**OPTIONS, "batch_size": 33})
    assert not model.is_trained
