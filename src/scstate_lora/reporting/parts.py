"""The parts of the page: verdicts, cards, tables and sections, ready for the templates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from scstate_lora.reporting.pictures import Picture

SHOWN_ROWS = 500
"""Longer tables show their first rows, and hold all in their CSV."""
_ROWS_OF_A_BOX = 25
_LARGEST_CSV = 1_200_000  # characters; a page of several has to stay under 5 MB
_PLAIN_IN_URI = ",;:/()+*=!@$?-._~"  # what a URI may hold as it is


@dataclass(frozen=True)
class Verdict:
    """One plain sentence and its mark: ``good``, ``bad``, or ``even`` (neither, or unknown)."""

    mark: str
    text: str


class Column(NamedTuple):
    """Head of a column; numbers are set to the right."""

    name: str
    numeric: bool


class Csv(NamedTuple):
    """A file to save from the page: its name, its data URI, and what it lacks, if anything."""

    name: str
    data_uri: str
    note: str


@dataclass(frozen=True)
class Table:
    """A table as text; a ``folded`` one opens on a click."""

    kind = "table"
    caption: str
    columns: list[Column]
    rows: list[list[str]]
    folded: bool = False
    csv: Csv | None = None
    note: str = ""

    @property
    def long(self) -> bool:
        """Whether it is shown in a box to scroll in."""
        return len(self.rows) > _ROWS_OF_A_BOX


@dataclass
class Section:
    """A heading with its paragraphs, verdicts, and tables and pictures in the order of `blocks`; or folded whole."""

    title: str
    anchor: str
    paragraphs: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    blocks: list[Table | Picture] = field(default_factory=list)
    folded: bool = False


@dataclass
class Card:
    """One question about the run, the answer in a word and in sentences, and the numbers behind it.

    The mark is that of a verdict, or ``care``: yes, with reservations. A broad card takes two columns.
    """

    title: str
    mark: str
    answer: str
    sentences: list[str]
    table: Table | None = None
    broad: bool = False


@dataclass
class Overview:
    """The first screen: what was asked, of which data, whether to believe the answer, and the genes that change."""

    question: str
    anchor: str
    data: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    genes: Table | None = None


@dataclass
class Experiment:
    """All that the page tells of one experiment, the first screen first."""

    overview: Overview
    sections: list[Section] = field(default_factory=list)
    name: str = ""


def table(
    frame: pd.DataFrame, caption: str, *, folded: bool = False, save_as: str = "", full: pd.DataFrame | None = None
) -> Table:
    """Turn a DataFrame into a table; the index is left out.

    Parameters
    ----------
    frame
        What is shown; of more than 500 rows the first ones.
    caption
        What the table is about.
    folded
        Whether it opens on a click.
    save_as
        Name of its CSV file, without suffix; without a name there is none.
    full
        What the CSV file holds, by default `frame`.
    """
    types = pd.api.types
    numeric = [bool(types.is_numeric_dtype(d) and not types.is_bool_dtype(d)) for d in frame.dtypes]
    shown = frame.head(SHOWN_ROWS)
    rows = [[text(value) for value in row] for row in shown.itertuples(index=False, name=None)]
    columns = [Column(str(name), is_number) for name, is_number in zip(frame.columns, numeric, strict=True)]
    csv = csv_of(frame if full is None else full, save_as) if save_as else None
    note = f"The first {len(shown):,} of {len(frame):,} rows." if len(shown) < len(frame) else ""
    return Table(caption, columns, rows, folded, csv, note)


def csv_of(frame: pd.DataFrame, name: str) -> Csv:
    """Write a table in full precision into a link; of a large one as many of the first rows as a page can carry."""
    content = frame.to_csv(index=False, lineterminator="\n")
    note = ""
    if len(content) > _LARGEST_CSV:
        end = content.rindex("\n", 0, _LARGEST_CSV)
        content = content[: end + 1]
        note = f"the first {content.count(chr(10)) - 1:,} of {len(frame):,} rows"
    return Csv(f"{name}.csv", "data:text/csv;charset=utf-8," + quote(content, safe=_PLAIN_IN_URI), note)


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
