"""How well predicted shifts agree with RNA velocity: a histogram of the cosine, or arrows in two dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scstate_lora._constants import UNS_KEY
from scstate_lora._utils import did_you_mean
from scstate_lora.pl._style import MISSING_COLOR, color_cycle

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_KINDS = ("histogram", "arrows")
_BINS = np.linspace(-1, 1, 41).tolist()
_MOST_GROUPS = 12
_MOST_ARROWS = 400
_ARROW_COLUMNS = ("x", "y", "shift_x", "shift_y", "velocity_x", "velocity_y")


def velocity_alignment(
    table: pd.DataFrame | AnnData,
    *,
    kind: Literal["histogram", "arrows"] = "histogram",
    group_key: str | None = None,
    min_confidence: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how a model's shift of control cells agrees with their RNA velocity.

    Parameters
    ----------
    table
        What :func:`scstate_lora.tl.velocity_alignment` returned, or the predicted cells that it wrote to.
    kind
        ``"histogram"``: of the cosine of the cells, with its median. ``"arrows"``: shift and velocity of up to 400
        cells, where the model works in an embedding of two columns. Arrows of a kind share a scale, and each kind is
        scaled on its own, as a velocity has a time scale of its own.
    group_key
        Column by whose values the histogram is drawn one by one, for instance ``"cell_type"``.
    min_confidence
        Cells whose velocity has less confidence are left out; those without a confidence stay.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes given, or those of a new figure.

    Raises
    ------
    KeyError
        The cells hold no such table, or the table no such column.
    TypeError
        ``table`` is neither a table nor an AnnData.
    ValueError
        ``kind`` is unknown, the table is another one or not of two dimensions, no cell is left, or there are more than
        12 groups.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r} is unknown. {did_you_mean(str(kind), _KINDS)}")
    cells = _cells(table)
    cells = cells[~(cells["confidence"] < min_confidence)]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 3.6) if kind == "histogram" else (5.4, 5.0), layout="constrained")
    if kind == "arrows":
        _draw_arrows(ax, cells)
    else:
        _draw_histogram(ax, cells, group_key)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _cells(table: Any) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame):
        if not hasattr(table, "uns"):
            raise TypeError(f"Expected a table or an AnnData, found {type(table).__name__}.")
        kept = table.uns.get(UNS_KEY, {})
        if "velocity_alignment" not in kept:
            raise KeyError(
                f"uns[{UNS_KEY!r}] has no 'velocity_alignment': call "
                "scstate_lora.tl.velocity_alignment(adata, predicted, velocity_key=...) first."
            )
        table = kept["velocity_alignment"]
    missing = [column for column in ("cosine", "confidence") if column not in table]
    if missing:
        raise ValueError(f"The table lacks the columns {missing}; give the one of tl.velocity_alignment.")
    return table


def _draw_histogram(ax: Axes, cells: pd.DataFrame, group_key: str | None) -> None:
    known = cells[cells["cosine"].notna()]
    if known.empty:
        raise ValueError("No cell is left that has both a shift and a velocity: there is no cosine to draw.")
    if group_key is None:
        groups = {"": known["cosine"].to_numpy()}
    elif group_key not in known:
        raise KeyError(f"The table has no column {group_key!r}. {did_you_mean(group_key, known.columns)}")
    else:
        groups = {str(name): part["cosine"].to_numpy() for name, part in known.groupby(group_key, observed=True)}
        if len(groups) > _MOST_GROUPS:
            raise ValueError(
                f"{group_key!r} has {len(groups)} values, too many lines for one picture; at most {_MOST_GROUPS}."
            )
    for (name, cosine), color in zip(groups.items(), color_cycle(len(groups)), strict=True):
        weights = np.full(len(cosine), 1 / len(cosine))
        if group_key is None:
            ax.hist(cosine, bins=_BINS, weights=weights, color=color, alpha=0.75)
            ax.axvline(float(np.median(cosine)), color="#404040", linewidth=1.4)
        else:
            label = f"{name} (median {np.median(cosine):.2f})"
            ax.hist(cosine, bins=_BINS, weights=weights, color=color, histtype="step", linewidth=1.4, label=label)
    ax.axvline(0, color="#8c8c8c", linewidth=0.8, linestyle=":")
    ax.set_xlim(-1, 1)
    ax.set_xlabel("cosine of predicted shift and RNA velocity\n(−1 opposite, 0 unrelated, 1 the same way)")
    ax.set_ylabel("share of the cells")
    left_out = len(cells) - len(known)
    said = f"{len(known):,} cells, median {known['cosine'].median():.2f}"
    ax.set_title(said + (f" ({left_out:,} without a direction)" if left_out else ""), fontsize="medium")
    if group_key is not None:
        ax.legend(fontsize="x-small", frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _draw_arrows(ax: Axes, cells: pd.DataFrame) -> None:
    if any(column not in cells for column in _ARROW_COLUMNS):
        raise ValueError(
            "Arrows need a prediction in an embedding of two columns, and this one has none. Draw kind='histogram'."
        )
    known = cells[cells[list(_ARROW_COLUMNS)].notna().all(axis=1)]
    if known.empty:
        raise ValueError("No cell is left that has both a shift and a velocity.")
    shown = known.iloc[np.unique(np.linspace(0, len(known) - 1, _MOST_ARROWS).round().astype(int))]
    ax.scatter(known["x"], known["y"], s=6, color=MISSING_COLOR, linewidths=0, rasterized=len(known) > 5000)
    extent = float(np.ptp(known[["x", "y"]].to_numpy(), axis=0).max()) or 1.0
    for name, color, label in (
        ("velocity", "#8c8c8c", "RNA velocity"),
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
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2)
