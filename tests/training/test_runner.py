from __future__ import annotations

import logging
import signal
import warnings

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from scstate_lora.config import TrainerOptions
from scstate_lora.training.plans import Plan
from scstate_lora.training.runner import TrainingRun
from tests.builders import QUICK

COLUMNS = ["phase", "epoch", "step", "loss", "size", "fit", "grad_norm", "lr", "seconds", "peak_memory_mb", "best"]
OPTIONS = TrainerOptions(**QUICK)


class Numbers:
    """Four batches an epoch, each its own number."""

    steps_per_epoch = 4

    def __init__(self, shift=0.0):
        self.shift = shift
        self.drawn = []

    def __getitem__(self, step):
        self.drawn.append(step)
        rng = np.random.default_rng(step)
        x = rng.normal(size=(8, 3)).astype(np.float32)
        return {"x": x, "y": x.sum(1, keepdims=True) + np.float32(self.shift)}


class LinearPlan(Plan):
    def __init__(self, lr=0.05):
        super().__init__(lr=lr, weight_decay=0.0, warmup_steps=2, weights={"fit": 1.0, "size": 0.1})
        self.linear = nn.Linear(3, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.dropout = nn.Dropout(0.1)

    def terms(self, batch):
        predicted = self.linear(self.dropout(batch["x"]))
        return {"size": self.linear.weight.square().sum(), "fit": (predicted - batch["y"]).square().mean()}


def _fit(plan=None, *, options=OPTIONS, max_epochs=2, val=True):
    plan = plan or LinearPlan()
    run = TrainingRun(plan, options=options, title="test", seed=0)
    run.fit(Numbers(), Numbers() if val else None, max_epochs=max_epochs)
    return run.history, plan


def test_history_has_a_row_a_step_and_a_row_a_validation_epoch():
    history, plan = _fit()
    assert list(history.columns) == COLUMNS
    assert history["phase"].tolist() == (["train"] * 4 + ["val"]) * 2
    assert history["epoch"].tolist() == [0] * 5 + [1] * 5
    assert history["step"].tolist() == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    train, val = history[history["phase"] == "train"], history[history["phase"] == "val"]
    assert train.notna().all(axis=None)
    assert val[["grad_norm", "lr"]].isna().all(axis=None)
    assert val.drop(columns=["grad_norm", "lr"]).notna().all(axis=None)
    np.testing.assert_allclose(train["loss"], train["fit"] + 0.1 * train["size"], rtol=1e-5)
    assert (np.diff(history["seconds"]) > 0).all()
    assert (history["peak_memory_mb"] > 10).all()
    assert train["loss"].iloc[-1] < train["loss"].iloc[0]
    assert not plan.training


def test_first_row_holds_the_loss_gradient_and_rate_of_the_first_step():
    history, _ = _fit()
    torch.manual_seed(0)
    plan = LinearPlan().eval()
    batch = {k: torch.from_numpy(v) for k, v in Numbers()[0].items()}
    loss = plan.terms(batch)["fit"]
    assert history["fit"][0] == pytest.approx(loss.item(), rel=1e-5)  # the weights are zero, so dropout has no say
    assert history["lr"][0] == pytest.approx(0.05)  # a warm-up of 8 // 5 steps
    assert history["lr"][7] < history["lr"][1]
    assert history["grad_norm"][0] > 0.1


def test_without_validation_there_are_training_rows_only():
    history, _ = _fit(val=False, options=TrainerOptions(**QUICK, early_stopping=True))
    assert set(history["phase"]) == {"train"}


def test_training_is_reproducible_and_leaves_the_random_state_alone():
    plan = LinearPlan()
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 (the global state is what is tested)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _, first = _fit(plan)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(7)
    _, second = _fit()
    assert torch.equal(first.linear.weight, second.linear.weight)


def test_second_run_continues_history_and_batches():
    history, plan = _fit()
    source = Numbers()
    run = TrainingRun(plan, options=OPTIONS, title="test", seed=0, history=history)
    run.fit(source, max_epochs=1)
    longer = run.history
    pd.testing.assert_frame_equal(longer.iloc[:10], history)
    assert longer["epoch"].iloc[10:].tolist() == [2] * 4
    assert longer["step"].iloc[10:].tolist() == [9, 10, 11, 12]
    assert longer["seconds"].is_monotonic_increasing
    assert source.drawn == [0, 8, 9, 10, 11]  # the first tells how many cells a batch has


def test_accumulated_batches_make_one_row():
    history, _ = _fit(options=TrainerOptions(**QUICK, accumulate_grad_batches=2))
    train = history[history["phase"] == "train"]
    assert train["step"].tolist() == [1, 2, 3, 4]
    first = [LinearPlan().eval().terms({k: torch.from_numpy(v) for k, v in Numbers()[i].items()}) for i in (0, 1)]
    assert train["fit"].iloc[0] == pytest.approx(np.mean([t["fit"].item() for t in first]), rel=1e-5)


def test_gradients_are_not_kept_through_the_next_forward_pass():
    kept = []

    class Looking(LinearPlan):
        def terms(self, batch):
            kept.append(self.linear.weight.grad is not None)
            return super().terms(batch)

    _fit(Looking(), val=False)
    assert kept == [False] * 8
    kept.clear()
    _fit(Looking(), options=TrainerOptions(**QUICK, accumulate_grad_batches=2), val=False)
    assert kept == [False, True] * 4  # two batches make one step


def test_early_stopping_ends_training_that_no_longer_helps():
    options = TrainerOptions(**QUICK, early_stopping=2)
    plan = LinearPlan()
    # What is learnt makes the validation worse.
    run = TrainingRun(plan, options=options, title="t", seed=0)
    run.fit(Numbers(shift=50), Numbers(shift=-50), max_epochs=30)
    assert run.history["epoch"].max() == 2


def test_a_logger_receives_losses(tmp_path):
    logger = CSVLogger(tmp_path, name="run")
    _fit(options=TrainerOptions(**{**QUICK, "logger": logger}))
    logged = pd.read_csv(tmp_path / "run" / "version_0" / "metrics.csv")
    assert {"train/loss", "train/fit", "train/size", "val/loss"} <= set(logged.columns)
    assert logged["train/loss"].notna().sum() == 8
    assert logged["val/loss"].notna().sum() == 2


def test_one_callback_or_several_and_checkpoints(tmp_path):
    class Count(L.Callback):
        steps = 0

        def on_train_batch_end(self, *args):
            self.steps += 1

    count, kept = Count(), ModelCheckpoint(dirpath=tmp_path)
    _fit(options=TrainerOptions(**QUICK, callbacks=count))
    assert count.steps == 8
    _fit(options=TrainerOptions(**QUICK, callbacks=[count, kept]))
    assert count.steps == 16
    assert list(tmp_path.glob("*.ckpt"))


def test_progress_bar_shows_title_and_losses(capsys):
    _fit(options=TrainerOptions(accelerator="cpu", logger=False))
    shown = capsys.readouterr().err
    assert "test" in shown
    assert "8/8" in shown
    assert "val=" in shown


def test_nothing_is_said_or_silenced_beyond_the_run(caplog):
    quiet, loud = logging.getLogger("lightning.pytorch"), logging.getLogger("lightning")
    quiet.setLevel(logging.ERROR)
    loud.setLevel(logging.INFO)
    before = warnings.filters[:]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _fit()
            _fit(val=False)
        assert [str(w.message) for w in caught] == []
        assert (quiet.level, loud.level) == (logging.ERROR, logging.INFO)
    finally:
        quiet.setLevel(logging.NOTSET)
        loud.setLevel(logging.NOTSET)
    assert warnings.filters == before
    assert [r.message for r in caplog.records if not r.name.startswith("scstate_lora")] == []


class Interrupt(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise KeyboardInterrupt


@pytest.mark.parametrize("progress_bar", [True, False])
def test_ctrl_c_ends_training_and_works_again_afterwards_raises(progress_bar):
    handler = signal.getsignal(signal.SIGINT)
    plan = LinearPlan()
    options = TrainerOptions(**{**QUICK, "progress_bar": progress_bar}, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        _fit(plan, options=options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not plan.training


def test_an_error_in_a_callback_passes_through_raises():
    class Fail(L.Callback):
        def on_train_batch_end(self, *args):
            msg = "mine"
            raise RuntimeError(msg)

    class Leave(L.Callback):
        def on_train_batch_end(self, *args):
            raise SystemExit(3)

    with pytest.raises(RuntimeError, match="mine"):
        _fit(options=TrainerOptions(**QUICK, callbacks=Fail()))
    with pytest.raises(SystemExit) as left:
        _fit(options=TrainerOptions(**QUICK, callbacks=Leave()))
    assert left.value.code == 3


@pytest.mark.parametrize("options", [{"strategy": "nosuch"}, {"devices": 0}])
def test_what_lightning_refuses_is_a_value_error_raises(options):
    with pytest.raises(ValueError, match="Lightning cannot train with these options"):
        _fit(options=TrainerOptions(**QUICK, **options))
