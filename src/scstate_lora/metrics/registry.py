"""The one list of metrics: how each is called, which way is better, its range, and how predicted cells get it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.changes import correlation_of
from scstate_lora.metrics.differential import direction_of, overlap_of, precision_of, weighted_mse_of
from scstate_lora.metrics.effect_panels import (
    centroid_accuracy_of,
    direction_fidelity_yield_of,
    direction_reach_of,
    found_at_budget_of,
    found_at_fdr_of,
    lfc_nmae_of,
    pds_cosine_of,
    pearson_delta_centroid_of,
    sig_jaccard_of,
    unbiased_error_of,
)
from scstate_lora.metrics.perturbation import goodness, spearman_brown
from scstate_lora.metrics.set_pairs import e_distance_of, mae_of, mmd_of, mse_of, relative_nearest_of, variance_ratio_of
from scstate_lora.metrics.set_spread import (
    cell_cov_corr_of,
    centered_e_distance_of,
    detection_mae_of,
    detection_r2_of,
    sd_r2_of,
    sd_ratio_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scstate_lora.metrics.changes import Change
    from scstate_lora.metrics.de_tables import DETable
    from scstate_lora.metrics.effect_panels import EffectPanel, PanelScores
    from scstate_lora.metrics.perturbation import Direction
    from scstate_lora.metrics.set_pairs import SetPair

    CellScore = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
    PairScore = Callable[[SetPair], float]
    ChangeScore = Callable[[Change, Change], float]
    TableScore = Callable[[DETable, DETable], float]
    PanelScore = Callable[[EffectPanel], PanelScores]
    Correction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A metric, as tables, plots and reports show it.

    A metric of predicted cells, which :func:`scstate_lora.tl.evaluate_perturbation` computes, has one of `score`,
    `change`, `pair`, `table` and `panel`.

    Parameters
    ----------
    label
        Its name in words.
    direction
        ``"higher"`` or ``"lower"`` is better, or it is best at ``"one"``.
    lowest, highest
        Possible values.
    score
        Score of predicted, measured and control cells, ``(n, n_genes)`` each; a ValueError says why there is none.
    change
        Score of the predicted and the measured change, each against control cells of its own: any metric that a control
        cell enters on both sides, because noise that both share would count as agreement.
    headline
        Whether it is among the few that figures and summaries show when none is named, at most six of a table.
    full_depth
        Turns the score of one half of the measured cells against the other into that of two whole sets, for the
        ceiling; None where no such correction is known, or none is needed.
    pair
        Score of predicted and measured cells whose moments and distances are computed once for all metrics.
    nothing
        Score of a prediction without any change where the metric does not define it: of no correlation, 0.
    table
        Score of predicted and measured differential expression of one perturbation, tables of one row.
    panel
        Score of all perturbations of a context together.
    """

    label: str
    direction: Direction = "higher"
    lowest: float = 0.0
    highest: float = 1.0
    score: CellScore | None = None
    change: ChangeScore | None = None
    full_depth: Correction | None = None
    headline: bool = False
    pair: PairScore | None = None
    nothing: float = np.nan
    table: TableScore | None = None
    panel: PanelScore | None = None

    @property
    def is_of_cells(self) -> bool:
        """Whether predicted cells get it."""
        return (self.score, self.change, self.pair, self.table, self.panel) != (None,) * 5

    @property
    def perfect(self) -> float:
        """Goodness of a perfect prediction, as :func:`scstate_lora.metrics.goodness`; infinite where there is none."""
        least = self.lowest if np.isfinite(self.lowest) else 0.0  # an error without its noise may fall below 0
        best = {"higher": self.highest, "lower": least, "one": 1.0}[self.direction]
        return float(goodness(best, direction=self.direction))

    def columns(self) -> dict[str, str | float]:
        """Return the columns of a table that describe the metric."""
        return {"direction": self.direction, "lowest": self.lowest, "highest": self.highest}


def _correlation(label: str, change: ChangeScore, *, headline: bool = False) -> Metric:
    return Metric(label, "higher", -1.0, 1.0, change=change, full_depth=spearman_brown, headline=headline, nothing=0.0)


def _distance(
    label: str, *, highest: float = np.inf, **how: PairScore | ChangeScore | TableScore | Correction | bool
) -> Metric:
    return Metric(label, "lower", 0.0, highest, **how)  # type: ignore[arg-type]  # each is of its field's type


def _halved(value: np.ndarray) -> np.ndarray:
    """Halve a squared error, or a V-statistic between equal populations: both fall as 1 / n."""
    return value / 2


def _over_root_two(value: np.ndarray) -> np.ndarray:
    """Reduce an absolute error, which falls as the root of 1 / n."""
    return value / np.sqrt(2)


