"""Scores of predicted cells of one perturbation, context by context, beside baselines and the replicate ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora.metrics.baselines import BASELINES, CEILING, YARDSTICK, Case
from scstate_lora.metrics.changes import Change, Moments, moments
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.scoring.controls import FEWEST, ContextControls, hidden_names, other
from scstate_lora.tl.scoring.table import ALL, SCORE_COLUMNS, average, average_sd, reason_of_average, weights_of
from scstate_lora.tl.scoring.table import skill as skill_and_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scstate_lora.metrics.baselines import Baseline
    from scstate_lora.metrics.registry import Metric
    from scstate_lora.tl.scoring.cells import Cells
    from scstate_lora.tl.scoring.table import Counting
    from scstate_lora.tl.scoring.training import Training


class Predictor(Protocol):
    """What is scored; a ValueError says why there is no prediction."""

    def cells(self, control: ContextControls) -> np.ndarray:
        """Predict cells ``(n, n_genes)`` of a context."""

    def halves(self, control: ContextControls, hidden: Sequence[frozenset[str]]) -> list[Moments]:
        """Predict from each half of the control cells, without any knowledge of some control cells by name."""


@dataclass(frozen=True)
class PredictedCells:
    """Cells that were predicted, as a predictor."""

    predicted: Cells

    def cells(self, control: ContextControls) -> np.ndarray:
        """Take the cells of a context."""
        return self.predicted.of(control.context)

    def halves(self, control: ContextControls, _: Sequence[frozenset[str]]) -> list[Moments]:
        """Take the cells that were predicted from each half."""
        own = self.predicted.names[self.predicted.contexts == control.context]
        return moments(self.cells(control), control.halves_of(own))


@dataclass(frozen=True)
class BaselineCells:
    """A baseline as a predictor of one perturbation."""

    baseline: Baseline
    target: str
    training: Training

    def cells(self, control: ContextControls) -> np.ndarray:
        """Predict from all control cells and all training cells."""
        assert self.baseline.cells is not None  # chosen below
        return self.baseline.cells(control.cells, Case(self.target, control.context, self.training.means))

    def halves(self, control: ContextControls, hidden: Sequence[frozenset[str]]) -> list[Moments]:
        """Predict from one half, having learned without the other."""
        assert self.baseline.cells is not None  # chosen below
        predicted: list[Moments] = []
        for half, names in zip(control.halves, hidden, strict=True):
            case = Case(self.target, control.context, self.training.without(names))
            cells = self.baseline.cells(control.cells[half], case)
            predicted.append(Moments.of(cells))
        return predicted


def baseline_predictors(target: str, training: Training) -> dict[str, BaselineCells]:
    """Return the baselines of one perturbation as predictors, by name."""
    return {name: BaselineCells(b, target, training) for name, b in BASELINES.items() if b.cells is not None}


class _Score(NamedTuple):
    """A score with its standard deviation over the random halves, or NaN and the reason."""

    value: float
    sd: float = np.nan
    reason: str = ""


def score_cells(
    predictors: Mapping[str, Predictor],
    measured: Cells,
    controls: Cells,
    contexts: Sequence[str],
    *,
    counting: Counting,
    with_ceiling: bool = True,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells against measured ones by all metrics of cells.

    Parameters
    ----------
    predictors
        What is scored, by name.
    measured, controls
        Measured cells under the perturbation, and the control cells that everything is predicted from.
    contexts
        Contexts to score, each with cells of both.
    counting
        Which contexts count in the average, and with what weight.
    with_ceiling
        Whether to score one half of the measured cells against the other.
    n_boot
        Bootstrap samples of contexts behind the interval of the average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    Table as :func:`scstate_lora.tl.evaluate_perturbation` returns it. The skill is NaN without ceiling or yardstick.
    """
    split = [ContextControls.of(controls, context, seed=seed) for context in contexts]
    n_halves = max(len(c.halves) for c in split)
    hidden = [hidden_names(split, half) for half in range(n_halves)]
    scores: dict[str, list[dict[str, _Score]]] = {name: [] for name in [*predictors, *([CEILING] * with_ceiling)]}
    for control in split:
        case = _Case.of(control, measured.of(control.context))
        for name, predictor in predictors.items():
            scores[name].append(case.score(predictor, hidden))
        if with_ceiling:
            scores[CEILING].append(case.ceiling(seed))
    counts = [(len(c.names), int((measured.contexts == c.context).sum())) for c in split]
    return _table(scores, contexts, counts, counting=counting, n_boot=n_boot, seed=seed)


