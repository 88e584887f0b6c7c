"""Scores of one perturbation in one context: of predictions, of a replicate, and of one that is nearly right."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora import metrics
from scstate_lora.metrics.changes import Change, Moments, moments
from scstate_lora.metrics.registry import METRICS
from scstate_lora.metrics.set_pairs import CellSet, SetPair
from scstate_lora.metrics.usability import interpolated_duplicate
from scstate_lora.tl.scoring.controls import FEWEST, other

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scstate_lora.metrics.registry import Metric
    from scstate_lora.tl.scoring.controls import ContextControls
    from scstate_lora.tl.scoring.predictors import Predicted


class Score(NamedTuple):
    """A score with its standard deviation over the random halves, or NaN and the reason."""

    value: float
    sd: float = np.nan
    reason: str = ""


def scored_metrics() -> dict[str, Metric]:
    """Metrics of predicted cells, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.is_of_cells}


def set_metrics() -> dict[str, Metric]:
    """Metrics of predicted cells that are computed from the cells of one perturbation, by name."""
    return {name: m for name, m in METRICS.items() if (m.score, m.change, m.pair) != (None, None, None)}


def absent(reason: str) -> dict[str, Score]:
    """Give every metric the same reason to be absent."""
    return dict.fromkeys(scored_metrics(), Score(np.nan, reason=reason))


