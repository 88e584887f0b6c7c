"""Options of a whole run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from scstate_lora.config.data import DataConfig
from scstate_lora.config.lora import SELoraConfig, STLoraConfig
from scstate_lora.config.options import Options
from scstate_lora.config.se import CompactBaseConfig, ConditioningConfig, SEObjectiveConfig
from scstate_lora.config.st import STModelConfig, STObjectiveConfig
from scstate_lora.config.training import SharedTraining, TrainConfig


class SERunConfig(Options):
    """LoRACovariateSE within a run."""

    lora: SELoraConfig | Literal[False] | None = None
    """Adapters; false for none; null: on a base that is given, none on one that is trained here."""
    conditioning: ConditioningConfig = ConditioningConfig()
    """How covariates enter."""
    compact: CompactBaseConfig = CompactBaseConfig()
    """Compact base."""
    objective: SEObjectiveConfig = SEObjectiveConfig()
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
    """Folder or hub id of a published ST model to start from; null: a new one."""
    reuse: Literal["all", "backbone"] = "all"
    """Which part of it is used."""
    finetune: Literal["lora", "full", "frozen"] | None = None
    """How the backbone trains; null: adapters on a pretrained one, all of a new one."""
    lora: STLoraConfig = STLoraConfig()
    """Adapters."""
    pert_features: str | None = None
    """Table of perturbation features, one row per perturbation: .csv, .tsv or .parquet. null: one-hot."""
    train: TrainConfig = TrainConfig()
    """Training."""

    @property
    def has_adapters(self) -> bool:
        """Whether adapters on the backbone train, by request or by default."""
        return self.finetune == "lora" or (self.finetune is None and self.pretrained is not None)

    @model_validator(mode="after")
    def _without_effect(self) -> Self:
        if self.reuse != "all" and self.pretrained is None:
            msg = f"reuse={self.reuse!r} is about a pretrained model, but pretrained names none."
            raise ValueError(msg)
        if not self.has_adapters and self.lora != STLoraConfig():
            state = "is left out" if self.finetune is None else f"is {self.finetune!r}"
            msg = f"lora has options of adapters, but finetune {state}, so there are none. Write finetune: lora."
            raise ValueError(msg)
        return self


class RunConfig(SharedTraining):
    """A whole run: data, both models, the device, the seed."""

    file: str | None = None
    """File of the cells: a path, relative to the working directory."""
    data: DataConfig
    """Columns and split."""
    se: SERunConfig | None = SERunConfig()
    """Embedding model; null for none."""
    st: STRunConfig | None = STRunConfig()
    """Perturbation model, if the data has a perturbation; null for none."""
    base: str | None = None
    """SE checkpoint, hub id or directory of a saved model, whose base is used; null: train a compact one."""
    seed: int = 0
    """Seed of everything random."""
