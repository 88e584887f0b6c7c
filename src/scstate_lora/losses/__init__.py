"""Losses: functions of tensors alone, each with its estimator and scale documented."""

from __future__ import annotations

from scstate_lora.losses.contrastive import CONTRASTIVE, info_nce, nt_xent, supervised_contrastive
from scstate_lora.losses.distribution import energy_distance, grouped_energy_distance
from scstate_lora.losses.set_distances import SET_DISTANCES, mmd, mse_of_means, sinkhorn
from scstate_lora.losses.velocity import VelocityAlignmentLoss, VelocityParts, VelocityRegularizationLoss, warmed_up

__all__ = [
    "CONTRASTIVE",
    "SET_DISTANCES",
    "VelocityAlignmentLoss",
    "VelocityParts",
    "VelocityRegularizationLoss",
    "energy_distance",
    "grouped_energy_distance",
    "info_nce",
    "mmd",
    "mse_of_means",
    "nt_xent",
    "sinkhorn",
    "supervised_contrastive",
    "warmed_up",
]
