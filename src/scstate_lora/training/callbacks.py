"""Callbacks: the history of a run as rows, and one progress bar for all of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import lightning as L
import pandas as pd
import torch

from scstate_lora._utils import progress_bar

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]  # a module elsewhere

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm.auto import tqdm

HISTORY_COLUMNS = ["phase", "epoch", "step", "loss"]
_LAST_COLUMNS = ["grad_norm", "lr", "seconds", "peak_memory_mb"]


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MB: of the GPU's allocations on CUDA, of the process elsewhere; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return float("nan")
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform.startswith("linux") else 2**20)


class History(L.Callback):
    """Collect one row an optimiser step and one a validation epoch.

    Parameters
    ----------
    first_epoch, first_step
        Where the numbering starts, when a model is trained on.
    """

    def __init__(self, *, first_epoch: int = 0, first_step: int = 0) -> None:
        self.rows: list[dict[str, Any]] = []
        self.first_epoch = first_epoch
        self.first_step = first_step
        self._pending: list[dict[str, Tensor]] = []
        self._val: list[dict[str, Tensor]] = []
        self._grad_norm = float("nan")
        self._lr = float("nan")
        self._step = 0
        self._start = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradient before it is clipped, and note the learning rate before the schedule moves it."""
        self._lr = optimizer.param_groups[0]["lr"]
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._grad_norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a row when this batch completed an optimiser step."""
        self._pending.append(outputs["logged"])
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._add(trainer, pl_module, "train", self._pending, grad_norm=self._grad_norm, lr=self._lr)
            self._pending = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a validation batch's terms."""
        self._val.append(outputs["logged"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the mean over the validation batches."""
        if self._val:
            self._add(trainer, pl_module, "val", self._val)
        self._val = []

    def _add(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        phase: str,
        logged: list[dict[str, Tensor]],
        **more: float,
    ) -> None:
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

    def frame(self) -> pd.DataFrame:
        """Tabulate the rows: phase, epoch, step, loss, named terms, grad_norm, lr, seconds, peak_memory_mb."""
        frame = pd.DataFrame(self.rows, columns=None if self.rows else HISTORY_COLUMNS)
        terms = [c for c in frame.columns if c not in HISTORY_COLUMNS + _LAST_COLUMNS]
        return frame.reindex(columns=[*HISTORY_COLUMNS, *terms, *_LAST_COLUMNS])


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
        """Open the bar."""
        total = int(trainer.num_training_batches * (trainer.max_epochs or 1))
        self.bar = progress_bar(total=total, desc=self.title, unit="step")

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
        """Close the bar when training breaks off, so that the error stands on a line of its own."""
        if self.bar is not None:
            self.bar.close()
