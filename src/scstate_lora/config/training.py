"""Options of training."""

from __future__ import annotations

from pydantic import Field

from scstate_lora.config.options import Options


class TrainConfig(Options):
    """How long and how fast one model is trained. None takes the model's own default."""

    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    batch_size: int | None = Field(default=None, ge=1)
    """Cells (LoRACovariateSE) or sets (STTransition) a step."""
