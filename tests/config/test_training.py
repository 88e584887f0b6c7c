from __future__ import annotations

from pathlib import Path

import pytest

from scstate_lora.config import MHCConfig, TrainConfig, TrainerOptions, TrainOptions


def test_what_a_file_sets_makes_options():
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
    found = TrainConfig.parse(given, name="train")
    assert found.model_dump(mode="json", exclude_none=True) == given
    assert TrainerOptions(**found.model_dump(exclude_none=True)).early_stopping is True
    assert TrainConfig.parse({"early_stopping": 3}, name="train").early_stopping == 3


@pytest.mark.parametrize("mhc", [True, False, {"kind": "features", "layer_indices": [0, -1]}])
def test_hyper_connections_are_on_off_or_options(mhc):
    found = TrainConfig.parse({"mhc": mhc}, name="train")
    assert found.model_dump(exclude_none=True)["mhc"] == (
        mhc if isinstance(mhc, bool) else found.mhc.model_dump(exclude_none=True)
    )
    assert MHCConfig.requested(found.model_dump()["mhc"]) == MHCConfig.requested(mhc)


@pytest.mark.parametrize("options", [TrainConfig, TrainOptions])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mhc": {"knd": "streams"}}, "mhc.knd.*Did you mean 'kind'"),
        ({"mhc": {"n_streams": 1}}, "mhc.n_streams=1 is not allowed"),
        ({"accelerator": "gpuu"}, "accelerator='gpuu' is not allowed. .*'gpu'"),
        ({"precision": "bf16"}, "precision='bf16' is not allowed. .*'bf16-mixed'"),
        ({"early_stoping": 3}, "Did you mean 'early_stopping'"),
        ({"early_stopping": -2}, "early_stopping=-2 is not allowed"),
        ({"early_stopping": "never"}, "early_stopping='never' is not allowed"),
        ({"gradient_clip_val": -1}, "gradient_clip_val=-1 is not allowed"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0 is not allowed"),
        ({"max_epochs": 0}, "max_epochs=0 is not allowed: .*greater than or equal to 1"),
        ({"max_epochs": 1.5}, r"max_epochs=1\.5 is not allowed"),
        ({"batch_size": -4}, "batch_size=-4 is not allowed"),
        ({"lr": 0}, "lr=0 is not allowed: .*greater than 0"),
        ({"lr": float("nan")}, "lr=nan is not allowed"),
        ({"lr": "much"}, "lr='much' is not allowed"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 is not allowed"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is not allowed"),
    ],
)
def test_what_makes_no_sense_raises(options, given, message):
    with pytest.raises(ValueError, match=message):
        options.parse(given, name="train")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logger": "wandbb"}, r"train\(\): logger: 'wandbb' is unknown. Give True"),
        ({"logger": False, "run_folder": "x"}, "logger=False writes nothing, but run_folder='x'"),
    ],
)
def test_loggers_that_make_no_sense_raises(given, message):
    with pytest.raises(ValueError, match=message):
        TrainerOptions.of_call(given, function="train()")


def test_unknown_keyword_suggests_the_right_one_raises():
    with pytest.raises(TypeError, match=r"train\(\) has no argument 'acelerator'.*'accelerator'"):
        TrainerOptions.of_call({"acelerator": "cpu"}, function="train()")
    with pytest.raises(TypeError, match=r"'epochs'.*'max_epochs'"):
        TrainOptions.of_call({"epochs": 3}, function="train()")
    with pytest.raises(TypeError, match="'max_epochs'"):
        TrainerOptions.of_call({"max_epochs": 3}, function="train_base()")


def test_none_takes_the_default():
    assert TrainOptions.of_call({"lr": None, "logger": None}, function="train()") == TrainOptions()
    choice = {"lr": 0.1, "warmup_steps": 7}
    assert TrainOptions().schedule(**choice) == {**choice, "weight_decay": 0.01}
    assert TrainOptions(lr=0.2, warmup_steps=0).schedule(**choice) == {
        "lr": 0.2,
        "weight_decay": 0.01,
        "warmup_steps": 0,
    }


def test_weights_and_biases_where_it_is_not_installed_raises(monkeypatch):
    monkeypatch.setattr("scstate_lora.config.training.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"logger='wandb' needs Weights & Biases, .* pip install wandb"):
        TrainerOptions(logger="wandb")


def test_options_of_a_part_start_anew_in_a_folder_of_their_own():
    part = TrainerOptions(accelerator="cpu", run_folder="runs", resume_from="x").part("base")
    assert (part.run_folder, part.resume_from, part.accelerator) == (Path("runs/base"), None, "cpu")
    assert TrainerOptions().part("base").run_folder is None
