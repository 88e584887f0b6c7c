"""Embeddings in two dimensions, before and after adaptation, coloured by covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._constants import OBSM_BASE, OBSM_SE
from scstate_lora._utils import did_you_mean
from scstate_lora.pl.layouts import begin_umap_layouts, umap_layout
from scstate_lora.pl.style import FAINT, category_colors, color_bar, grid_shape, ink, panels, shade, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_FEWEST_CELLS = 5
_RASTERIZE_ABOVE = 5_000
_LEGEND_ROWS = 14


def embedding(
    adata: AnnData,
    basis: str = OBSM_SE,
    *,
    color: str | Sequence[str],
    compare: str | None = OBSM_BASE,
    n_cells: int | None = 20_000,
    ax: Axes | None = None,
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw cells in an embedding, and in another to compare it with, coloured by columns of ``obs``.

    An embedding of more than two dimensions is laid out by UMAP (15 neighbours, fixed seed, the same picture every
    time); an embedding of two dimensions is drawn as it is. ``adata`` is only read.

    Parameters
    ----------
    adata
        Annotated data.
    basis
        Key in ``adata.obsm`` of the embedding to draw, shape ``(n_cells, n_dimensions)``.
    color
        One or several columns of ``adata.obs``, one row of panels each. Numbers get a colour bar, everything else the
        colours in ``adata.uns[f"{color}_colors"]``, by default scanpy's.
    compare
        Key in ``adata.obsm`` of the embedding to draw to the left of it, for before and after. The default is
        left out if ``adata`` lacks it, and with `ax`.
    n_cells
        Largest number of cells to lay out and draw, a fixed random choice; None for all.
    ax
        Axes to draw on: a single panel of ``basis`` with one colour.

    Returns
    -------
    `ax`, or a new figure's array of Axes, ``(n_colors, n_embeddings)``.

    Raises
    ------
    KeyError
        If ``basis``, ``compare`` or ``color`` is not in ``adata``.
    ValueError
        If an embedding is not finite or one-dimensional, there are under 5 cells, or `ax` is given for several panels.
    """
    keys = [color] if isinstance(color, str) else list(color)
    bases = _bases(adata, basis, compare, single=ax is not None)
    _check(adata, bases, keys, single=ax is not None)

    chosen = drawn_cells(adata.n_obs, n_cells)
    layouts = {key: _layout(adata, key, chosen) for key in bases}

    if ax is not None:
        _panel(ax, adata, chosen, layouts[basis], key=keys[0], basis=basis, guide=True)
        return ax
    axes = _grid(len(keys), len(bases), legend=max(_legend_width(adata.obs[key]) for key in keys))
    for i, key in enumerate(keys):
        for j, name in enumerate(bases):
            _panel(axes[i, j], adata, chosen, layouts[name], key=key, basis=name, guide=j == len(bases) - 1)
    return axes


def begin_layouts(adata: AnnData, bases: Sequence[str], *, n_cells: int | None) -> None:
    """Begin to lay out embeddings in another process, so that :func:`embedding` need not wait for them.

    Parameters
    ----------
    adata, n_cells
        As for :func:`embedding`.
    bases
        Keys in ``adata.obsm``; those that need no layout are passed over.
    """
    chosen = drawn_cells(adata.n_obs, n_cells)
    arrays = [np.asarray(adata.obsm[key], dtype=np.float32)[chosen] for key in bases]
    begin_umap_layouts([array for array in arrays if array.shape[1] > 2 and len(array) >= _FEWEST_CELLS])


def drawn_cells(n_obs: int, n_cells: int | None) -> NDArray[np.int64]:
    """Positions of the cells that are laid out and drawn: all, or a fixed random choice."""
    if n_cells is None or n_obs <= n_cells:
        return np.arange(n_obs)
    return np.sort(np.random.default_rng(0).choice(n_obs, n_cells, replace=False))


