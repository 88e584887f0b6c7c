"""Stability and cost of trainings, from their histories: `stability`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora.metrics import stability as measures
from scstate_lora.metrics.history import named_histories

if TYPE_CHECKING:
    from collections.abc import Callable

_NEEDED = ("phase", "epoch", "step", "loss")


class _Measure(NamedTuple):
    score: Callable[[pd.DataFrame, pd.DataFrame], float]  # of training and validation rows
    direction: str
    unit: str


def stability(history: Any, *, share: float = 0.1, n_mad: float = 5.0) -> pd.DataFrame:
    """Tabulate how stable a training was, and what it cost.

    * ``loss_variance``: variance of the training loss over the last 10 % of the steps, in squared units of that loss
      (:func:`scstate_lora.metrics.loss_variance`).
    * ``loss_variance_relative``: the same over the squared mean of those losses, to compare different losses.
    * ``gradient_spikes``: steps per epoch whose gradient norm, before clipping, lies above the median of the
      training + 5 median absolute deviations.
    * ``validation_improvement``: share by which the validation loss fell from the first epoch to the best one.
    * ``best_epoch``: the epoch of the lowest validation loss, counted from 1; ``epochs``, ``steps``: totals.
    * ``seconds_per_epoch``: validation included; ``peak_memory_mb``: of the process, or the allocations on a GPU.

    Parameters
    ----------
    history
        A trained model, its ``.history``, or several of these: a mapping from names, or a list.
    share
        Share of the steps behind ``loss_variance``.
    n_mad
        Deviations behind ``gradient_spikes``.

    Returns
    -------
    One row per model and metric: ``model``, ``metric``, ``value``, ``unit``, ``direction`` (``"higher"`` or ``"lower"``
    is better; ``""`` for neither), ``reason``: why a value is NaN, else empty.

    Raises
    ------
    TypeError
        If something is neither a model nor a history.
    ValueError
        If a history is empty or lacks a column.
    """
    rows = [
        {"model": name, **row}
        for name, rows_of_model in named_histories(history, columns=_NEEDED).items()
        for row in _measure(rows_of_model, share=share, n_mad=n_mad)
    ]
    return pd.DataFrame(rows, columns=["model", "metric", "value", "unit", "direction", "reason"])


def _measure(history: pd.DataFrame, *, share: float, n_mad: float) -> list[dict[str, Any]]:
    train, val = history[history["phase"] == "train"], history[history["phase"] == "val"]
    n_epochs = history["epoch"].nunique()
    measured = {
        "loss_variance": _Measure(partial(_loss_variance, share=share), "lower", "squared loss"),
        "loss_variance_relative": _Measure(partial(_relative_variance, share=share), "lower", "squared mean loss"),
        "gradient_spikes": _Measure(partial(_spikes, n_mad=n_mad), "lower", "per epoch"),
        "validation_improvement": _Measure(_improvement, "higher", "share"),
        "best_epoch": _Measure(_best_epoch, "", "epoch"),
        "epochs": _Measure(lambda _train, _val: float(n_epochs), "", "epochs"),
        "steps": _Measure(lambda train, _: float(len(train)), "", "steps"),
        "seconds_per_epoch": _Measure(lambda _t, _v: _largest(history, "seconds") / n_epochs, "lower", "s"),
        "peak_memory_mb": _Measure(lambda _t, _v: _largest(history, "peak_memory_mb"), "lower", "MB"),
    }
    rows = []
    for metric, (score, direction, unit) in measured.items():
        try:
            value, reason = score(train, val), ""
        except ValueError as error:
            value, reason = np.nan, str(error)
        if np.isnan(value) and not reason:
            reason = "the training had losses that are not finite" if "loss" in metric else "it was not recorded"
        row = {"metric": metric, "value": value, "unit": unit, "direction": direction, "reason": reason}
        rows.append(row)
    return rows


def _loss_variance(train: pd.DataFrame, _: pd.DataFrame, *, share: float) -> float:
    return measures.loss_variance(train["loss"], share=share)


def _relative_variance(train: pd.DataFrame, _: pd.DataFrame, *, share: float) -> float:
    variance = measures.loss_variance(train["loss"], share=share)
    mean = float(train["loss"].iloc[-max(2, int(np.ceil(share * len(train)))) :].mean())
    if mean == 0:
        msg = "The mean loss is 0."
        raise ValueError(msg)
    return variance / mean**2


def _spikes(train: pd.DataFrame, _: pd.DataFrame, *, n_mad: float) -> float:
    if "grad_norm" not in train:
        msg = "The history has no gradient norms."
        raise ValueError(msg)
    return measures.gradient_spikes(train["grad_norm"], train["epoch"], n_mad=n_mad)


def _improvement(_: pd.DataFrame, val: pd.DataFrame) -> float:
    return measures.validation_improvement(val["loss"])


def _best_epoch(_: pd.DataFrame, val: pd.DataFrame) -> float:
    if val["loss"].isna().all():
        msg = "There is no validation loss: no cell is a validation cell."
        raise ValueError(msg)
    return float(val.sort_values("loss")["epoch"].iloc[0]) + 1


def _largest(history: pd.DataFrame, column: str) -> float:
    return float(history[column].max()) if column in history else float("nan")
