"""Scores of all perturbations of one context together: predicted beside measured effects, from counts and means."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora.metrics.de_scores import direction_fidelity_yield, direction_reach, lfc_nmae, sig_jaccard
from scstate_lora.metrics.hits import hits_found_at_budget, hits_found_at_fdr
from scstate_lora.metrics.profiles import pds_cosine, unbiased_errors
from scstate_lora.metrics.systema import centroid_accuracy, pearson_delta_centroid

if TYPE_CHECKING:
    from scstate_lora.metrics.de_tables import DETable
    from scstate_lora.metrics.profiles import CountProfiles

FEWEST_GENES = 10
"""Called genes from which on a perturbation is a hit, and from which on log fold changes are compared."""
BUDGET = 20
"""Perturbations that one can test, at most: of few, a quarter."""
FDR_OF_HITS = 0.1
_FEWEST_FOR_CENTROID = 3
NO_EFFECT = "the measured effect is not larger than its noise"
NO_HIT = f"it is no hit: fewer than {FEWEST_GENES} genes change when measured"


class EffectPanel(NamedTuple):
    """Predicted beside measured perturbations of one context, the same one in the same row of all arrays."""

    predicted: CountProfiles
    """``(n, n_genes)``; of a perturbation without a prediction anything."""
    measured: CountProfiles
    predicted_control: CountProfiles
    """The control cells that the predicted effects are against, one row."""
    measured_control: CountProfiles
    predicted_means: np.ndarray
    """Mean log1p expression, ``(n, n_genes)``."""
    measured_means: np.ndarray
    targets: np.ndarray
    """Positions of the genes that each perturbation acts on, or -1, ``(n, n_positions)``."""
    is_hit: np.ndarray
    """Whether each has a measured effect, bool ``(n,)``."""
    is_known: np.ndarray
    """Which have a prediction, bool ``(n,)``."""
    centroid: np.ndarray | None = None
    """Mean over training perturbations of their mean expression, ``(n_genes,)``; None: over the measured ones."""


class PanelScores(NamedTuple):
    """Scores of the perturbations of one context."""

    values: np.ndarray
    """``(n,)``; of a ratio the numerators."""
    sizes: np.ndarray
    """The denominators of a ratio, else 1, ``(n,)``: averages are ratios of sums."""
    reason: str = ""
    """Why a value is NaN though there is a prediction."""


def pds_cosine_of(panel: EffectPanel) -> PanelScores:
    """:func:`scstate_lora.metrics.pds_cosine` of a panel."""
    _at_least(2, panel)
    effects = (
        panel.predicted.expression - panel.predicted_control.expression,
        panel.measured.expression - panel.measured_control.expression,
    )
    return _plain(pds_cosine(*effects, targets=panel.targets), panel)


def unbiased_error_of(panel: EffectPanel) -> PanelScores:
    """:func:`scstate_lora.metrics.unbiased_errors` of a panel, over the effects."""
    known = panel.is_known
    values, sizes = np.full((2, len(known)), np.nan)
    if known.any():
        predicted, measured = (
            type(side)(side.expression[known], side.noise[known]) for side in (panel.predicted, panel.measured)
        )
        errors = unbiased_errors(predicted, measured, panel.measured_control, targets=panel.targets[known])
        values[known], sizes[known] = errors.error, errors.effect
    return PanelScores(values, sizes, NO_EFFECT)


def pearson_delta_centroid_of(panel: EffectPanel) -> PanelScores:
    """:func:`scstate_lora.metrics.pearson_delta_centroid` of a panel."""
    if panel.centroid is None:
        _at_least(_FEWEST_FOR_CENTROID, panel)
    values = pearson_delta_centroid(panel.predicted_means, panel.measured_means, reference=panel.centroid)
    return _plain(values, panel, "the prediction is the mean over perturbations, which has no direction of its own")


def centroid_accuracy_of(panel: EffectPanel) -> PanelScores:
    """:func:`scstate_lora.metrics.centroid_accuracy` of a panel."""
    _at_least(2, panel)
    return _plain(centroid_accuracy(panel.predicted_means, panel.measured_means), panel)


def found_at_budget_of(panel: EffectPanel) -> PanelScores:
    """Whether each hit is among the largest predicted effects: the mean over hits is their recall at a budget."""
    sizes = _sizes_of_effects(panel)
    known = panel.is_known
    values = np.full(len(known), np.nan)
    n_tested = max(1, min(BUDGET, int(known.sum()) // 4))
    values[known] = hits_found_at_budget(sizes[known], panel.is_hit[known], n_tested=n_tested)
    return _plain(values, panel, NO_HIT)


def found_at_fdr_of(panel: EffectPanel) -> PanelScores:
    """Whether each hit is above the best threshold on the predicted effect: the mean is the recall at an FDR."""
    sizes = _sizes_of_effects(panel)
    known = panel.is_known
    values = np.full(len(known), np.nan)
    values[known] = hits_found_at_fdr(sizes[known], panel.is_hit[known], fdr=FDR_OF_HITS)
    return _plain(values, panel, NO_HIT)


def sig_jaccard_of(predicted: DETable, measured: DETable) -> float:
    """:func:`scstate_lora.metrics.sig_jaccard` of one perturbation."""
    return float(sig_jaccard(predicted, measured)[0])


def direction_fidelity_yield_of(predicted: DETable, measured: DETable) -> float:
    """:func:`scstate_lora.metrics.direction_fidelity_yield` of one perturbation."""
    return _defined(direction_fidelity_yield(predicted, measured), "no gene is called on either side")


def direction_reach_of(predicted: DETable, measured: DETable) -> float:
    """:func:`scstate_lora.metrics.direction_reach` of one perturbation."""
    return _defined(direction_reach(predicted, measured), "no gene changes when measured")


def lfc_nmae_of(predicted: DETable, measured: DETable) -> float:
    """:func:`scstate_lora.metrics.lfc_nmae` of one perturbation."""
    few = f"fewer than {FEWEST_GENES} genes change when measured"
    return _defined(lfc_nmae(predicted, measured, min_genes=FEWEST_GENES), few)


def _defined(values: np.ndarray, reason: str) -> float:
    if np.isnan(values[0]):
        raise ValueError(reason)
    return float(values[0])


def _plain(values: np.ndarray, panel: EffectPanel, reason: str = "") -> PanelScores:
    return PanelScores(np.where(panel.is_known, values, np.nan), np.ones(len(values)), reason)


def _at_least(n: int, panel: EffectPanel) -> None:
    present = len(panel.is_known)
    if present < n:
        there_are = "there is" if present == 1 else "there are"
        msg = f"it compares perturbations of a context and needs {n} or more; {there_are} {present}"
        raise ValueError(msg)


def _sizes_of_effects(panel: EffectPanel) -> np.ndarray:
    """Squared predicted effect of each perturbation without its sampling noise, ``(n,)``."""
    known = panel.is_known
    hits = panel.is_hit[known]
    if hits.all() or not hits.any():
        which = "all" if hits.any() else "none"
        msg = (
            f"finding hits needs perturbations with and without a measured effect ({FEWEST_GENES} genes); {which} of "
            f"the {len(hits)} have one"
        )
        raise ValueError(msg)
    predicted = type(panel.predicted)(panel.predicted.expression[known], panel.predicted.noise[known])
    sizes = np.full(len(known), np.nan)
    sizes[known] = unbiased_errors(predicted, predicted, panel.predicted_control, targets=panel.targets[known]).effect
    return sizes
