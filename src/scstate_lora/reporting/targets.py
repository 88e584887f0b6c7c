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
    best_baseline,
    by_target,
    direction_of,
    model_names,
    single_scores,
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
    frame = _frame(summaries, all_scores(summaries))
    frame = frame.sort_values("effect", ascending=False, kind="stable", na_position="last")
    caption = "All targets, by the size of the effect, each beside the simple baseline, which training cells chose."
    section.blocks.append(table(frame, caption, save_as="targets"))
    for model, own in results.items():
        caption = f"{model} in every score, mean over the targets, and paired differences to the simple baseline."
        section.blocks.append(
            table(results_table(own, model=model), caption, folded=True, save_as="scores-over-targets")
        )
    return section


def _frame(summaries: Sequence[Summary], scores: pd.DataFrame | None) -> pd.DataFrame:
    """One row per target and model, with the values of two scores beside those of the baseline to beat."""
    models = [] if scores is None else model_names(scores)
    rows = pd.DataFrame(
        [
            {"target": s.target, "model": model, "predicted cells": s.n_cells, "effect": s.effect}
            for s in summaries
            for model in ([name for name in models if s.scores is not None] or [""])
        ]
    )
    for metric in _COMPARED:
        part = None if scores is None else single_scores(scores, metric)
        if part is None or part.empty:
            continue
        label, values = metric_label(metric), by_target(part)
        chosen = _chosen_baselines(part, values)
        known = [(t, m) for t, m in zip(rows["target"], rows["model"], strict=True)]
        rows[label] = [_at(values, target, model) for target, model in known]
        rows[f"{label}, simple baseline"] = [_at(values, target, chosen.get(target, "")) for target, _ in known]
        rows[f"{label}, which"] = [chosen.get(target, "") for target, _ in known]
    return rows


def _chosen_baselines(part: pd.DataFrame, values: pd.DataFrame) -> dict[str, str]:
    """Name the baseline to beat of every target: the one that training cells chose, else the best."""
    if "yardstick" in part:
        return dict(part.groupby("perturbation")["yardstick"].first().astype(str))
    direction = direction_of(part)
    return {str(target): best_baseline(dict(own), direction) or "" for target, own in values.iterrows()}


def _at(values: pd.DataFrame, target: str, model: str) -> float:
    known = target in values.index and model in values
    return float(values[model].to_numpy(dtype=float)[values.index.get_loc(target)]) if known else np.nan
