"""Fit what a classifier knows of one target without training its encoder, every part on cells left out in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from scstate_lora.inference.composition_shift import composition_shift
from scstate_lora.inference.left_out_cells import LeftOutCells
from scstate_lora.metrics.calibration import fit_temperature
from scstate_lora.metrics.novelty import logit_energy
from scstate_lora.training.annotation.expression_model import (
    ExpressionModel,
    choose_alpha,
    fit_expression_model,
    fit_regression_model,
)
from scstate_lora.training.annotation.heads import (
    HeadCells,
    HeadTrials,
    make_heads,
    scale_heads,
    train_heads,
    try_heads,
)
from scstate_lora.training.annotation.linear_start import cell_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

    from scstate_lora.config import HeadConfig, LinearStartConfig
    from scstate_lora.config.classifier import ClassWeight
    from scstate_lora.nn.classifier import ResidualHeads
    from scstate_lora.training.annotation.folds import Folds

_BELOW = 10.0
"""By how much the logit of a class that a fold had no cell of lies below the others."""
N_TRIALS = 2
"""Folds without which an encoder is trained in turn: it is kept where that pays on each."""
_CLIPS = (3.0, 10.0)
_MOST_TO_CHOOSE = 5000
_STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


class HeadChoice(NamedTuple):
    """How long heads are trained and how much of what they add counts, by the loss of left-out cells.

    The loss of a classification is that after the shift of the fold and at the temperature that suits it best.
    """

    n_steps: int
    """Steps of their training; 0 where the loss is lowest without heads."""
    strength: float
    """By which what they add is multiplied."""
    losses: dict[tuple[int, float], float]
    """Mean loss of left-out cells by steps and strength; strength 0 is the linear start alone."""

    @property
    def loss(self) -> float:
        """Loss as chosen."""
        return self.losses[self.n_steps, self.strength]

    @property
    def start_loss(self) -> float:
        """Loss of the linear start alone."""
        return self.losses[0, 0.0]


class FoldStart(NamedTuple):
    """The linear start without a fold."""

    inside: np.ndarray
    """Logits of the cells that it was fitted to, ``(n_inside, n_classes)``."""
    seen: np.ndarray
    """Classes that these have, bool ``(n_classes,)``."""


@dataclass
class TargetFit:
    """What is known of a target.

    Parameters
    ----------
    expression
        From expression alone; None for a plain head.
    cells
        The labelled cells as heads see them.
    folds
        How they were left out.
    usable
        Cells that were left out while other cells had their label, bool ``(n_cells,)``.
    distance
        Distance of the cells while they were left out, ``(n_cells,)``.
    fold_starts
        The start without each fold; none of a regression.
    added
        What is added to the start of each left-out cell, float32 ``(n_cells, n_outputs)``.
    offsets
        Shift of each fold, ``(n_folds, n_outputs)``.
    choice
        How heads are trained.
    heads
        Trained on all cells, with the strength in their last layer.
    fold_heads
        Trained without the first fold, and without the second where there is one.
    """

    expression: ExpressionModel | None
    cells: HeadCells
    folds: Folds
    usable: np.ndarray
    distance: np.ndarray
    fold_starts: list[FoldStart]
    added: np.ndarray
    offsets: np.ndarray
    choice: HeadChoice
    heads: ResidualHeads
    fold_heads: list[ResidualHeads]

    def left_out(self) -> LeftOutCells:
        """Describe the cells that were left out, with what heads add to them."""
        kept = np.flatnonzero(self.usable)
        logits = (self.cells.start + self.added)[kept]
        return LeftOutCells(
            logits=logits,
            allowed=self.cells.goal[kept],
            fold=self.folds.number[kept],
            offsets=self.offsets,
            energy=logit_energy(logits),
            distance=self.distance[kept],
        )

    def predicted(self) -> np.ndarray:
        """Numbers predicted for the cells while they were left out, in standard deviations, ``(n_cells,)``."""
        return (self.cells.start + self.added)[:, 0]


def fold_offset(
    start: FoldStart, inside: tuple[np.ndarray | np.float32, np.ndarray], outside: np.ndarray
) -> np.ndarray:
    """Shift of a fold's logits, ``(n_classes,)``; 0 for classes that were not seen without it.

    Parameters
    ----------
    start
        The start without the fold.
    inside
        What heads add to the cells without the fold, ``(n_inside, n_classes)``, and their open classes.
    outside
        Logits of the fold's cells, ``(n_outside, n_classes)``.
    """
    offset = np.zeros(len(start.seen), dtype=np.float32)
    if len(outside):
        added, allowed = inside
        means = mean_logits((start.inside + added)[:, start.seen], allowed[:, start.seen])
        offset[start.seen] = composition_shift(outside[:, start.seen], means).offset
    return offset


def mean_logits(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Mean logits of the cells of each class ``(n_classes, n_classes)``, of those with one label where there are any.

    A coarse label counts in equal parts for its classes.
    """
    share = allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    fine = share * (allowed.sum(axis=1) == 1)[:, None]
    share = np.where(fine.sum(axis=0) > 0, fine, share)
    return (share.T @ logits) / share.sum(axis=0)[:, None]


