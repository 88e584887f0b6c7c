"""Options of training: the one list behind ``train()``, configurations and the command line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from pydantic import Field, field_validator, model_validator

from scstate_lora.config.mhc import MHCConfig
from scstate_lora.config.options import Options, as_written_in_a_file

if TYPE_CHECKING:
    import os

    from lightning import Callback
    from lightning.pytorch.loggers import Logger

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Numbers to compute with: float32, or float16 or bfloat16 in the matrix products."""


class SharedTraining(Options):
    """Options of training that a run sets for all of its models; those of a model's own `train` take precedence."""

    accelerator: Accelerator = "auto"
    """Kind of device, as in Lightning."""
    precision: Precision | None = None
    """`32-true`, `16-mixed` or `bf16-mixed`; None: the last on CUDA and the first elsewhere."""
    early_stopping: bool | int = Field(default=False, ge=0)
    """Stop after this many epochs without a lower validation loss; true means 10, false never."""


class TrainerOptions(SharedTraining):
    """How any network is trained; most is passed on to ``lightning.Trainer``."""

    devices: int | str | list[int] = 1
    """How many devices, or which; one by default, because Lightning starts the user's script once more for every
    further one. A batch is shared out among the devices, and its loss is that of the whole batch, however many."""
    strategy: str = "auto"
    """How several devices work together: `auto`, `ddp`, `ddp_spawn`, in a notebook `ddp_notebook`, ..."""
    accumulate_grad_batches: int = Field(default=1, ge=1)
    """Batches per optimiser step."""
    gradient_clip_val: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient."""
    restore_best: bool = True
    """Restore the weights of the epoch with the lowest validation loss at the end; the history marks it in the column
    `best`. Without validation cells the last weights are kept."""
    gradient_checkpointing: bool = False
    """Compute the transformer's activations twice rather than store them: less memory, more time."""
    compile: bool = False
    """Compile the transformer by `torch.compile` while training."""
    logger: Any = True
    """True: TensorBoard and `metrics.csv` in the run's own folder, with `checkpoints/last.ckpt` and
    `checkpoints/best.ckpt`. `"wandb"`: the same and Weights & Biases. False: nothing is written. A Lightning logger or
    a list of them: only these are written to; checkpoints are, too, if `run_folder` is given."""
    run_folder: Path | None = None
    """Folder of the run; by default `<ssl.settings.run_dir>/<model>/<number>`."""
    resume_from: Path | None = None
    """`checkpoints/last.ckpt` of an interrupted run, or that run's folder: continue as if it had not been interrupted.
    All else must be as it was in that run; only `max_epochs` may be larger."""
    callbacks: Any = ()
    """A further Lightning callback, or several."""
    progress_bar: bool = True
    """Show a progress bar."""

    @field_validator("logger")
    @classmethod
    def _known_logger(cls, logger: Any) -> Any:
        if isinstance(logger, str) and logger != "wandb":
            msg = f"{logger!r} is unknown. Give True, False, 'wandb', a Lightning logger or a list of them."
            raise ValueError(msg)
        if logger == "wandb" and find_spec("wandb") is None:
            msg = "logger='wandb' needs Weights & Biases, which is not installed: pip install wandb."
            raise ImportError(msg)
        return logger

    @model_validator(mode="after")
    def _folder_is_written(self) -> Self:
        if self.logger is False and self.run_folder is not None:
            msg = f"logger=False writes nothing, but run_folder={str(self.run_folder)!r} is given. Leave one out."
            raise ValueError(msg)
        return self

    @property
    def writes(self) -> bool:
        """Whether logs go into a folder of the run's own."""
        return self.logger is True or self.logger == "wandb"

    def part(self, name: str) -> Self:
        """Options for training a part of the model first: from its start, in a folder of its own."""
        folder = None if self.run_folder is None else self.run_folder / name
        return self.model_copy(update={"run_folder": folder, "resume_from": None})


class TrainOptions(TrainerOptions):
    """What ``train()`` of a model takes. None, where it is the default, takes the model's own choice."""

    max_epochs: int | None = Field(default=None, ge=1)
    """Passes over the training cells."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of AdamW: it rises over the warm-up and then falls along a cosine."""
    batch_size: int | None = Field(default=None, ge=1)
    """Cells (LoRACovariateSE) or sets of cells (STTransition) per step, on all devices together."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimiser steps over which the learning rate rises."""
    mhc: MHCConfig | bool = False
    """Hyper-connections around the transformer's layers: true for the defaults, or their options."""

    def schedule(self, *, lr: float, warmup_steps: int) -> dict[str, Any]:
        """Learning rate, weight decay and warm-up, with the model's own choice where none was made."""
        return {
            "lr": lr if self.lr is None else self.lr,
            "weight_decay": self.weight_decay,
            "warmup_steps": warmup_steps if self.warmup_steps is None else self.warmup_steps,
        }


class TrainConfig(as_written_in_a_file(TrainOptions, without=("logger", "callbacks", "progress_bar"))):  # type: ignore[misc]  # derived
    """How one model is trained, as a file says it: :class:`TrainOptions`, None leaving each to its default."""


class TrainerArguments(TypedDict, total=False):
    """Keywords of ``train_base()``: :class:`TrainerOptions`, for editors and type checkers."""

    accelerator: Accelerator
    precision: Precision | None
    early_stopping: bool | int
    devices: int | str | list[int]
    strategy: str
    accumulate_grad_batches: int
    gradient_clip_val: float
    restore_best: bool
    gradient_checkpointing: bool
    compile: bool
    logger: bool | str | Logger | list[Logger]
    run_folder: str | os.PathLike[str] | None
    resume_from: str | os.PathLike[str] | None
    callbacks: Callback | list[Callback]
    progress_bar: bool


class TrainArguments(TrainerArguments, total=False):
    """Keywords of ``train()`` besides ``max_epochs``: :class:`TrainOptions`, for editors and type checkers."""

    lr: float | None
    batch_size: int | None
    weight_decay: float
    warmup_steps: int | None
    mhc: bool | MHCConfig | dict[str, Any]
