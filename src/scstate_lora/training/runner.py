"""Run a plan with Lightning: device, precision and loggers chosen, the history returned."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from scstate_lora._compat import safe_resume
from scstate_lora._utils import did_you_mean
from scstate_lora.config.training import Precision
from scstate_lora.training.batches import BatchSource, make_loader, shared_keys
from scstate_lora.training.callbacks import BestWeights, History, MetricsFile, Progress, Randomness
from scstate_lora.training.checkpoints import (
    Checkpoints,
    check_resumable,
    describe,
    find_checkpoint,
    read_checkpoint,
)
from scstate_lora.training.distributed import alone, check_divides, rows_of
from scstate_lora.training.folders import make_loggers, run_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd

    from scstate_lora.training.plans import Plan

TRAIN_ARGUMENTS = ("max_epochs", "lr", "batch_size", "weight_decay", "warmup_steps")
"""What every model's ``train()`` takes besides the options for Lightning."""
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
# Loggers get about this many points of a run at most; the history has all of them.
_LOGGED_POINTS = 2000


@dataclass(frozen=True)
class TrainerOptions:
    """How a model is trained; most is passed on to ``lightning.Trainer``.

    Parameters
    ----------
    accelerator, devices, strategy
        As in Lightning, but for the default of one device, because Lightning starts the user's script once more for
        every further one. A batch is shared out among the devices, and its loss is that of the whole batch, whatever
        their number. In a notebook take ``strategy="ddp_notebook"``.
    precision
        ``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``; by default the last on CUDA and the first elsewhere.
    accumulate_grad_batches
        Batches an optimiser step.
    gradient_clip_val
        Largest norm of the gradient.
    early_stopping
        Stop after this many epochs without a lower validation loss; True means 10, False never.
    restore_best
        At the end take the weights of the epoch with the lowest validation loss. The history marks it in the column
        ``best``. Without validation cells the last weights are kept.
    gradient_checkpointing
        Compute the transformer's activations a second time rather than keep them: less memory, more time.
    compile
        Compile the transformer by ``torch.compile`` while training.
    logger
        True: TensorBoard and ``metrics.csv`` in a folder of the run's own, with ``checkpoints/last.ckpt`` and
        ``checkpoints/best.ckpt``. ``"wandb"``: the same and Weights & Biases. False: nothing is written. A Lightning
        logger or a list of them: only these are written to, but for checkpoints where ``run_folder`` is given.
    run_folder
        Folder of the run; ``<ssl.settings.run_dir>/<model>/<number>`` by default.
    resume_from
        ``checkpoints/last.ckpt`` of an interrupted run, or the run's folder: go on as if it had not been interrupted.
        Everything else must be as it was there, only ``max_epochs`` may be larger.
    callbacks
        A further Lightning callback, or several.
    progress_bar
        Show a progress bar.

    Raises
    ------
    ValueError
        An accelerator is unknown or absent, a name is unknown, or a number is out of range.
    ImportError
        ``logger="wandb"`` without the package ``wandb``.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    strategy: str = "auto"
    precision: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 1.0
    early_stopping: bool | int = False
    restore_best: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    logger: Any = True
    run_folder: str | Path | None = None
    resume_from: str | Path | None = None
    callbacks: Any = ()
    progress_bar: bool = True

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator)
        if self.precision is not None and self.precision not in get_args(Precision):
            msg = f"precision={self.precision!r} is unknown. {did_you_mean(str(self.precision), get_args(Precision))}"
            raise ValueError(msg)
        _check_whole("accumulate_grad_batches", self.accumulate_grad_batches, 1)
        _check_number("gradient_clip_val", self.gradient_clip_val, positive=False)
        _check_whole("early_stopping", self.early_stopping, 0)
        if isinstance(self.logger, str) and self.logger != "wandb":
            msg = f"logger={self.logger!r} is unknown. Give True, False, 'wandb', a Lightning logger or a list of them."
            raise ValueError(msg)
        if self.logger == "wandb" and find_spec("wandb") is None:
            msg = "logger='wandb' needs Weights & Biases, which is not installed: pip install wandb."
            raise ImportError(msg)
        if self.logger is False and self.run_folder is not None:
            msg = (
                f"logger=False writes nothing, but run_folder={str(self.run_folder)!r} is given. Leave out one of them."
            )
            raise ValueError(msg)

    @property
    def writes(self) -> bool:
        """Whether logs go into a folder of the run's own."""
        return self.logger is True or self.logger == "wandb"

    def part(self, name: str) -> Self:
        """Options for training a part of the model first: from its start, in a folder of its own."""
        folder = None if self.run_folder is None else Path(self.run_folder) / name
        return replace(self, run_folder=folder, resume_from=None)

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
    keep: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Train a plan's network in place.

    Parameters
    ----------
    plan
        What is minimised.
    train, val
        Batches; without ``val`` there is no validation, no early stopping and no best epoch.
    max_epochs
        Passes over ``train.steps_per_epoch`` batches.
    options
        Device, files, and what goes to Lightning.
    title
        Shown before the progress bar; names the run's folder.
    seed
        Seeds torch for dropout; the global state is put back afterwards.
    history
        Of an earlier run of the same model, continued in the result; further batches are drawn, not the same again.
        A resumed run has that of its checkpoint.
    keep
        Called with the history once there are rows, also when training breaks off. (Not with rows of weights that are
        lost: of processes started for the training alone, as by ``strategy="ddp_spawn"``, nothing comes back then but
        checkpoints.)

    Returns
    -------
    The history, see :class:`~scstate_lora.training.callbacks.History`.

    Raises
    ------
    ValueError
        Lightning refuses the options, a batch does not divide among the devices, or the checkpoint does not fit.
    FileNotFoundError, FileExistsError
        There is no such checkpoint; the run's folder is another run's.
    KeyboardInterrupt
        The user pressed Ctrl-C. The network has the best weights by then, or the last ones where none were validated;
        ``last.ckpt`` has the last ones, and can be resumed.
    """
    about = describe(
        plan,
        lr=float(plan.lr),
        weight_decay=float(plan.weight_decay),
        warmup_steps=plan.warmup_steps,
        weights={name: float(weight) for name, weight in plan.weights.items()},
        steps_per_epoch=train.steps_per_epoch,
        batch_size=rows_of(train[0], shared=shared_keys(train)),
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=float(options.gradient_clip_val),
        hyper_connections=plan.connections(),
        seed=seed,
    )
    record = History(history)
    resumed = None if options.resume_from is None else find_checkpoint(options.resume_from)
    if resumed is not None:
        checkpoint = read_checkpoint(resumed)
        check_resumable(resumed, checkpoint, plan, about)
        _check_unfinished(resumed, checkpoint, max_epochs)
        record.load_state_dict(checkpoint["callbacks"]["History"])
    first_batch = record.first_step * options.accumulate_grad_batches

    best = None if val is None else BestWeights(record, restore=options.restore_best)
    callbacks = [record, Randomness(seed, first_batch), *_several(options.callbacks)]
    if best is not None:
        callbacks.append(best)
    if options.early_stopping and val is not None:
        patience = 10 if options.early_stopping is True else int(options.early_stopping)
        callbacks.append(EarlyStopping("val/loss", patience=patience))
    if options.progress_bar:
        callbacks.append(Progress(title))

    with ExitStack() as stack:
        stack.enter_context(_quiet_lightning())
        stack.enter_context(torch.random.fork_rng())
        plan.train()
        # A first one finds out how many devices there are, before anything is written.
        n_devices = _make_trainer(options, max_epochs, callbacks, logger=False, log_every=1).num_devices
        check_divides(about["settings"]["batch_size"], n_devices)
        folder = run_folder(options, title, resumed)
        checkpoints = Checkpoints(None if folder is None else folder / "checkpoints", best, about=about)
        callbacks.append(checkpoints)
        if folder is not None:
            callbacks.append(MetricsFile(folder / "metrics.csv", record))
        n_steps = max_epochs * math.ceil(train.steps_per_epoch / options.accumulate_grad_batches)
        trainer = _make_trainer(
            options,
            max_epochs,
            callbacks,
            logger=make_loggers(options, folder),
            log_every=max(1, n_steps // _LOGGED_POINTS),
        )
        if n_devices == 1:
            stack.enter_context(alone())
            stack.enter_context(checkpoints.catch_ctrl_c())
        handover = None
        if n_devices > 1:
            handover = _Handover(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "history.pt", record)
            trainer.callbacks.append(handover)
        stack.enter_context(_prepared(plan, options))
        progress = trainer.fit_loop.epoch_loop.batch_progress
        loader = make_loader(train, train=True, start=first_batch, progress=progress)
        try:
            _run(trainer, plan, loader, None if val is None else make_loader(val, train=False), resumed)
        finally:
            plan.cpu()
            plan.eval()
            if handover is not None:
                handover.receive()
            frame = record.frame()
            if keep is not None and len(frame):
                keep(frame)
    return frame


def _several(callbacks: Any) -> list[L.Callback]:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _run(trainer: L.Trainer, plan: Plan, loader: Any, val_loader: Any, resumed: Path | None) -> None:
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(plan, loader, val_loader, ckpt_path=resumed, **({} if resumed is None else safe_resume()))
    except SystemExit as stopped:
        # Lightning makes Ctrl-C end the process, and has every later Ctrl-C ignored.
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_ctrl_c)
        raise KeyboardInterrupt from stopped


def _check_unfinished(path: Path, checkpoint: Mapping[str, Any], max_epochs: int) -> None:
    """Raise a ValueError when there is nothing left to do."""
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done >= max_epochs:
        msg = f"{path} has {done} epochs behind it: nothing is left of max_epochs={max_epochs}. Give a larger number."
        raise ValueError(msg)


def _make_trainer(
    options: TrainerOptions, max_epochs: int, callbacks: list[L.Callback], *, logger: Any, log_every: int
) -> L.Trainer:
    cuda = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    try:
        trainer = L.Trainer(
            max_epochs=max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision or ("bf16-mixed" if cuda else "32-true"),
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            logger=logger,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            num_sanity_val_steps=0,
            log_every_n_steps=log_every,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        msg = f"Lightning cannot train with these options: {error}"
        raise ValueError(msg) from error
    if isinstance(trainer.strategy, DDPStrategy):
        # Buffers are constants here, gigabytes of gene tokens among them: nothing to send before every step.
        trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
    return trainer


class _Handover(L.Callback):
    """Bring the history back from processes that were started for the training alone.

    Lightning returns their weights only, and nothing when they fail: then there is no history of them either. Where the
    user's own script runs in every process there is nothing to bring.

    Parameters
    ----------
    path
        File that does not exist yet.
    record
        The history.
    """

    def __init__(self, path: Path, record: History) -> None:
        self.path = path
        self.record = record
        self.caller = os.getpid()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compute on one thread in a forked process.

        OpenMP's other threads stay behind in the caller, and who has used them there would wait for them forever.
        """
        if trainer.strategy.launcher.is_interactive_compatible:  # it forks, which is all that a notebook can do
            torch.set_num_threads(1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it in the first process, unless that is the caller's own."""
        if trainer.is_global_zero and os.getpid() != self.caller:
            torch.save(self.record.state_dict(), self.path)

    def receive(self) -> None:
        """Take over what was written."""
        if self.path.exists():
            self.record.load_state_dict(torch.load(self.path, weights_only=True))


@contextmanager
def _prepared(plan: Plan, options: TrainerOptions) -> Iterator[None]:
    """Within this context the plan's transformer is compiled, and keeps no activations, as asked."""
    if not (options.compile or options.gradient_checkpointing):
        yield
        return
    part = plan.backbone()
    part.gradient_checkpointing = options.gradient_checkpointing  # type: ignore[assignment]  # an own attribute
    if options.compile:
        part.compile()
    try:
        yield
    finally:
        part.gradient_checkpointing = False  # type: ignore[assignment]  # an own attribute
        part._compiled_call_impl = None  # Module.compile() has no other way back


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
            # A loader asks the run where it stands.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
            # Validation is the same in every process.
            warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True`.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
