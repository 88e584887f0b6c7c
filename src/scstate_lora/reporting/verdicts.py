"""Whether a model is better than the simple baseline: score by score, and in a plain sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora.metrics import bootstrap_interval, goodness
from scstate_lora.metrics.baselines import CEILING
from scstate_lora.metrics.registry import headline_of, metric_label
from scstate_lora.reporting.parts import text
from scstate_lora.reporting.score_tables import (
    ALL_CONTEXTS,
    ARROWS,
    average_of,
    baseline_to_beat,
    best_baseline,
    by_target,
    direction_of,
    over_perturbations,
    single_scores,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora.metrics.perturbation import Direction

# An interval over fewer contexts, or targets, is not informative.
_FEWEST = {"contexts": 3, "targets": 5}
_N_BOOT = 2000
BETTER, WORSE, EQUAL, UNDECIDED, NOT_COMPARED = "better", "worse", "equal", "not decided", "not compared"


class Pairs(NamedTuple):
    """Paired differences to the baseline, model minus baseline, positive is better."""

    unit: str
    """What they are over: ``"contexts"`` or ``"targets"``."""
    gains: np.ndarray
    """``(n,)``."""
    weights: np.ndarray
    """``(n,)``, all above 0."""


@dataclass(frozen=True)
class Result:
    """How a model compares with the simple baseline in one score."""

    metric: str
    relation: str
    """``"better"``, ``"worse"``, ``"equal"``, ``"not decided"`` or ``"not compared"``."""
    direction: Direction = "higher"
    value: float = np.nan
    baseline: str = ""
    """The one chosen on training cells; where the table names none, the best one."""
    baseline_value: float = np.nan
    best: str = ""
    """The baseline that is best on these cells."""
    best_value: float = np.nan
    replicate: float = np.nan
    interval: tuple[float, float] = (np.nan, np.nan)
    """95 % interval of the difference to the baseline, positive is better."""
    pairs: Pairs | None = None
    why: str = ""
    """Why it is not decided or not compared."""

    @property
    def mark(self) -> str:
        """Mark of the verdict."""
        return {BETTER: "good", WORSE: "bad"}.get(self.relation, "even")

    @property
    def label(self) -> str:
        """The score in words."""
        return metric_label(self.metric)

    def beaten_by_another(self) -> bool:
        """Whether a baseline that training cells did not choose is better than the model on these cells."""
        if self.best in ("", self.baseline) or np.isnan(self.value):
            return False
        own, other = goodness([self.value, self.best_value], direction=self.direction)
        return bool(other > own) and text(self.value) != text(self.best_value)


@dataclass(frozen=True)
class Judgement:
    """Whether to believe a model: a mark, the answer in few words, and sentences with the numbers."""

    mark: str
    answer: str
    sentences: list[str]


def compare_with_baseline(table: pd.DataFrame, model: str, metric: str) -> Result:
    """Compare a model with the simple baseline in one score: the average over contexts, and context by context.

    Parameters
    ----------
    table
        The table of :func:`scstate_lora.tl.evaluate_perturbation`.
    model, metric
        Names in the table.
    """
    part = over_perturbations(table[table["metric"] == metric])
    direction = direction_of(part)
    average = average_of(part)
    values = dict(zip(average["model"], average["value"].astype(float), strict=True))
    chosen = baseline_to_beat(average, direction)
    reason = str(average.loc[average["model"] == model, "reason"].iloc[0]) if model in values else "it was not scored"
    pairs = None if chosen is None else _over_contexts(part, model, chosen, direction)
    return _result(metric, direction, model, values, chosen, pairs, reason=reason)


def compare_over_targets(scores: pd.DataFrame, model: str, metric: str) -> Result:
    """Compare a model with the simple baselines in one score over many targets, by paired differences.

    A target counts by the average of its contexts; where none of them has enough cells to count, by all of them, each
    by its cells.

    Parameters
    ----------
    scores
        Tables of :func:`scstate_lora.tl.evaluate_perturbation` of all targets, put together.
    model, metric
        Names in the table.
    """
    part = single_scores(scores, metric)
    if part.empty:  # a score of all perturbations together
        return compare_with_baseline(scores, model, metric)
    direction = direction_of(part)
    values = by_target(part)
    means = {str(name): float(values[name].mean()) for name in values if values[name].notna().any()}
    if "yardstick" in part:
        chosen = part.groupby("perturbation")["yardstick"].first().reindex(values.index).astype(str)
    else:
        chosen = pd.Series(best_baseline(means, direction) or "", index=values.index)
    own = values.get(model, pd.Series(np.nan, index=values.index)).to_numpy(dtype=float)
    floors = np.array([values.at[t, b] if b in values else np.nan for t, b in chosen.items()], dtype=float)
    both = np.isfinite(own) & np.isfinite(floors)
    gains = goodness(own[both], direction=direction) - goodness(floors[both], direction=direction)
    names = list(dict.fromkeys(chosen[both]))
    name = names[0] if len(names) == 1 else "the baseline chosen for each target" if names else None
    if name is not None:
        means |= {model: float(own[both].mean()), name: float(floors[both].mean())}
    pairs = Pairs("targets", np.asarray(gains), np.ones(len(gains)))
    return _result(metric, direction, model, means, name, pairs, reason="no target has a score beside a baseline's")


def _result(
    metric: str,
    direction: Direction,
    model: str,
    values: dict[str, float],
    chosen: str | None,
    pairs: Pairs | None,
    *,
    reason: str,
) -> Result:
    """Judge one score by the interval of the paired differences."""
    value, best = values.get(model, np.nan), best_baseline(values, direction)
    known = {
        "metric": metric, "direction": direction, "value": value, "best": best or "",
        "best_value": values.get(best or "", np.nan), "replicate": values.get(CEILING, np.nan),
    }  # fmt: skip
    if np.isnan(value):
        return Result(relation=NOT_COMPARED, why=reason, **known)  # type: ignore[arg-type]
    if chosen is None or pairs is None:
        return Result(relation=NOT_COMPARED, why="no baseline has a score", **known)  # type: ignore[arg-type]
    known |= {"baseline": chosen, "baseline_value": values[chosen], "pairs": pairs}
    if text(value) == text(values[chosen]):
        return Result(relation=EQUAL, **known)  # type: ignore[arg-type]
    n = len(pairs.gains)
    if n < _FEWEST[pairs.unit]:
        counted = f"{n} {pairs.unit}" if n != 1 else f"one {pairs.unit.removesuffix('s')}"
        why = f"of {counted} no interval can be made"
        return Result(relation=UNDECIDED, why=why, **known)  # type: ignore[arg-type]
    low, high = bootstrap_interval(pairs.gains, weights=pairs.weights, n_boot=_N_BOOT)
    relation = BETTER if low > 0 else WORSE if high < 0 else UNDECIDED
    why = "the interval of the difference holds 0" if relation == UNDECIDED else ""
    return Result(relation=relation, interval=(low, high), why=why, **known)  # type: ignore[arg-type]


def judge(results: Sequence[Result], *, model: str, target: str) -> Judgement:
    """Say whether to believe a model, from how it compares in the headline scores.

    It is believed if it is better than the simple baseline in half or more of them and worse in none; not, if it is
    worse in half or more of them and better in fewer.

    Parameters
    ----------
    results
        How the model compares in every score.
    model
        Its name.
    target
        The perturbation or perturbations that were predicted, in words.
    """
    headline = set(headline_of([result.metric for result in results]))
    compared = [r for r in results if r.metric in headline and r.relation != NOT_COMPARED]
    if not compared:
        why = next((r.why for r in results if r.why), "nothing was scored")
        return Judgement("even", "not decided", [f"{model} was not compared with a baseline: {why}."])
    n = {relation: sum(r.relation == relation for r in compared) for relation in (BETTER, WORSE, EQUAL, UNDECIDED)}
    names = list(dict.fromkeys(r.baseline for r in compared))
    is_one = len(names) == 1
    named = f"the simple baseline {names[0]}" if is_one else f"its simple baselines ({', '.join(names)})"
    of = f"of {len(compared)} headline scores"
    if n[BETTER] >= len(compared) / 2 and not n[WORSE]:
        rest = ", and worse in none" if n[BETTER] < len(compared) else ""
        mark, answer = "good", "believe it"
        verdict = f"Believe it: {model} predicts {target} better than {named} in {n[BETTER]} {of}{rest}."
    elif n[WORSE] >= len(compared) / 2 and n[BETTER] < n[WORSE]:
        mark, answer = "bad", "do not believe it"
        verdict = (
            f"Do not believe it: {named} {'predicts' if is_one else 'predict'} {target} better than {model} in "
            f"{n[WORSE]} {of}. Use the baseline."
        )
    elif n[BETTER] or n[WORSE]:
        mark, answer = "even", "not decided"
        counts = [f"{word} in {n[word] or 'none'}" for word in sorted((BETTER, WORSE), key=lambda word: -n[word])]
        verdict = (
            f"Not decided: beside {named}, {model} predicts {target} {counts[0]} {of} and {counts[1]}; the others are "
            "equal, or their intervals allow both."
        )
    elif n[UNDECIDED]:
        mark, answer = "even", "not decided"
        why = next(r.why for r in compared if r.relation == UNDECIDED)
        verdict = f"Not decided whether {model} predicts {target} better than {named}: {why}."
    else:
        mark, answer = "even", "no better"
        verdict = f"No better: {model} predicts {target} as {named} does."
    sentences = [verdict]
    beaten = [r for r in compared if r.beaten_by_another() and r.relation != WORSE]
    if beaten:
        others = "; ".join(f"{r.best} in {r.label} ({text(r.best_value)})" for r in beaten)
        sentences.append(f"On these cells another baseline is better than the model: {others}.")
    return Judgement(mark, answer, sentences)


def results_table(results: Sequence[Result], *, model: str) -> pd.DataFrame:
    """Tabulate how a model compares in every score: values, baseline, replicate, interval and verdict."""
    rows = []
    for r in results:
        low, high = r.interval
        n = 0 if r.pairs is None else len(r.pairs.gains)
        better = 0 if r.pairs is None else int((r.pairs.gains > 0).sum())
        rows.append(
            {
                "score": f"{r.label} {ARROWS[r.direction]}",
                model: r.value,
                "simple baseline": r.baseline_value,
                "which": r.baseline,
                "best on these cells": f"{r.best} {text(r.best_value)}" if r.best else "",
                "replicate": r.replicate,
                "better in": f"{better} of {n} {r.pairs.unit}" if r.pairs is not None and n else "",
                "95 % interval of the gain": f"{text(low)} to {text(high)}" if np.isfinite(low) else "",
                "verdict": r.relation + (f": {r.why}" if r.why and not np.isfinite(low) else ""),
            }
        )
    return pd.DataFrame(rows)


def _over_contexts(part: pd.DataFrame, model: str, baseline: str, direction: Direction) -> Pairs:
    """Gain over a baseline in every context that has both and counts in the average.

    Paired, so that the difficulty that both share within a context cancels.
    """
    single = part[(part["context"] != ALL_CONTEXTS) & part["model"].isin([model, baseline])]
    single = single.assign(weight=single["weight"] if "weight" in single else 1.0)
    wide = single.pivot(index="context", columns="model", values="value").reindex(columns=[model, baseline])
    weights = single.groupby("context")["weight"].first().reindex(wide.index).to_numpy(dtype=float)
    both = wide.to_numpy(dtype=float)
    counts = np.isfinite(both).all(axis=1) & (weights > 0)
    good = goodness(both[counts], direction=direction)
    return Pairs("contexts", good[:, 0] - good[:, 1], weights[counts])
