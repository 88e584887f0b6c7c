from __future__ import annotations

import signal
import threading

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from scstate_lora import settings
from scstate_lora._termination import Terminated
from scstate_lora.config import TrainerOptions
from scstate_lora.training.checkpoints import find_checkpoint, read_checkpoint
from scstate_lora.training.plans import Plan
from scstate_lora.training.runner import TrainingRun

OPTIONS = {"accelerator": "cpu", "progress_bar": False}
MEASURED = ["seconds", "peak_memory_mb"]


class Numbers:
    """Five batches an epoch, each its own number."""

    steps_per_epoch = 5

    def __init__(self, shift=0.0, n=8):
        self.shift, self.n = shift, n

    def __getitem__(self, step):
        x = np.random.default_rng(step).normal(size=(self.n, 3)).astype(np.float32)
        return {"x": x, "y": x.sum(1, keepdims=True) + np.float32(self.shift)}


class SmallPlan(Plan):
    """A frozen layer, dropout, batch statistics and a trained layer."""

    def __init__(self, *, lr=0.05, width=4, base=0):
        super().__init__(lr=lr, weight_decay=0.01, warmup_steps=2, weights={"fit": 1.0})
        torch.manual_seed(base)
        self.frozen = nn.Linear(3, width).requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.3)
        torch.manual_seed(1)
        self.linear = nn.Linear(width, 1)

    def terms(self, batch):
        predicted = self.linear(self.dropout(self.norm(self.frozen(batch["x"]))))
        return {"fit": (predicted - batch["y"]).square().mean()}


class OtherPlan(SmallPlan):
    pass


class CtrlC(L.Callback):
    """Press Ctrl-C, or send another signal, while a batch is computed."""

    def __init__(self, number, times=1, sent=signal.SIGINT):
        self.number, self.times, self.sent = number, times, sent

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.number:
            for _ in range(self.times):
                signal.raise_signal(self.sent)


def _fit(plan, *, max_epochs=4, val=True, source=None, seed=0, keep=None, history=None, **options):
    options = TrainerOptions(**{**OPTIONS, **options})
    run = TrainingRun(plan, options=options, title="Small plan", seed=seed, history=history)
    try:
        run.fit(source or Numbers(), Numbers(shift=0.5) if val else None, max_epochs=max_epochs)
    finally:
        if keep is not None:
            keep(run.history)
    return run.history


