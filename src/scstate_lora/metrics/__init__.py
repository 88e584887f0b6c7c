"""Scores of embeddings and of predicted perturbations: arrays in, numbers out, neither AnnData nor torch."""

from __future__ import annotations

from scstate_lora.metrics.baselines import (
    LinearEffects,
    context_mean,
    mean_shift,
    no_change,
    perturbed_mean,
    shifted,
)
from scstate_lora.metrics.cell_sets import (
    mean_distance_between,
    mmd,
    nearest_distance,
    nearest_distance_within,
    relative_nearest_distance,
)
from scstate_lora.metrics.changes import GeneChanges
from scstate_lora.metrics.differential import (
    de_direction,
    de_overlap,
    de_precision,
    gene_changes,
    weighted_mse,
)
from scstate_lora.metrics.discrimination import discrimination_score
from scstate_lora.metrics.embedding import (
    Score,
    categorical_probe,
    continuous_probe,
    in_large_class,
    knn_accuracy,
    majority_share,
)
from scstate_lora.metrics.held_out import (
    HeldOutScore,
    held_out_categorical_probe,
    held_out_continuous_probe,
    held_out_knn_accuracy,
)
from scstate_lora.metrics.perturbation import (
    bootstrap_interval,
    ceiling,
    energy_distance,
    goodness,
    mae,
    mean_distance,
    mse,
    pearson_delta,
    pearson_delta_top,
    skill,
    spearman_brown,
    split_halves,
    variance_ratio,
)
from scstate_lora.metrics.stability import (
    gradient_spikes,
    loss_variance,
    validation_improvement,
)

__all__ = [
    "GeneChanges",
    "HeldOutScore",
    "LinearEffects",
    "Score",
    "bootstrap_interval",
    "categorical_probe",
    "ceiling",
    "context_mean",
    "continuous_probe",
    "de_direction",
    "de_overlap",
    "de_precision",
    "discrimination_score",
    "energy_distance",
    "gene_changes",
    "goodness",
    "gradient_spikes",
    "held_out_categorical_probe",
    "held_out_continuous_probe",
    "held_out_knn_accuracy",
    "in_large_class",
    "knn_accuracy",
    "loss_variance",
    "mae",
    "majority_share",
    "mean_distance",
    "mean_distance_between",
    "mean_shift",
    "mmd",
    "mse",
    "nearest_distance",
    "nearest_distance_within",
    "no_change",
    "pearson_delta",
    "pearson_delta_top",
    "perturbed_mean",
    "relative_nearest_distance",
    "shifted",
    "skill",
    "spearman_brown",
    "split_halves",
    "validation_improvement",
    "variance_ratio",
    "weighted_mse",
]