def fit_classes(
    x: sparse.csr_matrix,
    allowed: np.ndarray,
    embedding: np.ndarray,
    folds: Folds,
    *,
    start: LinearStartConfig | None,
    head: HeadConfig,
    class_weight: ClassWeight,
    lr: float,
    seed: int,
) -> TargetFit:
    """Fit a classifier to cells and their embedding.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``.
    allowed
        Classes that each cell's label leaves open, bool ``(n_cells, n_classes)``.
    embedding
        ``(n_cells, dim)``.
    folds
        Which cells are left out together.
    start
        Options of the linear start; None for none.
    head
        Options of the head.
    class_weight
        How classes of different size weigh.
    lr, seed
        Learning rate of the head; seed of its initialisation and batches.
    """
    n_cells, n_classes = allowed.shape
    usable = folds.learnable(allowed)
    if start is None:
        nothing = np.zeros((n_cells, n_classes), dtype=np.float32)
        seen = [allowed[inside].any(axis=0) for inside, _ in folds]
        without = [FoldStart(nothing[inside], classes) for (inside, _), classes in zip(folds, seen, strict=True)]
        starts, distance, fold_starts, expression = nothing, np.zeros(n_cells), without, None
    else:
        start, fitted = _bounded(x, allowed, folds, start, class_weight)
        starts, distance, fold_starts = fitted
        expression = fit_expression_model(x, allowed, config=start, class_weight=class_weight)
        never = folds.number < 0  # where validation cells are the only fold
        starts[never] = expression.start.logits(x[never])
    weights = np.where(usable | (folds.number < 0), cell_weights(allowed, class_weight), 0).astype(np.float32)
    cells = HeadCells(embedding, starts, allowed, weights)
    trials = try_heads(cells, folds, head, lr=lr, seed=seed)
    kept = np.flatnonzero(usable)

    def offsets(number: int, strength: float) -> np.ndarray:
        shifts = []
        for (inside, outside), first, added in zip(folds, fold_starts, trials.added_inside, strict=True):
            rows = outside[usable[outside]]
            logits = starts[rows] + strength * trials.added[number, rows]
            shifts.append(fold_offset(first, (strength * added[number], allowed[inside]), logits))
        return np.array(shifts)

    def loss(number: int, strength: float) -> float:
        logits = starts + strength * trials.added[number] - offsets(number, strength)[folds.number]
        return _calibrated_loss(logits[kept], allowed[kept])

    choice, number = _choose(trials, loss)
    heads = _final_heads(cells, folds, trials, choice, number, head, lr=lr, seed=seed)
    added = choice.strength * trials.added[number]
    shifts = offsets(number, choice.strength)
    return TargetFit(expression, cells, folds, usable, distance, fold_starts, added, shifts, choice, *heads)


class _FoldFits(NamedTuple):
    """The linear start without each fold, of all cells."""

    starts: np.ndarray
    distance: np.ndarray
    by_fold: list[FoldStart]


def _bounded(
    x: sparse.csr_matrix, allowed: np.ndarray, folds: Folds, start: LinearStartConfig, class_weight: ClassWeight
) -> tuple[LinearStartConfig, _FoldFits]:
    """Choose the bound of standardised values by the loss of left-out cells, and fit without each fold."""
    if start.clip is not None:
        return start, _fit_folds(x, allowed, folds, start, class_weight)
    rows = np.unique(np.linspace(0, len(allowed) - 1, min(_MOST_TO_CHOOSE, len(allowed))).astype(np.int64))
    some, classes = replace(folds, number=folds.number[rows]), allowed[rows].any(axis=0)
    part = allowed[rows][:, classes]
    usable = some.learnable(part)
    tried = {}
    for clip in _CLIPS:
        options = start.model_copy(update={"clip": clip})
        fits = _fit_folds(x[rows], part, some, options, class_weight)
        logits = fits.starts.copy()
        for first, (inside, outside) in zip(fits.by_fold, some, strict=True):
            own = outside[usable[outside]]
            logits[own] -= fold_offset(first, (np.float32(0), part[inside]), logits[own])
        loss = _calibrated_loss(logits[usable], part[usable]) if usable.any() else 0.0
        tried[clip] = loss, options, fits
    _, options, fits = min(tried.values(), key=lambda one: one[0])
    whole = len(rows) == len(allowed)
    return options, fits if whole else _fit_folds(x, allowed, folds, options, class_weight)


