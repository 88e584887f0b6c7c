"""Run a plan with Lightning: device, precision and loggers chosen, the history returned."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from scstate_lora._utils import did_you_mean
from scstate_lora.training.batches import BatchSource, make_loader
from scstate_lora.training.callbacks import History, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from scstate_lora.training.plans import Plan

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")


@dataclass(frozen=True)
class TrainerOptions:
    """What is passed on to ``lightning.Trainer``.

    Parameters
    ----------
    accelerator, devices, strategy, precision
        As in Lightning. Without ``precision``: bfloat16 mixed on CUDA, float32 elsewhere.
    accumulate_grad_batches
        Batches an optimiser step.
    gradient_clip_val
        Largest norm of the gradient.
    early_stopping
        Stop after this many epochs without a lower validation loss; True means 10, False never.
    logger
        A Lightning logger, a list of them, or False.
    callbacks
        Further Lightning callbacks.
    progress_bar
        Show a progress bar.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    strategy: str = "auto"
    precision: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 1.0
    early_stopping: bool | int = False
    logger: Any = False
    callbacks: Sequence[Any] = field(default_factory=tuple)
    progress_bar: bool = True


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
        Of an earlier run of the same model, continued in the result.

    Returns
    -------
    The history, see :class:`~scstate_lora.training.callbacks.History`.
    """
    check_accelerator(options.accelerator)
    if max_epochs < 1:
        msg = f"max_epochs={max_epochs} must be at least 1."
        raise ValueError(msg)
    first = history if history is not None and len(history) else None
    record = History(
        first_epoch=0 if first is None else int(first["epoch"].max()) + 1,
        first_step=0 if first is None else int(first["step"].max()),
    )
    callbacks = [record, *options.callbacks]
    if options.progress_bar:
        callbacks.append(Progress(title))
    if options.early_stopping and val is not None:
        patience = 10 if options.early_stopping is True else int(options.early_stopping)
        callbacks.append(EarlyStopping("val/loss", patience=patience))
    cuda = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    with _quiet_lightning(), torch.random.fork_rng():
        torch.manual_seed(seed)
        plan.train()
        trainer = L.Trainer(
            max_epochs=max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision or ("bf16-mixed" if cuda else "32-true"),  # type: ignore[arg-type]
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            logger=options.logger,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
        )
        trainer.fit(plan, make_loader(train, train=True), None if val is None else make_loader(val, train=False))
    # Lightning's own interrupt handling ends fit without an error; the user's Ctrl-C shall stop the script too.
    if trainer.interrupted:
        raise KeyboardInterrupt
    plan.eval()
    frame = record.frame()
    return frame if first is None else _continue(first, frame)


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
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`_StepSampler`.*")
            # A frozen base stays in eval mode on purpose.
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
