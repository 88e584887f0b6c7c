"""Callbacks: a run's history as rows, randomness set by the batch number, the best weights, and one progress bar."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import pandas as pd
import torch

from scstate_lora._compat_torch import total_norm
from scstate_lora._logging import logger
from scstate_lora._termination import Terminated
from scstate_lora._utils import progress_bar

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]  # a module elsewhere

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from tqdm.auto import tqdm

HISTORY_COLUMNS = ["phase", "epoch", "step", "loss"]
_LAST_COLUMNS = ["grad_norm", "lr", "seconds", "peak_memory_mb", "best"]


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MB: of the GPU's allocations on CUDA, of the process elsewhere; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return float("nan")
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform.startswith("linux") else 2**20)


class History(L.Callback):
    """Collect one row per optimiser step and one per validation epoch.

    Parameters
    ----------
    earlier
        History of the same model's earlier training, which this one continues.
    """

    def __init__(self, earlier: pd.DataFrame | None = None) -> None:
        self.earlier = pd.DataFrame() if earlier is None else earlier
        self.first_epoch = int(self.earlier["epoch"].max()) + 1 if len(self.earlier) else 0
        self.first_step = int(self.earlier["step"].max()) if len(self.earlier) else 0
        self.rows: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.start_loss = math.inf
        """Validation loss before the first step, where it was measured."""
        self._pending: list[dict[str, Tensor]] = []
        self._val: list[dict[str, Tensor]] = []
        self._grad_norm = float("nan")
        self._lr = float("nan")
        self._step = 0
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        """All rows, as tensors, for a checkpoint."""
        return {"first_epoch": self.first_epoch, "first_step": self.first_step, **_pack(self.frame())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history of a checkpoint."""
        self.earlier = _unpack(state_dict)
        self.rows = []
        self.first_epoch, self.first_step = state_dict["first_epoch"], state_dict["first_step"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, at the time an earlier training took."""
        spent = float(self.earlier["seconds"].max()) if len(self.earlier) else 0.0
        self._start = time.perf_counter() - spent

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from where a resumed run stopped."""
        self._step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradient before it is clipped, and record the learning rate before the schedule changes it."""
        self._lr = optimizer.param_groups[0]["lr"]
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._grad_norm = float(total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a row when this batch completed an optimiser step."""
        self._pending.append(outputs["logged"])
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._add(trainer, pl_module, "train", self._pending, grad_norm=self._grad_norm, lr=self._lr)
            self._pending = []
            if self._step % trainer.log_every_n_steps == 0:
                self._log(trainer)
        if trainer.is_last_batch:  # for callbacks that watch a training loss; Lightning's log() takes a millisecond
            pl_module.log_dict({f"train/{name}": value for name, value in outputs["logged"].items()}, logger=False)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a validation batch's terms."""
        self._val.append(outputs["logged"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the mean over the validation batches, and pass it on to loggers and callbacks."""
        if trainer.sanity_checking:  # as Lightning calls a validation before the training
            self.start_loss = float(torch.stack([row["loss"] for row in self._val]).mean())
            self._val = []
            return
        means = self._add(trainer, pl_module, "val", self._val)
        self._val = []
        self._log(trainer)
        pl_module.log_dict({f"val/{name}": value for name, value in means.items()}, logger=False)

    def _add(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        phase: str,
        logged: list[dict[str, Tensor]],
        **more: float,
    ) -> dict[str, float]:
        means = {name: float(torch.stack([row[name] for row in logged]).mean()) for name in logged[0]}
        self.rows.append(
            {
                "phase": phase,
                "epoch": self.first_epoch + trainer.current_epoch,
                "step": self.first_step + self._step,
                **means,
                **more,
                "seconds": time.perf_counter() - self._start,
                "peak_memory_mb": peak_memory_mb(module.device),
            }
        )
        return means

    def _log(self, trainer: L.Trainer) -> None:
        """Give the last row to the loggers, the losses as ``train/loss`` or ``val/loss``."""
        row = self.rows[-1]
        not_losses = (*HISTORY_COLUMNS[:3], *_LAST_COLUMNS)
        metrics = {f"{row['phase']}/{name}": value for name, value in row.items() if name not in not_losses}
        metrics |= {name: row[name] for name in ("epoch", "grad_norm", "lr") if name in row}
        for logger_ in trainer.loggers:
            logger_.log_metrics(metrics, step=row["step"])

    def frame(self) -> pd.DataFrame:
        """Tabulate: phase, epoch, step, loss, named terms, grad_norm, lr, seconds, peak_memory_mb, best."""
        rows = _tabulate(self.rows)
        frame = pd.concat([self.earlier, rows], ignore_index=True) if len(self.earlier) and len(rows) else None
        if frame is None:
            frame = self.earlier.copy() if len(self.earlier) else rows
        if "best" not in frame or frame["best"].dtype != bool:  # written by a version without this column
            frame["best"] = (frame["best"] == True) if "best" in frame else False  # noqa: E712 (missing is False)
        if self.best_epoch is not None:
            frame["best"] |= (frame["phase"] == "val") & (frame["epoch"] == self.best_epoch)
        return _in_order(frame)


def _tabulate(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=None if rows else HISTORY_COLUMNS)
    return _in_order(frame.assign(best=np.zeros(len(frame), dtype=bool)))


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    terms = [c for c in frame.columns if c not in HISTORY_COLUMNS + _LAST_COLUMNS]
    return frame.reindex(columns=[*HISTORY_COLUMNS, *terms, *_LAST_COLUMNS])


def _pack(frame: pd.DataFrame) -> dict[str, Any]:
    """Turn a history into tensors, which load without running any code."""
    numbers = {name: torch.from_numpy(frame[name].to_numpy(np.float64, copy=True)) for name in frame if name != "phase"}
    return {"is_val": torch.from_numpy((frame["phase"] == "val").to_numpy(bool, copy=True)), "columns": numbers}


def _unpack(state: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame({name: values.numpy() for name, values in state["columns"].items()})
    frame.insert(0, "phase", np.where(state["is_val"].numpy(), "val", "train").tolist())
    return frame.astype({"epoch": np.int64, "step": np.int64, "best": bool})


class MetricsFile(L.Callback):
    """Write the history to a CSV file as it grows.

    Parameters
    ----------
    path
        File; an existing one is replaced.
    history
        What is written.
    """

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self.history = history
        self._written = -1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's rows."""
        if not trainer.is_global_zero:
            return
        if self._written < 0:
            self.history.frame().to_csv(self.path, index=False)
        else:
            _tabulate(self.history.rows[self._written :]).to_csv(self.path, index=False, header=False, mode="a")
        self._written = len(self.history.rows)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all of it again, with the best epoch marked."""
        if trainer.is_global_zero:
            self.history.frame().to_csv(self.path, index=False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the history so far when training breaks off."""
        self.on_train_end(trainer, pl_module)


class Randomness(L.Callback):
    """Make the randomness of a training step (dropout) depend on the seed and the batch number alone.

    A resumed run thus draws what an uninterrupted one would have. Each of several processes draws its own.

    Parameters
    ----------
    seed
        Of the training.
    first_batch
        Number of the first batch.
    """

    def __init__(self, seed: int, first_batch: int) -> None:
        self.seed = seed
        self.first_batch = first_batch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch."""
        number = self.first_batch + trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        drawn = np.random.SeedSequence([self.seed, number, trainer.global_rank]).generate_state(1, np.uint64)
        seed = int(drawn[0] >> np.uint64(1))  # torch takes 63 bits
        torch.default_generator.manual_seed(seed)  # torch.manual_seed() takes longer than a small step
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)


def trained_names(plan: nn.Module) -> list[str]:
    """Names of the tensors of a plan that training changes: trainable parameters and running statistics."""
    names = [name for name, parameter in plan.named_parameters() if parameter.requires_grad]
    for prefix, module in plan.named_modules():
        if getattr(module, "track_running_stats", False):
            names += [f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)]
    return names


class BestWeights(L.Callback):
    """Keep the weights of the epoch with the lowest validation loss, and restore them at the end.

    Where the loss was measured before the first step, the weights at the start count as an epoch.

    Parameters
    ----------
    history
        Marks the epoch.
    restore
        Whether to restore them; otherwise only the lowest loss is tracked.
    """

    def __init__(self, history: History, *, restore: bool) -> None:
        self.history = history
        self.restore = restore
        self.loss = math.inf
        self.epoch: int | None = None
        """Epoch of the lowest loss so far, as numbered in the history."""
        self.weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.loss, self.epoch, self.weights = (state_dict[key] for key in ("loss", "epoch", "weights"))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the weights to main memory when they are the best so far."""
        if trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        if loss >= self.loss or math.isnan(loss):
            return
        self.loss, self.epoch = loss, self.history.first_epoch + trainer.current_epoch
        self._copy(pl_module)

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the weights at the start."""
        if not math.isnan(self.history.start_loss):
            self.loss = self.history.start_loss
            self._copy(pl_module)

    def _copy(self, module: L.LightningModule) -> None:
        if self.restore:
            state = module.state_dict()
            self.weights = {name: state[name].detach().cpu().clone() for name in trained_names(module)}

    @property
    def kept_start(self) -> bool:
        """Whether no epoch was better than the start."""
        return self.epoch is None and bool(self.weights)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the best weights."""
        if not self.weights:
            return
        state = pl_module.state_dict()
        with torch.no_grad():
            for name, tensor in self.weights.items():
                state[name].copy_(tensor)
        self.history.best_epoch = self.epoch
        if trainer.is_global_zero and self.epoch is None:
            logger.info("No epoch had a lower validation loss than the start: %.4g. Its weights are kept.", self.loss)
        elif trainer.is_global_zero:
            logger.info(
                "Restored the weights of epoch %d, whose validation loss was the lowest: %.4g.",
                self.epoch + 1,  # type: ignore[operator]  # not None
                self.loss,
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore them after Ctrl-C or SIGTERM as well; `last.ckpt` has the last ones."""
        if isinstance(exception, (KeyboardInterrupt, Terminated)):
            self.on_train_end(trainer, pl_module)


class Progress(L.Callback):
    """One progress bar over all steps, with the epoch and the losses.

    Parameters
    ----------
    title
        What is being trained.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar in one of the processes, of a resumed run where that stopped."""
        if trainer.is_global_zero:
            total = int(trainer.num_training_batches * (trainer.max_epochs or 1))
            done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            self.bar = progress_bar(total=total, initial=done, desc=self.title, unit="step")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        if self.bar is not None:
            shown = {"epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}", "loss": f"{outputs['loss']:.3g}"}
            if "val/loss" in trainer.callback_metrics:
                shown["val"] = f"{trainer.callback_metrics['val/loss']:.3g}"
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar when training breaks off, so that the error is on a line of its own."""
        if self.bar is not None:
            self.bar.close()
