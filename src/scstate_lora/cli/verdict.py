"""Scores and findings in a few lines of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.metrics import goodness
from scstate_lora.metrics.baselines import CEILING, NO_CHANGE
from scstate_lora.metrics.registry import METRICS, headline_of, metric_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scstate_lora.workflow.repetition import Replay

_SHOWN = 10
_UNDECIDED = "not decided"
# An interval over fewer is not informative.
_FEWEST = 3


def score_lines(scores: pd.DataFrame, *, name: str) -> list[str]:
    """Write the headline scores of a model beside the baseline that it has to beat and a replicate.

    Parameters
    ----------
    scores
        The table of :func:`scstate_lora.tl.evaluate_perturbation`.
    name
        The model.
    """
    single = scores[(scores["model"] == name) & (scores["context"] != "all") & (scores["perturbation"] != "all")]
    n_targets, n_contexts = single["perturbation"].nunique(), single["context"].nunique()
    lines = [f"{name}: {_counted(n_targets, 'perturbation')} in {_counted(n_contexts, 'context')}, averages:"]
    is_few = (n_targets if n_targets > 1 else n_contexts) < _FEWEST
    rows, relations = [("", name, "baseline to beat", "replicate", "skill", "")], []
    averages = scores[_is_average(scores["context"]) & _is_average(scores["perturbation"])]
    for metric in headline_of(dict.fromkeys(scores["metric"])):
        by_model = averages[averages["metric"] == metric].set_index("model").to_dict("index")
        if name not in by_model:  # a score that has no average
            continue
        own = by_model[name]
        if np.isnan(own["value"]):
            rows.append((metric_label(metric), "-", "", "", "", str(own["reason"])))
            continue
        baseline = str(own["yardstick"]) or NO_CHANGE
        to_beat = float(by_model[baseline]["value"]) if baseline in by_model else np.nan
        relation = "" if np.isnan(to_beat) else _UNDECIDED if is_few else _relation(own, to_beat, metric)
        relations += [relation] if relation else []
        beaten = "-" if np.isnan(to_beat) else f"{_text(to_beat)} ({baseline})"
        replicate = _text(by_model[CEILING]["value"]) if CEILING in by_model else "-"
        rows.append((metric_label(metric), _with_interval(own), beaten, replicate, _text(own["skill"]), relation))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if not relations:
        return [*lines, "No baseline has a score: without training cells nothing can be compared."]
    if is_few:
        of_few = _counted(*((n_targets, "perturbation") if n_targets > 1 else (n_contexts, "context")))
        return [*lines, f"Of {of_few} no interval can be made, so that it is not decided whether {name} is better."]
    better, worse, undecided = (relations.count(relation) for relation in ("better", "worse", _UNDECIDED))
    of_all = f"of {_counted(len(relations), 'headline metric')}"
    chosen = ", which training cells chose," if averages["yardstick"].any() else ""
    told = f"{name} is better in {better} {of_all} and worse in {worse}; {undecided} are not decided"
    return [*lines, f"Against the baseline{chosen} {told}."]


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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    reasons = dict.fromkeys(scores.loc[scores["value"].isna(), "reason"])
    return [*lines, *(f"Not computed: {reason}" for reason in reasons if reason)]


def replay_lines(outcome: Replay) -> list[str]:
    """Say whether a repetition gave the same numbers, else what differs."""
    found = outcome.numbers
    changed = [*(f"Changed file: {text}." for text in outcome.files), *_versions(outcome.versions)]
    new = [f"{found.new:,} further numbers were not recorded."] if found.new else []
    if found.is_same:
        return [f"The same {found.same:,} numbers.", *changed, *new]
    different = found.different
    lines = [
        f"{table}: {row}: {column} was {recorded:.9g}, is {now:.9g}"
        for table, row, column, recorded, now in different[:_SHOWN].itertuples(index=False)
    ]
    more = [f"... and {len(different) - _SHOWN:,} more"] if len(different) > _SHOWN else []
    absent = [f"absent now: {name}" for name in found.absent[:_SHOWN]]
    absent += [f"... and {len(found.absent) - _SHOWN:,} more absent"] if len(found.absent) > _SHOWN else []
    first = f"Not the same: {len(different):,} numbers differ, {found.same:,} are the same."
    return [first, *lines, *more, *absent, *changed, *new]


def _versions(changes: Sequence[str]) -> list[str]:
    return [f"Changed versions: {'; '.join(changes)}."] if changes else []


def _is_average(column: pd.Series) -> pd.Series:
    """Rows of the average; of a single context or perturbation, its own."""
    return (column == "all") | (column.nunique() == 1)


def _relation(own: Mapping[Any, Any], baseline: float, metric: str) -> str:
    """Whether a score is better than a baseline; not decided where its interval holds the baseline."""
    if own["ci_low"] <= baseline <= own["ci_high"]:
        return _UNDECIDED
    gain = float(np.subtract(*goodness([own["value"], baseline], direction=METRICS[metric].direction)))
    return "better" if gain > 0 else "worse" if gain < 0 else _UNDECIDED


def _with_interval(row: Mapping[Any, Any]) -> str:
    interval = "" if np.isnan(row["ci_low"]) else f" ({_text(row['ci_low'])} to {_text(row['ci_high'])})"
    return _text(row["value"]) + interval


def _text(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
