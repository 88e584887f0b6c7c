"""Small helpers for talking to the user: suggestions for mistyped names, warnings and progress bars."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scstate_lora._logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tqdm.auto import tqdm


_PACKAGE = f"{Path(__file__).parent}{os.sep}"


def did_you_mean(name: str, available: Iterable[str], *, limit: int = 10) -> str:
    """Return a sentence that suggests the available names closest to a mistyped one.

    Parameters
    ----------
    name
        The name the user gave.
    available
        The names that exist.
    limit
        Number of names to list if none is close.
    """
    available = [str(k) for k in available if k is not None]  # anndata 0.13 lists X among the layers, as None
    lowered = {k.lower(): k for k in reversed(available)}
    close = [lowered[k] for k in difflib.get_close_matches(str(name).lower(), list(lowered), n=3, cutoff=0.6)]
    if close:
        return "Did you mean " + " or ".join(repr(k) for k in close) + "?"
    if not available:
        return "None are available."
    listed = ", ".join(repr(k) for k in available[:limit])
    return f"Available: {listed}{', …' if len(available) > limit else ''}."


def listed(names: Iterable[Any], *, limit: int = 5, joined_by: str = ", ", form: Callable[[Any], str] = repr) -> str:
    """List the first names, and say how many more there are.

    Parameters
    ----------
    names
        What is listed.
    limit
        Number of names to show.
    joined_by
        Text between two of them.
    form
        How a name is written; in quotes by default.
    """
    names = list(names)
    more = f"{joined_by.rstrip(' ,')} and {len(names) - limit} more" if len(names) > limit else ""
    return joined_by.join(map(form, names[:limit])) + more


def warn_user(message: str) -> None:
    """Issue a UserWarning that points at the line of the user's code that called this package."""
    is_ours = [frame.f_code.co_filename.startswith(_PACKAGE) for frame, _ in traceback.walk_stack(sys._getframe())]
    outermost = max(level for level, ours in enumerate(is_ours, start=1) if ours)  # innermost frame: level 1
    warnings.warn(message, UserWarning, stacklevel=outermost + 1)


def progress_bar(iterable: Iterable[Any] | None = None, **kwargs: Any) -> tqdm:
    """Make a tqdm bar that redraws often in a terminal or notebook, rarely in a log file; none if the logger is quiet.

    Parameters
    ----------
    iterable, kwargs
        As for ``tqdm``.
    """
    from tqdm.auto import tqdm

    hidden = bool(kwargs.pop("disable", False)) or not logger.isEnabledFor(logging.INFO)
    return tqdm(iterable, disable=hidden, mininterval=0.2 if sys.stderr.isatty() else 15, dynamic_ncols=True, **kwargs)
