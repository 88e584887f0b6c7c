"""True and predicted labels of cells: accuracy by cell type, confusion, calibration of the confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.metrics.confidence import reliability, wilson_interval
from scstate_lora.pl.style import (
    BAND,
    DARK,
    MUTED,
    category_colors,
    color_bar,
    color_cycle,
    frameless,
    ink,
    readable_ticks,
    shade,
    shortened,
    text_on,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

NOT_PREDICTED = "no prediction"
_WRITTEN = 16  # numbers are written into the fields up to this many types
_MOST_TYPES = 60
_MOST_GROUPS = 10


class _Labels(NamedTuple):
    """Labels of the cells whose true one is known."""

    true: np.ndarray
    predicted: np.ndarray
    """Of a cell without a prediction: :data:`NOT_PREDICTED`."""
    types: list[str]
    """True types, in the order of the categories."""
    colors: list[str]
    known: np.ndarray
    """Which cells these are, bool ``(n_obs,)``."""


def celltype_accuracy(
    adata: AnnData, *, true_key: str, pred_key: str, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Draw for every cell type the share of its cells that were recognised, with its interval and number of cells.

    The dotted line is the mean over the types (balanced accuracy), which rare types enter as much as common ones. A
    cell without a prediction counts as not recognised; cells without a true label are left out. Types are sorted by
    their accuracy.

    Parameters
    ----------
    adata
        Annotated data.
    true_key, pred_key
        Columns of ``adata.obs`` with the true and the predicted label. Colours are those in
        ``adata.uns[f"{true_key}_colors"]``, by default scanpy's.
    level
        Coverage of the intervals (Wilson's).
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If ``adata.obs`` lacks a column.
    ValueError
        If no cell has a true label, there are more than 60 types, or `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        msg = f"level={level} must be between 0 and 1, for instance 0.95."
        raise ValueError(msg)
    labels = _read(adata, true_key, pred_key)
    right = labels.true == labels.predicted
    n = np.array([(labels.true == name).sum() for name in labels.types])
    hits = np.array([right[labels.true == name].sum() for name in labels.types])
    low, high = wilson_interval(hits, n, level=level)
    accuracy = hits / n
    order = np.argsort(-accuracy, kind="stable")
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 1.2 + 0.26 * len(n)), layout="constrained")
    for y, i in enumerate(order):
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color=shade(ax, BAND), linewidth=0, zorder=0)
        ax.plot([low[i], high[i]], [y, y], color=shade(ax, MUTED), linewidth=1.4, solid_capstyle="butt", zorder=2)
        ax.plot(
            [accuracy[i]], [y], marker="o", markersize=6.5, color=labels.colors[i], linestyle="", zorder=3,
            markeredgecolor=shade(ax, DARK), markeredgewidth=0.6,
        )  # fmt: skip
        ax.text(1.02, y, f"{n[i]:,}", transform=ax.get_yaxis_transform(), va="center", fontsize="small", color=ink(ax))
    ax.text(1.02, -0.75, "cells", transform=ax.get_yaxis_transform(), fontsize="small", color=shade(ax, MUTED))
    ax.axvline(float(accuracy.mean()), color=shade(ax, DARK), linewidth=1.0, linestyle=":", zorder=1)
    readable_ticks(ax, [labels.types[i] for i in order], axis="y")
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(len(n) - 0.5, -0.5)
    ax.set_xlabel(f"share recognised, {level:.0%} interval (dotted: mean of the types)", fontsize="small")
    title = f"accuracy {right.mean():.1%} of cells, {accuracy.mean():.1%} mean of types"
    missing = int((labels.predicted == NOT_PREDICTED).sum())
    ax.set_title(
        title + (f"\n{missing:,} of {len(right):,} cells without a prediction" if missing else ""),
        fontsize="medium", color=ink(ax), pad=14,
    )  # fmt: skip
    frameless(ax)
    return ax


def confusion(adata: AnnData, *, true_key: str, pred_key: str, counts: bool = False, ax: Axes | None = None) -> Axes:
    """Draw which predicted label the cells of every true type have, as shares of the type.

    Rows are true types with their number of cells, and sum to 1; columns are predicted labels, those that no cell truly
    has and cells without a prediction behind the others. Cells without a true label are left out.

    Parameters
    ----------
    adata
        Annotated data.
    true_key, pred_key
        Columns of ``adata.obs`` with the true and the predicted label.
    counts
        Write numbers of cells into the fields, in place of shares. The colour is the share of the row either way.
        Neither is written for more than 16 labels.
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If ``adata.obs`` lacks a column.
    ValueError
        If no cell has a true label, or there are more than 60 types.
    """
    labels = _read(adata, true_key, pred_key)
    further = sorted(set(labels.predicted) - set(labels.types) - {NOT_PREDICTED})
    columns = [*labels.types, *further]
    if (labels.predicted == NOT_PREDICTED).any():
        columns.append(NOT_PREDICTED)
    table = np.zeros((len(labels.types), len(columns)), dtype=int)
    rows = pd.Index(labels.types).get_indexer(pd.Index(labels.true))
    cols = pd.Index(columns).get_indexer(pd.Index(labels.predicted))
    np.add.at(table, (rows, cols), 1)
    totals = table.sum(axis=1)
    shares = table / totals[:, None]
    if ax is None:
        side = 0.42 if len(columns) <= _WRITTEN else 0.2
        _, ax = plt.subplots(figsize=(3.4 + side * len(columns), 2.0 + side * len(labels.types)), layout="constrained")
    image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if len(columns) <= _WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            if table[row, column]:
                text = f"{table[row, column]:,}" if counts else f"{share:.2f}".removeprefix("0")
                ax.text(
                    column, row, text, ha="center", va="center", fontsize="x-small", color=text_on(image.cmap(share))
                )
    names = [f"{shortened(name, 24)} ({n:,})" for name, n in zip(labels.types, totals, strict=True)]
    readable_ticks(ax, names, axis="y", longest=40)
    readable_ticks(ax, columns, axis="x", longest=24)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true (cells)")
    ax.tick_params(length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    color_bar(image, ax, "share of the true type", aspect=30)
    return ax


def calibration(
    adata: AnnData,
    *,
    true_key: str,
    pred_key: str,
    confidence_key: str,
    group_key: str | None = None,
    n_bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often predicted labels are right, against the confidence that was stated: a reliability diagram.

    On the dashed line a confidence is what it says; below it, labels are trusted too much. A dot is a bin of
    confidence, the line through it its interval (95 %, Wilson's). The faint bars are the share of the cells in each
    bin. ECE is the expected calibration error, the mean distance from the dashed line over the cells (Guo et al.
    2017). Cells without a true label, a prediction or a confidence are left out, and the title says how many.

    Parameters
    ----------
    adata
        Annotated data.
    true_key, pred_key
        Columns of ``adata.obs`` with the true and the predicted label.
    confidence_key
        Column of ``adata.obs`` with the stated probability of the predicted label, 0 to 1.
    group_key
        Column of ``adata.obs``: one line per value, at most 10. What holds on the whole may fail in a batch.
    n_bins
        Number of bins, of equal width.
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If ``adata.obs`` lacks a column.
    ValueError
        If no cell has all that is needed, a confidence is outside 0 to 1, or there are more than 10 groups.
    """
    labels = _read(adata, true_key, pred_key)
    confidence = pd.to_numeric(_column(adata, confidence_key)).to_numpy(dtype=float, na_value=np.nan)[labels.known]
    known = np.isfinite(confidence) & (labels.predicted != NOT_PREDICTED)
    if not known.any():
        msg = f"No cell has a label in {true_key!r} and {pred_key!r}, and a confidence in {confidence_key!r}."
        raise ValueError(msg)
    right, confidence = (labels.true == labels.predicted)[known], confidence[known]
    groups: dict[str, np.ndarray] = {"": np.ones(len(right), dtype=bool)}
    colors = color_cycle(1)
    if group_key is not None:
        categories = pd.Categorical(_column(adata, group_key).astype("category"))
        codes = categories.codes[labels.known][known]
        present = [i for i in range(len(categories.categories)) if (codes == i).any()]
        if not 1 <= len(present) <= _MOST_GROUPS:
            msg = f"adata.obs[{group_key!r}] has {len(present)} values; 1 to {_MOST_GROUPS} can be drawn."
            raise ValueError(msg)
        all_colors = category_colors(adata, group_key, categories.categories)
        groups = {str(categories.categories[i]): codes == i for i in present}
        colors = [all_colors[i] for i in present]
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 4.4 + 0.2 * (len(groups) - 1)), layout="constrained")
    shares = np.histogram(confidence, bins=n_bins, range=(0, 1))[0] / len(confidence)
    edges = np.linspace(0, 1, n_bins + 1)
    ax.bar(edges[:-1], shares, width=1 / n_bins, align="edge", color=shade(ax, 0.15), linewidth=0, zorder=0)
    ax.plot([0, 1], [0, 1], color=shade(ax, MUTED), linewidth=0.9, linestyle="--", zorder=1)
    for (name, here), color in zip(groups.items(), colors, strict=True):
        found = reliability(confidence[here], right[here], n_bins=n_bins)
        low, high = wilson_interval(found.n_correct, found.n_cells)
        ax.vlines(found.confidence, low, high, color=color, linewidth=1.2, zorder=2)
        label = f"{shortened(name)}: ECE {found.error:.3f} ({here.sum():,} cells)" if name else None
        ax.plot(found.confidence, found.accuracy, marker="o", markersize=5, color=color, zorder=3, label=label)
    error = reliability(confidence, right, n_bins=n_bins).error
    left_out = adata.n_obs - len(right)
    title = f"ECE {error:.3f}, {len(right):,} cells" + (f" ({left_out:,} left out)" if left_out else "")
    ax.set_title(title, fontsize="medium", color=ink(ax))
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal")
    ax.set_xlabel("stated confidence")
    ax.set_ylabel("share that is right (bars: share of the cells)")
    frameless(ax)
    if group_key is not None:
        ax.legend(
            loc="upper left", bbox_to_anchor=(0, -0.14), fontsize="small", frameon=False, labelcolor=ink(ax),
            title=shortened(group_key), alignment="left",
        ).get_title().set_color(ink(ax))  # fmt: skip
    return ax


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        msg = f"adata.obs has no column {key!r}. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    return adata.obs[key]


def _read(adata: AnnData, true_key: str, pred_key: str) -> _Labels:
    """Read both labels of the cells whose true one is known."""
    true, predicted = _column(adata, true_key), _column(adata, pred_key)
    known = true.notna().to_numpy()
    if not known.any():
        msg = f"adata.obs[{true_key!r}] has no label for any of the {adata.n_obs} cells: nothing can be compared."
        raise ValueError(msg)
    categories = pd.Categorical(true).categories
    colors = category_colors(adata, true_key, categories)
    labels = true[known].astype(str).to_numpy()
    present = set(labels)
    kept = [i for i, name in enumerate(categories) if str(name) in present]
    if len(kept) > _MOST_TYPES:
        msg = f"adata.obs[{true_key!r}] has {len(kept)} types, too many for one figure; at most {_MOST_TYPES}."
        raise ValueError(msg)
    guesses: Any = predicted[known]
    guesses = guesses.astype(object).where(guesses.notna(), NOT_PREDICTED).astype(str).to_numpy()
    types: Sequence[str] = [str(categories[i]) for i in kept]
    return _Labels(labels, guesses, list(types), [colors[i] for i in kept], known)
