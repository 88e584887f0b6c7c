"""Tables of `tl.responses`, of any model: checked, and cut to the perturbations, contexts and genes to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.pl.style import require_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COLUMNS = ("perturbation", "context", "gene", "predicted", "measured")
ALPHA = 0.05
"""False discovery rate under which a gene counts as responding."""


def names_of(value: str | Sequence[str]) -> list[str]:
    """Return one name or several as a list without repetition."""
    return [value] if isinstance(value, str) else list(dict.fromkeys(value))


def chosen_responses(
    table: pd.DataFrame,
    *,
    perturbation: str | Sequence[str] | None = None,
    context: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Check a table of responses, and return the rows to draw, with ``group``: perturbation and context in words.

    Parameters
    ----------
    table
        Table of :func:`scstate_lora.tl.responses`, or another with its columns ``perturbation``, ``context``,
        ``gene``, ``predicted`` and ``measured``.
    perturbation, context
        Those to draw, one or several; None for all.

    Raises
    ------
    KeyError
        If one is not in the table.
    ValueError
        If the table lacks a column, or no row is left.
    """
    require_columns(table, COLUMNS, tools="`tl.responses`")
    kept = pd.Series(data=True, index=table.index)
    for column, value in (("perturbation", perturbation), ("context", context)):
        if value is not None:
            names = names_of(value)
            check_names(names, table[column], what=column)
            kept &= table[column].astype(str).isin(names)
    table = table[kept]
    if table.empty:
        msg = (
            f"No row is left for perturbation={perturbation!r} and context={context!r}: the table does not hold them "
            "together. Choose others, or None for all."
        )
        raise ValueError(msg)
    return table.assign(group=_groups(table))


def check_names(names: Iterable[str], available: pd.Series, *, what: str) -> None:
    """Raise a KeyError for the first name that a column lacks, a ValueError if there are no names."""
    present = list(dict.fromkeys(available.astype(str)))
    names = list(names)
    if not names:
        msg = f"`{what}` names nothing. Name one or several of the table's, or give None."
        raise ValueError(msg)
    for name in names:
        if name not in present:
            msg = f"The table has no {what} {name!r}. {did_you_mean(name, present)}"
            raise KeyError(msg)


def _groups(table: pd.DataFrame) -> pd.Series:
    """Name each row by what tells it from others: its context, its perturbation, or both."""
    perturbation, context = table["perturbation"].astype(str), table["context"].astype(str)
    if perturbation.nunique() == 1:
        return context
    return perturbation if context.nunique() == 1 else perturbation + ", " + context
