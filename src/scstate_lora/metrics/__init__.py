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
from scstate_lora.metrics.beyond_cell_type import (
    Entanglement,
    entanglement,
)
from scstate_lora.metrics.cell_sets import (
    mean_distance_between,
    mmd,
    nearest_distance,
    nearest_distance_within,
    relative_nearest_distance,
)
from scstate_lora.metrics.changes import GeneChanges
from scstate_lora.metrics.confidence import (
    Reliability,
    expected_calibration_error,
    reliability,
    wilson_interval,
)
from scstate_lora.metrics.de_scores import (
    direction_fidelity_yield,
    direction_reach,
    lfc_nmae,
    sig_jaccard,
)
from scstate_lora.metrics.de_tables import (
    DETable,
    de_table,
)
from scstate_lora.metrics.differential import (
    de_direction,
    de_overlap,
    de_precision,
    gene_changes,
    weighted_mse,
)
from scstate_lora.metrics.diffusion import (
    kbet_per_label,
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
from scstate_lora.metrics.hits import (
    hit_recall_at_budget,
    hit_recall_at_fdr,
    hit_recall_at_predicted_fdr,
    hits_found_at_budget,
    hits_found_at_fdr,
)
from scstate_lora.metrics.integration import (
    IntegratedCells,
    ari_kmeans,
    bras,
    clisi,
    graph_connectivity,
    ilisi,
    isolated_labels,
    kbet,
    nmi_kmeans,
    pcr_comparison,
    silhouette_batch,
    silhouette_label,
    total_scores,
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
from scstate_lora.metrics.profiles import (
    CountProfiles,
    UnbiasedErrors,
    count_profiles,
    pds_cosine,
    unbiased_errors,
)
from scstate_lora.metrics.silhouette import (
    batch_silhouette,
    cosine_silhouette_samples,
    silhouette_samples,
)
from scstate_lora.metrics.spread import (
    cell_cov_corr,
    centered_energy_distance,
    detection_mae,
    detection_r2,
    sd_r2,
    sd_ratio,
)
from scstate_lora.metrics.stability import (
    gradient_spikes,
    loss_variance,
    validation_improvement,
)
from scstate_lora.metrics.systema import (
    centroid_accuracy,
    pearson_delta_centroid,
)
from scstate_lora.metrics.temporal import (
    TemporalScore,
    gap_correlation,
    monotonicity,
    smoothness,
    temporal_score,
    time_distances,
)
from scstate_lora.metrics.usability import (
    baseline_saturation,
    dynamic_range_fraction,
    interpolated_duplicate,
)

__all__ = [
    "CountProfiles",
    "DETable",
    "Entanglement",
    "GeneChanges",
    "HeldOutScore",
    "IntegratedCells",
    "LinearEffects",
    "Reliability",
    "Score",
    "TemporalScore",
    "UnbiasedErrors",
    "ari_kmeans",
    "baseline_saturation",
    "batch_silhouette",
    "bootstrap_interval",
    "bras",
    "categorical_probe",
    "ceiling",
    "cell_cov_corr",
    "centered_energy_distance",
    "centroid_accuracy",
    "clisi",
    "context_mean",
    "continuous_probe",
    "cosine_silhouette_samples",
    "count_profiles",
    "de_direction",
    "de_overlap",
    "de_precision",
    "de_table",
    "detection_mae",
    "detection_r2",
    "direction_fidelity_yield",
    "direction_reach",
    "discrimination_score",
    "dynamic_range_fraction",
    "energy_distance",
    "entanglement",
    "expected_calibration_error",
    "gap_correlation",
    "gene_changes",
    "goodness",
    "gradient_spikes",
    "graph_connectivity",
    "held_out_categorical_probe",
    "held_out_continuous_probe",
    "held_out_knn_accuracy",
    "hit_recall_at_budget",
    "hit_recall_at_fdr",
    "hit_recall_at_predicted_fdr",
    "hits_found_at_budget",
    "hits_found_at_fdr",
    "ilisi",
    "in_large_class",
    "interpolated_duplicate",
    "isolated_labels",
    "kbet",
    "kbet_per_label",
    "knn_accuracy",
    "lfc_nmae",
    "loss_variance",
    "mae",
    "majority_share",
    "mean_distance",
    "mean_distance_between",
    "mean_shift",
    "mmd",
    "monotonicity",
    "mse",
    "nearest_distance",
    "nearest_distance_within",
    "nmi_kmeans",
    "no_change",
    "pcr_comparison",
    "pds_cosine",
    "pearson_delta",
    "pearson_delta_centroid",
    "pearson_delta_top",
    "perturbed_mean",
    "relative_nearest_distance",
    "reliability",
    "sd_r2",
    "sd_ratio",
    "shifted",
    "sig_jaccard",
    "silhouette_batch",
    "silhouette_label",
    "silhouette_samples",
    "skill",
    "smoothness",
    "spearman_brown",
    "split_halves",
    "temporal_score",
    "time_distances",
    "total_scores",
    "unbiased_errors",
    "validation_improvement",
    "variance_ratio",
    "weighted_mse",
    "wilson_interval",
]
