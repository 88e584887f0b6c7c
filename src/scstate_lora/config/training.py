"""Options of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scstate_lora.config.mhc import MHCConfig
from scstate_lora.config.options import Options

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""What is computed in: float32, or the matrix products in float16 or bfloat16."""


class TrainConfig(Options):
    """How one model is trained: what its ``train()`` takes. None takes the model's own default."""

    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    batch_size: int | None = Field(default=None, ge=1)
    """Cells (LoRACovariateSE) or sets (STTransition) a step, on all devices together."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimiser steps over which the learning rate rises."""
    mhc: MHCConfig | bool | None = None
    """Hyper-connections around the transformer's layers: true for the defaults, or their options."""
    accelerator: str | None = None
    """`auto`, `cpu`, `gpu`, `cuda` or `mps`."""
    devices: int | str | list[int] | None = None
    """How many devices, or which."""
    strategy: str | None = None
    """How several devices work together: `auto`, `ddp`, `ddp_spawn`, `ddp_notebook`, ..."""
    precision: Precision | None = None
    """`32-true`, `16-mixed` or `bf16-mixed`; None chooses by device."""
    accumulate_grad_batches: int | None = Field(default=None, ge=1)
    """Batches an optimiser step."""
    gradient_clip_val: float | None = Field(default=None, ge=0)
    """Largest norm of the gradient."""
    early_stopping: bool | int | None = Field(default=None)
    """Stop after this many epochs without a lower validation loss; true means 10."""
    restore_best: bool | None = None
    """Take the weights of the epoch with the lowest validation loss at the end."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice rather than keep them: less memory, more time."""
    compile: bool | None = None
    """Compile the transformer by torch.compile while training."""
    run_folder: str | None = None
    """Folder of the run's checkpoints and, unless loggers are given, of its logs."""
    resume_from: str | None = None
    """Checkpoint of an interrupted run, or that run's folder."""
