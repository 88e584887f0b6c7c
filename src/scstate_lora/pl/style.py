"""Shared by the plots: colours for light and dark Axes, names that fit, grids of panels, checks of tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb, to_rgba

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar

MUTED, DARK, FAINT, BAND = 0.6, 0.78, 0.22, 0.05
"""Shares of ink for :func:`shade`: of text and marks in the background, of lines, of missing cells, of a row's band."""


def ink(ax: Axes) -> str:
    """Return the colour of the text of these Axes, which is that of the style they were made in."""
    return to_hex(ax.xaxis.label.get_color())


def paper(ax: Axes) -> str:
    """Return the colour behind what is drawn: of the Axes, of the figure, or what contrasts with the text."""
    for color in (ax.get_facecolor(), ax.figure.get_facecolor()):
        if to_rgba(color)[3] > 0:
            return to_hex(color)
    return "#ffffff" if _luminance(ink(ax)) < 0.5 else "#000000"


def shade(ax: Axes, share: float) -> str:
    """Mix the colours of text and background: 0 is the background, 1 the text; readable on light and dark."""
    return tinted(ax, ink(ax), share)


def tinted(ax: Axes, color: Any, share: float) -> str:
    """Mix a colour into the background: 0 is the background, 1 the colour."""
    return to_hex((1 - share) * np.array(to_rgb(paper(ax))) + share * np.array(to_rgb(color)))


def is_dark(ax: Axes) -> bool:
    """Whether the background of these Axes is dark."""
    return _luminance(paper(ax)) < 0.5


def _luminance(color: Any) -> float:
    return float(np.dot(to_rgb(color), (0.299, 0.587, 0.114)))


def accents(ax: Axes) -> tuple[str, str]:
    """Return a blue and an orange that everybody can tell apart and that stand out here (Okabe and Ito 2008)."""
    return ("#56b4e9", "#e69f00") if is_dark(ax) else ("#0072b2", "#d55e00")


def text_on(color: Any) -> str:
    """Return black or white, whichever is readable on a filled field."""
    return "#000000" if _luminance(color) > 0.5 else "#ffffff"


def diverging_map(ax: Axes) -> Colormap:
    """Return a scale from blue over the background to red, for changes down and up; NaN is grey."""
    ends = ("#4aa3df", "#f4745b") if is_dark(ax) else ("#2166ac", "#b2182b")
    middles = [tinted(ax, end, 0.5) for end in ends]
    scale = LinearSegmentedColormap.from_list("changes", [ends[0], middles[0], paper(ax), middles[1], ends[1]])
    return scale.with_extremes(bad=shade(ax, FAINT))


def color_bar(mappable: ScalarMappable, ax: Axes, label: str, **how: Any) -> Colorbar:
    """Add a colour bar in the colours of the Axes' own style."""
    bar = ax.figure.colorbar(mappable, ax=ax, **{"shrink": 0.8, "pad": 0.02, **how})
    bar.set_label(label, color=ink(ax), fontsize="small")
    bar.ax.tick_params(colors=ink(ax), labelsize="small")
    bar.outline.set_edgecolor(shade(ax, DARK))
    return bar


def shortened(name: object, longest: int = 28) -> str:
    """Shorten a long name in its middle, as names often differ in their ends."""
    text = " ".join(str(name).split())
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 3
    return f"{text[: longest - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"


def readable_ticks(ax: Axes, names: Sequence[str], *, axis: str, longest: int = 28) -> None:
    """Write category names at 0, 1, ...; across, they stand upright where they would not fit.

    Parameters
    ----------
    ax
        Axes, of their final size.
    names
        Names, in order.
    axis
        ``"x"`` or ``"y"``.
    longest
        Letters of a name at most.
    """
    texts = [shortened(name, longest) for name in names]
    if axis == "y":
        ax.set_yticks(range(len(texts)), texts)
        return
    ax.set_xticks(range(len(texts)), texts)
    inches = ax.get_window_extent().width / ax.figure.dpi / max(1, len(texts))
    if 0.085 * max(map(len, texts), default=0) > inches:
        for label in ax.get_xticklabels():
            label.set(rotation=90)


def frameless(ax: Axes) -> None:
    """Leave the left and the lower line of the frame only, and small numbers beside them."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")


def grid_shape(n_panels: int, *, widest: int) -> tuple[int, int]:
    """Rows and columns for a number of panels, at most ``widest`` columns, as even as possible."""
    n_rows = math.ceil(n_panels / widest)
    return n_rows, math.ceil(n_panels / n_rows)


def panels(
    n_panels: int,
    *,
    widest: int,
    size: tuple[float, float],
    beside: tuple[float, float] = (0.0, 0.0),
    h_pad: float | None = None,
    w_pad: float | None = None,
    **subplots: Any,
) -> np.ndarray[Any, np.dtype[Any]]:
    """Make a new figure with a grid of panels.

    Parameters
    ----------
    n_panels
        Number of panels.
    widest
        Panels per row at most.
    size, beside
        Width and height of a panel, and of what lies beside all of them, in inches.
    h_pad, w_pad
        Padding between panels, in inches; matplotlib's by default.
    subplots
        As for :func:`matplotlib.pyplot.subplots`.

    Returns
    -------
    Array of ``n_panels`` Axes.
    """
    n_rows, n_columns = grid_shape(n_panels, widest=widest)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(size[0] * n_columns + beside[0], size[1] * n_rows + beside[1]),
        squeeze=False,
        layout="constrained",
        **subplots,
    )
    figure.get_layout_engine().set(h_pad=h_pad, w_pad=w_pad)
    axes = grid.ravel()
    for unused in axes[n_panels:]:
        unused.remove()
    return axes[:n_panels]


def require_columns(table: pd.DataFrame, columns: Iterable[str], *, tools: str) -> None:
    """Check that a table has columns and rows.

    Parameters
    ----------
    table
        The table.
    columns
        Columns that it must have.
    tools
        Functions that return such a table, for the error message.

    Raises
    ------
    ValueError
        If it lacks a column, or has no row.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        msg = f"The table lacks the columns {missing}; it has {list(table.columns)}. Give the table of {tools}."
        raise ValueError(msg)
    if table.empty:
        msg = "The table has no rows: nothing was scored."
        raise ValueError(msg)


def color_cycle(n_colors: int) -> list[str]:
    """Return scanpy's default colours for that many categories."""
    from scanpy.plotting import palettes

    for palette in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n_colors <= len(palette):
            return list(palette[:n_colors])
    return [palettes.default_102[i % len(palettes.default_102)] for i in range(n_colors)]


def category_colors(adata: AnnData, key: str, categories: pd.Index) -> list[str]:
    """Return the colours in ``adata.uns[f"{key}_colors"]`` if they suffice, scanpy's defaults otherwise."""
    stored = adata.uns.get(f"{key}_colors")
    if stored is not None and len(stored) >= len(categories):
        return [str(color) for color in stored[: len(categories)]]
    return color_cycle(len(categories))
