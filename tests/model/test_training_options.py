from __future__ import annotations

import lightning as L
import pytest
import torch

import scstate_lora as ssl
from tests.builders import NEEDS_FORK, QUICK, Stop

OPTIONS = {**QUICK, "max_epochs": 2, "batch_size": 4}


@pytest.fixture
def make(wound, setup, make_st):
    """Make an STTransition of a fresh copy of the wound."""

    def new(dropout=0.0):
        adata = wound.copy()
        ssl.STTransition.setup_anndata(adata, **setup)
        return make_st(adata, {"dropout": dropout})

    return new


@NEEDS_FORK
def test_two_processes_train_a_transition_model_as_one_does(make, same_training):
    one, two = make(), make()
    options = {**OPTIONS, "max_epochs": 1}
    one.train(**options)
    two.train(devices=2, strategy="ddp_fork", **options)
    assert set(one.history["phase"]) == {"train", "val"}
    assert two.history["best"].sum() == 1
    # Adam makes more of the rounding of gradients near 0, which two processes sum in another order.
    same_training((one.network, one.history), (two.network, two.history), tolerance=3e-4)


def test_interrupted_transition_model_keeps_its_history_and_goes_on(make, same_training, tmp_path):
    whole, interrupted, new = make(dropout=0.2), make(dropout=0.2), make(dropout=0.2)
    whole.train(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train(run_folder=tmp_path, callbacks=Stop(30, KeyboardInterrupt()), **{**OPTIONS, "logger": True})
    assert interrupted.is_trained
    assert interrupted.history["step"].max() == 30
    assert interrupted.history["best"].sum() == 1
    interrupted.predict(target="burn")
    for model in (interrupted, new):
        model.train(resume_from=tmp_path, **OPTIONS)
        same_training((whole.network, whole.history), (model.network, model.history), tolerance=0)


@pytest.mark.parametrize("option", ["gradient_checkpointing", pytest.param("compile", marks=pytest.mark.slow)])
def test_less_memory_or_compiled_code_gives_the_same_training(make, same_training, option):
    dropout = 0.1 if option == "gradient_checkpointing" else 0.0  # compiled code draws other random numbers
    plain, other = make(dropout), make(dropout)
    plain.train(**OPTIONS)
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            part = pl_module.backbone()
            seen.append(part.gradient_checkpointing or part._compiled_call_impl is not None)

    other.train(callbacks=Look(), **{option: True}, **OPTIONS)
    assert all(seen)
    backbone = other.network.transformer_backbone
    assert not backbone.gradient_checkpointing
    assert backbone._compiled_call_impl is None
    assert torch.isfinite(backbone(torch.zeros(1, 3, 16))).all()
    same_training((plain.network, plain.history), (other.network, other.history), tolerance=1e-4)
