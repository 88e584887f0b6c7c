"""Options of a whole run."""

from __future__ import annotations

from typing import Literal

from scstate_lora.config.data import DataConfig
from scstate_lora.config.lora import LoraConfig
from scstate_lora.config.options import Options
from scstate_lora.config.se import CompactBaseConfig, ConditioningConfig, ObjectiveConfig
from scstate_lora.config.st import STModelConfig
from scstate_lora.config.training import TrainConfig


class SERunConfig(Options):
    """LoRACovariateSE within a run."""

    lora: LoraConfig | Literal[False] = LoraConfig()
    """Adapters; false for none."""
    conditioning: ConditioningConfig = ConditioningConfig()
    """How covariates enter."""
    compact: CompactBaseConfig = CompactBaseConfig()
    """Compact base."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Loss terms."""
    train: TrainConfig = TrainConfig()
    """Training."""


class STRunConfig(Options):
    """STTransition within a run."""

    model: STModelConfig = STModelConfig()
    """Sizes."""
    train: TrainConfig = TrainConfig()
    """Training."""


class RunConfig(Options):
    """A whole run: data, both models, the device, the seed."""

    data: DataConfig
    """Columns."""
    se: SERunConfig = SERunConfig()
    """Embedding model."""
    st: STRunConfig = STRunConfig()
    """Perturbation model."""
    base: str | None = None
    """Directory of a saved LoRACovariateSE whose base is taken; None trains a compact one."""
    accelerator: str = "auto"
    """Device, as in Lightning."""
    precision: str | None = None
    """Precision, as in Lightning."""
    early_stopping: bool = False
    """Stop when the validation loss no longer falls."""
    seed: int = 0
    """Seed of everything random."""
