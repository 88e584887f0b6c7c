"""Validated options: one frozen class a subject, unknown keys refused with a suggestion."""

from __future__ import annotations

from scstate_lora.config.schema import CompactBaseConfig, LoraConfig, ObjectiveConfig, STModelConfig

__all__ = ["CompactBaseConfig", "LoraConfig", "ObjectiveConfig", "STModelConfig"]
