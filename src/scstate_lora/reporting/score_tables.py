"""Reading the tables of `tl.evaluate_perturbation`: models, averages, and the baseline to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from scstate_lora.metrics import goodness
from scstate_lora.metrics.baselines import BASELINES, CEILING, MEAN_SHIFT, reference_names
from scstate_lora.metrics.registry import metric_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.metrics.perturbation import Direction

ALL_CONTEXTS = "all"
ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1"}
"""The better side of a metric by its direction."""


def model_names(table: pd.DataFrame) -> list[str]:
    """Names in ``evaluate_perturbation``'s table that are models, not references."""
    return [name for name in dict.fromkeys(table["model"]) if name not in reference_names()]


def baseline_names() -> list[str]:
    """Names of the baselines, the mean shift last."""
    return sorted(BASELINES, key=lambda name: name == MEAN_SHIFT)


def average_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the average over perturbations and contexts; of a single one, its own."""
    table = over_perturbations(table)
    contexts = list(table["context"])
    return table[table["context"] == (ALL_CONTEXTS if ALL_CONTEXTS in contexts else contexts[0])]


def over_perturbations(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the average over perturbations; of a single one, its own."""
    if "perturbation" not in table or not (table["perturbation"] == ALL_CONTEXTS).any():
        return table
    return table[table["perturbation"] == ALL_CONTEXTS]


def single_contexts(table: pd.DataFrame) -> list[str]:
    """Contexts that were scored, without the average."""
    return [str(name) for name in dict.fromkeys(table["context"]) if name != ALL_CONTEXTS]


def direction_of(table: pd.DataFrame) -> Direction:
    """Return the direction of the one metric of a table."""
    return cast("Direction", str(table["direction"].iloc[0]))


def best_baseline(values: Mapping[str, float], direction: Direction) -> str | None:
    """Return the baseline with the best value; of equal ones the first, and None if none has a value."""
    known = {name: values[name] for name in baseline_names() if not np.isnan(values.get(name, np.nan))}
    if not known:
        return None
    return list(known)[int(np.argmax(goodness(list(known.values()), direction=direction)))]


def baseline_to_beat(rows: pd.DataFrame, direction: Direction) -> str | None:
    """Return the baseline that a model has to beat, and None if none has a value.

    It is the one that the table says was chosen on training cells, else the best one.

    Parameters
    ----------
    rows
        Rows of one metric: one of every model.
    direction
        Of the metric.
    """
    values = dict(zip(rows["model"], rows["value"].astype(float), strict=True))
    chosen = str(rows["yardstick"].iloc[0]) if "yardstick" in rows else ""
    return chosen if np.isfinite(values.get(chosen, np.nan)) else best_baseline(values, direction)


def single_scores(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of single perturbations in single contexts."""
    is_single = (scores["metric"] == metric) & (scores["context"] != ALL_CONTEXTS)
    return scores[is_single & (scores["perturbation"] != ALL_CONTEXTS)]


def by_target(part: pd.DataFrame) -> pd.DataFrame:
    """Average one metric of every target over its contexts: a row per target, a column per model.

    Where none of a target's contexts has enough cells to count, all do, each by its cells.
    """
    weight = part["weight"] if "weight" in part else pd.Series(1.0, index=part.index)
    cells = part["n_measured"] if "n_measured" in part else pd.Series(1.0, index=part.index)
    counts = weight.groupby(part["perturbation"]).transform("max") > 0
    weight = weight.where(counts, cells).astype(float)
    known = part.assign(weight=weight)[part["value"].notna() & (weight > 0)]
    known = known.assign(share=known["value"].astype(float) * known["weight"])
    sums = known.groupby(["perturbation", "model"])[["share", "weight"]].sum()
    return (sums["share"] / sums["weight"]).unstack("model")


def wide_scores(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per metric with its direction, and one column per model, baselines first and the replicate last."""
    order = [*baseline_names(), *model_names(scores), CEILING]
    headed = scores.assign(
        score=[
            f"{metric_label(m)} {ARROWS.get(d, '') if column == 'value' else ''}".strip()
            for m, d in zip(scores["metric"], scores["direction"], strict=True)
        ]
    )
    wide = headed.pivot(index="score", columns="model", values=column)
    wide = wide.loc[list(dict.fromkeys(headed["score"])), [m for m in order if m in wide.columns]]
    wide.columns.name = None
    return wide.reset_index().rename(columns={CEILING: "replicate"})


def remarks(scores: pd.DataFrame, series: str) -> pd.DataFrame:
    """List why scores were not computed, or not on all cells: one row per metric and reason, of the column `series`."""
    noted = scores[scores["reason"] != ""]
    rows = [
        {
            "score": metric_label(str(metric)),
            series: ", ".join(dict.fromkeys(part[series])),
            "scores": len(part),
            "why": reason,
        }
        for (metric, reason), part in noted.groupby(["metric", "reason"], sort=False)
    ]
    return pd.DataFrame(rows)
