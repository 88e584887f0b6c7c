"""Predicted and measured change over time: `temporal`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.pl.response_tables import check_names, names_of
from scstate_lora.pl.style import MUTED, color_cycle, frameless, ink, panels, paper, require_columns, shade, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

_MOST_LINES, _MOST_PANELS = 30, 24
_LEGEND_ROWS = 14


def temporal(
    table: pd.DataFrame,
    *,
    time_key: str = "time",
    panel_key: str | None = "gene",
    line_key: str | None = "context",
    names: str | Sequence[str] | None = None,
    n_panels: int = 6,
    ax: Axes | None = None,
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw predicted and measured values over time, or dose, one panel per gene and one colour per context.

    Measured values are filled dots on solid lines, with their intervals; predicted ones hollow dots on dashed lines.

    Parameters
    ----------
    table
        One row per time, panel and line, with the columns ``predicted`` and ``measured``, either of which may be NaN,
        and if known ``measured_low``, ``measured_high``, ``predicted_low`` and ``predicted_high``. Tables of
        :func:`scstate_lora.tl.responses`, one per time, are put together so:
        ``pd.concat([table.assign(time=day) for day, table in tables.items()])``.
    time_key
        Column of the time or dose, numbers.
    panel_key, line_key
        Columns whose values get a panel, and a colour; None for a single one.
    names
        Panels to draw; by default those whose measured values differ most over time (predicted ones, where nothing was
        measured).
    n_panels
        How many to draw by default.
    ax
        Axes to draw on: for one panel.

    Returns
    -------
    `ax`, or a new figure's array of Axes, one per panel.

    Raises
    ------
    KeyError
        If the table has no such column or panel.
    ValueError
        If columns or numbers are missing, a panel has two rows for the same time and line, `ax` is given for several
        panels, or there are more than 24 panels or 30 lines.
    """
    rows = _checked(table, time_key, panel_key, line_key)
    available = list(dict.fromkeys(rows["panel"]))
    if names is not None:
        chosen = names_of(names)
        check_names(chosen, rows["panel"], what=panel_key or "panel")
    elif ax is not None and len(available) == 1:
        chosen = available
    else:
        chosen = _most_varying(rows, available)[: max(1, n_panels)]
    if ax is not None and len(chosen) > 1:
        msg = f"One `ax` holds one panel, and there are {len(chosen)}. Name one as `names`, or give no `ax`."
        raise ValueError(msg)
    if len(chosen) > _MOST_PANELS:
        msg = f"{len(chosen)} panels are too many for one figure, at most {_MOST_PANELS}. Name fewer."
        raise ValueError(msg)
    rows = rows[rows["panel"].isin(chosen)]
    lines = list(dict.fromkeys(rows["line"]))
    if len(lines) > _MOST_LINES:
        msg = f"{line_key!r} has {len(lines)} values, too many lines for one figure; at most {_MOST_LINES}."
        raise ValueError(msg)
    n_columns = -(-(len(lines) + 2) // _LEGEND_ROWS)
    axes = (
        np.array([ax], dtype=object)
        if ax is not None
        else panels(len(chosen), widest=3, size=(3.2, 2.6), beside=(1.9 * n_columns, 0), sharex=True, h_pad=0.08)
    )
    colors = dict(zip(lines, color_cycle(len(lines)), strict=True))
    for panel, name in zip(axes, chosen, strict=True):
        _panel(panel, rows[rows["panel"] == name], colors)
        if panel_key is not None:
            panel.set_title(shortened(name), fontsize="medium", color=ink(panel))
        panel.set_xlabel(shortened(time_key))
        if panel.get_subplotspec() is None or panel.get_subplotspec().is_first_col():
            panel.set_ylabel("change (log1p)" if panel_key == "gene" else "value")
    _legend(axes[0], colors if line_key is not None else {}, on_figure=ax is None, n_columns=n_columns)
    return axes[0] if ax is not None else axes


def _checked(table: pd.DataFrame, time_key: str, panel_key: str | None, line_key: str | None) -> pd.DataFrame:
    """Return the rows to draw from, with the columns ``time``, ``panel`` and ``line``."""
    require_columns(table, ["predicted", "measured"], tools="`tl.responses`, with a column of the time")
    for what, key in (("time_key", time_key), ("panel_key", panel_key), ("line_key", line_key)):
        if key is not None and key not in table:
            none = "" if what == "time_key" else f" Give {what}=None for a single one."
            msg = f"The table has no column {key!r} ({what}). {did_you_mean(key, table.columns)}{none}"
            raise KeyError(msg)
    time = pd.to_numeric(table[time_key], errors="coerce")
    if time.isna().any():
        bad = table.loc[time.isna(), time_key].iloc[0]
        msg = f"The column {time_key!r} must hold numbers, and holds {bad!r}. Convert it, for instance 'day3' to 3."
        raise ValueError(msg)
    rows = table.assign(
        time=time.astype(float),
        panel="" if panel_key is None else table[panel_key].astype(str),
        line="" if line_key is None else table[line_key].astype(str),
    )
    repeated = rows[rows.duplicated(["time", "panel", "line"])]
    if len(repeated):
        first = repeated.iloc[0]
        msg = (
            f"There are several rows for {time_key}={first['time']:g}, {panel_key}={first['panel']!r} and "
            f"{line_key}={first['line']!r}. Choose one perturbation, or name the column that tells them apart."
        )
        raise ValueError(msg)
    return rows


def _most_varying(rows: pd.DataFrame, available: list[str]) -> list[str]:
    """Sort panels by how far their values range, the measured ones if there are any."""
    values = rows["measured"] if rows["measured"].notna().any() else rows["predicted"]
    by_line = values.groupby([rows["panel"], rows["line"]]).agg(lambda v: v.max() - v.min())
    spread = by_line.groupby("panel").max().reindex(available)
    return list(spread.sort_values(ascending=False, kind="stable").index)


def _panel(ax: Axes, part: pd.DataFrame, colors: dict[str, str]) -> None:
    ax.axhline(0, color=shade(ax, 0.3), linewidth=0.8, zorder=0)
    for line, color in colors.items():
        own = part[part["line"] == line].sort_values("time")
        for column, style, face in (("measured", "-", color), ("predicted", "--", paper(ax))):
            known = own[own[column].notna()]
            if known.empty:
                continue
            ax.plot(
                known["time"], known[column], color=color, marker="o", markersize=4.5, linewidth=1.4, linestyle=style,
                markerfacecolor=face,
            )  # fmt: skip
            if f"{column}_low" in known and f"{column}_high" in known:
                ends = known[["time", f"{column}_low", f"{column}_high"]].dropna().to_numpy(dtype=float)
                ax.vlines(ends[:, 0], ends[:, 1], ends[:, 2], color=color, linewidth=1.0, alpha=0.7)
    if not part[["predicted", "measured"]].notna().to_numpy().any():
        ax.text(0.5, 0.5, "no value", transform=ax.transAxes, ha="center", va="center", color=shade(ax, MUTED))
    frameless(ax)


def _legend(ax: Axes, colors: dict[str, str], *, on_figure: bool, n_columns: int) -> None:
    from matplotlib.lines import Line2D

    grey = shade(ax, MUTED)
    handles = [
        Line2D([], [], color=grey, marker="o", markersize=4.5, label="measured"),
        Line2D([], [], color=grey, marker="o", markersize=4.5, label="predicted", ls="--", markerfacecolor=paper(ax)),
        *(Line2D([], [], color=color, linewidth=2.5, label=shortened(name, 22)) for name, color in colors.items()),
    ]
    how: dict[str, Any] = {"fontsize": "small", "frameon": False, "labelcolor": ink(ax), "ncols": n_columns}
    if on_figure:
        ax.figure.legend(handles=handles, loc="outside right center", **how)
    else:
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), **how)
