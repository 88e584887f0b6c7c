"""Evaluation tables as figures: every model beside the naive baselines and the replicate ceiling."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._constants import UNS_KEY
from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import DISCRIMINATION, EVALUATE, EVALUATE_PERTURBATION, read_result
from scstate_lora.metrics.baselines import BASELINES, CEILING, MEAN_SHIFT
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import headline_of, metric_label
from scstate_lora.pl.style import (
    BAND,
    DARK,
    MUTED,
    color_cycle,
    grid_shape,
    ink,
    panels,
    require_columns,
    shade,
    shortened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_DIRECTIONS = {"higher": "higher is better →", "lower": "← lower is better", "one": "→ nearest to 1 is better ←"}
_FLOOR = "baseline"  # row of the score of ignoring the embedding
_LONGEST_LABEL = 34
_TOOLS = "`tl.evaluate`, `tl.evaluate_perturbation` or `tl.discrimination`"


def metrics(
    table: pd.DataFrame | AnnData, *, metric: str | Sequence[str] | None = None, ax: Axes | None = None
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the table of :func:`~scstate_lora.tl.evaluate`, ``tl.evaluate_perturbation`` or ``tl.discrimination``.

    That of ``tl.temporal_coherence`` can be drawn as well, with a row per cell type.

    One panel per metric. A row is a column of ``obs`` or a context ("all" is the average over contexts, with its
    bootstrap interval); a marker is an embedding or model. Models are coloured dots, references grey or black: the
    naive baselines and, for perturbations, the replicate ceiling (``|``). The arrow below the panel points to the
    better side. Discrimination scores are drawn as averages over the perturbations.

    Parameters
    ----------
    table
        The table, or an AnnData that holds one in ``uns["scstate_lora"]``.
    metric
        One metric, or several; ``"all"`` for all. By default the headline metrics, at most six (all of a table that
        has none of them).
    ax
        Axes to draw on: for a single metric.

    Returns
    -------
    `ax`, or a new figure's array of Axes, one per metric.

    Raises
    ------
    KeyError
        If the AnnData holds no table, or the table no such metric.
    ValueError
        If the AnnData holds several tables, columns are missing, no metric is named, or `ax` is given for several.
    """
    long = _long(table if isinstance(table, pd.DataFrame) else _find_table(table))
    names = chosen_metrics(list(dict.fromkeys(long["metric"])), metric)
    series = list(dict.fromkeys(long["series"]))
    if ax is not None:
        if len(names) > 1:
            msg = f"One `ax` holds one metric, the table has {names}. Name one as `metric`, or give no `ax`."
            raise ValueError(msg)
        styles = _styles(ax, series)
        _panel(ax, long, names[0], styles)
        ax.legend(
            handles=_handles(styles), loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False,
            labelcolor=ink(ax),
        )  # fmt: skip
        return ax

    n_lanes = max(_n_rows(long, name) for name in names) * len(series)
    width = 4.6 * grid_shape(len(names), widest=3)[1]  # all sizes in inches
    n_across = max(1, int(width / (0.085 * min(max(map(len, series)), _LONGEST_LABEL) + 0.6)))
    legend_height = 0.3 * -(-len(series) // n_across)
    axes = panels(len(names), widest=3, size=(4.6, 1.2 + 0.1 * n_lanes), beside=(0, legend_height), h_pad=0.12)
    styles = _styles(axes[0], series)
    for panel, name in zip(axes, names, strict=True):
        _panel(panel, long, name, styles)
    axes[0].figure.legend(
        handles=_handles(styles), loc="outside lower center", ncols=min(len(series), n_across), frameon=False
    )
    return axes


def chosen_metrics(available: Sequence[str], metric: str | Sequence[str] | None) -> list[str]:
    """Return the names of the metrics to draw: those asked for, or the headline.

    Parameters
    ----------
    available
        Names that the table has.
    metric
        As in :func:`metrics`.

    Raises
    ------
    KeyError
        If the table lacks one.
    ValueError
        If none is named.
    """
    if metric is None:
        return headline_of(available)
    if isinstance(metric, str) and metric == "all":
        return list(available)
    names = [metric] if isinstance(metric, str) else list(dict.fromkeys(metric))
    if not names:
        msg = '`metric` names no metric. Name one or several, "all", or give None for the headline metrics.'
        raise ValueError(msg)
    for name in names:
        if name not in available:
            msg = f"The table has no metric {name!r}. {did_you_mean(name, available)}"
            raise KeyError(msg)
    return names


def _find_table(adata: AnnData) -> pd.DataFrame:
    results = {name: read_result(adata, name) for name in (EVALUATE, EVALUATE_PERTURBATION, DISCRIMINATION)}
    tables = {name: table for name, table in results.items() if table is not None}
    if not tables:
        msg = (
            f"adata.uns[{UNS_KEY!r}] has none of 'evaluate', 'evaluate_perturbation' and 'discrimination'. "
            "Call `scstate_lora.tl.evaluate(adata)` or `scstate_lora.tl.evaluate_perturbation(...)` first."
        )
        raise KeyError(msg)
    if len(tables) > 1:
        msg = f"adata.uns[{UNS_KEY!r}] holds {list(tables)}. Give the one to draw: adata.uns[{UNS_KEY!r}][...]."
        raise ValueError(msg)
    (table,) = tables.values()
    return table


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """Bring any of the tables to one form: ``row`` is the column or context, ``series`` the embedding or model."""
    if "embedding" in table:
        require_columns(table, ["embedding", "metric", "key", "value", "baseline", "direction"], tools=_TOOLS)
        row = "cell_type" if "cell_type" in table else "key"
        long = table.rename(columns={"embedding": "series", row: "row"}).assign(low=np.nan, high=np.nan)
        floor = long[long["baseline"].notna() & long["value"].notna()].drop_duplicates(["metric", "row"])
        floor = floor.assign(series=_FLOOR, value=floor["baseline"], reason="")
        return pd.concat([long, floor], ignore_index=True)
    require_columns(table, ["model", "metric", "context", "value", "direction"], tools=_TOOLS)
    if "perturbation" in table and (table["perturbation"] == "all").any():
        table = table[table["perturbation"] == "all"]
    return table.rename(columns={"model": "series", "context": "row", "ci_low": "low", "ci_high": "high"})


def _reference_styles() -> dict[str, tuple[str, float]]:
    """Marker and share of ink of every row of a table that is no model or embedding."""
    baselines = {b.name: (b.marker, DARK if b.name == MEAN_SHIFT else MUTED) for b in BASELINES.values()}
    return {**baselines, CEILING: ("|", 1.0), PCA: ("s", MUTED), _FLOOR: ("|", DARK)}


def _styles(ax: Axes, series: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Marker and colour of each series; models are dots in scanpy's colours."""
    references = {name: (marker, shade(ax, share)) for name, (marker, share) in _reference_styles().items()}
    colors = iter(color_cycle(sum(name not in references for name in series)))
    return {name: references[name] if name in references else ("o", next(colors)) for name in series}


def _size(marker: str) -> dict[str, Any]:
    return {"markersize": 8, "markeredgewidth": 2} if marker == "|" else {"markersize": 5.5, "markeredgewidth": 1.2}


def _handles(styles: dict[str, tuple[str, str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="", marker=marker, color=color, label=shortened(name, _LONGEST_LABEL), **_size(marker))
        for name, (marker, color) in styles.items()
    ]


def _n_rows(long: pd.DataFrame, metric: str) -> int:
    return int(long.loc[long["metric"] == metric, "row"].nunique())


def _panel(ax: Axes, long: pd.DataFrame, metric: str, styles: dict[str, tuple[str, str]]) -> None:
    part = long[long["metric"] == metric]
    rows = list(dict.fromkeys(part["row"]))
    rows.sort(key=lambda row: row != "all")  # the average first, the others as they come
    # Every series of a row has a lane of its own, so that equal values do not hide each other.
    lanes = dict(zip(styles, np.linspace(-0.32, 0.32, len(styles)) if len(styles) > 1 else [0.0], strict=True))
    for i in range(0, len(rows), 2):
        ax.axhspan(i - 0.5, i + 0.5, color=shade(ax, BAND), zorder=0, linewidth=0)
    for record in part.to_dict("records"):
        value, y = float(record["value"]), rows.index(record["row"]) + lanes[record["series"]]
        if not np.isfinite(value):
            continue
        marker, color = styles[record["series"]]
        low, high = float(record.get("low", np.nan)), float(record.get("high", np.nan))
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [y, y], color=color, linewidth=1.2, zorder=2)
        ax.plot([value], [y], marker=marker, color=color, linestyle="", zorder=3, **_size(marker))
    if part["direction"].iloc[0] == "one":
        ax.axvline(1.0, color=shade(ax, DARK), linewidth=0.8, linestyle=":", zorder=1)
    _name_failures(ax, part, rows)
    ax.set_title(metric_label(metric), fontsize="medium")
    ax.set_yticks(range(len(rows)), [shortened(r, _LONGEST_LABEL) for r in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(_x_label(part), fontsize="small")
    ax.margins(x=0.08)
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    if part["value"].isna().all():
        ax.set_xticks([])


def _name_failures(ax: Axes, part: pd.DataFrame, rows: Sequence[str]) -> None:
    """Write into an empty row why it is empty."""
    for i, row in enumerate(rows):
        here = part[part["row"] == row]
        if here["value"].notna().any():
            continue
        reasons = [r for r in here.get("reason", pd.Series(dtype=str)) if r]
        text = textwrap.shorten("not computed" + (f": {reasons[0]}" if reasons else ""), 130, placeholder="…")
        # x in fractions of the axes, y in rows
        ax.text(
            0.02, i, textwrap.fill(text, 46), transform=ax.get_yaxis_transform(), va="center", fontsize="x-small",
            color=shade(ax, MUTED),
        )  # fmt: skip


def _x_label(part: pd.DataFrame) -> str:
    """Return the direction and range of a metric, in words."""
    first = part.iloc[0]
    text = _DIRECTIONS.get(str(first["direction"]), "")
    low, high = (float(first.get(c, np.nan)) for c in ("lowest", "highest"))
    if np.isfinite(low) and np.isfinite(high):
        return f"{text} (range {low:g} to {high:g})"
    if np.isfinite(low):
        return f"{text} (range from {low:g})"
    return f"{text} (range up to {high:g})" if np.isfinite(high) else text
