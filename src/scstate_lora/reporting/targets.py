"""Predicted perturbations of a run, however many: a summary of each, those shown in full, and one table of all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data.results import EVALUATE_PERTURBATION, read_prediction, read_result
from scstate_lora.metrics.registry import metric_label
from scstate_lora.reporting.parts import Section, table
from scstate_lora.reporting.score_tables import (
    ALL_CONTEXTS,
    average_of,
    baseline_to_beat,
    direction_of,
    model_names,
)
from scstate_lora.reporting.verdicts import Result, compare_over_targets, results_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

SHOWN = 3
"""With more targets, so many are shown in full."""
MANY = 5
"""From so many scored targets on, a model is judged by its paired differences over targets."""
_COMPARED = ("pearson_delta", "e_distance")


@dataclass(frozen=True)
class Summary:
    """What the table tells of one prediction."""

    target: str
    n_cells: int
    scores: pd.DataFrame | None

    @classmethod
    def of(cls, predictions: AnnData) -> Summary:
        """Read it from predicted cells."""
        targets = ", ".join(read_prediction(predictions).targets)
        return cls(targets, predictions.n_obs, read_result(predictions, EVALUATE_PERTURBATION))

    @cached_property
    def average(self) -> pd.DataFrame | None:
        """Scores over the contexts; of a single context, its own."""
        return None if self.scores is None else average_of(self.scores)

    @cached_property
    def effect(self) -> float:
        """Size of the measured effect: root mean square over the genes of the change, which "no change" is off by.

        Of all contexts by their measured cells, also of those that are too small to count in scores.
        """
        if self.scores is None:
            return np.nan
        off = self.scores[(self.scores["model"] == "no change") & (self.scores["metric"] == "mse")]
        single = off[off["context"] != ALL_CONTEXTS]
        off = (single if len(single) else off).dropna(subset="value")
        if off.empty:
            return np.nan
        weights = off["n_measured"] if "n_measured" in off else np.ones(len(off))
        return float(np.sqrt(np.average(off["value"].clip(lower=0), weights=weights)))


def largest(summaries: Sequence[Summary]) -> list[int]:
    """Positions of the predictions with the largest measured effects, the largest first."""
    effects = np.array([s.effect for s in summaries])
    order = np.argsort(np.where(np.isnan(effects), np.inf, -effects), kind="stable")
    return [int(i) for i in order[:SHOWN]]


def all_scores(summaries: Sequence[Summary]) -> pd.DataFrame | None:
    """Put the scores of all predictions together, with the perturbation; None if there are none."""
    tables = []
    for summary in summaries:
        if summary.scores is None:
            continue
        scores = summary.scores
        tables.append(scores if "perturbation" in scores else scores.assign(perturbation=summary.target))
    return pd.concat(tables, ignore_index=True) if tables else None


def n_targets(scores: pd.DataFrame) -> int:
    """Count the scored perturbations."""
    return len(set(scores["perturbation"]) - {ALL_CONTEXTS})


def results_over_targets(scores: pd.DataFrame) -> dict[str, list[Result]]:
    """Compare every model with the simple baseline in every score, over all targets."""
    metrics = [str(name) for name in dict.fromkeys(scores["metric"])]
    return {model: [compare_over_targets(scores, model, metric) for metric in metrics] for model in model_names(scores)}


def targets_section(summaries: Sequence[Summary], results: dict[str, list[Result]]) -> Section:
    """Tabulate all targets: effect, cells, and scores of the model beside the simple baseline.

    Parameters
    ----------
    summaries
        One per prediction.
    results
        How every model compares over all targets; may be empty.
    """
    section = Section(f"{len(summaries)} predicted perturbations", "predictions-all")
    shown = ", ".join(summaries[i].target for i in largest(summaries))
    n_scored = sum(s.scores is not None for s in summaries)
    section.paragraphs.append(
        f"{len(summaries)} perturbations were predicted and {n_scored} of them scored. The {SHOWN} with the largest "
        f"measured effects are shown in full: {shown}. The effect is the root mean square of the measured change "
        "over the genes."
    )
    frame = pd.DataFrame([row for summary in summaries for row in _rows(summary)])
    frame = frame.sort_values("effect", ascending=False, kind="stable", na_position="last")
    caption = "All targets, by the size of the effect, each beside the simple baseline, which training cells chose."
    section.blocks.append(table(frame, caption, save_as="targets"))
    for model, own in results.items():
        caption = f"{model} in every score, mean over the targets, and paired differences to the simple baseline."
        section.blocks.append(
            table(results_table(own, model=model), caption, folded=True, save_as="scores-over-targets")
        )
    return section


def _rows(summary: Summary) -> list[dict[str, object]]:
    """One row per model of a target; one without scores, if it was not scored."""
    models = [] if summary.scores is None else model_names(summary.scores)
    return [_row(summary, model) for model in models or [""]]


def _row(summary: Summary, model: str) -> dict[str, object]:
    row: dict[str, object] = {"target": summary.target, "model": model, "predicted cells": summary.n_cells}
    row["effect"] = summary.effect
    for metric in _COMPARED:
        values, chosen = _values(summary, metric)
        label = metric_label(metric)
        row[label] = values.get(model, np.nan)
        row[f"{label}, simple baseline"] = np.nan if chosen is None else values[chosen]
        row[f"{label}, which"] = chosen or ""
    return row


def _values(summary: Summary, metric: str) -> tuple[dict[str, float], str | None]:
    """Values of a score by model, and the baseline to beat; where no context counts, the mean weighted by cells."""
    if summary.scores is None or summary.average is None:
        return {}, None
    part = summary.average[summary.average["metric"] == metric]
    if part.empty:
        return {}, None
    if part["value"].isna().all() and "n_measured" in part:
        single = summary.scores[(summary.scores["metric"] == metric) & (summary.scores["context"] != ALL_CONTEXTS)]
        known = single.dropna(subset="value")
        if known.empty:
            return {}, None
        weighted = known.assign(share=known["value"].astype(float) * known["n_measured"])
        sums = weighted.groupby("model", sort=False)[["share", "n_measured"]].sum()
        means = (sums["share"] / sums["n_measured"]).to_dict()
        part = part.assign(value=part["model"].map(means))
    values = dict(zip(part["model"], part["value"].astype(float), strict=True))
    return values, baseline_to_beat(part, direction_of(part))
