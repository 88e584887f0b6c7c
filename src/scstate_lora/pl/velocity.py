"""Agreement of predicted shifts with RNA velocity: a histogram of the cosine, or arrows in two dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import VELOCITY_ALIGNMENT, require_result
from scstate_lora.pl.style import DARK, FAINT, MUTED, color_cycle, ink, require_columns, shade, shortened

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_KINDS = ("histogram", "arrows")
_BINS = np.linspace(-1, 1, 41).tolist()
_MOST_GROUPS = 40
_MOST_ARROWS = 150
_ARROW_COLUMNS = ("x", "y", "shift_x", "shift_y", "velocity_x", "velocity_y")


def velocity_alignment(
    table: pd.DataFrame | AnnData,
    *,
    kind: Literal["histogram", "arrows"] = "histogram",
    group_key: str | None = None,
    min_confidence: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the agreement of a model's shift of control cells with their RNA velocity.

    Parameters
    ----------
    table
        Table of :func:`scstate_lora.tl.velocity_alignment`, or the predicted cells that hold it.
    kind
        ``"histogram"``: of the cosine of the cells, with its median. ``"arrows"``: shift and velocity of up to 150
        cells, for a model that works in an embedding of two columns. Arrows of a kind share a scale, and each kind has
        its own, as velocities have a time scale of their own.
    group_key
        Column to group the cells by, for instance ``"cell_type"``: instead of the histogram one row per value, with the
        median (dot), the middle half (bar) and nine tenths (line) of the cells.
    min_confidence
        Cells whose velocity has less confidence are left out; cells without a confidence stay.
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If the cells hold no such table, or the table has no such column.
    TypeError
        If `table` is neither a table nor an AnnData.
    ValueError
        If `kind` is unknown, `table` is another table or has no arrows, no cell is left, or there are more than 40
        groups.
    """
    if kind not in _KINDS:
        msg = f"kind={kind!r} is unknown. {did_you_mean(str(kind), _KINDS)}"
        raise ValueError(msg)
    cells = _cells(table)
    cells = cells[~(cells["confidence"] < min_confidence)]
    if ax is None:
        n_groups = cells[group_key].nunique() if group_key in cells and kind == "histogram" else 0
        height = 5.0 if kind == "arrows" else 1.3 + 0.27 * n_groups if n_groups else 3.6
        _, ax = plt.subplots(figsize=(5.4, min(height, 12.0)), layout="constrained")
    if kind == "arrows":
        _draw_arrows(ax, cells)
    else:
        _draw_histogram(ax, cells, group_key)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _cells(table: Any) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame):
        if not hasattr(table, "uns"):
            msg = f"Expected a table or an AnnData, found {type(table).__name__}."
            raise TypeError(msg)
        call = "tl.velocity_alignment(adata, predicted, velocity_key=...)"
        table = require_result(table, VELOCITY_ALIGNMENT, call=call)
    require_columns(table, ["cosine", "confidence"], tools="`tl.velocity_alignment`")
    return table


def _draw_histogram(ax: Axes, cells: pd.DataFrame, group_key: str | None) -> None:
    known = cells[cells["cosine"].notna()]
    if known.empty:
        msg = "No cell is left that has both a shift and a velocity: there is no cosine to draw."
        raise ValueError(msg)
    if group_key is None:
        cosine = known["cosine"].to_numpy()
        ax.hist(cosine, bins=_BINS, weights=np.full(len(cosine), 1 / len(cosine)), color=color_cycle(1)[0], alpha=0.75)
        ax.axvline(float(np.median(cosine)), color=shade(ax, DARK), linewidth=1.4)
        ax.set_ylabel("share of the cells")
    else:
        _draw_groups(ax, _groups(known, group_key))
    ax.axvline(0, color=shade(ax, MUTED), linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xlim(-1, 1)
    ax.set_xlabel("cosine of predicted shift and RNA velocity\n(−1 opposite, 0 unrelated, 1 the same way)")
    left_out = len(cells) - len(known)
    title = f"{len(known):,} cells, median {known['cosine'].median():.2f}"
    ax.set_title(title + (f" ({left_out:,} without a direction)" if left_out else ""), fontsize="medium")


def _groups(known: pd.DataFrame, group_key: str) -> dict[str, np.ndarray]:
    if group_key not in known:
        msg = f"The table has no column {group_key!r}. {did_you_mean(group_key, known.columns)}"
        raise KeyError(msg)
    groups = {str(name): part["cosine"].to_numpy() for name, part in known.groupby(group_key, observed=True)}
    if len(groups) > _MOST_GROUPS:
        msg = f"{group_key!r} has {len(groups)} values, too many rows for one figure; at most {_MOST_GROUPS}."
        raise ValueError(msg)
    return groups


def _draw_groups(ax: Axes, groups: dict[str, np.ndarray]) -> None:
    for i, (cosine, color) in enumerate(zip(groups.values(), color_cycle(len(groups)), strict=True)):
        lowest, low, middle, high, highest = np.quantile(cosine, [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([lowest, highest], [i, i], color=color, linewidth=1.2)
        ax.plot([low, high], [i, i], color=color, linewidth=7, solid_capstyle="butt", alpha=0.6)
        ax.plot([middle], [i], marker="o", markersize=5, color=shade(ax, DARK), linestyle="")
    ax.set_yticks(range(len(groups)), [f"{shortened(name)} ({len(cosine):,})" for name, cosine in groups.items()])
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.tick_params(axis="y", labelsize="small")


def _draw_arrows(ax: Axes, cells: pd.DataFrame) -> None:
    if any(column not in cells for column in _ARROW_COLUMNS):
        msg = "Arrows need a prediction in an embedding of two columns, and this one has none. Draw kind='histogram'."
        raise ValueError(msg)
    known = cells[cells[list(_ARROW_COLUMNS)].notna().all(axis=1)]
    if known.empty:
        msg = "No cell is left that has both a shift and a velocity."
        raise ValueError(msg)
    shown = known.iloc[np.unique(np.linspace(0, len(known) - 1, _MOST_ARROWS).round().astype(int))]
    ax.scatter(known["x"], known["y"], s=6, color=shade(ax, FAINT), linewidths=0, rasterized=len(known) > 5000)
    extent = float(np.ptp(known[["x", "y"]].to_numpy(), axis=0).max()) or 1.0
    for name, color, label in (
        ("velocity", shade(ax, MUTED), "RNA velocity"),
        ("shift", color_cycle(1)[0], "predicted shift"),
    ):
        vectors = shown[[f"{name}_x", f"{name}_y"]].to_numpy()
        typical = float(np.quantile(np.linalg.norm(vectors, axis=1), 0.9)) or 1.0
        ax.quiver(
            shown["x"], shown["y"], *(0.08 * extent / typical * vectors).T, angles="xy", scale_units="xy", scale=1,
            color=color, width=0.004, label=label, zorder=3,
        )  # fmt: skip
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(f"median cosine {known['cosine'].median():.2f}", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2, labelcolor=ink(ax))
