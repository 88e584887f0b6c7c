"""Losses: functions of tensors alone, each with its estimator and scale documented."""

from __future__ import annotations

from scstate_lora.losses.contrastive import CONTRASTIVE, info_nce, nt_xent, supervised_contrastive
from scstate_lora.losses.distribution import energy_distance, grouped_energy_distance
from scstate_lora.losses.velocity import VelocityAlignmentLoss, VelocityParts, VelocityRegularizationLoss, warmed_up

__all__ = [
    "CONTRASTIVE",
    "VelocityAlignmentLoss",
    "VelocityParts",
    "VelocityRegularizationLoss",
    "energy_distance",
    "grouped_energy_distance",
    "info_nce",
    "nt_xent",
    "supervised_contrastive",
    "warmed_up",
]
