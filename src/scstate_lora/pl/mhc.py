"""Hyper-connections: how each layer mixes the residual, and how much a signal can grow through the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from scstate_lora.pl.style import color_cycle, ink, panels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# Numbers are written into matrices up to this size.
_WRITTEN = 8
# More matrices are drawn only on request.
_MAX_LAYERS = 11
# Smaller entries look alike on the logarithmic scale.
_FLOOR = 1e-6
_LINES = {
    "composite_forward_gain": ("composite gain, forward", "-", "o"),
    "composite_backward_gain": ("composite gain, backward", "--", "s"),
    "forward_gain": ("gain of the layer, forward", "-", "."),
    "backward_gain": ("gain of the layer, backward", "--", "."),
    "distance_from_identity": ("distance from identity", "-", "D"),
}


def mhc_mixing(
    model: Any, *, layers: Sequence[int] | None = None, ax: Axes | None = None
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the residual mixing H_res of each layer's hyper-connections, and their gains over the layers.

    A doubly stochastic matrix has a gain of one, and so has a product of them; the identity is the plain skip
    connection. Matrices larger than 8 x 8 are drawn on a logarithmic colour scale, as their entries span decades.

    Parameters
    ----------
    model
        Trained with ``mhc=``: it has ``.mhc_diagnostics()`` and ``.mhc_matrices()``.
    layers
        Numbers of the layers whose matrices are drawn; by default all, or 11 spread from first to last.
    ax
        Axes to draw on: the matrix of a single layer, otherwise the gains alone.

    Returns
    -------
    `ax`, or a new figure's array of Axes: the matrices, then the gains.

    Raises
    ------
    TypeError
        If the model cannot have hyper-connections.
    ValueError
        If it was trained without them, or `layers` is empty.
    KeyError
        If a layer has none.
    """
    table, matrices = _read(model)
    chosen = _chosen(layers, list(matrices))
    if ax is not None:
        if layers is not None and len(chosen) == 1:
            _colour_bar(_draw_matrix(ax, chosen[0], matrices), ax)
        else:
            _draw_gains(ax, table)
        return ax
    # The padding keeps the label of the colour bar off the next panel.
    axes = panels(len(chosen) + 1, widest=4, size=(3.1, 3.1), beside=(0.9, 0), w_pad=0.12, h_pad=0.08)
    images = [_draw_matrix(panel, layer, matrices) for panel, layer in zip(axes[:-1], chosen, strict=True)]
    _colour_bar(images[0], axes[:-1])
    _draw_gains(axes[-1], table)
    return axes


def _read(model: Any) -> tuple[pd.DataFrame, Mapping[int, np.ndarray[Any, np.dtype[Any]]]]:
    if not hasattr(model, "mhc_diagnostics") or not hasattr(model, "mhc_matrices"):
        msg = f"A {type(model).__name__} has no hyper-connections to draw. Give a model trained with .train(mhc=True)."
        raise TypeError(msg)
    return model.mhc_diagnostics(), model.mhc_matrices()


def _chosen(layers: Sequence[int] | None, available: list[int]) -> list[int]:
    if layers is None:
        picked = np.linspace(0, len(available) - 1, min(len(available), _MAX_LAYERS)).round().astype(int)
        return [available[i] for i in picked]
    chosen = list(layers)
    if not chosen:
        msg = f"layers is empty. Give some of {available}, or None for all."
        raise ValueError(msg)
    unknown = [layer for layer in chosen if layer not in available]
    if unknown:
        msg = f"The layers {unknown} have no hyper-connections; these have: {available}."
        raise KeyError(msg)
    return chosen


def _draw_matrix(ax: Axes, layer: int, matrices: Mapping[int, np.ndarray[Any, np.dtype[Any]]]) -> AxesImage:
    """One panel: the matrix of a layer, on the scale of all layers."""
    matrix = np.asarray(matrices[layer], dtype=float)
    if len(matrix) <= _WRITTEN:
        image = ax.imshow(matrix, cmap="viridis", norm=Normalize(0, 1))
        for (row, column), value in np.ndenumerate(matrix):
            color = "black" if value > 0.6 else "white"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize="x-small")
        streams = [str(i + 1) for i in range(len(matrix))]
        ax.set_xticks(range(len(matrix)), streams)
        ax.set_yticks(range(len(matrix)), streams)
        unit = "stream"
    else:
        image = ax.imshow(matrix.clip(_FLOOR), cmap="viridis", norm=LogNorm(_FLOOR, 1), interpolation="nearest")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        unit = "feature"
    ax.set_title(f"layer {layer}", fontsize="medium")
    ax.set_xlabel(f"{unit} before")
    ax.set_ylabel(f"{unit} after")
    return image


def _colour_bar(image: AxesImage, axes: Any) -> None:
    figure = image.axes.figure
    assert figure is not None  # it was drawn on one
    scale = ", log scale" if isinstance(image.norm, LogNorm) else ""
    figure.colorbar(image, ax=axes, label=f"weight in H_res{scale}", shrink=0.8, pad=0.02)


def _draw_gains(ax: Axes, table: pd.DataFrame) -> None:
    """One panel: gains and distance from the identity over the layers."""
    for (column, (label, style, marker)), color in zip(_LINES.items(), color_cycle(len(_LINES)), strict=True):
        ax.plot(
            table["layer"], table[column], color=color, linestyle=style, marker=marker, markersize=4, linewidth=1.2,
            markerfacecolor="none" if marker != "." else None, label=label,
        )  # fmt: skip
    highest = table[list(_LINES)].to_numpy(dtype=float).max()
    ax.set_ylim(0, 1.8 * max(1.0, highest))  # room for the legend, and no trend out of rounding
    ax.set_xlim(table["layer"].min() - 0.5, table["layer"].max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_title("gains", fontsize="medium")
    ax.set_xlabel("layer")
    ax.set_ylabel("gain, or distance from identity")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize="x-small", frameon=False, loc="upper left", labelcolor=ink(ax))
