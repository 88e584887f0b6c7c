"""Run a plan with Lightning: device, precision and loggers chosen, the history returned."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from scstate_lora._utils import did_you_mean
from scstate_lora.training.batches import BatchSource, make_loader
from scstate_lora.training.callbacks import History, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd

    from scstate_lora.training.plans import Plan

TRAIN_ARGUMENTS = ("max_epochs", "lr", "batch_size", "weight_decay", "warmup_steps")
"""What every model's ``train()`` takes besides the options for Lightning."""
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")


@dataclass(frozen=True)
class TrainerOptions:
    """What is passed on to ``lightning.Trainer``.

    Parameters
    ----------
    accelerator, devices, strategy, precision
        As in Lightning, but for the defaults: one device, because Lightning starts the user's script once more for
        every further one; and, without ``precision``, bfloat16 mixed on CUDA and float32 elsewhere.
    accumulate_grad_batches
        Batches an optimiser step.
    gradient_clip_val
        Largest norm of the gradient.
    early_stopping
        Stop after this many epochs without a lower validation loss; True means 10, False never.
    logger
        A Lightning logger, a list of them, or False.
    callbacks
        A further Lightning callback, or several.
    progress_bar
        Show a progress bar.

    Raises
    ------
    ValueError
        An accelerator is unknown or absent, or a number is out of range.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    strategy: str = "auto"
    precision: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 1.0
    early_stopping: bool | int = False
    logger: Any = False
    callbacks: Any = ()
    progress_bar: bool = True

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator)
        _check_whole("accumulate_grad_batches", self.accumulate_grad_batches, 1)
        _check_number("gradient_clip_val", self.gradient_clip_val, positive=False)
        _check_whole("early_stopping", self.early_stopping, 0)

    @classmethod
    def parse(cls, given: Mapping[str, Any], *, further: tuple[str, ...] = ()) -> Self:
        """Make options from the keywords that ``train()`` was given.

        Parameters
        ----------
        given
            Keywords.
        further
            What ``train()`` takes besides, for suggestions.

        Raises
        ------
        TypeError
            A keyword is unknown; near ones are suggested.
        ValueError
            As in the class.
        """
        known = [*further, *(f.name for f in fields(cls))]
        for name in given:
            if name not in known:
                msg = f"train() has no option {name!r}. {did_you_mean(name, known, limit=len(known))}"
                raise TypeError(msg)
        return cls(**given)


def check_schedule(
    *, max_epochs: int, batch_size: int | None, lr: float, weight_decay: float, warmup_steps: int
) -> None:
    """Raise a ValueError when one of the numbers that ``train()`` takes makes no sense."""
    _check_whole("max_epochs", max_epochs, 1)
    if batch_size is not None:
        _check_whole("batch_size", batch_size, 1)
    _check_number("lr", lr, positive=True)
    _check_number("weight_decay", weight_decay, positive=False)
    _check_whole("warmup_steps", warmup_steps, 0)


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        msg = f"{name}={value!r} must be a whole number, at least {least}."
        raise ValueError(msg)


def _check_number(name: str, value: Any, *, positive: bool) -> None:
    if not isinstance(value, Real) or not math.isfinite(value) or value < 0 or (positive and value == 0):
        msg = f"{name}={value!r} must be a number {'above' if positive else 'of at least'} 0."
        raise ValueError(msg)


def check_accelerator(accelerator: str) -> None:
    """Raise a ValueError when an accelerator is unknown or absent."""
    if accelerator not in _ACCELERATORS:
        msg = f"accelerator={accelerator!r} is unknown. {did_you_mean(accelerator, _ACCELERATORS)}"
        raise ValueError(msg)
    absent = {
        "gpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "cuda": not torch.cuda.is_available(),
        "mps": not torch.backends.mps.is_available(),
    }
    if absent.get(accelerator, False):
        msg = f"accelerator={accelerator!r}, but PyTorch sees no such device here. Use accelerator='auto' or 'cpu'."
        raise ValueError(msg)


def fit(
    plan: Plan,
    train: BatchSource,
    val: BatchSource | None,
    *,
    max_epochs: int,
    options: TrainerOptions,
    title: str,
    seed: int,
    history: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Train a plan's network in place.

    Parameters
    ----------
    plan
        What is minimised.
    train, val
        Batches; without ``val`` there is no validation and no early stopping.
    max_epochs
        Passes over ``train.steps_per_epoch`` batches.
    options
        For Lightning.
    title
        Shown before the progress bar.
    seed
        Seeds torch for dropout; the global state is put back afterwards.
    history
        Of an earlier run of the same model, continued in the result; further batches are drawn, not the same again.

    Returns
    -------
    The history, see :class:`~scstate_lora.training.callbacks.History`.

    Raises
    ------
    ValueError
        Lightning refuses the options.
    KeyboardInterrupt
        The user pressed Ctrl-C. The network keeps what it has learned by then, without a history of it.
    """
    first = history if history is not None and len(history) else None
    record = History(
        first_epoch=0 if first is None else int(first["epoch"].max()) + 1,
        first_step=0 if first is None else int(first["step"].max()),
    )
    further = options.callbacks if isinstance(options.callbacks, (list, tuple)) else [options.callbacks]
    callbacks = [record, *further]
    if options.progress_bar:
        callbacks.append(Progress(title))
    if options.early_stopping and val is not None:
        patience = 10 if options.early_stopping is True else int(options.early_stopping)
        callbacks.append(EarlyStopping("val/loss", patience=patience))
    with _quiet_lightning(), torch.random.fork_rng():
        torch.manual_seed(seed + record.first_step)
        plan.train()
        trainer = _make_trainer(options, max_epochs, callbacks)
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            loader = make_loader(train, train=True, start=record.first_step)
            trainer.fit(plan, loader, None if val is None else make_loader(val, train=False))
        except SystemExit as stopped:
            # Lightning makes Ctrl-C end the process, and has every later Ctrl-C ignored.
            if not isinstance(stopped.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, on_ctrl_c)
            raise KeyboardInterrupt from stopped
        finally:
            plan.cpu()
            plan.eval()
    frame = record.frame()
    return frame if first is None else _continue(first, frame)


def _make_trainer(options: TrainerOptions, max_epochs: int, callbacks: list[L.Callback]) -> L.Trainer:
    cuda = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    try:
        return L.Trainer(
            max_epochs=max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision or ("bf16-mixed" if cuda else "32-true"),
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            logger=options.logger,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        msg = f"Lightning cannot train with these options: {error}"
        raise ValueError(msg) from error


def _continue(first: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    frame = frame.assign(seconds=frame["seconds"] + first["seconds"].max())
    return pd.concat([first, frame], ignore_index=True)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's advice on loaders and hardware, which is about choices made here and not by the user."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logging.WARNING, logger.level))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`_StepSampler`.*")
            warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
            # A frozen base stays in eval mode on purpose.
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