def scored_metrics() -> dict[str, Metric]:
    """Metrics of predicted cells, by name."""
    return {name: m for name, m in METRICS.items() if m.score is not None or m.change is not None}


@dataclass(frozen=True)
class _Case:
    """One context: its control cells, measured cells, and the measured change against each half of the controls."""

    control: ContextControls
    real: np.ndarray
    controls: list[Moments]
    measured: list[Change]

    @classmethod
    def of(cls, control: ContextControls, real: np.ndarray) -> _Case:
        controls = control.moments()
        whole = Moments.of(real)
        return cls(control, real, controls, [Change(whole, half) for half in controls])

    def score(self, predictor: Predictor, hidden: Sequence[frozenset[str]]) -> dict[str, _Score]:
        """Score a prediction: its cells, and its change from one half of the controls against the other half's."""
        try:
            cells = predictor.cells(self.control)
            halves = predictor.halves(self.control, hidden[: len(self.control.halves)])
        except ValueError as error:
            return dict.fromkeys(scored_metrics(), _Score(np.nan, reason=str(error)))
        predicted = [Change(half, control) for half, control in zip(halves, self.controls, strict=True)]
        against = [self.measured[other(half)] for half in range(len(self.measured))]
        scores = {}
        for name, metric in scored_metrics().items():
            if metric.change is not None:
                scores[name] = self._of_halves(metric, predicted, against)
            else:
                assert metric.score is not None  # it is one or the other
                scores[name] = _attempt(partial(metric.score, cells, self.real, self.control.cells))
        return scores

    def ceiling(self, seed: int) -> dict[str, _Score]:
        """Score one half of the measured cells against the other, each with a half of the controls of its own."""
        try:
            sets = metrics.split_halves(len(self.real), seed=seed)
        except ValueError as error:
            return dict.fromkeys(scored_metrics(), _Score(np.nan, reason=str(error)))
        halves = moments(self.real, sets)
        changes = [Change(half, control) for half, control in zip(halves, self.controls, strict=False)]
        against = [changes[other(half)] for half in range(len(changes))]
        scores = {}
        for name, metric in scored_metrics().items():
            if metric.change is not None:
                scores[name] = self._of_halves(metric, changes, against, at_full_depth=True)
            else:
                pairs = zip(sets[::2], sets[1::2], strict=True)
                scores[name] = _over_splits([self._between(metric, a, b) for a, b in pairs], metric)
        return scores

    def _between(self, metric: Metric, one: np.ndarray, rest: np.ndarray) -> _Score:
        assert metric.score is not None  # the caller's condition
        return _attempt(partial(metric.score, self.real[one], self.real[rest], self.control.cells))

    def _of_halves(
        self, metric: Metric, predicted: Sequence[Change], against: Sequence[Change], *, at_full_depth: bool = False
    ) -> _Score:
        """Average a score of changes over the splits and both directions of each."""
        assert metric.change is not None  # the caller's condition
        if not predicted:
            n = len(self.control.names)
            return _Score(np.nan, reason=f"two halves of the control cells need at least {FEWEST}; there are {n}")
        single = [_attempt(partial(metric.change, a, b)) for a, b in zip(predicted, against, strict=True)]
        return _over_splits(single, metric if at_full_depth else None)