def _fit_folds(
    x: sparse.csr_matrix, allowed: np.ndarray, folds: Folds, start: LinearStartConfig, class_weight: ClassWeight
) -> _FoldFits:
    starts, distance = np.zeros(allowed.shape, dtype=np.float32), np.zeros(len(allowed))
    by_fold = []
    for inside, outside in folds:
        seen = allowed[inside].any(axis=0)
        by_fold.append(FoldStart(np.zeros((len(inside), allowed.shape[1]), dtype=np.float32), seen))
        if seen.sum() < 2 or not len(outside):
            continue
        model = fit_expression_model(x[inside], allowed[inside][:, seen], config=start, class_weight=class_weight)
        logits, distance[outside] = model(x[outside])
        starts[outside] = logits.min(axis=1, keepdims=True) - _BELOW
        starts[np.ix_(outside, np.flatnonzero(seen))] = logits
        by_fold[-1].inside[:, seen] = model.start.logits(x[inside])
    return _FoldFits(starts, distance, by_fold)


def _calibrated_loss(logits: np.ndarray, allowed: np.ndarray) -> float:
    """Mean loss of labels at the temperature that suits them best."""
    log_p = log_softmax(logits / fit_temperature(logits, allowed), axis=1)
    return -float(logsumexp(np.where(allowed, log_p, -np.inf), axis=1).mean())


def fit_numbers(
    x: sparse.csr_matrix,
    values: np.ndarray,
    embedding: np.ndarray,
    folds: Folds,
    *,
    start: LinearStartConfig | None,
    head: HeadConfig,
    lr: float,
    seed: int,
) -> TargetFit:
    """Fit a regression to cells and their embedding; parameters as in :func:`fit_classes`, `values` standardised."""
    starts = np.zeros((len(values), 1), dtype=np.float32)
    expression = None
    if start is not None:
        alpha = choose_alpha(x, values, folds, config=start)
        expression = fit_regression_model(x, values, config=start, alpha=alpha)
        starts[:] = expression.start.logits(x)
        for inside, outside in folds:
            model = fit_regression_model(x[inside], values[inside], config=start, alpha=alpha)
            starts[outside] = model.start.logits(x[outside])
    usable = folds.number >= 0
    cells = HeadCells(embedding, starts, values.astype(np.float32), np.ones(len(values), dtype=np.float32))
    trials = try_heads(cells, folds, head, lr=lr, seed=seed)

    def loss(number: int, strength: float) -> float:
        predicted = (starts + strength * trials.added[number])[usable, 0]
        return float(np.mean((predicted - values[usable]) ** 2) / 2)

    choice, number = _choose(trials, loss)
    heads = _final_heads(cells, folds, trials, choice, number, head, lr=lr, seed=seed)
    added, shifts = choice.strength * trials.added[number], np.zeros((len(folds), 1), dtype=np.float32)
    nowhere = np.full(len(values), np.nan)
    return TargetFit(expression, cells, folds, usable, nowhere, [], added, shifts, choice, *heads)


def _choose(trials: HeadTrials, loss: Callable[[int, float], float]) -> tuple[HeadChoice, int]:
    """Choose steps and strength with the lowest loss; return the number of the trial, too."""
    losses = {(0, 0.0): loss(0, 0.0)}
    losses |= {(n, s): loss(i, s) for i, n in enumerate(trials.steps) if n for s in _STRENGTHS[1:]}
    n_steps, strength = min(losses, key=lambda key: losses[key])
    return HeadChoice(n_steps, strength, losses), trials.steps.index(n_steps) if n_steps else 0


def _final_heads(
    cells: HeadCells,
    folds: Folds,
    trials: HeadTrials,
    choice: HeadChoice,
    number: int,
    config: HeadConfig,
    *,
    lr: float,
    seed: int,
) -> tuple[ResidualHeads, list[ResidualHeads]]:
    """Train heads as chosen, on all cells; and return them before those without the first folds."""
    heads = make_heads(cells, config, seed=seed)
    train_heads(heads, cells, choice.n_steps, lr=lr, seed=seed)
    by_fold = []
    for states, (inside, _) in zip(trials.states[:N_TRIALS], folds, strict=False):
        by_fold.append(make_heads(cells.take(inside), config, seed=seed))
        by_fold[-1].load_state_dict(states[number])
    for trained in (heads, *by_fold):
        scale_heads(trained, choice.strength)
    return heads, by_fold
