"""Small helpers without a subject of their own: suggestions for mistyped names and progress bars."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tqdm.auto import tqdm


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 10) -> str:
    """Return a sentence that suggests the known names nearest to a mistyped one.

    Parameters
    ----------
    name
        What the user wrote.
    known
        What exists.
    limit
        How many existing names are listed when none is near.
    """
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in reversed(known)}
    near = [lowered[k] for k in difflib.get_close_matches(str(name).lower(), list(lowered), n=3, cutoff=0.6)]
    if near:
        return "Did you mean " + " or ".join(repr(k) for k in near) + "?"
    if not known:
        return "There are none."
    listed = ", ".join(repr(k) for k in known[:limit])
    return f"There are: {listed}{', …' if len(known) > limit else ''}."


def progress_bar(iterable: Iterable[Any] | None = None, **kwargs: Any) -> tqdm:
    """Make a tqdm bar that redraws often on a terminal or in a notebook, and seldom in a log file.

    Parameters
    ----------
    iterable, kwargs
        As for ``tqdm``.
    """
    from tqdm.auto import tqdm

    return tqdm(iterable, mininterval=0.2 if sys.stderr.isatty() else 15, dynamic_ncols=True, **kwargs)
