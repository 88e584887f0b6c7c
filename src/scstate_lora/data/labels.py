"""Labels: values of a column as text, the same for one level however it is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable

_BYTES = re.compile(r"""b'[^'\\]*'|b"[^"\\]*\"""")
# Text of a fraction with more digits than single precision has: written from a number, not by hand.
_MANY_DIGITS = re.compile(r"-?\d+\.\d{9,}(e[-+]?\d+)?")


def as_labels(column: pd.Series, label: Callable[[Any], str] | None = None) -> pd.Series:
    """Convert categories, text, bytes, bools or numbers to plain strings, by :func:`label_of` or another function."""
    codes, levels = _levels(column)
    labels = np.array([(label or label_of)(level) for level in levels], dtype=object)
    return pd.Series(labels[codes], index=column.index, name=column.name, dtype=object)


def joined_levels(column: pd.Series, labels: pd.Series) -> dict[str, list[str]]:
    """Find labels under which a column has several values: each with its values, as Python writes them.

    Parameters
    ----------
    column
        The column, without missing values.
    labels
        Label of every value.
    """
    codes, levels = _levels(column)
    _, first = np.unique(codes, return_index=True)  # one row per level
    values: dict[str, list[str]] = {}
    for level, label in zip(levels, labels.iloc[first], strict=True):
        values.setdefault(label, []).append(repr(level.item() if isinstance(level, np.generic) else level))
    return {label: listed for label, listed in values.items() if len(listed) > 1}


def _levels(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Code of every value ``(n_cells,)``, and the values that occur."""
    try:
        codes, levels = pd.factorize(column, use_na_sentinel=False)
    except TypeError as error:  # not hashable
        msg = f"adata.obs[{column.name!r}] holds {type(column.iloc[0]).__name__} values; use text, numbers or bools."
        raise TypeError(msg) from error
    return codes, np.asarray(levels)


def label_of(value: Any) -> str:
    """Convert one value to its label: ``"burn"``, ``"True"``, ``"10"`` for 10 and 10.0, ``"0.5"``.

    Bytes are decoded, also those that were written as text (``"b'burn'"``), and blanks around text are dropped.
    Fractions have the digits of single precision, so that 0.1 has one label in single precision, in double precision,
    and in double precision after single.
    """
    if isinstance(value, (str, bytes)):
        text = decoded(value).strip()
        text = text[2:-1].strip() if is_written_bytes(text) else text
        return _number_label(float(text)) if _MANY_DIGITS.fullmatch(text) else text
    return _number_label(float(value)) if isinstance(value, (float, np.floating)) else str(value)


def decoded(value: str | bytes) -> str:
    """Decode bytes as UTF-8; text is unchanged."""
    return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else value


def is_written_bytes(value: object) -> bool:
    """Whether text is what Python writes of bytes, such as ``"b'burn'"``."""
    return isinstance(value, str) and _BYTES.fullmatch(value) is not None


def _number_label(value: float) -> str:
    if value.is_integer():
        return str(int(value))
    if 1e-30 < abs(value) < 1e6:  # of larger numbers single precision has no fraction worth its name
        single = np.float32(value)
        return str(single) if abs(value) < 1e-4 else np.format_float_positional(single)
    return str(value)
