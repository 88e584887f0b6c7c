"""The cards of the first screen for labelled cells: are labels right, which types are safe, is something new found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data.label_targets import UNKNOWN
from scstate_lora.model.annotation.labelling import NEW_TYPE, UNCERTAIN
from scstate_lora.reporting.annotation.labelled import FEW, SAFE
from scstate_lora.reporting.overview import in_words
from scstate_lora.reporting.parts import Card, table, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora.reporting.annotation.labelled import LabelledCells

_GOOD, _POOR = 0.9, 0.7  # shares of right labels
_WORTH = 0.01  # by which a simple method has to be better to be named as such
_CALIBRATED = 0.05
_FOUND, _HARD = 0.8, 0.7  # AUROC, on average and of a single type
_LESS_SURE = 0.1
_UNUSUAL = 0.15  # share of cells above the novelty that 5 % of known ones have
_SHOWN = 6


def annotation_cards(cells: LabelledCells) -> list[Card]:
    """Make the four cards of one target of labels."""
    return [accuracy_card(cells), types_card(cells), cells_card(cells), unknown_card(cells)]


def accuracy_card(cells: LabelledCells) -> Card:
    """Say how many labels are right on left-out cells, beside the best simple method, and whether confidence holds."""
    own, simple = float(cells.own["accuracy"]), cells.best_baseline
    lost = float(simple["accuracy"]) - own
    sentences = [
        f"On {cells.target.folds}, {own:.1%} of the cells get the right label; the best simple method, "
        f"{simple['method']}, has {simple['accuracy']:.1%}."
    ]
    if lost > _WORTH:
        sentences.append(f"That is better, without an encoder: {simple['method']}.")
    error = cells.calibration_error
    holds = "confidence can be read as a probability" if error <= _CALIBRATED else "read confidence as a rough guide"
    sentences.append(f"Confidence and accuracy differ by {error:.1%} on average: {holds}.")
    if not cells.are_batches:
        sentences.append("No whole batch was left out, so a sample from elsewhere will do worse: name a batch_key.")
    is_good = own >= _GOOD and error <= _CALIBRATED and lost <= _WORTH and cells.are_batches
    mark, answer = ("good", "yes") if is_good else ("bad", "no") if own < _POOR else ("care", "with care")
    shown = cells.scores[["method", "accuracy", "macro_f1"]].rename(columns={"macro_f1": "macro F1"}).round(3)
    return Card("Labels: are they right?", mark, answer, sentences, table(shown, ""))


def types_card(cells: LabelledCells) -> Card:
    """Name the types whose labels are safe, and which are confused with which."""
    safe, confused, few = (cells.of_verdict(v) for v in ("safe", "confused", "few cells"))
    sentences = []
    if safe:
        sentences.append(f"Safe: {in_words(safe, 'types') if len(safe) > _SHOWN else ', '.join(safe)}.")
    of_confused = cells.types[cells.types["verdict"] == "confused"]
    if confused:
        partners = [sorted({row["type"], row["mostly with"]} - {""}) for _, row in of_confused.iterrows()]
        named = list(dict.fromkeys(" with ".join(pair) for pair in partners))
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        sentences.append(f"Confused: {'; '.join(named[:_SHOWN])}{more}.")
    if few:
        sentences.append(f"Fewer than {FEW} left-out cells, so nothing can be said: {', '.join(few[:_SHOWN])}.")
    sentences.append(f"Safe means: {SAFE:.0%} of the type's cells are recognised, and {SAFE:.0%} of its labels right.")
    mark = "good" if not confused and not few else "care" if safe else "bad"
    answer = f"{len(safe)} of {len(cells.target.classes)}"
    worst = cells.pairs.head(5)
    shown = pd.DataFrame(
        {
            "confused": worst["first"] + " / " + worst["second"],
            "share": [f"{share:.1%}" for share in worst["share"]],
            "cells": worst["n"],
        }
    )
    return Card("Types: which are safe?", mark, answer, sentences, table(shown, "") if len(shown) else None)


def cells_card(cells: LabelledCells) -> Card:
    """Say how many of these cells got a label, why others did not, and whether they look like training cells."""
    title = "These cells: labelled?"
    if cells.name is None:
        return Card(title, "even", "not labelled", ["Call model.predict(adata) to label these cells."])
    labels, rejected = cells.column().astype(str), cells.column("rejected").astype(str)
    n, given = len(labels), labels != UNKNOWN
    sentences = [f"{int(given.sum()):,} of {n:,} cells have a label" + _finest(cells, labels) + "."]
    reasons = [f"{int((rejected == r).sum()):,} {r}" for r in (UNCERTAIN, NEW_TYPE) if (rejected == r).any()]
    if reasons:
        sentences.append(f"The others: {', '.join(reasons)}.")
    care = False
    here, usual = float(cells.highest.mean()), float(cells.left_out.probabilities.max(axis=1).mean())
    if here < usual - _LESS_SURE:
        care = True
        sentences.append(f"Mean confidence is {here:.2f}, and {usual:.2f} on left-out cells: these cells are harder.")
    unusual = cells.share_unusual
    if np.isfinite(unusual):
        sentences.append(f"{unusual:.1%} are more unlike all types than 95% of left-out cells are; 5% is usual.")
        if unusual > _UNUSUAL:
            care = True
            sentences.append("Look at them: another protocol, poor cells, or a type that the reference lacks.")
    mark = "care" if care else "good"
    return Card(title, mark, f"{given.mean():.0%}", sentences, None)


def _finest(cells: LabelledCells, labels: pd.Series) -> str:
    if not cells.has_levels:
        return ""
    return f", {int(labels.isin(cells.target.classes).sum()):,} of them of the finest level"


def unknown_card(cells: LabelledCells) -> Card:
    """Say how well each type would have been found as unknown, had the reference lacked it."""
    title, check = "Something new: would it be found?", cells.unknown_check
    if not len(check):
        return Card(title, "even", "not checked", [_why_not_checked(cells)])
    mean, hard = float(check["auroc"].mean()), list(check.loc[check["auroc"] < _HARD, "type"].astype(str))
    sentences = [
        f"Each type was left out of the reference in turn: cells of it were told from known ones with an AUROC of "
        f"{mean:.2f} on average, and {check['found'].mean():.0%} of them found at a cost of 5% of known cells."
    ]
    if hard:
        sentences.append(f"Hardly found: {_listed(hard)}, which resemble{'s' if len(hard) == 1 else ''} another type.")
    mark = "good" if mean >= _FOUND and not hard else "care" if mean >= _HARD else "bad"
    answer = {"good": "mostly", "care": "in part", "bad": "hardly"}[mark]
    shown = check.sort_values("auroc", kind="stable").head(_SHOWN)
    shown = pd.DataFrame(
        {
            "left out": shown["type"],
            "AUROC": [text(float(f"{value:.2f}")) for value in shown["auroc"]],
            "found": [f"{value:.0%}" for value in shown["found"]],
        }
    )
    return Card(title, mark, answer, sentences, table(shown, ""))


def _why_not_checked(cells: LabelledCells) -> str:
    if cells.target.expression is None:
        return "Without a linear start no cell has an unknown score."
    return "Leaving types out in turn is part of train(check_unknown=True), for types with 5 left-out cells or more."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
