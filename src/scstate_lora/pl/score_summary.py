"""The headline scores of a prediction on one scale, from a simple baseline to a replicate: `scores`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import EVALUATE_PERTURBATION, require_result
from scstate_lora.metrics.baselines import CEILING, reference_names
from scstate_lora.metrics.registry import metric_label
from scstate_lora.pl.metric_panels import chosen_metrics
from scstate_lora.pl.style import BAND, DARK, MUTED, color_cycle, frameless, ink, require_columns, shade, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_COLUMNS = ("model", "context", "metric", "value", "skill", "direction")
_LOWEST, _HIGHEST = -1.0, 1.5  # skills beyond are drawn at the edge, as arrows
_MOST_MODELS = 10
_WITH_VALUES = 3  # models whose values are written beside the rows, at most
_LEGEND_COLUMNS = 3
_WIDE = 9  # letters of a word, from which on a heading is written smaller
_ARROWS = {"higher": "↑", "lower": "↓", "one": "→1"}


def scores(
    table: pd.DataFrame | AnnData,
    *,
    context: str = "all",
    metric: str | Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the skill of a prediction in every headline metric: 0 is a simple baseline, 1 a replicate of the experiment.

    A row is a metric, with an arrow to its better side; a dot is a model, the line through it the interval of an
    average over contexts; grey marks are the other baselines. Left of 0 a simple baseline is better than the model. An
    arrowhead at the edge stands for a skill beyond it. The values themselves stand on the right. Where the metric
    cannot tell the baseline from a replicate, there is no skill, and the row says so.

    :func:`metrics` draws the values context by context.

    Parameters
    ----------
    table
        Table of :func:`scstate_lora.tl.evaluate_perturbation`, or the predicted cells that hold it. Tables of several
        models may be put together by :func:`pandas.concat`.
    context
        Context whose scores are drawn; ``"all"`` is the average over contexts. Of several perturbations their average
        is drawn.
    metric
        One metric, or several; ``"all"`` for all. By default the headline metrics, without those that nothing has a
        value of, as telling perturbations apart where there is one.
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If the cells hold no table, or the table has no such context or metric.
    ValueError
        If columns are missing, or the table has no model or more than 10.
    """
    if not isinstance(table, pd.DataFrame):
        table = require_result(table, EVALUATE_PERTURBATION, call="tl.evaluate_perturbation(...)")
    require_columns(table, _COLUMNS, tools="`tl.evaluate_perturbation` (`pl.metrics` draws tables without skill)")
    if "perturbation" in table and (table["perturbation"] == "all").any():
        table = table[table["perturbation"] == "all"]
    contexts = list(dict.fromkeys(table["context"]))
    if context not in contexts:
        msg = f"The table has no context {context!r}. {did_you_mean(context, contexts)}"
        raise KeyError(msg)
    part = table[table["context"] == context].drop_duplicates(["model", "metric"])
    known = part if metric is not None else part[part["value"].notna()]
    names = chosen_metrics(list(dict.fromkeys((known if len(known) else part)["metric"])), metric)
    models = [name for name in dict.fromkeys(part["model"]) if name not in reference_names()]
    if not 1 <= len(models) <= _MOST_MODELS:
        msg = f"The table has {len(models)} models, {models[:5]}; 1 to {_MOST_MODELS} can be drawn."
        raise ValueError(msg)
    if ax is None:
        n_values = len(models) if len(models) <= _WITH_VALUES else 0
        height = 1.7 + max(0.42, 0.12 * len(models)) * len(names)
        size = (6.4 + 0.75 * n_values, height + 0.3 * -(-len(models) // _LEGEND_COLUMNS) * (len(models) > 1))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    colors = dict(zip(models, color_cycle(len(models)), strict=True))
    lanes = dict(zip(models, np.linspace(-0.22, 0.22, len(models)) if len(models) > 1 else [0.0], strict=True))
    for y, name in enumerate(names):
        rows = part[part["metric"] == name].set_index("model")
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color=shade(ax, BAND), linewidth=0, zorder=0)
        _draw_row(ax, rows, y, colors=colors, lanes=lanes)
    _write_values(ax, part, names, models if len(models) <= _WITH_VALUES else [])
    for x, label in ((0.0, "simple\nbaseline"), (1.0, "replicate")):
        ax.axvline(x, color=shade(ax, DARK), linewidth=1.0, zorder=1, linestyle="-" if x else "--")
        ax.text(x, -0.62, label, ha="center", va="bottom", fontsize="small", color=ink(ax))
    first = part.drop_duplicates("metric").set_index("metric")
    labels = [f"{textwrap.fill(metric_label(n), 34)} {_ARROWS.get(str(first.loc[n, 'direction']), '')}" for n in names]
    ax.set_yticks(range(len(names)), labels)
    ax.set_xlim(_LOWEST - 0.05, _HIGHEST + 0.05)
    ax.set_ylim(len(names) - 0.5, -0.5)
    where = "average over contexts" if context == "all" else shortened(context)
    ax.set_xlabel(f"skill, {where}", fontsize="small")
    frameless(ax)
    if len(models) > 1:
        handles = [
            plt.Line2D([], [], marker="o", linestyle="", color=color, label=shortened(name, 24))
            for name, color in colors.items()
        ]
        ax.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(-0.3, -0.16), ncols=_LEGEND_COLUMNS, fontsize="small",
            frameon=False, labelcolor=ink(ax),
        )  # fmt: skip
    return ax


