"""What is scored: cells that a model predicted, and the baselines, perturbation by perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from scstate_lora.metrics.baselines import BASELINES, MEAN_EFFECT, Baseline, Case, shifted
from scstate_lora.metrics.changes import Change, Moments, moments
from scstate_lora.metrics.set_pairs import is_one_profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora.metrics.baselines import TrainingMeans
    from scstate_lora.tl.scoring.cells import GroupedCells
    from scstate_lora.tl.scoring.controls import ContextControls
    from scstate_lora.tl.scoring.training import Training


class Predicted(NamedTuple):
    """A prediction of one perturbation in one context."""

    cells: np.ndarray
    """``(n, n_genes)``."""
    moments: Moments
    """Of these cells."""
    changes: list[Change]
    """The change that was predicted from each half of the control cells."""
    depth: np.ndarray | None = None
    """As of :class:`Cells`, ``(n,)``."""
    relative: np.ndarray | None = None
    """Counts of the cells up to a factor, ``(n, n_genes)``, where they are not expm1 of the cells."""


class Predictor(Protocol):
    """What is scored."""

    def predict(self, target: str, control: ContextControls, hidden: Sequence[frozenset[str]]) -> Predicted:
        """Predict a perturbation in a context; from each half of the controls without some control cells, by name.

        A ValueError says why there is no prediction.
        """


@dataclass(frozen=True)
class PredictedCells:
    """Cells that were predicted, as a predictor."""

    cells: GroupedCells

    def predict(self, target: str, control: ContextControls, _: Sequence[frozenset[str]]) -> Predicted:
        """Take the cells of a perturbation and context, and those that were predicted from each half."""
        rows = self.cells.rows(target, control.context)
        if not len(rows):
            msg = f"no cell of {target!r} was predicted in {control.context}"
            raise ValueError(msg)
        cells = self.cells.dense(rows)
        names, depth = self.cells.cells.names[rows], self.cells.depth(rows)
        if names[0] is None:  # nobody knows from which control cells
            whole = Moments.of(cells)
            return Predicted(cells, whole, [Change(whole, control.whole)] * len(control.halves), depth)
        sets = control.halves_of(names)
        if not sets.any(axis=1).all():
            msg = f"no cell of {target!r} was predicted from one half of the control cells in {control.context}"
            raise ValueError(msg)
        whole, *halves = moments(cells, np.vstack([np.ones((1, len(cells)), dtype=bool), sets]))
        return Predicted(cells, whole, [Change(*pair) for pair in zip(halves, control.moments, strict=True)], depth)


@dataclass(frozen=True)
class BaselineCells:
    """A baseline as a predictor."""

    baseline: Baseline
    training: Training

    def predict(self, target: str, control: ContextControls, hidden: Sequence[frozenset[str]]) -> Predicted:
        """Predict from control cells, and from those of each half, having learned without the other half."""
        learned, control = self.training.means, control.source
        cells = self._cells(control.cells, target, control.context, learned)
        by_half = [self.training.without(names) for names in hidden[: len(control.halves)]]
        if is_one_profile(cells) or any(means is not learned for means in by_half):
            whole = _moments(cells)
            halves = [
                _moments(self._cells(control.cells[half], target, control.context, means))
                for half, means in zip(control.halves, by_half, strict=True)
            ]
        else:
            whole, *halves = moments(cells, control.sets)
        changes = [Change(*pair) for pair in zip(halves, control.moments, strict=True)]
        relative = None
        if is_one_profile(cells):  # the mean of counts is not expm1 of a mean of logs
            relative = self._cells(control.cells, target, control.context, self.training.relative)
        return Predicted(cells, whole, changes, control.depth, relative)

    def _cells(self, control: np.ndarray, target: str, context: str, learned: TrainingMeans) -> np.ndarray:
        assert self.baseline.cells is not None  # chosen below
        return self.baseline.cells(control, Case(target, context, learned))


def _moments(cells: np.ndarray) -> Moments:
    if is_one_profile(cells):
        profile = cells[0].astype(np.float64)
        return Moments(len(cells), profile, np.zeros_like(profile))
    return Moments.of(cells)


def baseline_predictors(training: Training) -> dict[str, BaselineCells]:
    """Return the baselines as predictors, by name."""
    return {name: BaselineCells(b, training) for name, b in BASELINES.items() if b.cells is not None}


def mean_predictor(training: Training) -> BaselineCells:
    """Return the average effect over all training perturbations and contexts as a predictor: what knows no target."""
    return BaselineCells(
        Baseline(MEAN_EFFECT, "s", cells=lambda control, case: shifted(control, case.training.mean_effect)), training
    )