METRICS: dict[str, Metric] = {
    "pearson_delta": _correlation("Pearson of delta", correlation_of, headline=True),
    "pearson_delta_top20": _correlation("Pearson of delta, top 20 genes", partial(correlation_of, n_top=20)),
    "pearson_delta_top50": _correlation("Pearson of delta, top 50 genes", partial(correlation_of, n_top=50)),
    "mae": _distance(
        "MAE of means",
        pair=mae_of,
        full_depth=_over_root_two,
    ),
    "mse": _distance("MSE of means", pair=mse_of, full_depth=_halved, headline=True),
    "e_distance": _distance("E-distance", pair=e_distance_of, full_depth=_halved, headline=True),
    "variance_ratio": Metric("variance ratio", "one", 0.0, np.inf, pair=variance_ratio_of, headline=True),
    "mse_de_weighted": _distance("MSE of means, weighted by DE", change=weighted_mse_of, full_depth=_halved),
    "mmd": _distance("MMD", pair=mmd_of, highest=2.0, full_depth=_halved),
    "nearest_distance_relative": Metric(
        "distance to the nearest cell, relative to that between measured cells",
        "one",
        0.0,
        np.inf,
        pair=relative_nearest_of,
    ),
    "de_overlap50": Metric(
        "overlap of the top 50 DE genes", change=partial(overlap_of, n_top=50), nothing=0.0, headline=True
    ),
    "de_direction50": Metric("direction of the top 50 DE genes", change=partial(direction_of, n_top=50), nothing=0.0),
    "de_precision50": Metric("precision of the top 50 DE genes", change=partial(precision_of, n_top=50), nothing=0.0),
    "e_distance_centered": _distance("E-distance around the means", pair=centered_e_distance_of, full_depth=_halved),
    "sd_ratio": Metric("standard deviation per gene, ratio", "one", 0.0, np.inf, pair=sd_ratio_of),
    "sd_r2": Metric("standard deviation per gene, R²", lowest=-np.inf, pair=sd_r2_of),
    "detection_r2": Metric("detection rate per gene, R²", lowest=-np.inf, pair=detection_r2_of),
    "detection_mae": _distance(
        "detection rate per gene, MAE", highest=1.0, pair=detection_mae_of, full_depth=_over_root_two
    ),
    # The Virtual Cell Challenge of 2026, as cell-eval2 computes it
    "pds_cosine": Metric("perturbation discrimination, cosine", panel=pds_cosine_of, headline=True),
    "expr_mse_unbiased_capped_norm": Metric(
        "unbiased MSE over effect", "lower", -np.inf, np.inf, panel=unbiased_error_of
    ),
    "direction_fidelity_yield": Metric("direction of the called genes", table=direction_fidelity_yield_of),
    "direction_reach": Metric("depth to which directions are right", table=direction_reach_of),
    "sig_jaccard": Metric("Jaccard index of the called genes", table=sig_jaccard_of),
    "lfc_nmae": _distance("error of the log fold changes", table=lfc_nmae_of),
    # Systema
    "pearson_delta_centroid": Metric(
        "Pearson of delta against the mean perturbation",
        lowest=-1.0,
        panel=pearson_delta_centroid_of,
        full_depth=spearman_brown,
        nothing=0.0,
    ),
    "centroid_accuracy": Metric("centroid accuracy", panel=centroid_accuracy_of),
    # PerturbHD
    "hit_recall_budget": Metric("hits found at a budget", panel=found_at_budget_of),
    "hit_recall_fdr10": Metric("hits found at an FDR of 10 %", panel=found_at_fdr_of),
    "cell_cov_corr": Metric("gene-gene correlation from cell to cell", lowest=-1.0, score=cell_cov_corr_of),
    "discrimination": Metric("discrimination score"),
    "knn_accuracy": Metric("kNN accuracy", headline=True),
    "probe_accuracy": Metric("probe accuracy"),
    "probe_balanced_accuracy": Metric("probe balanced accuracy", headline=True),
    "probe_r2": Metric("probe R²", lowest=-np.inf, headline=True),
    # How embeddings keep cell types and mix batches
    "isolated_labels": Metric("isolated cell types (silhouette)"),
    "nmi_kmeans": Metric("NMI of k-means clusters"),
    "ari_kmeans": Metric("ARI of k-means clusters", lowest=-0.5),
    "silhouette_label": Metric("silhouette of cell types"),
    "clisi": Metric("cLISI"),
    "bras": Metric("batch silhouette, BRAS"),
    "ilisi": Metric("iLISI"),
    "kbet": Metric("kBET"),
    "graph_connectivity": Metric("graph connectivity"),
    "pcr_comparison": Metric("PCR comparison"),
    "silhouette_batch": Metric("batch silhouette, ASW"),
    "bio_conservation": Metric("bio conservation (scIB mean)", lowest=-0.1, headline=True),
    "batch_correction": Metric("batch correction (scIB mean)", headline=True),
    "scib_total": Metric("scIB total, 0.6 bio + 0.4 batch", lowest=-0.06, headline=True),
    # How embeddings follow time
    "gap_correlation": Metric("rank correlation of distance and time gap", lowest=-1.0),
    "monotonicity": Metric("times in order (monotonicity)"),
    "smoothness": Metric("direct over consecutive distance (smoothness)"),
    # How covariates and cell type share an embedding
    "covariate_information": Metric("information on the covariate", lowest=-np.inf),
    "covariate_information_of_cell_type": Metric("information of the cell type on it", lowest=-np.inf),
    "covariate_information_beyond_cell_type": Metric("information beyond the cell type", lowest=-np.inf),
    "disentanglement": Metric("disentanglement from cell type"),
}
"""All metrics of predictions and embeddings by name, those of predicted cells in the order of the table."""


def headline_of(names: Iterable[str]) -> list[str]:
    """Return the headline metrics among `names`, in their order; all of them if none is one."""
    names = list(dict.fromkeys(names))
    return [name for name in names if name in METRICS and METRICS[name].headline] or names


def metric_label(name: str) -> str:
    """Name a metric in words."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")
