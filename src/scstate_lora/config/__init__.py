"""Validated options: one frozen class a subject, unknown keys refused with a suggestion."""

from __future__ import annotations

from scstate_lora.config.load import to_yaml, with_overrides
from scstate_lora.config.schema import (
    CompactBaseConfig,
    DataConfig,
    LoraConfig,
    ObjectiveConfig,
    RunConfig,
    SERunConfig,
    STModelConfig,
    STRunConfig,
    TrainConfig,
)

__all__ = [
    "CompactBaseConfig",
    "DataConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "RunConfig",
    "SERunConfig",
    "STModelConfig",
    "STRunConfig",
    "TrainConfig",
    "to_yaml",
    "with_overrides",
]
