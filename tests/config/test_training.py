from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

import scstate_lora as ssl
from scstate_lora.config import MHCConfig, TrainConfig
from scstate_lora.training.runner import TRAIN_ARGUMENTS, TrainerOptions

NOT_IN_A_FILE = {"logger", "callbacks", "progress_bar"}


def test_every_option_of_train_that_a_file_can_hold_is_an_option_here():
    options = {field.name for field in fields(TrainerOptions)} - NOT_IN_A_FILE
    assert set(TrainConfig.model_fields) == options | set(TRAIN_ARGUMENTS) | {"mhc"}


@pytest.mark.parametrize("model", [ssl.LoRACovariateSE, ssl.STTransition])
def test_train_takes_them_by_name(model):
    assert set(TRAIN_ARGUMENTS) <= set(inspect.signature(model.train).parameters)


def test_what_is_set_makes_trainer_options():
    given = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": "ddp",
        "precision": "bf16-mixed",
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "early_stopping": True,
        "restore_best": False,
        "gradient_checkpointing": True,
        "compile": True,
        "run_folder": "runs/mine",
        "resume_from": "runs/mine/checkpoints/last.ckpt",
    }
    found = TrainConfig.parse(given, name="train").model_dump(exclude_none=True)
    assert found == given
    assert TrainerOptions(**found).early_stopping is True
    assert TrainConfig.parse({"early_stopping": 3}, name="train").early_stopping == 3


@pytest.mark.parametrize("mhc", [True, False, {"kind": "features", "layer_indices": [0, -1]}])
def test_hyper_connections_are_on_off_or_options(mhc):
    found = TrainConfig.parse({"mhc": mhc}, name="train")
    assert found.model_dump(exclude_none=True)["mhc"] == (
        mhc if isinstance(mhc, bool) else found.mhc.model_dump(exclude_none=True)
    )
    assert MHCConfig.requested(found.model_dump()["mhc"]) == MHCConfig.requested(mhc)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mhc": {"knd": "streams"}}, "mhc.knd.*Did you mean 'kind'"),
        ({"mhc": {"n_streams": 1}}, "mhc.n_streams=1 is not allowed"),
        ({"precision": "bf16"}, "precision='bf16' is not allowed"),
        ({"early_stoping": 3}, "Did you mean 'early_stopping'"),
        ({"gradient_clip_val": -1}, "gradient_clip_val=-1 is not allowed"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0 is not allowed"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 is not allowed"),
    ],
)
def test_what_makes_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.parse(options, name="train")
