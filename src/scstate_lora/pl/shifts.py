"""Arrows from control cells to where they are predicted to go, beside where the measured cells are: `shift`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean
from scstate_lora.data.perturbations import respelled
from scstate_lora.data.results import read_prediction
from scstate_lora.pl.cell_values import labels_of, values_of
from scstate_lora.pl.layouts import umap_layout
from scstate_lora.pl.response_tables import names_of
from scstate_lora.pl.style import (
    FAINT,
    MUTED,
    category_colors,
    color_cycle,
    ink,
    is_dark,
    paper,
    shade,
    shortened,
    tinted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

_LAYOUTS = ("pca", "umap")
_EACH = ("mean", "cell")
_MOST_CELLS = 6_000  # of one kind, to lay out and draw
_MOST_ARROWS = 300
_MOST_GROUPS = 60
_N_PCS = 30
_LEGEND_ROWS = 14


class _Cells(NamedTuple):
    """Cells of one kind: ``(n, n_features)``, and for each its context, perturbation and control cell or own name."""

    values: Any
    contexts: np.ndarray
    perturbations: np.ndarray
    names: np.ndarray

    def at(self, rows: np.ndarray) -> _Cells:
        return _Cells(self.values[rows], self.contexts[rows], self.perturbations[rows], self.names[rows])


def shift(
    pred: AnnData,
    adata: AnnData,
    *,
    context_key: str,
    perturbation: str | Sequence[str] | None = None,
    context: str | Sequence[str] | None = None,
    layout: Literal["pca", "umap"] = "pca",
    each: Literal["mean", "cell"] = "mean",
    layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw arrows from control cells to the cells predicted from them, among the measured cells.

    A colour is a context, or a perturbation if there is a single context. An arrow leads from the mean position of the
    control cells to that of the predicted ones; a hollow dot at the end of a dotted line is the mean of the measured
    perturbed cells, if `adata` has them: where the arrow should end. Small dots are cells, grey controls and pale
    measured perturbed ones.

    The two axes are those of control and measured perturbed cells (of predicted ones, where nothing was measured), so
    that a shift in a direction that cells do not vary in is not seen.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`. Of a model that works in an embedding, the
        embedding is drawn, otherwise log1p expression.
    adata
        Measured cells with the control cells that `pred` was predicted from; perturbed ones are optional.
    context_key
        Column of ``obs`` of the context, for instance the cell type. Colours are those in
        ``adata.uns[f"{context_key}_colors"]``, by default scanpy's.
    perturbation, context
        Those to draw, one or several; all by default.
    layout
        ``"pca"``: two principal components, in which an arrow is the true shift seen from one side, and lengths
        compare. ``"umap"``: of all cells together, which separates cell types better and bends arrows.
    each
        ``"mean"``: an arrow for every context and perturbation. ``"cell"``: for up to 300 cells, a fixed choice.
    layer
        Layer of `adata` with the expression, counts or log1p; by default ``X``. Counts are normalised as `pred` is.
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If a column, gene or embedding is missing, or `pred` has no such context or perturbation.
    ValueError
        If `layout` or `each` is unknown, `pred` is no prediction, its control cells are not in `adata`, fewer than 5
        cells are left, or there are more than 60 contexts and perturbations.
    """
    for what, value, allowed in (("layout", layout, _LAYOUTS), ("each", each, _EACH)):
        if value not in allowed:
            msg = f"{what}={value!r} is unknown. {did_you_mean(str(value), allowed)}"
            raise ValueError(msg)
    predicted, control, measured = _read(pred, adata, context_key, perturbation, context, layer)
    groups = _groups(predicted)
    if len(groups) > _MOST_GROUPS:
        msg = f"pred has {len(groups)} contexts and perturbations, at most {_MOST_GROUPS} can be drawn. Name some."
        raise ValueError(msg)
    places = _lay_out(layout, predicted, control, measured)
    by_context = len(set(predicted.contexts)) > 1 or len(set(predicted.perturbations)) == 1
    column = "contexts" if by_context else "perturbations"
    names = list(dict.fromkeys(getattr(predicted, column)))
    if ax is None:
        n_columns = -(-len(names) // _LEGEND_ROWS)
        _, ax = plt.subplots(figsize=(4.8 + 1.9 * n_columns, 4.6), layout="constrained")
    colors = dict(
        zip(names, _colors(adata, context_key, names) if by_context else color_cycle(len(names)), strict=True)
    )
    _draw_cells(ax, control, measured, *places[1:], colors=colors, column=column)
    if each == "cell":
        _draw_each(ax, predicted, control, places, colors, column)
    else:
        for number, (target, where) in enumerate(groups):
            color = colors[where if by_context else target]
            _draw_mean(ax, (predicted, control, measured), places, target, where, color=color, zorder=4 + number / 100)
    axis = layout.upper() if layout == "umap" else "PC"
    ax.set_xlabel(f"{axis} 1", fontsize="small")
    ax.set_ylabel(f"{axis} 2", fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
    _legend(ax, colors, title=context_key if by_context else "perturbation", has_measured=bool(len(measured.names)))
    return ax


def _read(
    pred: AnnData,
    adata: AnnData,
    context_key: str,
    perturbation: str | Sequence[str] | None,
    context: str | Sequence[str] | None,
    layer: str | None,
) -> tuple[_Cells, _Cells, _Cells]:
    """Read the predicted cells to draw, the control cells that they come from, and the measured perturbed cells."""
    prediction = read_prediction(pred)
    values, measured_values = values_of(pred, adata, prediction, layer=layer)
    predicted = _Cells(
        values,
        labels_of(pred, context_key, argument="pred"),
        labels_of(pred, prediction.pert_key, argument="pred"),
        labels_of(pred, "control_cell", argument="pred").astype(str),
    )
    kept = np.ones(pred.n_obs, dtype=bool)
    for what, chosen, labels in (
        ("perturbation", perturbation, predicted.perturbations), ("context", context, predicted.contexts),
    ):  # fmt: skip
        if chosen is None:
            continue
        for name in names_of(chosen):
            if name not in set(labels):
                msg = f"pred has no {what} {name!r}. {did_you_mean(name, dict.fromkeys(labels))}"
                raise KeyError(msg)
        kept &= np.isin(labels, names_of(chosen))
    predicted = predicted.at(np.flatnonzero(kept))
    perturbations = respelled(
        labels_of(adata, prediction.pert_key, argument="adata"),
        names=predicted.perturbations,
        control=prediction.control,
    )
    every = _Cells(
        measured_values, labels_of(adata, context_key, argument="adata"), np.asarray(perturbations),
        adata.obs_names.to_numpy(dtype=str),
    )  # fmt: skip
    control = every.at(np.flatnonzero(np.isin(every.names, predicted.names)))
    here = np.isin(every.perturbations, predicted.perturbations) & np.isin(every.contexts, predicted.contexts)
    measured = every.at(np.flatnonzero(here & (every.perturbations != prediction.control)))
    predicted = predicted.at(np.flatnonzero(np.isin(predicted.names, control.names)))
    if len(control.names) < 5:
        msg = (
            f"{len(control.names)} of the control cells named in pred.obs['control_cell'] are in adata; at least 5 are "
            "needed. Give the AnnData that was predicted from, and contexts and perturbations that it holds together."
        )
        raise ValueError(msg)
    return predicted, control, measured


def _groups(cells: _Cells) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(cells.perturbations, cells.contexts, strict=True)))


