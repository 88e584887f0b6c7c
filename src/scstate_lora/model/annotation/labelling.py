"""From outputs of a classifier to what is written of every cell: label, confidence, novelty, and why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora.data.label_targets import UNKNOWN
from scstate_lora.inference.left_out_cells import LeftOutCells, LeftOutNumbers
from scstate_lora.metrics.novelty import logit_energy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora.model.annotation.target_model import TargetModel

UNCERTAIN, NEW_TYPE = "uncertain", "unlike all known types"
"""Why a cell gets no label."""
COVERAGE = 0.95
"""Of sets of labels and of intervals, where it is not given."""


@dataclass(frozen=True)
class LabelRules:
    """Which cells get a label, and which labels there are.

    Parameters
    ----------
    reject_below
        Smallest probability of a label that is given.
    max_error
        Largest share of wrong labels among those given, as promised by left-out cells.
    reject_unknown
        Share of known cells that may be rejected as unlike all known types; None rejects none.
    coverage
        Probability with which a set of labels holds the true one; by default 0.95, or what few left-out cells can say.
    allow, block
        Labels, of any level, that may be given alone, and that may not.
    """

    reject_below: float | None = None
    max_error: float | None = None
    reject_unknown: float | None = None
    coverage: float | None = None
    allow: Sequence[str] | None = None
    block: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("reject_below", "max_error", "reject_unknown", "coverage"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                argument = "sets" if name == "coverage" else name
                msg = f"{argument}={value!r} must lie between 0 and 1: it is a {_MEANING[name]}."
                raise ValueError(msg)


_MEANING = {
    "reject_below": "probability",
    "max_error": "share of wrong labels, such as 0.05",
    "reject_unknown": "share of known cells, such as 0.05",
    "coverage": "probability, such as 0.95",
}


@dataclass(frozen=True)
class Labelled:
    """What was found for every cell.

    Parameters
    ----------
    table
        One row a cell: ``label``, ``level``, ``id`` (where labels have one), ``confidence``, ``unknown_score``,
        ``set_size``, ``set``, ``rejected``.
    probabilities
        Of the leaves, calibrated, ``(n_cells, n_classes)``.
    nodes
        Of all labels of the tree, ``(n_cells, n_nodes)``.
    facts
        What was fitted and used: temperature, thresholds, shifts.
    """

    table: pd.DataFrame
    probabilities: np.ndarray
    nodes: np.ndarray
    facts: dict[str, Any]


def label_cells(
    model: TargetModel, logits: np.ndarray, distance: np.ndarray, batches: np.ndarray, rules: LabelRules, *, adapt: bool
) -> Labelled:
    """Label cells by their logits.

    Parameters
    ----------
    model
        The fitted target.
    logits
        ``(n_cells, n_classes)``, before any shift.
    distance
        Distance to the closest class, ``(n_cells,)``.
    batches
        Name of each cell's batch, ``(n_cells,)``.
    rules
        Which cells get a label.
    adapt
        Whether the shift of each batch is subtracted, as far as it can be trusted.
    """
    tree, left_out = model.tree, model.left_out
    assert isinstance(left_out, LeftOutCells)
    shifted, notes = model.shift(logits, batches) if adapt else (logits.astype(np.float64), {})
    mask = None if rules.allow is None and not rules.block else tree.leaf_mask(allow=rules.allow, block=rules.block)
    nodes = tree.probabilities(model.probabilities(shifted), mask=mask)
    leaves = nodes[:, tree.leaves]
    threshold = _threshold(model, rules, mask)
    given = tree.deepest(nodes, threshold) if threshold > 0 else tree.leaves[leaves.argmax(axis=1)]
    rejected = np.where(given == 0, UNCERTAIN, "").astype(object)
    score, novelty_threshold = _novelty(model, logits, distance, rules.reject_unknown)
    if rules.reject_unknown is not None and score is not None:
        is_new = score > novelty_threshold
        rejected[is_new], given[is_new] = NEW_TYPE, 0
    coverage = rules.coverage or min(COVERAGE, left_out.most)
    sets = left_out.label_sets(coverage).sets(leaves)
    if mask is not None:
        sets &= mask
    names = np.array([UNKNOWN, *tree.names[1:]], dtype=object)
    shown = np.where(given > 0, given, tree.leaves[leaves.argmax(axis=1)])
    table = pd.DataFrame(
        {
            "label": names[given],
            "level": tree.depths[given],
            "confidence": nodes[np.arange(len(nodes)), shown],
            "unknown_score": np.full(len(nodes), np.nan) if score is None else score,
            "set_size": sets.sum(axis=1),
            "set": _joined(sets, model.classes),
            "rejected": rejected,
        }
    )
    if any(i is not None for i in tree.ids):
        ids = np.array([i or "" for i in tree.ids], dtype=object)
        table.insert(2, "id", np.where(given > 0, ids[given], ""))
    facts = {
        "temperature": left_out.temperature,
        "threshold": threshold,
        "novelty_threshold": novelty_threshold,
        "coverage": coverage,
        "shift": notes,
        "left_out": model.folds,
    }
    return Labelled(table, leaves, nodes, facts)


def _joined(sets: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Write sets of labels ``(n_cells, n_classes)`` as text, each set that occurs once."""
    which, of_cell = np.unique(np.packbits(sets, axis=1), axis=0, return_inverse=True)
    members = np.unpackbits(which, axis=1, count=len(classes)).astype(bool)
    text = ["|".join(name for name, inside in zip(classes, row, strict=True) if inside) for row in members]
    return np.array(text, dtype=object)[of_cell.ravel()]