class MeasuredCase:
    """The measured cells of one perturbation in one context, beside its control cells.

    What does not depend on a prediction is computed once: moments, distances, and tests of the measured change.

    Parameters
    ----------
    control
        Control cells of the context.
    real
        Measured cells, ``(n, n_genes)``.
    seed
        Seed of the random halves of the measured cells.
    """

    def __init__(self, control: ContextControls, real: np.ndarray, *, seed: int = 0) -> None:
        self.control, self.real = control, real
        self._origin = control.whole.mean.astype(np.float32)
        self._too_few = ""
        try:
            self.sets = metrics.split_halves(len(real), seed=seed, n_splits=max(1, len(control.halves) // 2))
        except ValueError as error:
            self.sets, self._too_few = np.zeros((0, len(real)), dtype=bool), str(error)
        self.whole, *self.halves = moments(real, np.vstack([np.ones((1, len(real)), dtype=bool), self.sets]))
        self._measured = [Change(self.whole, half) for half in control.moments]
        self._set = CellSet(real, self.whole, origin=self._origin)

    def score(self, predicted: Predicted) -> dict[str, Score]:
        """Score a prediction: its cells, and its change from one half of the controls against the other half's."""
        pair = SetPair(CellSet(predicted.cells, predicted.moments, origin=self._origin), self._set)
        against = [self._measured[other(half)] for half in range(len(self._measured))]
        scores = {}
        for name, metric in set_metrics().items():
            if metric.change is not None:
                scores[name] = self._of_halves(metric, predicted.changes, against)
            else:
                scores[name] = self._of_cells(metric, pair)
        return scores

    def ceiling(self) -> dict[str, Score]:
        """Score one half of the measured cells against the other, each with a half of the controls of its own."""
        if self._too_few:
            return absent(self._too_few)
        changes = [Change(half, control) for half, control in zip(self.halves, self.control.moments, strict=False)]
        against = [changes[other(half)] for half in range(len(changes))]
        sets = [self._set.half(mask, half) for mask, half in zip(self.sets, self.halves, strict=True)]
        pairs = [SetPair.of_halves(self._set, self.sets[i], (sets[i], sets[other(i)])) for i in range(0, len(sets), 2)]
        scores = {}
        for name, metric in set_metrics().items():
            if metric.change is not None:
                scores[name] = self._of_halves(metric, changes, against, at_full_depth=True)
            else:
                scores[name] = over_splits([self._of_cells(metric, pair) for pair in pairs], metric)
        return scores

    def nearly_right(self, mean: np.ndarray) -> dict[str, Score]:
        """Score the interpolated duplicate of one half of the measured cells against the other half.

        Its genes are moved towards the mean of a prediction that knows no perturbation, ``(n_genes,)``, by the adjusted
        p-value of their change: it has what one replicate can be sure of.
        """
        if self._too_few:
            return absent(self._too_few)
        if not len(self.control.halves):
            return absent(self._few_controls())
        duplicates, against, pairs = [], [], []
        sets = [self._set.half(self.sets[i], self.halves[i]) for i in (0, 1)]
        try:
            moves = self.moves(mean)
        except ValueError as error:
            return absent(str(error))
        for i, by in enumerate(moves):
            half, control = self.halves[i], self.control.moments[i]
            moved = Moments(half.n_cells, half.mean + by, half.variance)
            duplicates.append(Change(moved, control))
            against.append(Change(self.halves[other(i)], self.control.moments[other(i)]))
            pairs.append(SetPair(sets[i].moved(by, moved), sets[other(i)]))
        scores = {}
        for name, metric in set_metrics().items():
            if metric.change is not None:
                scores[name] = self._of_halves(metric, duplicates, against)
            else:
                scores[name] = over_splits([self._of_cells(metric, pair) for pair in pairs], None)
        return scores

    def moves(self, mean: np.ndarray) -> list[np.ndarray]:
        """Change of the mean that makes interpolated duplicates of the first two halves, ``(n_genes,)`` each.

        Raises
        ------
        ValueError
            If a half has fewer than two measured or control cells.
        """
        return [
            interpolated_duplicate(half.mean, mean, Change(half, control).genes.fdr) - half.mean
            for half, control in zip(self.halves[:2], self.control.moments[:2], strict=False)
        ]

    def _of_cells(self, metric: Metric, pair: SetPair) -> Score:
        if metric.pair is not None:
            return attempt(partial(metric.pair, pair))
        assert metric.score is not None  # it is one or the other
        return attempt(partial(metric.score, pair.predicted.cells, pair.measured.cells, self.control.cells))

    def _of_halves(
        self, metric: Metric, predicted: Sequence[Change], against: Sequence[Change], *, at_full_depth: bool = False
    ) -> Score:
        """Average a score of changes over the splits and both directions of each."""
        assert metric.change is not None  # the caller's condition
        if not predicted:
            return Score(np.nan, reason=self._few_controls())
        single = [attempt(partial(metric.change, a, b)) for a, b in zip(predicted, against, strict=True)]
        return over_splits(single, metric if at_full_depth else None)

    def _few_controls(self) -> str:
        return f"two halves of the control cells need at least {FEWEST}; there are {len(self.control.names)}"


def attempt(score: Callable[[], float]) -> Score:
    """Return the value, or NaN and why it could not be computed."""
    try:
        return Score(score())
    except (ValueError, np.linalg.LinAlgError) as error:
        return Score(np.nan, reason=str(error))


def over_splits(single: Sequence[Score], metric: Metric | None) -> Score:
    """Average the scores of halves, at full depth if a metric is given; NaN if most halves have none."""
    values = np.array([score.value for score in single])
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values) or not len(finite):
        return Score(np.nan, reason=next(score.reason for score in single if score.reason))
    correct = None if metric is None else metric.full_depth
    mean, each = (finite.mean(), finite) if correct is None else (correct(finite.mean()), correct(finite))
    return Score(float(mean), float(each.std(ddof=1)) if len(each) > 1 else np.nan)


class Scores:
    """Scores of models by metric, perturbation and context, as arrays.

    Parameters
    ----------
    models, metrics, targets, contexts
        Names along the four axes.
    """

    def __init__(
        self, models: Sequence[str], metrics: Sequence[str], targets: Sequence[str], contexts: Sequence[str]
    ) -> None:
        self.models, self.metrics = list(models), list(metrics)
        self.targets, self.contexts = list(targets), list(contexts)
        shape = len(self.models), len(self.metrics), len(self.targets), len(self.contexts)
        self.value, self.sd = np.full(shape, np.nan), np.full(shape, np.nan)
        self.reason = np.full(shape, "", dtype=object)
        self.size = np.ones(shape)

    def put(self, model: str, target: str, context: str, scores: Mapping[str, Score]) -> None:
        """Store some scores of a model in one perturbation and context."""
        rows = [self.metrics.index(name) for name in scores]
        where = self.models.index(model), rows, self.targets.index(target), self.contexts.index(context)
        self.value[where] = [score.value for score in scores.values()]
        self.sd[where] = [score.sd for score in scores.values()]
        self.reason[where] = [score.reason for score in scores.values()]

    def put_size(self, model: str, metric: str, target: str, context: str, size: float) -> None:
        """Store the denominator of a score that is a ratio; the value is the numerator then."""
        where = self.models.index(model), self.metrics.index(metric), self.targets.index(target)
        self.size[(*where, self.contexts.index(context))] = size

    def of(self, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, standard deviations and sizes of a model, ``(n_metrics, n_targets, n_contexts)``; NaN if absent."""
        if model not in self.models:
            empty = np.full(self.value.shape[1:], np.nan)
            return empty, empty, empty
        m = self.models.index(model)
        return self.value[m], self.sd[m], self.size[m]

    def at(self, model: str, target: str, context: str) -> dict[str, Score]:
        """Scores of a model in one perturbation and context, by metric."""
        where = self.models.index(model), slice(None), self.targets.index(target), self.contexts.index(context)
        columns = zip(self.value[where], self.sd[where], self.reason[where], strict=True)
        return {name: Score(*column) for name, column in zip(self.metrics, columns, strict=True)}
