"""Variants of a model side by side: scores of their predictions, training, and costs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import COMPARE, require_result
from scstate_lora.metrics.stability import spikes
from scstate_lora.pl.metric_panels import metrics
from scstate_lora.pl.style import DARK, FAINT, MUTED, accents, color_cycle, ink, panels, paper, shade, shortened, tinted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

_TABLES = ("scores", "training", "criteria", "histories")


class _Cost(NamedTuple):
    column: str
    title: str
    label: str
    criterion: str | None = None
    factor: float = 1.0


_COSTS = {
    "loss_variance": _Cost("loss_variance", "variance of the late training loss", "squared loss", "loss_variance"),
    "gradient_spikes": _Cost("gradient_spikes", "gradient spikes", "spikes per epoch", "gradient_spikes"),
    "validation_improvement": _Cost(
        "validation_improvement",
        "improvement of the validation loss",
        "%, first epoch to best",
        "validation_improvement",
        100,
    ),
    "parameters": _Cost("trained", "trained parameters", "parameters"),
    "seconds": _Cost("seconds_per_epoch", "time", "seconds per epoch"),
    "memory": _Cost("peak_memory_mb", "peak memory", "MB"),
}
_CRITERIA = {
    "validation_improvement": "validation loss improved",
    "loss_variance": "late loss varies little",
    "gradient_spikes": "few gradient spikes",
    "pearson_delta": "Pearson of delta",
    "cell_type_score": "every cell type's score",
    "nearest_distance": "as near to measured cells as these",
    "day_order": "order of the days kept",
    "markers_up": "known markers up",
}
KINDS = ("scores", "losses", "gradients", "training", *_COSTS, "criteria")
"""What can be drawn; ``"training"`` is all six from ``"loss_variance"`` to ``"memory"``."""
_MET_MARKS = {"yes": "✓ ", "no": "✗ ", "not measured": ""}
_SIDES = {"at least": "≥", "above": ">", "below": "<"}


def compare(
    result: Any,
    *,
    kind: str = "scores",
    metric: str | Sequence[str] | None = None,
    target: str | None = None,
    seed: int | None = None,
    ax: Axes | None = None,
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the result of :func:`scstate_lora.tl.compare`.

    Kinds:

    * ``"scores"``: perturbation metrics by context, as :func:`metrics` draws them, baselines beside the variants;
    * ``"losses"``: training and validation loss of every variant;
    * ``"gradients"``: gradient norm of every step, spikes marked;
    * ``"loss_variance"``, ``"gradient_spikes"``, ``"validation_improvement"``, ``"parameters"`` (trained, and their
      share), ``"seconds"``, ``"memory"``: one bar per variant, the mean over the seeds, which are dots; the
      dotted line is the threshold of the criterion. ``"training"``: all six;
    * ``"criteria"``: the success criteria that each variant meets.

    Parameters
    ----------
    result
        The :class:`scstate_lora.tl.Comparison`, its tables by name, or an AnnData that has them in
        ``uns["scstate_lora"]["compare"]``.
    kind
        Kind of figure.
    metric
        For ``"scores"``: one metric, several, or ``"all"``; by default the headline metrics.
    target
        For ``"scores"``: this perturbation; by default the average over all.
    seed
        For ``"losses"`` and ``"gradients"``: trainings with this seed; by default with the first.
    ax
        Axes to draw on: for one metric or one of the other kinds, except ``"training"`` and ``"gradients"``, which have
        several panels.

    Returns
    -------
    `ax`, or the Axes of a new figure: an array if it has several panels.

    Raises
    ------
    KeyError
        If the AnnData holds no comparison, or there is no such metric, target or seed.
    TypeError
        If `result` is none of these.
    ValueError
        If `kind` is unknown, nothing of the kind was measured, or `ax` is given for several panels.
    """
    if kind not in KINDS:
        msg = f"kind={kind!r} is unknown. {did_you_mean(str(kind), KINDS, limit=len(KINDS))}"
        raise ValueError(msg)
    if ax is not None and (kind in ("training", "gradients") or (kind == "scores" and not isinstance(metric, str))):
        advice = "Name one as `metric`, or give no `ax`." if kind == "scores" else "Give no `ax`."
        msg = f"One `ax` holds one panel, and kind={kind!r} has several. {advice}"
        raise ValueError(msg)
    tables = _tables(result)
    if kind == "scores":
        return _draw_scores(tables["scores"], metric, target, ax)
    if kind in ("losses", "gradients"):
        histories = _histories(tables["histories"], seed)
        colors = _colors(tables)
        return _draw_losses(histories, colors, ax) if kind == "losses" else _draw_gradients(histories, colors)
    if kind == "criteria":
        return _draw_criteria(tables["criteria"], ax)
    if kind == "training":
        return _draw_training(tables)
    if ax is None:
        n_models = tables["training"]["model"].nunique()
        _, ax = plt.subplots(figsize=(5.0, 1.1 + 0.42 * n_models), layout="constrained")
    _draw_cost(ax, tables, _COSTS[kind])
    return ax


