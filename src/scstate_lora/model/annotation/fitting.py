"""Fit all targets of a classifier on the labelled training cells, and score them on the cells that were left out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._logging import logger
from scstate_lora._utils import listed
from scstate_lora.inference.left_out_cells import LeftOutCells, LeftOutNumbers
from scstate_lora.metrics.confidence import expected_calibration_error
from scstate_lora.model.annotation.target_model import TargetModel
from scstate_lora.training.annotation.baselines import FEW, baseline_labels, check_unknown
from scstate_lora.training.annotation.fit import TargetFit, fit_classes, fit_numbers, fold_offset, mean_logits
from scstate_lora.training.annotation.folds import BATCHES, make_folds
from scstate_lora.training.annotation.heads import HeadCells, added_by, scale_heads

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.config import ClassifierTrainOptions, HeadConfig, LinearStartConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.label_targets import LabelTarget
    from scstate_lora.nn.classifier import ResidualHeads
    from scstate_lora.training.annotation.folds import Folds

OWN, START = "CellTypeClassifier", "linear start"
_MOST_SAVED = 20_000
_LEAST_LEARNABLE = 0.5


@dataclass
class FittedTargets:
    """The targets of one classifier.

    Parameters
    ----------
    rows
        Labelled training cells of any target, as rows of the data.
    targets
        The targets, with the labels that training cells have.
    members
        Which of `rows` have a label of each target, positions in `rows`.
    fits
        Fit by target.
    values
        Classes, or numbers, of the members of each target; -1 for a coarse label.
    scales
        Mean and standard deviation of each target of numbers.
    expression
        log1p expression of `rows`.
    start
        Options of the linear start.
    encoder_trained
        Whether the fits are those of a trained encoder.
    """

    rows: np.ndarray
    targets: dict[str, LabelTarget]
    members: dict[str, np.ndarray]
    fits: dict[str, TargetFit]
    values: dict[str, np.ndarray]
    scales: dict[str, tuple[float, float]]
    expression: sparse.csr_matrix
    start: LinearStartConfig | None
    encoder_trained: bool = False

    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions in :attr:`rows` without the first fold of the first target, and of this fold; and of the second.

        Cells that have no label of the first target train.
        """
        key = next(iter(self.fits))
        fit, members = self.fits[key], self.members[key]
        rows = []
        for fold in range(min(len(one.fold_heads) for one in self.fits.values())):
            _, outside = fit.folds.rows(fold)
            inside = np.setdiff1d(np.arange(len(self.rows)), members[outside])
            rows.append((inside, members[outside[fit.usable[outside]]]))
        return [(inside, outside) for inside, outside in rows if len(outside)]

    def head_cells(self) -> dict[str, HeadCells]:
        """Cells as an encoder's training sees them, of all :attr:`rows`.

        Their start is as predictions use it: after the shift of their fold, and calibrated; otherwise training would
        first of all change the scale. Those without a label of a target have no weight in it.
        """
        cells = {}
        for key, fit in self.fits.items():
            start = ((fit.cells.start - fit.offsets[fit.folds.number]) / self.temperature(key)).astype(np.float32)
            cells[key] = self._spread(replace(fit.cells, start=start), self.members[key])
        return cells

    def temperature(self, key: str) -> float:
        """Temperature of a target on left-out cells; 1 of numbers."""
        return 1.0 if self.targets[key].tree is None else self.fits[key].left_out().temperature

    def calibrated_heads(self, *, without: int | None = None) -> dict[str, ResidualHeads]:
        """Copy heads that fit :meth:`head_cells`: those trained without a fold, or on all cells."""
        heads = {}
        for key, fit in self.fits.items():
            heads[key] = copy.deepcopy(fit.heads if without is None else fit.fold_heads[without])
            scale_heads(heads[key], 1 / self.temperature(key))
        return heads

    def _spread(self, cells: HeadCells, members: np.ndarray) -> HeadCells:
        n = len(self.rows)
        spread = {}
        for name, empty in (("embedding", 0.0), ("start", 0.0), ("goal", True), ("weights", 0.0)):
            array = getattr(cells, name)
            spread[name] = np.full((n, *array.shape[1:]), empty, dtype=array.dtype)
            spread[name][members] = array
        return HeadCells(**spread)

    def take_over(
        self,
        trial_embedding: np.ndarray,
        trial_heads: dict[str, ResidualHeads],
        embedding: np.ndarray,
        heads: dict[str, ResidualHeads],
    ) -> None:
        """Replace the heads by those of a trained encoder, and what was left out by what was left out of its trial.

        Parameters
        ----------
        trial_embedding, trial_heads
            Of :attr:`rows`, by the encoder that did not see the first fold, ``(n_rows, dim)``; its heads by target.
        embedding, heads
            The same of the encoder that was trained on all.
        """
        self.encoder_trained = True
        for key, fit in self.fits.items():
            members, temperature = self.members[key], self.temperature(key)
            for trained in (trial_heads[key], heads[key]):
                scale_heads(trained, temperature)
            added = added_by(trial_heads[key], trial_embedding[members])
            inside, outside = fit.folds.rows(0)
            usable = np.zeros_like(fit.usable)
            usable[outside] = fit.usable[outside]
            if fit.fold_starts:
                rows = outside[fit.usable[outside]]
                logits = fit.cells.start[rows] + added[rows]
                fit.offsets[0] = fold_offset(fit.fold_starts[0], (added[inside], fit.cells.goal[inside]), logits)
            fit.usable, fit.added = usable, added
            fit.heads = heads[key]
            fit.cells = replace(fit.cells, embedding=embedding[members])

    def models(self) -> dict[str, TargetModel]:
        """Make the models of all targets, by key."""
        made = {}
        for key, fit in self.fits.items():
            center, scale = self.scales[key]
            class_logits: np.ndarray | None = None
            left_out: LeftOutCells | LeftOutNumbers
            if self.targets[key].tree is None:
                left_out = LeftOutNumbers(scale * np.abs(fit.predicted() - fit.cells.goal)[fit.usable])
            else:
                left_out = fit.left_out().sample(_MOST_SAVED)
                logits = added_by(fit.heads, fit.cells.embedding)
                if fit.expression is not None:
                    logits = logits + fit.expression.start.logits(self.expression[self.members[key]])
                class_logits = mean_logits(logits, fit.cells.goal)
            strength = 1.0 if self.encoder_trained else fit.choice.strength
            made[key] = TargetModel(
                self.targets[key],
                fit.expression,
                left_out,
                class_logits,
                center,
                scale,
                {
                    "n_steps": fit.choice.n_steps,
                    "strength": strength,
                    "loss": fit.choice.loss,
                    "start_loss": fit.choice.start_loss,
                },
                fit.folds.kind,
                [int(n) for n in _sizes(fit.cells.goal)],
            )
        return made

    def history(self) -> pd.DataFrame:
        """Losses of left-out cells by steps of the heads, at the strength that suits each best."""
        rows = []
        for key, fit in self.fits.items():
            steps = sorted({n for n, _ in fit.choice.losses})
            best = {n: min((loss, s) for (m, s), loss in fit.choice.losses.items() if m == n) for n in steps}
            rows += [
                {
                    "phase": "val",
                    "epoch": number,
                    "step": n,
                    "loss": best[n][0],
                    "strength": best[n][1],
                    "best": n == fit.choice.n_steps,
                    "cells": f"left out: {key}",
                }
                for number, n in enumerate(steps)
            ]
        return pd.DataFrame(rows)

    def scores(self) -> pd.DataFrame:
        """Score the model, its linear start and baselines on the cells that were left out, one row a method."""
        rows = []
        for key, fit in self.fits.items():
            x = self.expression[self.members[key]]
            score = self._class_scores if self.targets[key].tree is not None else self._number_scores
            rows += [{"target": key, **row} for row in score(key, fit, x)]
        return pd.DataFrame(rows).dropna(axis=1, how="all")

    def _class_scores(self, key: str, fit: TargetFit, x: sparse.csr_matrix) -> list[dict[str, Any]]:
        classes = self.values[key]
        scored = np.flatnonzero(fit.usable & (classes >= 0))
        start = (fit.cells.start - fit.offsets[fit.folds.number])[scored]
        own = start + fit.added[scored]
        labels = {OWN: own.argmax(axis=1)}
        if fit.expression is not None:
            labels[START] = fit.cells.start[scored].argmax(axis=1)
        fine = np.flatnonzero(classes >= 0)
        simple = baseline_labels(x[fine], classes[fine], replace(fit.folds, number=fit.folds.number[fine]))
        labels |= {name: found[np.searchsorted(fine, scored)] for name, found in simple.items()}
        rows = [{"method": name, **_label_scores(classes[scored], found)} for name, found in labels.items()]
        left_out = fit.left_out()
        confidence = left_out.probabilities.max(axis=1)
        rows[0]["calibration_error"] = expected_calibration_error(confidence, left_out.correct)
        return rows

    def _number_scores(self, key: str, fit: TargetFit, _: sparse.csr_matrix) -> list[dict[str, Any]]:
        scale = self.scales[key][1]
        truth = fit.cells.goal[fit.usable]
        predicted = {OWN: fit.predicted(), START: fit.cells.start[:, 0], "mean": np.zeros(len(fit.cells))}
        if fit.expression is None:
            del predicted[START]
        return [
            {
                "method": name,
                "mean_error": scale * float(np.abs(values[fit.usable] - truth).mean()),
                "r2": 1 - float(np.mean((values[fit.usable] - truth) ** 2) / np.var(truth)),
                "n_cells": len(truth),
            }
            for name, values in predicted.items()
        ]

    def unknown_check(self) -> pd.DataFrame:
        """Tabulate how well each type of the first target with labels is found when it is left out of training."""
        for key, fit in self.fits.items():
            tree = self.targets[key].tree
            if tree is None or self.start is None:
                continue
            fine = np.flatnonzero(self.values[key] >= 0)
            checks = check_unknown(
                self.expression[self.members[key][fine]],
                self.values[key][fine],
                replace(fit.folds, number=fit.folds.number[fine]),
                fit.left_out(),
                config=self.start,
            )
            rows = [
                {"type": tree.names[tree.leaves[left]], "auroc": c.auroc, "found": c.found, "n_cells": c.n_unknown}
                for left, c in checks.items()
            ]
            return pd.DataFrame(rows, columns=["type", "auroc", "found", "n_cells"])
        return pd.DataFrame()


