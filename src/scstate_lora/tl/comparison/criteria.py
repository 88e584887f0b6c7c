"""Success criteria of a variant: each met, not met, or not measured and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora.tl.scoring.table import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scstate_lora.config.compare import Thresholds

MET, NOT_MET, NOT_MEASURED = "yes", "no", "not measured"
_AT_LEAST, _ABOVE, _BELOW = "at least", "above", "below"


class Measure(NamedTuple):
    """A measured value, or NaN and why there is none; a note on the value where it needs one."""

    value: float
    note: str = ""


class _Criterion(NamedTuple):
    side: str
    levels: tuple[tuple[str, str], ...]  # thresholds and their names, the easiest first


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
        Values that do not follow from the scores: ``model``, ``criterion``, ``value``, ``reason``, one row per seed
        (and target).
    thresholds
        Thresholds of all criteria.
    by_type
        Returns why contexts are not cell types; empty where they are.
    """
    rows = []
    for model in models:
        own = scores[scores["model"] == model]
        others = further[further["model"] == model]
        for name, criterion in _CRITERIA.items():
            if name in (*OF_TRAINING, *OF_PREDICTIONS):
                part = others[others["criterion"] == name]
                measure = _mean(part["value"], part["reason"])
            elif name == "cell_type_score":
                measure = _lowest(own, by_type(), thresholds.cell_type_score)
            else:
                metric = "nearest_distance_relative" if name == "nearest_distance" else name
                part = own[(own["metric"] == metric) & (own["context"] == ALL)]
                measure = _mean(part["value"], part["reason"])
                if name == "nearest_distance":  # best at 1: judged by how far it is from there
                    measure = Measure(abs(measure.value - 1), measure.note)
            rows.append({"model": model, "criterion": name, **_judged(measure, criterion, thresholds)})
    return pd.DataFrame(rows)[["model", "criterion", "value", "side", "threshold", "met", "level", "reason"]]


def _mean(values: pd.Series, reasons: pd.Series) -> Measure:
    note = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    finite = values[np.isfinite(values.astype(float))]
    if not len(finite):
        return Measure(np.nan, note or "there is no number")
    return Measure(float(finite.mean()), note)


def _lowest(scores: pd.DataFrame, why_not: str, threshold: float) -> Measure:
    """Pearson of delta in the cell type where it is lowest."""
    part = scores[(scores["metric"] == "pearson_delta") & (scores["context"] != ALL)]
    part = part[np.isfinite(part["value"].astype(float))]
    if why_not:
        return Measure(np.nan, why_not)
    if part.empty:
        reasons = scores.loc[scores["metric"] == "pearson_delta", "reason"]
        return Measure(np.nan, next((reason for reason in reasons if reason), "no cell type was scored"))
    row = part.sort_values("value").iloc[0]
    n_above = int((part["value"] > threshold).sum())
    return Measure(float(row["value"]), f"lowest of {len(part)}: {row['context']}; {n_above} are above {threshold:g}")


def _judged(measure: Measure, criterion: _Criterion, thresholds: Thresholds) -> dict[str, Any]:
    limits = [(float(getattr(thresholds, name)), level) for name, level in criterion.levels]
    row = {
        "value": measure.value,
        "side": criterion.side,
        "threshold": limits[0][0],
        "level": "",
        "reason": measure.note,
    }
    if np.isnan(measure.value):
        return row | {"met": NOT_MEASURED}
    reached = [level for limit, level in limits if _holds(measure.value, criterion.side, limit)]
    met = _holds(measure.value, criterion.side, limits[0][0])
    return row | {"met": MET if met else NOT_MET, "level": reached[-1] if met else ""}


def _holds(value: float, side: str, limit: float) -> bool:
    return {_AT_LEAST: value >= limit, _ABOVE: value > limit, _BELOW: value < limit}[side]


def day_order(
    predicted: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray], days: list[str]
) -> tuple[int, int]:
    """Count the pairs of days whose order a prediction keeps.

    Mean cells are projected onto the line from the first to the last measured mean.

    Parameters
    ----------
    predicted, measured
        Mean cell of each day, ``(n_genes,)``.
    days
        In order; those without a mean on either side are left out.

    Returns
    -------
    Number of pairs in order, and of all pairs.
    """
    shared = [day for day in days if day in predicted and day in measured]
    if len(shared) < 2:
        return 0, 0
    axis = measured[shared[-1]] - measured[shared[0]]
    positions = [float(predicted[day] @ axis) for day in shared]
    pairs = [(i, j) for i in range(len(shared)) for j in range(i + 1, len(shared))]
    return sum(positions[j] > positions[i] for i, j in pairs), len(pairs)


def in_order_of_time(values: pd.Series) -> list[str]:
    """Sort the values of a column of times, as text: by number, as ordered, or by the number in each label.

    Raises
    ------
    ValueError
        If there is no such order, or one time only.
    """
    present = values.dropna()
    labels = present.astype(str)
    if pd.api.types.is_numeric_dtype(present) and not pd.api.types.is_bool_dtype(present):
        keys = dict(zip(labels, present.astype(float), strict=True))
    elif isinstance(present.dtype, pd.CategoricalDtype) and present.cat.ordered:
        keys = {str(level): float(i) for i, level in enumerate(present.cat.categories) if str(level) in set(labels)}
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
