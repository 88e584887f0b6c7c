"""What a classifier knows of one column of labels from left-out cells, and the cells that it labelled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora.data.results import ANNOTATE, read_result
from scstate_lora.inference.left_out_cells import LeftOutCells
from scstate_lora.metrics.confidence import expected_calibration_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.model.annotation.celltype_classifier import CellTypeClassifier
    from scstate_lora.model.annotation.target_model import TargetModel

OWN = "CellTypeClassifier"
_OF_THE_MODEL = (OWN, "linear start")
AIMS = (0.01, 0.05, 0.1)
"""Shares of wrong labels that one may aim at."""
SAFE = 0.9
"""Smallest share, of the cells of a type that are recognised and of its labels that are right, of a safe type."""
FEW = 10
"""With fewer left-out cells, nothing is said of a type."""


@dataclass(frozen=True)
class LabelledCells:
    """One target of labels.

    Parameters
    ----------
    target
        What the classifier knows of it.
    scores
        Scores on left-out cells, one row a method.
    unknown_check
        How well each type is found when it is left out of training; empty for a further target.
    adata
        The cells.
    name
        Start of the columns that the prediction wrote; None if these cells have none of this target.
    facts
        Thresholds and shifts of the prediction.
    """

    target: TargetModel
    scores: pd.DataFrame
    unknown_check: pd.DataFrame
    adata: AnnData
    name: str | None
    facts: dict[str, Any]

    @classmethod
    def of(cls, model: CellTypeClassifier, adata: AnnData) -> list[LabelledCells]:
        """Gather all targets of labels of a trained classifier."""
        found: list[LabelledCells] = []
        for key, target in model.targets.items():
            if target.target.tree is None:
                continue
            scores = model.scores[model.scores["target"] == key]
            check = pd.DataFrame() if found else model.unknown_check
            name, facts = _written(adata, key)
            found.append(cls(target, scores.drop(columns="target"), check, adata, name, facts))
        return found

    @property
    def left_out(self) -> LeftOutCells:
        """Cells that were left out."""
        assert isinstance(self.target.left_out, LeftOutCells)  # of labels
        return self.target.left_out

    @property
    def are_batches(self) -> bool:
        """Whether whole batches were left out, as a new sample is."""
        return self.target.folds == "left-out batches"

    @cached_property
    def calibration_error(self) -> float:
        """Expected calibration error on left-out cells."""
        return expected_calibration_error(self.left_out.probabilities.max(axis=1), self.left_out.correct)

    def column(self, end: str = "") -> pd.Series:
        """Return a column of the prediction by the end of its name; without it, the labels."""
        assert self.name is not None  # the caller has looked
        return self.adata.obs[self.name + (f"_{end}" if end else "")]

    @cached_property
    def own(self) -> pd.Series:
        """Scores of the classifier."""
        return self.scores[self.scores["method"] == OWN].iloc[0]

    @cached_property
    def best_baseline(self) -> pd.Series:
        """Scores of the simple method that labels most cells rightly."""
        simple = self.scores[~self.scores["method"].isin(_OF_THE_MODEL)]
        return simple.iloc[int(simple["accuracy"].to_numpy().argmax())]

    @cached_property
    def true_and_predicted(self) -> AnnData:
        """Left-out cells with a label of the finest level: ``obs`` with ``label``, ``predicted`` and ``confidence``."""
        fine = self.left_out.allowed.sum(axis=1) == 1
        p = self.left_out.probabilities[fine]
        classes = np.array(self.target.classes, dtype=object)
        obs = pd.DataFrame(
            {
                "label": pd.Categorical(classes[self.left_out.allowed[fine].argmax(axis=1)], categories=list(classes)),
                "predicted": classes[p.argmax(axis=1)],
                "confidence": p.max(axis=1),
            },
            index=[str(i) for i in range(len(p))],
        )
        colors = self.adata.uns.get(f"{self.target.key}_colors")
        uns = {} if colors is None or len(colors) != len(classes) else {"label_colors": colors}
        return ad.AnnData(obs=obs, uns=uns)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Number of left-out cells by true (rows) and predicted type (columns), ``(n_types, n_types)``."""
        obs = self.true_and_predicted.obs
        codes = [pd.Index(self.target.classes).get_indexer(pd.Index(obs[c])) for c in ("label", "predicted")]
        n = len(self.target.classes)
        table = np.zeros((n, n), dtype=int)
        np.add.at(table, (codes[0], codes[1]), 1)
        return table

    @cached_property
    def types(self) -> pd.DataFrame:
        """One row a type: cells that train and that were left out, shares recognised and right, and a verdict."""
        rows, counts = [], self.confusion
        for name, n_trained in zip(self.target.classes, self.target.n_labelled, strict=True):
            i = self.target.classes.index(name)
            row, column = counts[i], counts[:, i]
            n, n_given, right = int(row.sum()), int(column.sum()), int(row[i])
            mixed = np.where(np.arange(len(counts)) == i, 0, row + column)
            partner = self.target.classes[int(mixed.argmax())] if mixed.any() else ""
            recognised, right_share = (right / n if n else np.nan), (right / n_given if n_given else np.nan)
            verdict = "few cells" if n < FEW else "safe" if min(recognised, right_share or 0) >= SAFE else "confused"
            rows.append(
                {
                    "type": name,
                    "verdict": verdict,
                    "mostly with": partner,
                    "recognised": recognised,
                    "labels that are right": right_share,
                    "left-out cells": n,
                    "training cells": n_trained,
                }
            )
        return pd.DataFrame(rows)

    def of_verdict(self, verdict: str) -> list[str]:
        """Name the types of a verdict."""
        return [str(name) for name in self.types.loc[self.types["verdict"] == verdict, "type"]]

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Pairs of types, the most confused first: cells of either that got the label of the other, and their share."""
        counts = self.confusion
        sizes = counts.sum(axis=1)
        rows = []
        for a, b in zip(*np.triu_indices(len(counts), 1), strict=True):
            n = int(counts[a, b] + counts[b, a])
            if n:
                names = self.target.classes
                rows.append({"first": names[a], "second": names[b], "n": n, "share": n / (sizes[a] + sizes[b])})
        table = pd.DataFrame(rows, columns=["first", "second", "n", "share"])
        return table.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    @cached_property
    def aims(self) -> pd.DataFrame:
        """What ``predict(max_error=)`` gives on left-out cells, one row an aim."""
        tree, left_out = self.target.tree, self.left_out
        nodes = tree.probabilities(left_out.probabilities)
        rows = []
        for aim in AIMS:
            threshold = left_out.threshold(tree, aim)
            given = tree.deepest(nodes, threshold)
            has_label = given > 0
            wrong = ~(tree.members[given] & left_out.allowed).any(axis=1)
            row = {
                "max_error": aim,
                "smallest confidence": threshold if np.isfinite(threshold) else np.nan,
                "labelled": has_label.mean(),
                "to the finest level": np.isin(given, tree.leaves).mean(),
                "wrong labels": wrong[has_label].mean() if has_label.any() else np.nan,
            }
            rows.append(row)
        table = pd.DataFrame(rows)
        return table if self.has_levels else table.drop(columns="to the finest level")

    @property
    def has_levels(self) -> bool:
        """Whether there are coarser labels above those that were learned."""
        return bool((self.target.tree.depths > 1).any())

    @cached_property
    def likeliest(self) -> np.ndarray:
        """Likeliest label of the finest level of every cell, also of those that got none."""
        probabilities = self.adata.obsm[f"{self.name}_probability"]
        values = np.asarray(probabilities, dtype=float)
        return np.array(self.target.classes, dtype=object)[values.argmax(axis=1)]

    @cached_property
    def highest(self) -> np.ndarray:
        """Probability of the likeliest label."""
        return np.asarray(self.adata.obsm[f"{self.name}_probability"], dtype=float).max(axis=1)

    @cached_property
    def share_unusual(self) -> float:
        """Share of cells more unlike all types than 95 % of left-out cells are; NaN where nothing was scored."""
        if self.target.expression is None:
            return float("nan")
        score = self.column("unknown_score").to_numpy(dtype=float)
        return float((score > self.left_out.novelty().threshold).mean())


def _written(adata: AnnData, key: str) -> tuple[str | None, dict[str, Any]]:
    """Find the columns that a prediction of a target wrote; of several the one that is first in the table."""
    stored = read_result(adata, ANNOTATE) or {}
    all_facts = {name: json.loads(text) for name, text in stored.items()}
    names = [name for name, facts in all_facts.items() if facts["labels_key"] == key and name in adata.obs]
    if not names:
        return None, {}
    name = min(names, key=list(adata.obs.columns).index)
    return name, all_facts[name]


def trained_rows(target: TargetModel, adata: AnnData, classes: Sequence[str]) -> np.ndarray:
    """Type of every cell that has a label of the finest level, object ``(n_cells,)``; None of all others."""
    labels = target.target.labels(adata)
    labels[~np.isin(labels.astype(str), list(classes))] = None
    return labels