def fit_targets(
    cells: BoundData,
    split: np.ndarray,
    embedding: np.ndarray,
    *,
    start: LinearStartConfig | None,
    head: HeadConfig,
    options: ClassifierTrainOptions,
    seed: int,
) -> FittedTargets:
    """Fit all targets of a registered experiment.

    Parameters
    ----------
    cells
        The experiment.
    split
        Of every cell; those that test are not read.
    embedding
        Of every cell, ``(n_cells, dim)``.
    start, head, options
        Of the model and its training.
    seed
        Of folds and heads.

    Raises
    ------
    ValueError
        If fewer than two labels have training cells.
    """
    trains, validates = split == "train", split == "val"
    found: dict[str, tuple[LabelTarget, np.ndarray, np.ndarray]] = {}
    for target in cells.registry.label_targets:
        found[target.key] = _learnable(target, target.labels(cells.adata), trains, validates)
    rows = np.flatnonzero(np.any([known for _, _, known in found.values()], axis=0))
    x, batches = cells.logged[rows], None if cells.registry.batch is None else cells.batch_codes[rows]
    fitted = FittedTargets(rows, {}, {}, {}, {}, {}, x, start)
    for key, (target, goal, known) in found.items():
        members = np.flatnonzero(known[rows])
        here = rows[members]
        fitted.targets[key], fitted.members[key] = target, members
        strata = _strata(goal[here])
        folds = make_folds(strata, None if batches is None else batches[members], is_val=validates[here], seed=seed)
        if goal.dtype == bool and folds.kind == BATCHES and folds.learnable(goal[here]).mean() < _LEAST_LEARNABLE:
            logger.warning(
                "Most labels of adata.obs[%r] are in one batch only (%s): a batch that is left out has labels that no "
                "other has. Choices are made on left-out cells instead, and what is promised holds for cells of these "
                "batches.",
                key,
                cells.registry.batch_key,
            )
            folds = make_folds(strata, None, seed=seed)
        if goal.dtype == bool:
            _check_enough(target, goal[here], folds)
            folds = folds.starting_learnable(goal[here])
        common: dict[str, Any] = {"start": start, "head": head, "lr": options.head_lr, "seed": seed}
        if target.tree is None:
            fitted.scales[key] = float(goal[here].mean()), float(goal[here].std())
            values = (goal[here] - fitted.scales[key][0]) / fitted.scales[key][1]
            fitted.values[key] = values
            fitted.fits[key] = fit_numbers(x[members], values, embedding[here], folds, **common)
            continue
        fitted.scales[key] = 0.0, 1.0
        allowed = goal[here]
        fitted.values[key] = np.where(allowed.sum(axis=1) == 1, allowed.argmax(axis=1), -1)
        fitted.fits[key] = fit_classes(
            x[members], allowed, embedding[here], folds, class_weight=options.class_weight, **common
        )
    return fitted


