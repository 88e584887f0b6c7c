"""Run a plan with Lightning: device, precision and loggers chosen, the history of the losses collected."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from scstate_lora._compat import safe_resume
from scstate_lora._tensors import in_float32
from scstate_lora._termination import Terminated
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
    from collections.abc import Iterator, Mapping

    from scstate_lora.config import TrainerOptions
    from scstate_lora.training.plans import Plan

# Loggers get about this many points of a run at most; the history has all of them.
_LOGGED_POINTS = 2000


class TrainingRun:
    """One training of a plan's network, in place.

    Parameters
    ----------
    plan
        The network, and what is minimised.
    options
        Device, files, and what goes to Lightning.
    title
        Shown before the progress bar; names the run's folder.
    seed
        Seeds torch for dropout; the global state is restored afterwards.
    history
        Of an earlier training of the same network, which this one continues: with further batches, not the same again.
        A resumed run continues the history of its checkpoint.
    cells
        Fingerprint of the cells and their split; a checkpoint of others is refused.
    keep_start
        Whether the weights at the start are kept, with the options' ``restore_best``, if no epoch validates better.
    """

    history: pd.DataFrame
    """Losses so far, see :class:`~scstate_lora.training.callbacks.History`. A run that breaks off leaves its own here,
    too, unless its weights are lost: of a failed ``ddp_spawn`` run only the checkpoints survive."""
    kept_start: bool
    """Whether no epoch validated better than the start, whose weights the network therefore has."""

    def __init__(
        self,
        plan: Plan,
        *,
        options: TrainerOptions,
        title: str,
        seed: int,
        history: pd.DataFrame | None = None,
        cells: str = "",
        keep_start: bool = False,
    ) -> None:
        self.plan = plan
        self.options = options
        self.title = title
        self.seed = seed
        self.cells = cells
        self.keep_start = keep_start
        self.kept_start = False
        self.history = pd.DataFrame() if history is None else history

    @in_float32()
    def fit(self, train: BatchSource, val: BatchSource | None = None, *, max_epochs: int) -> None:
        """Train, and leave the network on the CPU in evaluation mode.

        Parameters
        ----------
        train, val
            Batches; without ``val`` there is no validation, no early stopping and no best epoch.
        max_epochs
            Passes over ``train.steps_per_epoch`` batches.

        Raises
        ------
        ValueError
            If Lightning refuses the options, a batch does not divide among the devices, or the checkpoint does not fit.
        FileNotFoundError, FileExistsError
            If the checkpoint does not exist, or the run's folder is another run's.
        KeyboardInterrupt
            If the user pressed Ctrl-C. The network then has the best weights, or the last ones if none were validated;
            ``last.ckpt`` has the last ones, and can be resumed.
        SystemExit
            If the process received SIGTERM; as for Ctrl-C, with exit status 143.
        """
        plan, options = self.plan, self.options
        description = self._describe(train)
        record = History(self.history)
        resumed = None if options.resume_from is None else find_checkpoint(options.resume_from)
        if resumed is not None:
            checkpoint = read_checkpoint(resumed)
            check_resumable(resumed, checkpoint, plan, description)
            _check_unfinished(resumed, checkpoint, max_epochs)
            record.load_state_dict(checkpoint["callbacks"]["History"])
        measures_start = self.keep_start and val is not None and options.restore_best and resumed is None
        first_batch = record.first_step * options.accumulate_grad_batches
        best = None if val is None else BestWeights(record, restore=options.restore_best)
        callbacks = self._callbacks(record, best, first_batch)

        with ExitStack() as stack:
            stack.enter_context(_quiet_lightning())
            stack.enter_context(torch.random.fork_rng())
            plan.train()
            # A first trainer finds out how many devices there are, before anything is written.
            n_devices = _make_trainer(options, max_epochs, callbacks, logger=False, log_every=1).num_devices
            check_divides(description["settings"]["batch_size"], n_devices)
            folder = run_folder(options, self.title, resumed)
            checkpoints = Checkpoints(None if folder is None else folder / "checkpoints", best, description=description)
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
                n_first=-1 if measures_start else 0,
            )
            handover = None
            if n_devices == 1:
                stack.enter_context(alone())
                stack.enter_context(checkpoints.catch_signals())
            else:
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
                if len(frame):
                    self.history = frame
                self.kept_start = best is not None and best.kept_start

    def _describe(self, train: BatchSource) -> dict[str, Any]:
        """Describe the run for its checkpoints."""
        plan, options = self.plan, self.options
        return describe(
            plan,
            cells=self.cells,
            lr=float(plan.lr),
            weight_decay=float(plan.weight_decay),
            warmup_steps=plan.warmup_steps,
            weights={name: float(weight) for name, weight in plan.weights.items()},
            steps_per_epoch=train.steps_per_epoch,
            batch_size=rows_of(train[0], shared=shared_keys(train)),
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=float(options.gradient_clip_val),
            hyper_connections=plan.connections(),
            seed=self.seed,
        )

    def _callbacks(self, record: History, best: BestWeights | None, first_batch: int) -> list[L.Callback]:
        """Ours and the user's, without those that need the run's folder."""
        options = self.options
        further = options.callbacks if isinstance(options.callbacks, (list, tuple)) else [options.callbacks]
        callbacks = [record, Randomness(self.seed, first_batch), *further]
        if best is not None:
            callbacks.append(best)
            if options.early_stopping:
                patience = 10 if options.early_stopping is True else options.early_stopping
                callbacks.append(EarlyStopping("val/loss", patience=patience))
        if options.progress_bar:
            callbacks.append(Progress(self.title))
        return callbacks


def _run(trainer: L.Trainer, plan: Plan, loader: Any, val_loader: Any, resumed: Path | None) -> None:
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(plan, loader, val_loader, ckpt_path=resumed, **({} if resumed is None else safe_resume()))
    except SIGTERMException as stopped:  # without an exit status
        raise Terminated from stopped
    except SystemExit as stopped:
        # Lightning makes Ctrl-C end the process, and has every later Ctrl-C ignored.
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_ctrl_c)
        raise KeyboardInterrupt from stopped


def _check_unfinished(path: Path, checkpoint: Mapping[str, Any], max_epochs: int) -> None:
    """Raise a ValueError if nothing is left to do."""
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done >= max_epochs:
        msg = f"{path} has completed {done} epochs already; max_epochs={max_epochs} leaves nothing. Give more."
        raise ValueError(msg)


def _make_trainer(
    options: TrainerOptions,
    max_epochs: int,
    callbacks: list[L.Callback],
    *,
    logger: Any,
    log_every: int,
    n_first: int = 0,
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
            num_sanity_val_steps=n_first,
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

    Lightning returns their weights only, and nothing if they fail; their history is then lost as well. If the user's
    own script runs in every process, nothing needs to be brought back.

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
    """Within this context the plan's transformer is compiled, or stores no activations, as the options say."""
    if not (options.compile or options.gradient_checkpointing):
        yield
        return
    part = plan.backbone()
    part.gradient_checkpointing = options.gradient_checkpointing  # type: ignore[assignment]  # an attribute of ours
    if options.compile:
        part.compile()
    try:
        yield
    finally:
        part.gradient_checkpointing = False  # type: ignore[assignment]  # an attribute of ours
        part._compiled_call_impl = None  # Module.compile() has no other way back


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's advice on loaders and hardware: it concerns choices made here, not by the user."""
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
            # The loader itself resumes, from the run's progress.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
            # Validation is the same in every process.
            warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
            # The option that replaces it sends them once, at the start.
            warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