def _draw_row(ax: Axes, rows: pd.DataFrame, y: int, *, colors: dict[str, str], lanes: dict[str, float]) -> None:
    """Draw the skills of one metric."""
    others = [name for name in rows.index if name in reference_names() and name != CEILING]
    for name in others:
        skill = _number(rows, name, "skill")
        if _LOWEST <= skill <= _HIGHEST and abs(skill) > 1e-9:
            ax.plot(
                [skill], [y], marker="|", markersize=8, markeredgewidth=1.4, color=shade(ax, 0.45), linestyle="",
                zorder=2,
            )  # fmt: skip
    found = False
    for name, color in colors.items():
        if name not in rows.index or not np.isfinite(_number(rows, name, "skill")):
            continue
        found = True
        skill, at = _number(rows, name, "skill"), y + lanes[name]
        low, high = _interval(rows, name)
        if np.isfinite(low) and np.isfinite(high):
            ends = np.clip([low, high], _LOWEST, _HIGHEST)
            ax.plot(ends, [at, at], color=color, linewidth=1.6, solid_capstyle="butt", zorder=3)
        marker = "<" if skill < _LOWEST else ">" if skill > _HIGHEST else "o"
        ax.plot(
            [np.clip(skill, _LOWEST, _HIGHEST)], [at], marker=marker, markersize=7, color=color, linestyle="", zorder=4
        )
    if not found:
        ax.text(
            -0.95, y, textwrap.fill(textwrap.shorten(_why_none(rows, list(colors)), 110, placeholder="…"), 62),
            va="center", fontsize="x-small", color=shade(ax, MUTED), zorder=5,
            bbox={"facecolor": shade(ax, BAND if y % 2 == 0 else 0.0), "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip


def _number(rows: pd.DataFrame, model: str, column: str) -> float:
    return float(rows[column].to_numpy(dtype=float)[rows.index.get_loc(model)])


def _interval(rows: pd.DataFrame, name: str) -> tuple[float, float]:
    """Return the interval of a model's value on the scale of skill, which is straight in the value but for "one"."""
    none = (np.nan, np.nan)
    if "ci_low" not in rows or (rows["direction"] == "one").any() or CEILING not in rows.index:
        return none
    value, skill = _number(rows, name, "value"), _number(rows, name, "skill")
    ceiling = _number(rows, CEILING, "value")
    if not np.isfinite([value, skill, ceiling]).all() or value == ceiling:
        return none
    # (skill, value) and (1, ceiling) lie on the line.
    slope = (1 - skill) / (ceiling - value)
    ends = sorted(skill + slope * (_number(rows, name, end) - value) for end in ("ci_low", "ci_high"))
    return ends[0], ends[1]


def _why_none(rows: pd.DataFrame, models: Sequence[str]) -> str:
    own = rows.loc[[name for name in models if name in rows.index]]
    for column in ("reason", "skill_reason"):
        reasons = [
            str(reason) for reason in own.get(column, pd.Series(dtype=str)) if isinstance(reason, str) and reason
        ]
        if reasons:
            return f"no skill: {reasons[0]}"
    return "no skill: the baseline or the replicate has no score"


def _write_values(ax: Axes, part: pd.DataFrame, names: Sequence[str], models: Sequence[str]) -> None:
    """Write values of the models, of the baseline at 0 and of the replicate to the right of the rows."""
    floors = part[part["model"].isin(reference_names()) & (part["model"] != CEILING)]
    if "yardstick" in part:
        floors = floors[floors["model"] == floors["yardstick"]]
    else:
        floors = floors[floors["skill"].abs() < 1e-9]
    values: dict[str, Any] = {shortened(name, 14): part[part["model"] == name] for name in models}
    floor_names = list(dict.fromkeys(floors["model"]))
    if floor_names:
        values[floor_names[0] if len(floor_names) == 1 else "baseline"] = floors
    values["replicate"] = part[part["model"] == CEILING]
    for i, (title, rows) in enumerate(values.items()):
        to_the_right: dict[str, Any] = {"xytext": (24 + 48 * i, 0), "textcoords": "offset points"}
        own = rows.drop_duplicates("metric").set_index("metric")["value"]
        is_wide = max(map(len, title.split()), default=0) > _WIDE
        ax.annotate(
            textwrap.fill(title, 12 if is_wide else _WIDE), (1, 1), xycoords="axes fraction",
            **to_the_right, ha="center", va="bottom", fontsize="x-small" if is_wide else "small",
            color=ink(ax) if title in map(shortened, models) else shade(ax, MUTED),
        )  # fmt: skip
        for y, name in enumerate(names):
            value = float(own.get(name, np.nan))
            ax.annotate(
                f"{value:.3g}" if np.isfinite(value) else "–", (1, y), xycoords=ax.get_yaxis_transform(),
                **to_the_right, ha="center", va="center", fontsize="small",
                color=shade(ax, 1.0 if i < len(models) else MUTED),
            )  # fmt: skip