def _check_enough(target: LabelTarget, allowed: np.ndarray, folds: Folds) -> None:
    """Raise a ValueError if nothing can be told of the cells that are left out."""
    n_seen = [(len(inside), int(allowed[inside].any(axis=0).sum())) for inside, _ in folds]
    if all(n > seen for n, seen in n_seen) and folds.learnable(allowed).any():
        return
    msg = (
        f"{len(allowed)} training cells have one of the {allowed.shape[1]} labels of adata.obs[{target.key!r}], too "
        "few: some are left out in turn, and the others must have more cells than labels. Label more cells, or give "
        "rare labels one name."
    )
    raise ValueError(msg)


def _learnable(
    target: LabelTarget, labels: np.ndarray, trains: np.ndarray, validates: np.ndarray
) -> tuple[LabelTarget, np.ndarray, np.ndarray]:
    """Keep the labels that training cells have; return the goal of every cell, and which cells have one."""
    if target.tree is None:
        return target, labels, (trains | validates) & ~np.isnan(labels)
    has_label = np.array([label is not None for label in labels])
    present = sorted(set(labels[trains & has_label]))
    if len(present) < 2:
        msg = (
            f"The training cells have {len(present)} label{'' if len(present) == 1 else 's'} of "
            f"adata.obs[{target.key!r}], {listed(present)}; two are needed. Hold out other cells."
        )
        raise ValueError(msg)
    lost = sorted(set(labels[has_label]) - set(present))
    if lost:
        logger.warning("No training cell is %s: these labels cannot be predicted.", listed(lost, joined_by=" or "))
    tree = target.tree.pruned(present)
    known = (trains | validates) & np.isin(labels, present)
    allowed = np.zeros((len(labels), len(tree.leaves)), dtype=bool)
    allowed[known] = tree.allowed(labels[known])
    sizes = _sizes(allowed[trains & known])
    few = [f"{tree.names[leaf]} ({n:g})" for leaf, n in zip(tree.leaves, sizes, strict=True) if n < FEW]
    if few:
        logger.warning(
            "Labels of fewer than %d training cells: %s. Hardly anything can be learned or checked of them.",
            FEW,
            listed(few, form=str, limit=10),
        )
    return replace(target, tree=tree), allowed, known


def _sizes(goal: np.ndarray) -> np.ndarray:
    """Cells of each class ``(n_classes,)``, coarse labels left out; of numbers all, ``(1,)``."""
    if goal.dtype != bool:
        return np.array([len(goal)])
    return goal[goal.sum(axis=1) == 1].sum(axis=0)


def _strata(goal: np.ndarray) -> np.ndarray:
    """Codes within which cells are divided evenly; numbers are cut into five groups of equal size."""
    if goal.dtype == bool:
        return np.unique(goal, axis=0, return_inverse=True)[1].ravel()
    return np.searchsorted(np.quantile(goal, [0.2, 0.4, 0.6, 0.8]), goal)


def _label_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy, and macro F1 over the classes of at least 5 cells."""
    from sklearn.metrics import f1_score

    names, sizes = np.unique(truth, return_counts=True)
    scored = names[sizes >= FEW]
    f1 = f1_score(truth, predicted, labels=scored, average="macro", zero_division=0) if len(scored) else np.nan
    return {"accuracy": float(np.mean(truth == predicted)), "macro_f1": float(f1), "n_cells": len(truth)}
