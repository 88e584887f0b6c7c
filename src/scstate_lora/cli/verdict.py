"""Scores and findings in a few lines of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora._utils import listed
from scstate_lora.metrics.registry import headline_of, metric_label
from scstate_lora.reporting.score_tables import average_of
from scstate_lora.reporting.targets import MANY
from scstate_lora.reporting.verdicts import compare_over_targets, compare_with_baseline, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from scstate_lora.model import CellTypeClassifier
    from scstate_lora.workflow.repetition import Replay

_SHOWN = 10


def score_lines(scores: pd.DataFrame, *, name: str) -> list[str]:
    """Judge a model by its headline scores, beside the baseline that training cells chose and a replicate.

    Parameters
    ----------
    scores
        The table of :func:`scstate_lora.tl.evaluate_perturbation`.
    name
        The model.
    """
    single = scores[(scores["model"] == name) & (scores["context"] != "all") & (scores["perturbation"] != "all")]
    targets, n_contexts = list(dict.fromkeys(single["perturbation"])), single["context"].nunique()
    metrics = headline_of(dict.fromkeys(scores["metric"]))
    if len(targets) >= MANY:
        results = [compare_over_targets(scores, name, metric) for metric in metrics]
    else:
        results = [compare_with_baseline(scores, name, metric) for metric in metrics]
    averages = average_of(scores)
    skill = averages[averages["model"] == name].set_index("metric")["skill"]
    rows: list[tuple[str, ...]] = [("", name, "baseline", "", "replicate", "skill", "")]
    for result in results:
        values = map(_text, (result.value, result.baseline_value, result.replicate, skill.get(result.metric, np.nan)))
        own, baseline, *others = values
        rows.append((result.label, own, baseline, result.baseline, *others, result.relation))
    verdict = judge(results, model=name, target=listed(targets, limit=3, form=str)).sentences
    return [
        f"{name}: {_counted(len(targets), 'perturbation')} in {_counted(n_contexts, 'context')}, averages:",
        *_aligned(rows),
        *verdict,
    ]


def audit_lines(findings: pd.DataFrame) -> list[str]:
    """Write the errors and warnings of :func:`scstate_lora.tl.audit`, and how many notes there are."""
    told = findings[findings["severity"] != "info"]
    lines = [f"Audit, {row['severity']}: {row['finding']}. Fix: {row['fix']}." for row in told.to_dict("records")]
    notes = _counted(len(findings) - len(told), "note")
    return [
        *(lines or ["Audit: nothing that makes the scores worthless or too good."]),
        f"({notes} in tables/audit.csv)",
    ]


def embedding_lines(scores: pd.DataFrame) -> list[str]:
    """Write the table of :func:`scstate_lora.tl.evaluate`, one line per metric and one column per embedding."""
    names = list(dict.fromkeys(scores["embedding"]))
    rows = [("", *names, "ignoring it")]
    for (metric, key), part in scores.groupby(["metric", "key"], sort=False):
        values = part.set_index("embedding")
        shown = [_text(values["value"].get(name, np.nan)) for name in names]
        rows.append((f"{metric_label(str(metric))} of {key}", *shown, _text(values["baseline"].max())))
    lines = _aligned(rows)
    reasons = dict.fromkeys(scores.loc[scores["value"].isna(), "reason"])
    return [*lines, *(f"Not computed: {reason}" for reason in reasons if reason)]


def classifier_lines(model: CellTypeClassifier) -> list[str]:
    """Say what a classifier was trained on, and how it does on left-out cells beside simple methods."""
    kept = "as it was trained" if model.adapts_encoder else "as it was before"
    lines = [f"Strategy {model.strategy}: the encoder is used {kept}."]
    for key, scores in model.scores.groupby("target", sort=False):
        target = model.targets[str(key)]
        what = "a number" if target.target.tree is None else _counted(len(target.classes), "label")
        lines.append(f"{key}: {what}, {_counted(sum(target.n_labelled), 'cell')}; scores on {target.folds}:")
        shown = [name for name in _OF_LABELS if name in scores and scores[name].notna().any()]
        rows = [("", *(_OF_LABELS[name] for name in shown))]
        rows += [(row["method"], *(_text(row[name]) for name in shown)) for row in scores.to_dict("records")]
        lines += _aligned(rows)
    check = model.unknown_check
    if len(check):
        lowest = check.sort_values("auroc").head(3)
        named = ", ".join(f"{kind} {value:.2f}" for kind, value in zip(lowest["type"], lowest["auroc"], strict=True))
        mean = check["auroc"].mean()
        lines.append(
            f"Types left out of training are found as unknown with a mean AUROC of {mean:.2f}; least: {named}."
        )
    return lines


_OF_LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "calibration_error": "calibration error",
    "mean_error": "mean error",
    "r2": "R2",
}
"""Scores of labels and of numbers, and how they are shown."""


def label_lines(table: pd.DataFrame, name: str) -> list[str]:
    """Count the labels that were given, with their mean confidence, and say why others were not.

    Parameters
    ----------
    table
        What :meth:`scstate_lora.CellTypeClassifier.predict` returned.
    name
        Column of the label, or of the number.
    """
    values = table[name]
    if f"{name}_rejected" not in table:
        return [f"{_counted(len(table), 'cell')}: {name} from {values.min():.3g} to {values.max():.3g}."]
    rejected = table[f"{name}_rejected"]
    given = rejected == ""
    confidence = table.loc[given, f"{name}_confidence"].groupby(values[given], observed=True).mean()
    counts = values[given].value_counts()
    rows = [("label", "cells", "mean confidence")]
    rows += [(str(label), f"{counts[label]:,}", _text(confidence[label])) for label in counts.index[counts > 0]]
    reasons = rejected[~given].value_counts()
    first = f"{_counted(len(table), 'cell')}, {_counted(int(given.sum()), 'label')} given:"
    without = [f"No label, {reason}: {n:,}" for reason, n in reasons.items() if n]
    return [first, *(_aligned(rows) if given.any() else []), *without]


def replay_lines(outcome: Replay) -> list[str]:
    """Say whether a repetition gave the same numbers, else what differs."""
    numbers = outcome.numbers
    changed = [*(f"Changed file: {text}." for text in outcome.files), *_versions(outcome.versions)]
    new = [f"{numbers.new:,} further numbers were not recorded."] if numbers.new else []
    if numbers.is_same:
        return [f"The same {numbers.same:,} numbers.", *changed, *new]
    different = numbers.different
    lines = [
        f"{table}: {row}: {column} was {recorded:.9g}, is {now:.9g}"
        for table, row, column, recorded, now in different[:_SHOWN].itertuples(index=False)
    ]
    more = [f"... and {len(different) - _SHOWN:,} more"] if len(different) > _SHOWN else []
    absent = [f"absent now: {name}" for name in numbers.absent[:_SHOWN]]
    absent += [f"... and {len(numbers.absent) - _SHOWN:,} more absent"] if len(numbers.absent) > _SHOWN else []
    first = f"Not the same: {len(different):,} numbers differ, {numbers.same:,} are the same."
    return [first, *lines, *more, *absent, *changed, *new]


def _versions(changes: Sequence[str]) -> list[str]:
    return [f"Changed versions: {'; '.join(changes)}."] if changes else []


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Write a table as lines with its columns under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _text(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
