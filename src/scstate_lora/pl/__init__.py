"""Plots: each takes ``ax=``, returns Axes, and leaves showing, saving and styling to the caller."""

from __future__ import annotations

from scstate_lora.pl.comparison import compare
from scstate_lora.pl.covariates import covariate_effects
from scstate_lora.pl.embeddings import embedding
from scstate_lora.pl.gene_changes import gene_response
from scstate_lora.pl.history import loss_curves
from scstate_lora.pl.metric_panels import metrics
from scstate_lora.pl.mhc import mhc_mixing
from scstate_lora.pl.predicted_labels import calibration, celltype_accuracy, confusion
from scstate_lora.pl.responder_map import responders
from scstate_lora.pl.score_summary import scores
from scstate_lora.pl.shifts import shift
from scstate_lora.pl.trajectories import temporal
from scstate_lora.pl.velocity import velocity_alignment

__all__ = [
    "calibration",
    "celltype_accuracy",
    "compare",
    "confusion",
    "covariate_effects",
    "embedding",
    "gene_response",
    "loss_curves",
    "metrics",
    "mhc_mixing",
    "responders",
    "scores",
    "shift",
    "temporal",
    "velocity_alignment",
]
