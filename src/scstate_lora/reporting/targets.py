"""Many predicted perturbations on one page: a table of all, and the few that are shown in full."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data.results import EVALUATE_PERTURBATION, read_prediction, read_result
from scstate_lora.metrics import goodness
from scstate_lora.metrics.registry import metric_label
from scstate_lora.reporting.parts import Section, Verdict, table
from scstate_lora.reporting.verdicts import ALL_CONTEXTS, average_of, baseline_to_beat, direction_of, model_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.metrics.perturbation import Direction

SHOWN = 3
"""With more targets, so many are shown in full."""
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


def targets_section(summaries: Sequence[Summary]) -> Section:
    """Tabulate all targets: effect, cells, and scores of the model beside the best baseline."""
    section = Section(f"{len(summaries)} predicted perturbations", "predictions-all")
    shown = ", ".join(summaries[i].target for i in largest(summaries))
    scored = [s for s in summaries if s.scores is not None]
    section.paragraphs.append(
        f"{len(summaries)} perturbations were predicted and {len(scored)} of them scored. The {SHOWN} with the largest "
        f"measured effects are shown in full below: {shown}. The effect is the root mean square of the measured change "
        "over the genes."
    )
    rows = [_row(summary, model) for summary in summaries for model in _models(summary)]
    frame = pd.DataFrame(rows).sort_values("effect", ascending=False, kind="stable", na_position="last")
    caption = "All targets, by the size of the effect, each beside the baseline that training cells chose."
    section.blocks.append(table(frame, caption))
    for metric in _COMPARED:
        label = metric_label(metric)
        for model in dict.fromkeys(row["model"] for row in rows):
            gains = [gain for s in scored if not np.isnan(gain := _gain(s, str(model), metric))]
            if gains:
                better, worse = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
                mark = "good" if better > 2 * worse else "bad" if worse > 2 * better else "even"
                sentence = (
                    f"{label}: {model} is better than the best baseline for {better} of {len(gains)} targets and worse "
                    f"for {worse}; the best baseline is chosen on training cells."
                )
                section.verdicts.append(Verdict(mark, sentence, headline=True))
    return section


def _models(summary: Summary) -> list[str]:
    return [""] if summary.scores is None else model_names(summary.scores) or [""]


def _values(summary: Summary, metric: str) -> tuple[dict[str, float], Direction, str | None]:
    """Values of a metric by model, its direction, and the baseline to beat."""
    average = summary.average
    part = pd.DataFrame() if average is None else average[average["metric"] == metric]
    if part.empty:
        return {}, "higher", None
    direction = direction_of(part)
    values = dict(zip(part["model"], part["value"].astype(float), strict=True))
    return values, direction, baseline_to_beat(part, direction)


def _row(summary: Summary, model: str) -> dict[str, object]:
    row: dict[str, object] = {"target": summary.target, "model": model, "predicted cells": summary.n_cells}
    row["effect"] = summary.effect
    for metric in _COMPARED:
        values, _, best = _values(summary, metric)
        row[metric_label(metric)] = values.get(model, np.nan)
        row[f"best baseline, {metric_label(metric)}"] = np.nan if best is None else values[best]
        row[f"which, {metric_label(metric)}"] = best or ""
    return row


def _gain(summary: Summary, model: str, metric: str) -> float:
    values, direction, best = _values(summary, metric)
    if best is None or model not in values:
        return np.nan
    good = goodness([values[model], values[best]], direction=direction)
    return float(good[0] - good[1])