def _lay_out(layout: str, *cells: _Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two coordinates of predicted, control and measured cells; NaN for cells that are not drawn."""
    predicted, control, measured = cells
    reference = measured if len(measured.names) else predicted
    axes = _principal_axes(control, reference, 2 if layout == "pca" else _N_PCS)
    projected = [np.asarray(part.values @ axes.T) for part in cells]
    if layout == "pca" or projected[0].shape[1] < 3:
        first, second, third = (values[:, :2] for values in projected)
        return first, second, third
    shown = [_sample(part) for part in cells]
    # The predicted cells that are laid out are those of the control cells that are.
    own = np.isin(predicted.names, control.names[shown[1]])
    shown[0] = np.flatnonzero(own)[_spread(int(own.sum()), 2 * _MOST_CELLS)]
    together = umap_layout(np.vstack([values[rows] for values, rows in zip(projected, shown, strict=True)]))
    places = [np.full((len(values), 2), np.nan) for values in projected]
    start = 0
    for place, rows in zip(places, shown, strict=True):
        place[rows] = together[start : start + len(rows)]
        start += len(rows)
    return places[0], places[1], places[2]


def _principal_axes(control: _Cells, reference: _Cells, n_axes: int) -> np.ndarray:
    """Principal axes of up to 6,000 cells of either kind, ``(n_axes, n_features)``."""
    from sklearn.decomposition import PCA

    parts = [part.values[_sample(part)] for part in (control, reference)]
    dense = np.vstack([p.toarray() if sparse.issparse(p) else np.asarray(p) for p in parts]).astype(np.float32)
    n_axes = min(n_axes, *dense.shape)
    if dense.shape[1] <= 2:
        return np.eye(2, dense.shape[1], dtype=np.float32)
    axes: np.ndarray = PCA(n_axes, random_state=0).fit(dense).components_
    return axes


def _sample(cells: _Cells) -> np.ndarray:
    return _spread(len(cells.names), _MOST_CELLS)


def _spread(n: int, most: int) -> np.ndarray:
    """Return up to ``most`` of ``n`` positions, a fixed random choice."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _colors(adata: AnnData, key: str, names: Sequence[str]) -> list[str]:
    categories = pd.Categorical(adata.obs[key]).categories
    colors = dict(zip(map(str, categories), category_colors(adata, key, categories), strict=True))
    further = iter(color_cycle(len(colors) + len(names))[len(colors) :])
    return [colors[name] if name in colors else next(further) for name in names]


def _draw_cells(
    ax: Axes,
    control: _Cells,
    measured: _Cells,
    control_places: np.ndarray,
    measured_places: np.ndarray,
    *,
    colors: dict[str, str],
    column: str,
) -> None:
    rows = _sample(control)
    style: dict[str, Any] = {"linewidths": 0, "rasterized": len(control.names) + len(measured.names) > 5_000}
    ax.scatter(control_places[rows, 0], control_places[rows, 1], s=5, color=shade(ax, FAINT), zorder=1, **style)
    if len(measured.names):
        rows = _sample(measured)
        pale = [tinted(ax, colors[name], 0.6 if is_dark(ax) else 0.45) for name in getattr(measured, column)[rows]]
        ax.scatter(measured_places[rows, 0], measured_places[rows, 1], s=5, c=pale, zorder=2, **style)


def _arrow(ax: Axes, start: np.ndarray, end: np.ndarray, color: str, *, zorder: float, width: float) -> None:
    """Draw an arrow, with an edge in the colour of the background so that it stands out from cells."""
    from matplotlib.patheffects import withStroke

    ax.annotate(
        "", xy=tuple(end), xytext=tuple(start), zorder=zorder,
        arrowprops={
            "arrowstyle": "-|>,head_width=0.26,head_length=0.5", "color": color, "linewidth": width, "shrinkA": 0,
            "shrinkB": 0, "path_effects": [withStroke(linewidth=width + 2, foreground=paper(ax))],
        },
    )  # fmt: skip
    ax.update_datalim([start, end])


def _draw_mean(
    ax: Axes,
    cells: tuple[_Cells, _Cells, _Cells],
    places: tuple[np.ndarray, np.ndarray, np.ndarray],
    target: str,
    where: str,
    *,
    color: str,
    zorder: float,
) -> None:
    predicted, control, measured = cells
    own = (predicted.perturbations == target) & (predicted.contexts == where)
    sources = np.isin(control.names, predicted.names[own])
    start, end = np.nanmean(places[1][sources], axis=0), np.nanmean(places[0][own], axis=0)
    truth = (measured.perturbations == target) & (measured.contexts == where)
    if truth.any():
        goal = np.nanmean(places[2][truth], axis=0)
        ax.plot(*np.array([start, goal]).T, color=shade(ax, 0.8), linestyle=":", linewidth=1.1, zorder=zorder)
        ax.plot(
            *goal[:, None], marker="o", markersize=6, markerfacecolor=paper(ax), markeredgecolor=color,
            markeredgewidth=1.8, linestyle="", zorder=zorder,
        )  # fmt: skip
    _arrow(ax, start, end, color, zorder=zorder + 0.005, width=1.8)


def _draw_each(
    ax: Axes,
    predicted: _Cells,
    control: _Cells,
    places: tuple[np.ndarray, np.ndarray, np.ndarray],
    colors: dict[str, str],
    column: str,
) -> None:
    starts = places[1][pd.Index(control.names).get_indexer(predicted.names)]
    drawn = np.flatnonzero(np.isfinite(starts).all(axis=1) & np.isfinite(places[0]).all(axis=1))
    drawn = drawn[_spread(len(drawn), _MOST_ARROWS)]
    moves = places[0][drawn] - starts[drawn]
    ax.quiver(
        *starts[drawn].T, *moves.T, angles="xy", scale_units="xy", scale=1, width=0.0035, zorder=4,
        color=[colors[name] for name in getattr(predicted, column)[drawn]],
    )  # fmt: skip
    ax.update_datalim(places[0][drawn])


def _legend(ax: Axes, colors: dict[str, str], *, title: str, has_measured: bool) -> None:
    from matplotlib.lines import Line2D

    grey = shade(ax, MUTED)
    handles = [
        Line2D([], [], color=color, marker=">", markersize=5, linewidth=1.8, label=shortened(name, 22))
        for name, color in colors.items()
    ]
    handles.append(Line2D([], [], color=shade(ax, 0.4), marker="o", markersize=3, linestyle="", label="control cells"))
    if has_measured:
        handles.append(
            Line2D([], [], color=grey, linestyle=":", marker="o", markerfacecolor=paper(ax), label="measured mean")
        )
    ax.legend(
        handles=handles, title=shortened(title), loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small",
        ncols=-(-len(colors) // _LEGEND_ROWS), frameon=False, labelcolor=ink(ax), alignment="left",
    ).get_title().set_color(ink(ax))  # fmt: skip
