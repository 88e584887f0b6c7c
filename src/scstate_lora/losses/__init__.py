"""Losses: pure functions of tensors, each with its estimator and scale documented."""

from __future__ import annotations

from scstate_lora.losses.contrastive import supervised_contrastive
from scstate_lora.losses.distribution import energy_distance

__all__ = ["energy_distance", "supervised_contrastive"]
