"""Plots: each takes ``ax=``, returns Axes, and leaves showing, saving and styling to the caller."""

from __future__ import annotations

from scstate_lora.pl._compare import compare
from scstate_lora.pl._covariates import covariate_effects
from scstate_lora.pl._embedding import embedding
from scstate_lora.pl._loss_curves import loss_curves
from scstate_lora.pl._metrics import metrics
from scstate_lora.pl._mhc import mhc_mixing
from scstate_lora.pl._velocity import velocity_alignment

__all__ = [
    "compare",
    "covariate_effects",
    "embedding",
    "loss_curves",
    "metrics",
    "mhc_mixing",
    "velocity_alignment",
]
