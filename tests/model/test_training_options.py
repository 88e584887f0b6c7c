from __future__ import annotations

import logging

import lightning as L
import pytest
import torch

import scstate_lora as ssl

OPTIONS = {"accelerator": "cpu", "progress_bar": False, "max_epochs": 2, "batch_size": 4}


class Stop(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def make(wound, setup, make_st):
    """Make an STTransition of a fresh copy of the wound."""

    def new(dropout=0.0):
        adata = wound.copy()
        logging.getLogger("scstate_lora").setLevel(logging.WARNING)
        ssl.STTransition.setup_anndata(adata, **setup)
        return make_st(adata, {"dropout": dropout})

    return new


def test_two_processes_train_a_transition_model_as_one_does(make, same_training):
    one, two = make(), make()
    one.train(logger=False, **OPTIONS)
    two.train(logger=False, devices=2, strategy="ddp_fork", **OPTIONS)
    assert set(one.history["phase"]) == {"train", "val"}
    assert two.history["best"].sum() == 1
    same_training((one.network, one.history), (two.network, two.history))


def test_interrupted_transition_model_keeps_its_history_and_goes_on(make, same_training, tmp_path):
    whole, interrupted, new = make(dropout=0.2), make(dropout=0.2), make(dropout=0.2)
    whole.train(logger=False, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train(run_folder=tmp_path, callbacks=Stop(30), **OPTIONS)
    assert interrupted.is_trained
    assert interrupted.history["step"].max() == 30
    assert interrupted.history["best"].sum() == 1
    interrupted.predict(target="burn")
    for model in (interrupted, new):
        model.train(resume_from=tmp_path, logger=False, **OPTIONS)
        same_training((whole.network, whole.history), (model.network, model.history), tolerance=0)


@pytest.mark.parametrize("option", ["gradient_checkpointing", pytest.param("compile", marks=pytest.mark.slow)])
def test_less_memory_or_compiled_code_gives_the_same_training(make, same_training, option):
    dropout = 0.1 if option == "gradient_checkpointing" else 0.0  # compiled code draws other random numbers
    plain, other = make(dropout), make(dropout)
    plain.train(logger=False, **OPTIONS)
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            part = pl_module.backbone()
            seen.append(part.gradient_checkpointing or part._compiled_call_impl is not None)

    other.train(logger=False, callbacks=Look(), **{option: True}, **OPTIONS)
    assert all(seen)
    backbone = other.network.transformer_backbone
    assert not backbone.gradient_checkpointing
    assert backbone._compiled_call_impl is None
    assert torch.isfinite(backbone(torch.zeros(1, 3, 16))).all()
    same_training((plain.network, plain.history), (other.network, other.history), tolerance=1e-4)