def _attempt(score: Callable[[], float]) -> _Score:
    """Return the value, or NaN and why it could not be computed."""
    try:
        return _Score(score())
    except (ValueError, np.linalg.LinAlgError) as error:
        return _Score(np.nan, reason=str(error))


def _over_splits(single: Sequence[_Score], metric: Metric | None) -> _Score:
    """Average the scores of halves, at full depth if a metric is given; NaN if most halves have none."""
    values = np.array([score.value for score in single])
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values):
        return _Score(np.nan, reason=next(score.reason for score in single if score.reason))
    correct = None if metric is None else metric.full_depth
    mean, each = (finite.mean(), finite) if correct is None else (correct(finite.mean()), correct(finite))
    return _Score(float(mean), float(each.std(ddof=1)) if len(each) > 1 else np.nan)


def _table(
    scores: Mapping[str, Sequence[Mapping[str, _Score]]],
    contexts: Sequence[str],
    counts: Sequence[tuple[int, int]],
    *,
    counting: Counting,
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """Lay out the scores of every model by context, with averages, skill and intervals."""
    weights, too_few = weights_of(contexts, counts, counting)
    nothing = [dict.fromkeys(scored_metrics(), _Score(np.nan))] * len(contexts)
    rows = []
    for model, by_context in scores.items():
        for name, metric in scored_metrics().items():
            own, floor, top = (
                [score[name] for score in part]
                for part in (by_context, scores.get(YARDSTICK, nothing), scores.get(CEILING, nothing))
            )
            row = {"model": model, "metric": name, "ci_low": np.nan, "ci_high": np.nan, **metric.columns()}
            for c, context in enumerate(contexts):
                row |= {"context": context, "value": own[c].value, "split_sd": own[c].sd, "reason": own[c].reason}
                row |= {"n_control": counts[c][0], "n_measured": counts[c][1], "weight": weights[c]}
                row |= skill_and_reason(own[c].value, floor[c], top[c], direction=metric.direction)
                rows.append(dict(row))
            if list(contexts) != [ALL]:
                values = np.array([score.value for score in own])
                sds = np.array([score.sd for score in own])
                row |= {"context": ALL, **average(values, weights=weights, n_boot=n_boot, seed=seed)}
                row["split_sd"] = average_sd(values, sds, weights)
                row["reason"] = reason_of_average(values, [score.reason for score in own], contexts, too_few)
                row |= {"n_control": sum(n for n, _ in counts), "n_measured": sum(n for _, n in counts)}
                row["weight"] = weights.sum()
                row |= _skill_of_averages(own, floor, top, weights, metric)
                rows.append(row)
    return pd.DataFrame(rows)[["model", "context", "metric", *SCORE_COLUMNS]]


def _skill_of_averages(
    own: Sequence[_Score], floor: Sequence[_Score], top: Sequence[_Score], weights: np.ndarray, metric: Metric
) -> dict[str, float | str]:
    """Skill of the averages over the contexts that count and in which model, yardstick and ceiling have a value.

    Of a metric that is best at one, it is the distances to one that are averaged.
    """
    columns = np.array([[score.value for score in part] for part in (own, floor, top)])
    shared = np.isfinite(columns).all(axis=0) & (weights > 0)
    if not shared.any():
        return skill_and_reason(np.nan, _Score(np.nan), _Score(np.nan), direction=metric.direction)
    good = np.average(metrics.goodness(columns[:, shared], direction=metric.direction), weights=weights[shared], axis=1)
    sds = [
        average_sd(row[shared], np.array([score.sd for score in part])[shared], weights[shared])
        for row, part in zip(columns[1:], (floor, top), strict=True)
    ]
    low, high = (_Score(float(value), sd) for value, sd in zip(good[1:], sds, strict=True))
    return skill_and_reason(float(good[0]), low, high, direction="higher")