def _threshold(model: TargetModel, rules: LabelRules, mask: np.ndarray | None) -> float:
    """Smallest probability of a label that is given; 0 where every cell gets one."""
    threshold = rules.reject_below or 0.0
    if rules.max_error is not None:
        assert isinstance(model.left_out, LeftOutCells)
        threshold = max(threshold, model.left_out.threshold(model.tree, rules.max_error, mask=mask))
    return threshold


def _novelty(
    model: TargetModel, logits: np.ndarray, distance: np.ndarray, rejected: float | None
) -> tuple[np.ndarray | None, float]:
    """Novelty of every cell, before any shift, and the threshold; None without a linear start, which it rests on."""
    if model.expression is None:
        if rejected is not None:
            msg = (
                "reject_unknown rests on the linear start, in whose genes distances are measured, and this model was "
                "made with linear_start=False. Leave reject_unknown out, or train with a linear start."
            )
            raise ValueError(msg)
        return None, float("nan")
    assert isinstance(model.left_out, LeftOutCells)
    scale = model.left_out.novelty(rejected=rejected)
    return scale.score(logit_energy(logits), distance), scale.threshold


def number_cells(model: TargetModel, outputs: np.ndarray, *, coverage: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Give the number of every cell with its interval, and what the interval rests on."""
    assert isinstance(model.left_out, LeftOutNumbers)
    value = model.center + model.scale * outputs[:, 0].astype(np.float64)
    half = model.left_out.half_width(coverage)
    table = pd.DataFrame({"value": value, "low": value - half, "high": value + half})
    return table, {"coverage": coverage, "half_width": half, "left_out": model.folds}


def cluster_votes(labelled: Labelled, model: TargetModel, clusters: pd.Series) -> pd.DataFrame:
    """Label every cluster by the mean probability of its cells.

    Parameters
    ----------
    labelled
        The cells.
    model
        The fitted target.
    clusters
        Cluster of every cell; a missing value for none.

    Returns
    -------
    One row a cell: ``cluster_label``, and ``cluster_share``, the share of its cluster's cells that have this label
    themselves.
    """
    votes = pd.DataFrame({"cluster_label": UNKNOWN, "cluster_share": np.nan}, index=range(len(clusters)))
    codes, levels = pd.factorize(clusters)
    leaf = np.array(model.classes, dtype=object)[labelled.probabilities.argmax(axis=1)]
    for number in range(len(levels)):
        rows = np.flatnonzero(codes == number)
        label = model.classes[int(labelled.probabilities[rows].mean(axis=0).argmax())]
        votes.loc[rows, "cluster_label"] = label
        votes.loc[rows, "cluster_share"] = float(np.mean(leaf[rows] == label))
    return votes
