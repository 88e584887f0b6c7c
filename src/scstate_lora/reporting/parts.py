"""The parts of the page: paragraphs, tables and figures, ready for the template."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 110


@dataclass(frozen=True)
class Verdict:
    """One plain sentence and its mark: ``good``, ``bad``, or ``even`` (neither, or unknown).

    A headline is repeated at the top of the page.
    """

    mark: str
    text: str
    headline: bool = False


@dataclass(frozen=True)
class Table:
    """A table as text: ``columns`` of (name, is numeric), ``rows`` of cells; a ``folded`` table opens on a click."""

    kind = "table"
    caption: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """An image as a data URI, with its caption."""

    kind = "figure"
    caption: str
    data_uri: str


@dataclass
class Section:
    """A heading with its paragraphs, verdicts, and tables and figures in the order of `blocks`."""

    title: str
    anchor: str
    paragraphs: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    blocks: list[Table | Figure] = field(default_factory=list)


def table(frame: pd.DataFrame, caption: str, *, folded: bool = False) -> Table:
    """Turn a DataFrame into a table; the index is left out."""
    types = pd.api.types
    numeric = [bool(types.is_numeric_dtype(d) and not types.is_bool_dtype(d)) for d in frame.dtypes]
    rows = [[text(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return Table(caption, list(zip([str(c) for c in frame.columns], numeric, strict=True)), rows, folded)


def text(value: Any) -> str:
    """Write one cell: integers with thousands separated, other numbers to three significant digits."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not isinstance(value, (float, np.floating)):
        return "" if value is None else str(value)
    number = float(value)
    if math.isnan(number):
        return "n/a"
    if math.isfinite(number) and abs(number) >= 1000:
        return f"{number:,.0f}"
    return "0" if abs(number) < 1e-12 else f"{number:.3g}"


def skill_text(value: float) -> str:
    """Write a skill as it is shown: clipped to -1 and 1, and marked where it was."""
    if not abs(value) > 1:
        return text(value)
    return f"{'1' if value > 0 else '-1'} (clipped)"


def figure(axes: Axes | np.ndarray[Any, np.dtype[Any]], caption: str) -> Figure:
    """Turn the figure of some Axes into a PNG within the page, and close it."""
    drawn = np.ravel(np.asarray(axes, dtype=object))[0].figure
    buffer = io.BytesIO()
    engine = drawn.get_layout_engine()
    if engine is not None:
        engine.execute(drawn)  # once: savefig lays out twice, and draws in between
        drawn.set_layout_engine("none")
    drawn.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    plt.close(drawn)
    return Figure(caption, "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