def _legend_width(values: pd.Series) -> float:
    """Inches that the legend or the colour bar of a column needs."""
    if pd.api.types.is_numeric_dtype(values):
        return 1.0
    names = pd.Categorical(values).categories
    longest = max((len(shortened(name)) for name in names), default=0)
    return -(-(len(names) + 1) // _LEGEND_ROWS) * (0.5 + 0.085 * longest) + 0.3


def _grid(n_colors: int, n_bases: int, *, legend: float) -> np.ndarray[Any, np.dtype[Any]]:
    """Axes of shape ``(n_colors, n_bases)``; of a single embedding they are wrapped into two columns."""
    n_columns = n_bases if n_bases > 1 else grid_shape(n_colors, widest=2)[1]
    n_legends = n_columns if n_bases == 1 else 1
    axes = panels(
        n_colors * n_bases, widest=n_columns, size=(3.6, 3.4), beside=(max(2.0, legend) * n_legends, 0), h_pad=0.1
    )
    return axes.reshape(n_colors, n_bases)


def _bases(adata: AnnData, basis: str, compare: str | None, *, single: bool) -> list[str]:
    """Keys of the embeddings to draw, the one to compare with first."""
    absent_default = compare == OBSM_BASE and (single or OBSM_BASE not in adata.obsm)
    if compare is None or compare == basis or absent_default:
        return [basis]
    return [compare, basis]


def _check(adata: AnnData, bases: Sequence[str], keys: Sequence[str], *, single: bool) -> None:
    for name in bases:
        if name not in adata.obsm:
            msg = f"adata.obsm has no {name!r}. {did_you_mean(name, adata.obsm.keys())}"
            raise KeyError(msg)
        array = np.asarray(adata.obsm[name])
        if array.ndim != 2 or array.shape[1] < 2:
            msg = f"adata.obsm[{name!r}] has shape {array.shape}; two or more dimensions are needed."
            raise ValueError(msg)
        if not np.isfinite(array).all():
            n_bad = int((~np.isfinite(array).all(axis=1)).sum())
            msg = f"adata.obsm[{name!r}] has NaN or infinite values in {n_bad} cells. Compute it again."
            raise ValueError(msg)
    if not keys:
        msg = "`color` names no column of adata.obs. Name one or several."
        raise ValueError(msg)
    for key in keys:
        if key not in adata.obs:
            msg = f"adata.obs has no column {key!r}. {did_you_mean(key, adata.obs.columns)}"
            raise KeyError(msg)
    if adata.n_obs < _FEWEST_CELLS:
        msg = f"adata has {adata.n_obs} cells; at least {_FEWEST_CELLS} are needed to lay out an embedding."
        raise ValueError(msg)
    if single and (len(keys) > 1 or len(bases) > 1):
        msg = (
            f"One `ax` holds one panel, but {len(keys)} colours x {len(bases)} embeddings need several. "
            "Give one `color` and no `compare`, or no `ax`."
        )
        raise ValueError(msg)


def _layout(adata: AnnData, basis: str, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Two coordinates per cell, shape ``(n_chosen, 2)``."""
    array = np.asarray(adata.obsm[basis], dtype=np.float32)[chosen]
    if array.shape[1] == 2:
        return array
    return umap_layout(array)


def _panel(
    ax: Axes,
    adata: AnnData,
    chosen: NDArray[np.int64],
    xy: NDArray[np.float32],
    *,
    key: str,
    basis: str,
    guide: bool,
) -> None:
    """One scatter; ``guide`` draws the legend or the colour bar beside it."""
    values = adata.obs[key].iloc[chosen]
    # Marker area of a cell in points squared: about the same ink for any number of cells.
    style: dict[str, Any] = {
        "s": float(np.clip(24_000 / len(xy), 1.5, 20)),
        "linewidths": 0,
        "rasterized": len(xy) > _RASTERIZE_ABOVE,
    }
    # In random order, so that no category hides another because of its position in the file.
    order = np.random.default_rng(0).permutation(len(xy))
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric:
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        known = order[np.isfinite(numbers[order])]
        unknown = order[~np.isfinite(numbers[order])]
        ax.scatter(xy[unknown, 0], xy[unknown, 1], color=shade(ax, FAINT), **style)
        points = ax.scatter(xy[known, 0], xy[known, 1], c=numbers[known], cmap="viridis", **style)
        if guide:
            color_bar(points, ax, shortened(key))
    else:
        labels = adata.obs[key].astype(str) if adata.obs[key].dtype == bool else adata.obs[key]
        full = pd.Categorical(labels)
        colors = [*category_colors(adata, key, full.categories), shade(ax, FAINT)]
        codes = full.codes[chosen]
        ax.scatter(xy[order, 0], xy[order, 1], c=np.asarray(colors, dtype=object)[codes[order]], **style)
        if guide:
            _legend(ax, key, [str(c) for c in full.categories], colors, has_missing=bool((codes < 0).any()))
    ax.set_title(_name(basis, len(chosen), adata.n_obs), fontsize="medium")
    axis = "UMAP" if np.asarray(adata.obsm[basis]).shape[1] > 2 else basis.removeprefix("X_")
    ax.set_xlabel(f"{axis} 1", fontsize="small")
    ax.set_ylabel(f"{axis} 2", fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)


def _name(basis: str, n_drawn: int, n_all: int) -> str:
    return basis if n_drawn == n_all else f"{basis} ({n_drawn:,} of {n_all:,} cells)"


def _legend(ax: Axes, key: str, names: Sequence[str], colors: Sequence[str], *, has_missing: bool) -> None:
    """Legend to the right of the panel, in as many columns as the categories need."""
    from matplotlib.lines import Line2D

    names = [*names, "missing"] if has_missing else list(names)
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=color, label=shortened(name))
        for name, color in zip(names, colors, strict=False)
    ]
    ax.legend(
        handles=handles,
        title=shortened(key),
        labelcolor=ink(ax),
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=-(-len(names) // _LEGEND_ROWS),
        fontsize="small",
        frameon=False,
        alignment="left",
        handletextpad=0.2,
        columnspacing=0.8,
    )
