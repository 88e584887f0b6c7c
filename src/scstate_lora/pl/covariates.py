"""Information about covariates in embeddings: the table of `tl.covariate_information` drawn."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import COVARIATE_INFORMATION, require_result
from scstate_lora.metrics.registry import metric_label
from scstate_lora.pl.style import DARK, MUTED, color_cycle, panels, paper, require_columns, shade, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_COLUMNS = ("embedding", "covariate", "conditioned_on", "metric", "value", "low", "high", "baseline", "verdict")
_ROWS = {
    ("PCA", "nothing"): "PCA of expression",
    ("base", "nothing"): "base, plain",
    ("model", "nothing"): "model, given nothing",
    ("model", "others"): "model, given the others",
    ("model", "all"): "model, given all",
}
_LONGEST_NAME = 40
_VERDICT_WIDTH = 48


def covariate_effects(
    table: pd.DataFrame | AnnData, *, covariate: str | None = None, ax: Axes | None = None
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the table of :func:`scstate_lora.tl.covariate_information`, one panel per covariate.

    A row is an embedding and the covariates that it is conditioned on; a dot is its score on held-out cells, the line
    through it the bootstrap interval. The dashed line is the baseline, the score of ignoring the embedding: an interval
    that touches it shows nothing. Filled dots are conditioned on no covariate, hollow ones on some or all. The verdict
    is below each panel.

    Parameters
    ----------
    table
        The table, or an AnnData that holds it in ``uns["scstate_lora"]``.
    covariate
        Draw this covariate only (or the column of the cell type).
    ax
        Axes to draw on: for a single covariate.

    Returns
    -------
    `ax`, or a new figure's array of Axes, one per covariate.

    Raises
    ------
    KeyError
        If the AnnData holds no table, or the table no such covariate.
    ValueError
        If columns are missing, the table is empty, or `ax` is given for several covariates.
    """
    if not isinstance(table, pd.DataFrame):
        table = require_result(table, COVARIATE_INFORMATION, call="tl.covariate_information(se)")
    require_columns(table, _COLUMNS, tools="`tl.covariate_information`")
    names = list(dict.fromkeys(table["covariate"]))
    if covariate is not None:
        if covariate not in names:
            msg = f"The table has no covariate {covariate!r}. {did_you_mean(covariate, names)}"
            raise KeyError(msg)
        names = [covariate]
    if ax is not None:
        if len(names) > 1:
            msg = f"One `ax` holds one covariate, the table has {names}. Name one as `covariate`."
            raise ValueError(msg)
        _panel(ax, table[table["covariate"] == names[0]])
        return ax
    axes = panels(len(names), widest=3, size=(4.8, 3.1), h_pad=0.12, w_pad=0.08)
    for panel, name in zip(axes, names, strict=True):
        _panel(panel, table[table["covariate"] == name])
    return axes


def _panel(ax: Axes, part: pd.DataFrame) -> None:
    """One covariate: one row per embedding, the first on top."""
    keys = list(zip(part["embedding"], part["conditioned_on"], strict=True))
    embeddings = list(dict.fromkeys(part["embedding"]))
    colors = dict(zip(embeddings, color_cycle(len(embeddings)), strict=True))
    for y, record in enumerate(part.to_dict("records")):
        color = colors[record["embedding"]]
        if not np.isfinite(record["value"]):
            ax.text(
                0.03,
                y,
                "not scored",
                transform=ax.get_yaxis_transform(),
                va="center",
                color=shade(ax, MUTED),
                size="small",
            )
            continue
        ax.plot([record["low"], record["high"]], [y, y], color=color, linewidth=1.8, solid_capstyle="butt", zorder=2)
        face = color if record["conditioned_on"] == "nothing" else paper(ax)
        ax.plot(
            [record["value"]], [y], marker="o", markersize=6.5, color=color, markerfacecolor=face, markeredgewidth=1.5,
            linestyle="", zorder=3,
        )  # fmt: skip
    _draw_baseline(ax, part)
    names = [shortened(_ROWS.get(key, f"{key[0]}, given {key[1]}"), _LONGEST_NAME) for key in keys]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    name = shortened(part["covariate"].iloc[0], _LONGEST_NAME)
    ax.set_title(name, fontsize="medium")
    verdict = textwrap.fill(str(part["verdict"].iloc[0]), _VERDICT_WIDTH)
    metric = f"{metric_label(part['metric'].iloc[0])} (dashed: baseline)"
    ax.set_xlabel(f"{metric}\n{verdict}", fontsize="small")
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_baseline(ax: Axes, part: pd.DataFrame) -> None:
    """Draw the line to beat, and let the axis reach from it to a perfect score."""
    values = part[["value", "low", "high", "baseline"]].to_numpy(dtype=float)
    if not np.isfinite(values).any():
        ax.set_xticks([])
        return
    baselines: Sequence[float] = part["baseline"].dropna().unique().tolist()
    for value in baselines:
        ax.axvline(value, color=shade(ax, DARK), linewidth=1.0, linestyle="--", zorder=1)
    low, high = float(np.nanmin(values)), max(1.0, float(np.nanmax(values)))
    ax.set_xlim(low - 0.08 * (high - low), high + 0.04 * (high - low))
