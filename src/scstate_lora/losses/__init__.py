"""Losses: pure functions of tensors, each with its estimator and scale documented."""

from __future__ import annotations

from scstate_lora.losses.contrastive import CONTRASTIVE, info_nce, nt_xent, supervised_contrastive
from scstate_lora.losses.distribution import energy_distance, grouped_energy_distance

__all__ = [
    "CONTRASTIVE",
    "energy_distance",
    "grouped_energy_distance",
    "info_nce",
    "nt_xent",
    "supervised_contrastive",
]
