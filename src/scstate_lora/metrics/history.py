"""Histories of trainings, as tables, from whatever holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def named_histories(models: Any, *, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the histories of one model or several by name.

    Parameters
    ----------
    models
        A trained model (anything with a ``.history``), a history itself, or several of these: a mapping by name, or a
        list, whose members are named by their class; None in a list is left out.
    columns
        Columns that a history must have.

    Raises
    ------
    TypeError
        If something is neither a model nor a history.
    ValueError
        If there is none, or a history is empty or lacks a column.
    """
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    elif isinstance(models, (list, tuple)):
        named = {}
        for model in (m for m in models if m is not None):
            name = _name(model)
            n_same = sum(other.split(" ")[0] == name for other in named)
            named[f"{name} {n_same + 1}" if n_same else name] = model
    else:
        named = {_name(models): models}
    if not named:
        msg = "`models` holds no model. Give a trained model, its `.history`, or a dictionary of them."
        raise ValueError(msg)
    return {name: _history(name, model, columns) for name, model in named.items()}


def _name(model: Any) -> str:
    return "history" if isinstance(model, pd.DataFrame) else type(model).__name__


def _history(name: str, model: Any, columns: Sequence[str]) -> pd.DataFrame:
    history = model if isinstance(model, pd.DataFrame) else getattr(model, "history", None)
    if not isinstance(history, pd.DataFrame):
        msg = (
            f"{name!r} is a {type(model).__name__} without a `.history` table. "
            "Give a trained model, its `.history`, or a dictionary of them."
        )
        raise TypeError(msg)
    missing = [column for column in columns if column not in history]
    if missing and len(history.columns):
        msg = f"The history of {name!r} lacks the columns {missing}; it has {list(history.columns)}."
        raise ValueError(msg)
    if history.empty:
        msg = f"The history of {name!r} is empty. Call `.train()` first."
        raise ValueError(msg)
    return history
