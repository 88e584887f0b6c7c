"""What counts as a success of a variant: each criterion met, not met, or not measured and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora.tl.scoring.cells import ALL_CONTEXTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scstate_lora.config.compare import Thresholds

MET, NOT_MET, NOT_MEASURED = "yes", "no", "not measured"
_AT_LEAST, _ABOVE, _BELOW = "at least", "above", "below"


class Found(NamedTuple):
    """A number, or NaN and why there is none; a note where a number needs one."""

    value: float
    note: str = ""


class _Criterion(NamedTuple):
    side: str
    levels: tuple[tuple[str, str], ...]  # threshold and what it is called, the easiest first


_CRITERIA = {
    "validation_improvement": _Criterion(_AT_LEAST, (("validation_improvement", ""),)),
    "loss_variance": _Criterion(_BELOW, (("loss_variance", ""),)),
    "gradient_spikes": _Criterion(_BELOW, (("gradient_spikes", ""),)),
    "pearson_delta": _Criterion(
        _ABOVE,
        (("pearson_delta", "pass"), ("pearson_delta_strong", "strong"), ("pearson_delta_excellent", "excellent")),
    ),
    "cell_type_score": _Criterion(_ABOVE, (("cell_type_score", ""),)),
    "nearest_distance": _Criterion(_BELOW, (("nearest_distance", "pass"), ("nearest_distance_strong", "strong"))),
    "day_order": _Criterion(_AT_LEAST, (("day_order", ""),)),
    "markers_up": _Criterion(_AT_LEAST, (("markers_up", ""),)),
}
OF_TRAINING = ("validation_improvement", "loss_variance", "gradient_spikes")
OF_PREDICTIONS = ("day_order", "markers_up")


def criteria_table(
    models: list[str],
    *,
    scores: pd.DataFrame,
    further: pd.DataFrame,
    thresholds: Thresholds,
    by_type: Callable[[], str],
) -> pd.DataFrame:
    """Tabulate the criteria of every variant.

    Parameters
    ----------
    models
        Names of the variants.
    scores
        Means over the seeds, averages over the targets: ``model``, ``context``, ``metric``, ``value``, ``reason``.
    further
        What does not follow from the scores: ``model``, ``criterion``, ``value``, ``reason``, one row a seed (and
        target).
    thresholds
        What counts.
    by_type
        Why contexts are not cell types; empty where they are.
    """
    rows = []
    for model in models:
        own = scores[scores["model"] == model]
        others = further[further["model"] == model]
        for name, criterion in _CRITERIA.items():
            if name in (*OF_TRAINING, *OF_PREDICTIONS):
                part = others[others["criterion"] == name]
                found = _mean(part["value"], part["reason"])
            elif name == "cell_type_score":
                found = _lowest(own, by_type(), thresholds.cell_type_score)
            else:
                metric = "nearest_distance_relative" if name == "nearest_distance" else name
                part = own[(own["metric"] == metric) & (own["context"] == ALL_CONTEXTS)]
                found = _mean(part["value"], part["reason"])
            rows.append({"model": model, "criterion": name, **_judged(found, criterion, thresholds)})
    return pd.DataFrame(rows)[["model", "criterion", "value", "side", "threshold", "met", "level", "reason"]]


def _mean(values: pd.Series, reasons: pd.Series) -> Found:
    said = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    finite = values[np.isfinite(values.astype(float))]
    if not len(finite):
        return Found(np.nan, said or "there is no number")
    return Found(float(finite.mean()), said)


def _lowest(scores: pd.DataFrame, why_not: str, threshold: float) -> Found:
    """Pearson of delta in the cell type where it is lowest."""
    part = scores[(scores["metric"] == "pearson_delta") & (scores["context"] != ALL_CONTEXTS)]
    part = part[np.isfinite(part["value"].astype(float))]
    if why_not:
        return Found(np.nan, why_not)
    if part.empty:
        reasons = scores.loc[scores["metric"] == "pearson_delta", "reason"]
        return Found(np.nan, next((reason for reason in reasons if reason), "no cell type was scored"))
    row = part.sort_values("value").iloc[0]
    n_above = int((part["value"] > threshold).sum())
    return Found(float(row["value"]), f"lowest of {len(part)}: {row['context']}; {n_above} are above {threshold:g}")


def _judged(found: Found, criterion: _Criterion, thresholds: Thresholds) -> dict[str, Any]:
    limits = [(float(getattr(thresholds, name)), level) for name, level in criterion.levels]
    row = {"value": found.value, "side": criterion.side, "threshold": limits[0][0], "level": "", "reason": found.note}
    if np.isnan(found.value):
        return row | {"met": NOT_MEASURED}
    reached = [level for limit, level in limits if _holds(found.value, criterion.side, limit)]
    met = _holds(found.value, criterion.side, limits[0][0])
    return row | {"met": MET if met else NOT_MET, "level": reached[-1] if met else ""}


def _holds(value: float, side: str, limit: float) -> bool:
    return {_AT_LEAST: value >= limit, _ABOVE: value > limit, _BELOW: value < limit}[side]


def day_order(
    predicted: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray], days: list[str]
) -> tuple[int, int]:
    """Count the pairs of days whose order a prediction keeps, along the way of the measured cells.

    Mean cells are projected on the line from the first to the last measured day.

    Parameters
    ----------
    predicted, measured
        Mean cell of each day, ``(n_genes,)``.
    days
        In order; those without a mean on either side are left out.

    Returns
    -------
    Pairs in order, and pairs in all.
    """
    there = [day for day in days if day in predicted and day in measured]
    if len(there) < 2:
        return 0, 0
    way = measured[there[-1]] - measured[there[0]]
    along = [float(predicted[day] @ way) for day in there]
    pairs = [(i, j) for i in range(len(there)) for j in range(i + 1, len(there))]
    return sum(along[j] > along[i] for i, j in pairs), len(pairs)


def in_order_of_time(values: pd.Series) -> list[str]:
    """Sort the values of a column of times, as text: by number, as ordered, or by the number in each label.

    Raises
    ------
    ValueError
        There is no such order, or one time only.
    """
    found = values.dropna()
    labels = found.astype(str)
    if pd.api.types.is_numeric_dtype(found) and not pd.api.types.is_bool_dtype(found):
        keys = dict(zip(labels, found.astype(float), strict=True))
    elif isinstance(found.dtype, pd.CategoricalDtype) and found.cat.ordered:
        keys = {str(level): float(i) for i, level in enumerate(found.cat.categories) if str(level) in set(labels)}
    else:
        numbers = {label: re.findall(r"\d+(?:\.\d+)?", label) for label in dict.fromkeys(labels)}
        if any(len(n) != 1 for n in numbers.values()):
            odd = next(label for label, n in numbers.items() if len(n) != 1)
            msg = (
                f"adata.obs[{values.name!r}] has no order: {odd!r} does not hold one number. Use a column of numbers, "
                "or an ordered categorical."
            )
            raise ValueError(msg)
        keys = {label: float(n[0]) for label, n in numbers.items()}
    if len(keys) < 2:
        msg = f"adata.obs[{values.name!r}] holds {len(keys)} time(s); an order needs two."
        raise ValueError(msg)
    return sorted(keys, key=keys.__getitem__)