def _tables(result: Any) -> Mapping[str, pd.DataFrame]:
    if hasattr(result, "uns"):
        result = require_result(result, COMPARE, call="tl.compare(adata)")
    tables: Any = result if hasattr(result, "keys") else {name: getattr(result, name, None) for name in _TABLES}
    if any(not isinstance(tables.get(name), pd.DataFrame) for name in _TABLES):
        msg = (
            f"Expected the result of `scstate_lora.tl.compare`, or an AnnData that holds it; found "
            f"{type(result).__name__}."
        )
        raise TypeError(msg)
    checked: Mapping[str, pd.DataFrame] = tables
    return checked


def _draw_scores(
    scores: pd.DataFrame, metric: str | Sequence[str] | None, target: str | None, ax: Axes | None
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    targets = list(dict.fromkeys(scores["target"]))
    if target is None:
        target = "all" if "all" in targets else targets[0]
    if target not in targets:
        msg = f"The comparison has no target {target!r}. {did_you_mean(target, targets)}"
        raise KeyError(msg)
    part = scores[scores["target"] == target]
    computed = part.groupby("model")["value"].transform("count") > 0
    part = part.assign(model=part["model"].where(computed, part["model"] + " (failed)"))
    return metrics(part, metric=metric, ax=ax)


def _histories(histories: pd.DataFrame, seed: int | None) -> dict[str, pd.DataFrame]:
    """Histories of one seed by variant."""
    if histories.empty:
        msg = "No variant was trained, so there is no history to draw."
        raise ValueError(msg)
    seeds = list(dict.fromkeys(histories["seed"]))
    if seed is None:
        seed = seeds[0]
    if seed not in seeds:
        msg = f"No variant was trained with seed {seed}. Available: {', '.join(map(str, seeds))}."
        raise KeyError(msg)
    own = histories[histories["seed"] == seed]
    return {str(name): part for name, part in own.groupby("model", sort=False)}


def _colors(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """One colour per variant, the same in every figure."""
    models = list(dict.fromkeys(tables["training"]["model"]))
    return dict(zip(models, color_cycle(len(models)), strict=True))


def _draw_losses(
    histories: dict[str, pd.DataFrame], colors: dict[str, str], ax: Axes | None
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the training and the validation loss, on two panels or both on `ax`."""
    labels = {name: shortened(name) for name in histories}
    if ax is None:  # all sizes in inches
        beside = 0.6 + 0.085 * max(map(len, labels.values()))
        drawn = list(panels(2, widest=2, size=(4.6, max(3.4, 0.21 * len(labels))), beside=(beside, 0)))
    else:
        drawn = [ax]
    # Losses of variants may coincide: later lines are thinner, so that all are visible.
    widths = np.linspace(3.6, 1.2, len(histories)) if len(histories) > 1 else [1.6]
    for (name, history), width in zip(histories.items(), widths, strict=True):
        train, val = history[history["phase"] == "train"], history[history["phase"] == "val"]
        smooth = train["loss"].rolling(max(1, len(train) // 10), center=True, min_periods=1).mean()
        drawn[0].plot(train["step"], smooth, color=colors[name], linewidth=width, label=labels[name])
        drawn[-1].plot(
            val["step"], val["loss"], color=colors[name], linewidth=width, marker="o", markersize=3 + width,
            linestyle="-" if ax is None else "--", label=labels[name] if ax is None else None,
        )  # fmt: skip
    mean = "running mean over a tenth of the steps"
    titles = [f"training loss, {mean}", "validation loss"] if ax is None else [f"training ({mean}) and validation (--)"]
    for panel, title in zip(drawn, titles, strict=True):
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("optimiser step")
        panel.set_ylabel("loss")
        panel.spines[["top", "right"]].set_visible(False)
    drawn[-1].legend(
        fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=ink(drawn[-1])
    )
    return drawn[0] if ax is not None else np.array(drawn, dtype=object)


def _draw_gradients(histories: dict[str, pd.DataFrame], colors: dict[str, str]) -> np.ndarray[Any, np.dtype[Any]]:
    axes = panels(len(histories), widest=3, size=(3.9, 2.7), sharex=True, sharey=True)
    for ax, (name, history) in zip(axes, histories.items(), strict=True):
        train = history[(history["phase"] == "train") & history["grad_norm"].notna()]
        step, norm = train["step"].to_numpy(), train["grad_norm"].to_numpy(dtype=float)
        ax.plot(step, norm, color=colors[name], linewidth=0.9)
        is_spike = spikes(norm) if len(norm) else np.zeros(0, dtype=bool)
        ax.plot(
            step[is_spike],
            norm[is_spike],
            linestyle="",
            marker="o",
            markersize=4,
            color=ink(ax),
            markerfacecolor="none",
            zorder=3,
        )
        n_epochs = max(1, train["epoch"].nunique())
        ax.set_title(f"{shortened(name)}: {is_spike.sum() / n_epochs:.2g} spikes per epoch", fontsize="medium")
        ax.set_xlabel("optimiser step")
        ax.set_ylabel("gradient norm")
        ax.label_outer()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    return axes


def _draw_training(tables: Mapping[str, pd.DataFrame]) -> np.ndarray[Any, np.dtype[Any]]:
    n_models = tables["training"]["model"].nunique()
    _, grid = plt.subplots(2, 3, figsize=(13.5, 2 * (1.1 + 0.42 * n_models)), squeeze=False, layout="constrained")
    for ax, cost in zip(grid.ravel(), _COSTS.values(), strict=True):
        _draw_cost(ax, tables, cost)
    for ax in grid[:, 1:].ravel():
        ax.set_yticklabels([])
    return grid.ravel()


def _draw_cost(ax: Axes, tables: Mapping[str, pd.DataFrame], cost: _Cost) -> None:
    """Draw one bar per variant and one dot per seed."""
    training = tables["training"]
    colors = _colors(tables)
    models = list(colors)
    means = training.groupby("model", sort=False)[cost.column].mean().reindex(models) * cost.factor
    largest = float(np.nanmax(np.append(np.abs(means.to_numpy(dtype=float)), 0.0)))
    for i, (model, color) in enumerate(colors.items()):
        own = training[training["model"] == model]
        values = own[cost.column].to_numpy(dtype=float) * cost.factor
        values = values[np.isfinite(values)]
        if not len(values):
            why = _why_none(own, cost.column)
            ax.text(
                0.02,
                i,
                why,
                transform=ax.get_yaxis_transform(),
                va="center",
                fontsize="x-small",
                color=shade(ax, MUTED),
            )
            continue
        ax.barh(i, means[model], color=color, height=0.62, alpha=0.85)
        if len(set(values)) > 1:
            ax.plot(values, np.full(len(values), i), linestyle="", marker="o", markersize=3.5, color=shade(ax, DARK))
        note = f"{means[model]:,.3g}" if abs(means[model]) < 1000 else f"{means[model]:,.0f}"
        if cost.column == "trained":
            note += f" ({own['share'].mean():.0%})"
        right = max(float(np.max(values)), float(means[model]), 0.0)
        ax.annotate(note, (right, i), xytext=(5, 0), textcoords="offset points", va="center", fontsize="x-small")
        largest = max(largest, right)
    limit = _threshold(tables["criteria"], cost)
    if limit is not None:
        ax.axvline(limit, color=shade(ax, DARK), linewidth=1.0, linestyle=":")
        largest = max(largest, limit)
    lowest = min(0.0, float(np.nanmin(np.append(means.to_numpy(dtype=float), 0.0))))
    ax.set_xlim(1.05 * lowest, 1.28 * largest or 1.0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_yticks(range(len(models)), [shortened(m) for m in models])
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.set_title(cost.title, fontsize="medium")
    ax.set_xlabel(cost.label, fontsize="small")
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def _why_none(own: pd.DataFrame, column: str) -> str:
    reasons = [reason.split(f"{column}: ", 1)[-1] for reason in own["reason"] if reason]
    return textwrap.shorten(reasons[0] if reasons else "not measured", 48, placeholder="…")


def _met_color(ax: Axes, met: str) -> str:
    """Return the pale colour of a field: blue where a criterion is met, orange where not."""
    return shade(ax, FAINT / 3) if met == "not measured" else tinted(ax, accents(ax)[0 if met == "yes" else 1], 0.3)


def _threshold(criteria: pd.DataFrame, cost: _Cost) -> float | None:
    if cost.criterion is None:
        return None
    limits = criteria.loc[criteria["criterion"] == cost.criterion, "threshold"]
    return float(limits.iloc[0]) * cost.factor if len(limits) else None


def _draw_criteria(criteria: pd.DataFrame, ax: Axes | None) -> Axes:
    """Draw one field per variant and criterion: the value, and whether it meets the criterion."""
    models, names = (list(dict.fromkeys(criteria[column])) for column in ("model", "criterion"))
    if ax is None:
        _, ax = plt.subplots(figsize=(3.2 + 1.25 * len(models), 0.9 + 0.42 * len(names)), layout="constrained")
    for row in criteria.to_dict("records"):
        x, y = models.index(row["model"]), names.index(row["criterion"])
        ax.add_patch(
            plt.Rectangle(
                (x - 0.5, y - 0.5), 1, 1, facecolor=_met_color(ax, row["met"]), edgecolor=paper(ax), linewidth=2
            )
        )
        measured = row["met"] != "not measured"
        label = (f"{row['value']:.3g}" + (f", {row['level']}" if row["level"] else "")) if measured else row["met"]
        label = _MET_MARKS[row["met"]] + label
        ax.text(x, y, label, ha="center", va="center", fontsize="small", color=shade(ax, 1.0 if measured else MUTED))
    first = criteria.drop_duplicates("criterion").set_index("criterion")
    labels = [f"{_CRITERIA.get(n, n)}  ({_SIDES[first.loc[n, 'side']]} {first.loc[n, 'threshold']:g})" for n in names]
    ax.set_xticks(range(len(models)), [textwrap.fill(shortened(m), 14) for m in models])
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(names)), labels)
    ax.set_xlim(-0.5, len(models) - 0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    return ax
