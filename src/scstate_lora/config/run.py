"""Options of a whole run."""

from __future__ import annotations

from typing import Literal

from scstate_lora.config.data import DataConfig
from scstate_lora.config.lora import LoraConfig
from scstate_lora.config.options import Options
from scstate_lora.config.se import CompactBaseConfig, ConditioningConfig, ObjectiveConfig
from scstate_lora.config.st import STLoraConfig, STModelConfig, STObjectiveConfig
from scstate_lora.config.training import Precision, TrainConfig


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
    """Sizes and form."""
    objective: STObjectiveConfig = STObjectiveConfig()
    """Loss terms."""
    pretrained: str | None = None
    """Folder or hub id of a published ST model; null starts anew."""
    reuse: Literal["all", "backbone"] = "all"
    """What is taken from it."""
    finetune: Literal["lora", "full", "frozen"] | None = None
    """How the backbone trains; null: adapters on a pretrained one, all of a new one."""
    lora: STLoraConfig = STLoraConfig()
    """Adapters."""
    train: TrainConfig = TrainConfig()
    """Training."""


class RunConfig(Options):
    """A whole run: data, both models, the device, the seed."""

    file: str | None = None
    """File of the cells; a path as seen from where the command is run."""
    data: DataConfig
    """Columns."""
    se: SERunConfig | None = SERunConfig()
    """Embedding model; null for none."""
    st: STRunConfig | None = STRunConfig()
    """Perturbation model, where there is a perturbation; null for none."""
    base: str | None = None
    """SE checkpoint, hub id or directory of a saved model whose base is taken; null trains a compact one."""
    accelerator: str = "auto"
    """Device, as in Lightning; that of a model's own `train` goes first, here and in the next two."""
    precision: Precision | None = None
    """`32-true`, `16-mixed` or `bf16-mixed`; null chooses by device."""
    early_stopping: bool | int = False
    """Stop after this many epochs without a lower validation loss; true means 10."""
    seed: int = 0
    """Seed of everything random."""
