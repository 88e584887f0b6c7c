"""Plots: each takes ``ax=``, returns Axes, and leaves showing, saving and styling to the caller."""

from __future__ import annotations

from scstate_lora.pl.comparison import compare
from scstate_lora.pl.covariates import covariate_effects
from scstate_lora.pl.embeddings import embedding
from scstate_lora.pl.history import loss_curves
from scstate_lora.pl.metric_panels import metrics
from scstate_lora.pl.mhc import mhc_mixing
from scstate_lora.pl.velocity import velocity_alignment

__all__ = [
    "compare",
    "covariate_effects",
    "embedding",
    "loss_curves",
    "metrics",
    "mhc_mixing",
    "velocity_alignment",
]
