"""Checkpoints hold what is trained and nothing else; from one, an interrupted run resumes as if it had not stopped."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lightning.pytorch.callbacks import Checkpoint

from scstate_lora._logging import logger
from scstate_lora._termination import Terminated, raise_terminated
from scstate_lora.io.save_load import check_state
from scstate_lora.training.callbacks import trained_names

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import lightning as L
    from torch import Tensor, nn

    from scstate_lora.training.callbacks import BestWeights

_KEY = "scstate_lora"
_FORMAT = 1
_SAMPLED = 32


class Checkpoints(Checkpoint):
    """Write ``last.ckpt`` and ``best.ckpt``, hold only trained tensors in them, and stop at a clean point on a signal.

    Parameters
    ----------
    folder
        Where they are written; None writes nothing.
    best
        Knows whether the epoch was the best so far.
    description
        Of the run, see :func:`describe`; goes into every checkpoint, also those of other callbacks.
    """

    def __init__(self, folder: Path | None, best: BestWeights | None, *, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self.best = best
        self.description = dict(description)
        self.stop_requested: BaseException | None = None
        """Raised after the step, once the checkpoint is written."""
        self._on_sigterm: Any = None
        self._step = 0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in trained_names(pl_module)}
        checkpoint[_KEY] = self.description

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from here; take SIGTERM back from Lightning, which would stop without a checkpoint."""
        self._step = trainer.global_step
        if self._on_sigterm is not None:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if requested, after an optimiser step; after an epoch's last batch, the epoch is finished first."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if self.stop_requested is not None and stepped and not trainer.is_last_batch:
            self._write(trainer)
            self._stop(self.stop_requested)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, after all other callbacks took note of the epoch."""
        self._write(trainer)
        if self.stop_requested is not None:
            self._stop(self.stop_requested)

    def _stop(self, reason: BaseException) -> NoReturn:
        if isinstance(reason, Terminated):  # which no interpreter shows
            state = "no checkpoint was to be written" if self.folder is None else f"resume from {self._last}"
            logger.warning("Stopped by SIGTERM: %s.", state)
        raise reason

    @property
    def _last(self) -> Path:
        assert self.folder is not None  # the callers have looked
        return self.folder / "last.ckpt"

    def _write(self, trainer: L.Trainer) -> None:
        if self.folder is None:
            return
        last, best = self._last, self.folder / "best.ckpt"
        part = self.folder / "last.ckpt.part"
        trainer.save_checkpoint(part)
        if not trainer.is_global_zero:
            return
        part.replace(last)  # so that half a checkpoint never exists
        if self.best is not None and self.best.epoch == self.best.history.first_epoch + trainer.current_epoch:
            shutil.copyfile(last, part)
            part.replace(best)

    @contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Within this context Ctrl-C or SIGTERM requests a stop after the step.

        A second Ctrl-C stops at once; a second SIGTERM changes nothing, as process groups are often sent two. A handler
        of the user's own decides alone.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def on_ctrl_c(_number: int, _frame: Any) -> None:
            self.stop_requested = KeyboardInterrupt()
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            logger.warning("Stopping after this step. Ctrl-C again stops at once.")

        def on_sigterm(_number: int, _frame: Any) -> None:
            if self.stop_requested is None:
                logger.warning("Stopping after this step: SIGTERM.")
            way = "" if self.folder is None else f" train(resume_from={str(self._last)!r}) continues the run."
            self.stop_requested = Terminated(f"Stopped by SIGTERM.{way}")

        if threading.current_thread() is not threading.main_thread():
            yield  # Python leaves signals to the main thread
            return
        if before[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, on_ctrl_c)
        is_ours = before[signal.SIGTERM] in (signal.SIG_DFL, raise_terminated)
        self._on_sigterm = on_sigterm if is_ours else before[signal.SIGTERM]
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def describe(plan: nn.Module, *, cells: str, **settings: Any) -> dict[str, Any]:
    """Describe a run for its checkpoints: its kind of plan, its frozen part, its cells, and its settings.

    Parameters
    ----------
    plan
        Before its training.
    cells
        Fingerprint of the cells and their split.
    settings
        Plain values that must be the same in a resumed run.
    """
    kind = {"format": _FORMAT, "plan": type(plan).__name__, "frozen": _fingerprint(plan), "cells": cells}
    return {**kind, "settings": settings}


def _fingerprint(plan: nn.Module) -> str:
    """Hash names, shapes and a few numbers of every frozen parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(plan.named_parameters()):
        if not parameter.requires_grad:
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // _SAMPLED)].float().cpu().numpy()
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + some.tobytes())
    return digest.hexdigest()


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Resolve ``resume_from``, a checkpoint or the folder of a run; a FileNotFoundError if it has none."""
    path = Path(path).expanduser()
    for file in (path, path / "last.ckpt", path / "checkpoints" / "last.ckpt"):
        if file.is_file():
            return file
    msg = f"resume_from={str(path)!r} is neither a checkpoint nor a folder with checkpoints/last.ckpt."
    raise FileNotFoundError(msg)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that may be in it.

    Raises
    ------
    ValueError
        If it is damaged, holds code, or does not come from a training run of this package.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        msg = f"{path} is not a checkpoint that can be resumed: it is damaged, or holds more than plain tensors."
        raise ValueError(msg) from error
    if not isinstance(checkpoint, dict) or _KEY not in checkpoint or checkpoint[_KEY].get("format") != _FORMAT:
        msg = f"{path} was not written by train(). Give checkpoints/last.ckpt of an interrupted run's folder."
        raise ValueError(msg)
    return checkpoint


def check_resumable(path: Path, checkpoint: Mapping[str, Any], plan: nn.Module, description: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the run that is to continue from it.

    Parameters
    ----------
    path
        Its file, for messages.
    checkpoint, plan
        Read by :func:`read_checkpoint`; what is to be trained.
    description
        Of the run now.

    Raises
    ------
    ValueError
        If the kind of model, tensors, the frozen base, cells or settings differ; it names them.
    """
    stored = checkpoint[_KEY]
    if stored["plan"] != description["plan"]:
        kinds = f"{path} is a checkpoint of {stored['plan']}; this is {description['plan']}"
        msg = f"{kinds}. Resume it with its own model."
        raise ValueError(msg)
    state: dict[str, Tensor] = plan.state_dict()
    check_state({name: state[name] for name in trained_names(plan)}, checkpoint["state_dict"], source=str(path))
    if stored["frozen"] != description["frozen"]:
        msg = f"{path} was trained on another base: the frozen weights differ. Resume with the base it was started on."
        raise ValueError(msg)
    if stored.get("cells") not in (None, description["cells"]):  # earlier checkpoints have none
        msg = (
            f"{path} was trained on other cells, or on another split of them. Resume it with those it was started on, "
            "set up as then."
        )
        raise ValueError(msg)
    differing = [
        f"{name}={stored['settings'].get(name)!r} then, {value!r} now"
        for name, value in description["settings"].items()
        if not _same(stored["settings"].get(name), value)
    ]
    if differing:
        msg = (
            f"{path} comes from a run with other options: {'; '.join(differing)}. "
            "A run continues with the options and cells it was started with; only max_epochs may grow."
        )
        raise ValueError(msg)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6)
    return bool(first == second)