def _assert_same(plan, other):
    for (name, first), second in zip(plan.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """Python's own handler, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stop", [3, 5, 7, 10])  # in the middle and at the end of an epoch
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_by_ctrl_c_goes_on_as_if_it_had_not_been(tmp_path, stop, accumulate):
    whole, interrupted, resumed = SmallPlan(), SmallPlan(), SmallPlan()
    common = {"accumulate_grad_batches": accumulate}
    expected = _fit(whole, logger=False, **common)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        _fit(interrupted, run_folder=tmp_path, callbacks=CtrlC(stop), keep=kept.append, **common)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 0 < len(kept[0]) < len(expected)
    found = _fit(resumed, run_folder=tmp_path, resume_from=tmp_path, keep=kept.append, **common)
    _assert_same(resumed, whole)
    pd.testing.assert_frame_equal(found.drop(columns=MEASURED), expected.drop(columns=MEASURED))
    assert found["seconds"].is_monotonic_increasing
    assert kept[1] is found
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "metrics.csv"), found, check_exact=False)


def test_resuming_in_the_same_session_replaces_the_interrupted_rows(tmp_path):
    first = _fit(SmallPlan(), logger=False, max_epochs=1)
    whole, plan, kept = SmallPlan(), SmallPlan(), []
    expected = _fit(whole, logger=False, history=first)
    with pytest.raises(KeyboardInterrupt):
        _fit(plan, run_folder=tmp_path, history=first, callbacks=CtrlC(8), keep=kept.append)
    found = _fit(plan, resume_from=tmp_path, history=kept[0])
    _assert_same(plan, whole)
    pd.testing.assert_frame_equal(found.drop(columns=MEASURED), expected.drop(columns=MEASURED))


def test_second_ctrl_c_stops_at_once_and_keeps_the_last_epochs_checkpoint(tmp_path):
    kept = []
    with pytest.raises(KeyboardInterrupt):
        _fit(SmallPlan(), run_folder=tmp_path, callbacks=CtrlC(8, times=2), keep=kept.append)
    assert read_checkpoint(find_checkpoint(tmp_path))["global_step"] == 5
    assert kept[0]["step"].max() == 7
    whole, resumed = SmallPlan(), SmallPlan()
    _fit(whole, logger=False)
    _fit(resumed, resume_from=tmp_path)
    _assert_same(resumed, whole)


@pytest.mark.parametrize("stop", [3, 5])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("times", [1, 2])  # a process group may be sent two
def test_a_run_stopped_by_sigterm_goes_on_as_if_it_had_not_been(tmp_path, stop, accumulate, times):
    whole, interrupted, resumed = SmallPlan(), SmallPlan(), SmallPlan()
    common = {"accumulate_grad_batches": accumulate}
    expected = _fit(whole, logger=False, **common)
    with pytest.raises(Terminated, match=r"resume_from=.*last.ckpt") as stopped:
        _fit(interrupted, run_folder=tmp_path, callbacks=CtrlC(stop, times, signal.SIGTERM), **common)
    assert stopped.value.code == 143
    assert not isinstance(stopped.value, Exception)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    found = _fit(resumed, run_folder=tmp_path, resume_from=tmp_path, **common)
    _assert_same(resumed, whole)
    pd.testing.assert_frame_equal(found.drop(columns=MEASURED), expected.drop(columns=MEASURED))


def test_sigterm_without_a_folder_ends_training_with_the_best_weights():
    kept = []
    with pytest.raises(Terminated) as stopped:
        _fit(SmallPlan(), logger=False, callbacks=CtrlC(7, sent=signal.SIGTERM), keep=kept.append)
    assert "resume_from" not in str(stopped.value)
    assert kept[0].query("best")["epoch"].tolist() == [0]


def test_a_handler_of_the_users_own_decides_what_sigterm_does():
    received = []

    def note(number, _frame):
        received.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        history = _fit(SmallPlan(), logger=False, max_epochs=1, callbacks=CtrlC(2, sent=signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is note
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert history["step"].max() == Numbers.steps_per_epoch


def test_training_works_in_a_thread_which_signals_do_not_reach():
    kept = []
    thread = threading.Thread(target=lambda: kept.append(_fit(SmallPlan(), logger=False, max_epochs=1)))
    thread.start()
    thread.join()
    assert kept[0]["step"].max() == Numbers.steps_per_epoch


def test_rows_are_kept_when_a_callback_fails(tmp_path):
    class Fail(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("mine")

    kept = []
    with pytest.raises(RuntimeError, match="mine"):
        _fit(SmallPlan(), logger=False, callbacks=Fail(), keep=kept.append)
    assert kept[0]["step"].tolist() == [1, 2, 3]


def test_checkpoints_hold_what_is_trained_and_load_without_running_code(tmp_path):
    _fit(SmallPlan(), run_folder=tmp_path, callbacks=ModelCheckpoint(dirpath=tmp_path / "users"))
    files = [tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "best.ckpt"]
    for file in [*files, *(tmp_path / "users").glob("*.ckpt")]:
        state = torch.load(file, weights_only=True)["state_dict"]
        assert set(state) == {
            *("linear.weight", "linear.bias", "norm.weight", "norm.bias"),
            *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
        }
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_weights_of_the_epoch_with_the_lowest_validation_loss_are_taken(tmp_path):
    def run(max_epochs=6, **options):
        plan = SmallPlan(lr=0.08)
        # What is learnt later makes the validation worse.
        options = TrainerOptions(**OPTIONS, **options)
        target = Numbers(shift=3)
        run = TrainingRun(plan, options=options, title="t", seed=0)
        run.fit(Numbers(shift=9), target, max_epochs=max_epochs)
        history = run.history
        return plan, history

    plan, history = run(run_folder=tmp_path)
    val = history[history["phase"] == "val"]
    assert val["best"].tolist() == (val["loss"] == val["loss"].min()).tolist()
    assert not history.loc[history["phase"] == "train", "best"].any()
    best = int(val.loc[val["best"], "epoch"].iloc[0])
    assert 0 < best < 5
    with torch.no_grad():
        batches = [{k: torch.from_numpy(v) for k, v in Numbers(shift=3)[i].items()} for i in range(5)]
        loss = np.mean([plan.terms(batch)["fit"].item() for batch in batches])
    assert loss == pytest.approx(val["loss"].min(), rel=1e-5)
    stored = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] == best
    assert all(torch.equal(stored["state_dict"][name], plan.state_dict()[name]) for name in stored["state_dict"])
    last, marked = run(logger=False, restore_best=False)
    assert not marked["best"].any()
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], last.state_dict()[name]) for name in after)
    assert not torch.equal(last.linear.weight, plan.linear.weight)


def test_best_weights_of_before_the_interruption_are_taken_in_a_resumed_run(tmp_path):
    def run(plan, **options):
        training = TrainingRun(plan, options=TrainerOptions(**OPTIONS, **options), title="t", seed=0)
        training.fit(Numbers(shift=9), Numbers(shift=3), max_epochs=6)
        return training.history

    whole, plan = SmallPlan(lr=0.08), SmallPlan(lr=0.08)
    history = run(whole, logger=False)
    after_best = int(history.loc[history["best"], "step"].iloc[0]) + 7
    with pytest.raises(KeyboardInterrupt):
        run(plan, run_folder=tmp_path, callbacks=CtrlC(after_best))
    _assert_same(plan, whole)  # the best ones are taken on Ctrl-C as well
    resumed = SmallPlan(lr=0.08)
    run(resumed, resume_from=tmp_path)
    _assert_same(resumed, whole)


def test_a_run_writes_into_a_numbered_folder_of_its_own_or_nothing_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = settings.run_dir
    settings.run_dir = tmp_path / "runs"
    try:
        _fit(SmallPlan(), logger=False)
        assert not list(tmp_path.iterdir())
        first = _fit(SmallPlan())
        _fit(SmallPlan(), val=False)
    finally:
        settings.run_dir = before
    one, two = (tmp_path / "runs" / "Small_plan" / number for number in "12")
    pd.testing.assert_frame_equal(pd.read_csv(one / "metrics.csv"), first)
    for folder, files in ((one, {"last.ckpt", "best.ckpt"}), (two, {"last.ckpt"})):
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        assert {file.name for file in (folder / "checkpoints").iterdir()} == files


def test_tensorboard_has_the_losses_gradient_norm_and_rate(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = _fit(SmallPlan(), run_folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train/loss", "train/fit", "val/loss", "grad_norm", "lr"} <= set(events.Tags()["scalars"])
    train = history[history["phase"] == "train"]
    for tag, column in (("train/loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "lr")):
        np.testing.assert_allclose([e.value for e in events.Scalars(tag)], train[column], rtol=1e-5)


def test_a_folder_that_holds_a_run_already_raises(tmp_path):
    _fit(SmallPlan(), run_folder=tmp_path / "mine", max_epochs=1)
    with pytest.raises(FileExistsError, match=r"holds a run already.*resume_from=.*last\.ckpt"):
        _fit(SmallPlan(), run_folder=tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"file' is a file\. Name a folder"):
        _fit(SmallPlan(), run_folder=tmp_path / "file")


def test_checkpoint_of_another_run_names_what_differs_raises(tmp_path):
    _fit(SmallPlan(), run_folder=tmp_path, max_epochs=2)
    cases = [
        (OtherPlan(), {}, "a checkpoint of SmallPlan; this is OtherPlan"),
        (SmallPlan(width=5), {}, r"shape: linear\.weight is .*4.*, expected .*5"),
        (SmallPlan(base=1), {}, "another base: the frozen weights differ"),
        (SmallPlan(lr=0.01), {}, r"other options: lr=0\.05 then, 0\.01 now"),
        (SmallPlan(), {"seed": 3}, "seed=0 then, 3 now"),
        (SmallPlan(), {"source": Numbers(n=6)}, "batch_size=8 then, 6 now"),
        (SmallPlan(), {"accumulate_grad_batches": 2}, "accumulate_grad_batches=1 then, 2 now"),
        (SmallPlan(), {"max_epochs": 2}, "has completed 2 epochs already; max_epochs=2 leaves nothing"),
    ]
    for plan, changed, message in cases:
        state = {name: tensor.clone() for name, tensor in plan.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            _fit(plan, resume_from=tmp_path, **changed)
        assert all(torch.equal(state[name], tensor) for name, tensor in plan.state_dict().items())


def test_a_finished_run_can_be_made_longer(tmp_path):
    _fit(SmallPlan(), run_folder=tmp_path, max_epochs=2)
    history = _fit(SmallPlan(), resume_from=tmp_path, max_epochs=3)
    assert history["step"].max() == 15
    assert history["epoch"].max() == 2


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_what_is_no_checkpoint_raises(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"resume_from='.*nosuch'"):
        _fit(SmallPlan(), resume_from=tmp_path / "nosuch")
    broken, evil, other = (tmp_path / f"{name}.ckpt" for name in ("broken", "evil", "other"))
    broken.write_bytes(b"PK\x03\x04 and nothing else")
    torch.save({"state_dict": Evil()}, evil)
    torch.save({"state_dict": {}}, other)
    for file, message in (
        (broken, "damaged, or holds more"),
        (evil, "holds more than plain"),
        (other, "not written by train"),
    ):
        with pytest.raises(ValueError, match=message):
            _fit(SmallPlan(), resume_from=file)
    assert capsys.readouterr().out == ""
