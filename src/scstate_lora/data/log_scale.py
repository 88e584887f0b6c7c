"""Scales of log1p expression: the base of the logarithm, and the sum that the counts of a cell were normalised to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import warn_user

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from scstate_lora.data.matrix import MatrixStats

_NAMES = {1e4: "log1p_cp10k", 1e6: "log1p_cpm"}


class LogScale(NamedTuple):
    """How log1p values were computed."""

    base: float
    """Base of the logarithm."""
    target_sum: float | None
    """Sum of the counts of every cell before the logarithm; None if unknown."""


def same_sum(first: float, second: float) -> bool:
    """Whether two target sums are the same, to within a hundredth."""
    return abs(first / second - 1) < 0.01


def scale_name(target_sum: float | None) -> str:
    """Name the scale of natural log1p values: ``"log1p_cp10k"``, ``"log1p_cpm"``, ``"log1p_cp1500"``, or ``"log1p"``.

    Parameters
    ----------
    target_sum
        Sum of the counts of a cell; None if unknown.
    """
    if target_sum is None:
        return "log1p"
    names = [name for known, name in _NAMES.items() if same_sum(target_sum, known)]
    return names[0] if names else f"log1p_cp{target_sum:.0f}"


def describe_scale(target_sum: float | None) -> str:
    """Describe the scale of natural log1p values in words."""
    if target_sum is None:
        return "log1p values of an unknown target sum"
    return f"log1p of counts per {target_sum:,.6g}" if target_sum < 1e6 else f"log1p of counts per {target_sum:,.0f}"


def noted_base(adata: AnnData) -> float | None:
    """Read the base of the logarithm from ``adata.uns["log1p"]``, as scanpy writes it; None without such a note."""
    note: Any = adata.uns.get("log1p")
    if note is None or not hasattr(note, "get"):
        return None
    base = note.get("base")  # absent from files, which cannot hold None: the natural logarithm
    return math.e if base is None else float(base)


def find_log_scale(stats: MatrixStats, noted: float | None) -> LogScale:
    """Find the base and the target sum of log1p values.

    Parameters
    ----------
    stats
        Summary of the matrix.
    noted
        Base that goes with the data; None if nothing is noted, which means the natural logarithm.

    Returns
    -------
    The base under which all cells had one sum before the logarithm, and this sum. If there is no such base, because
    genes were left out since or for another reason, the noted base.
    """
    first = math.e if noted is None else noted
    for base in (first, *(b for b in stats.unlogged if b != first)):
        sums = stats.unlogged.get(base)
        if sums is not None and sums.constant:
            round_sum = 10.0 ** round(math.log10(sums.mean))
            exact = abs(sums.mean / round_sum - 1) < 1e-3
            return LogScale(base, round_sum if exact else float(f"{sums.mean:.6g}"))
    return LogScale(first, None)


def check_scales(target_sums: Mapping[str, float | None]) -> None:
    """Check that cells to be compared are on one scale.

    Parameters
    ----------
    target_sums
        Target sum of the log1p values of some cells, by what the user calls the cells; None if unknown.

    Raises
    ------
    ValueError
        If two known scales differ.

    Warns
    -----
    UserWarning
        If some scales are known and others are not.
    """
    known = {name: total for name, total in target_sums.items() if total is not None}
    if not known:
        return
    first, total = next(iter(known.items()))
    for name, other in known.items():
        if not same_sum(total, other):
            msg = (
                f"{first} is {describe_scale(total)}, but {name} is {describe_scale(other)}: a comparison would be one "
                f"of scales. Set up both on the same, ssl.setup_anndata(..., target_sum={TARGET_SUM:.0f}), and predict "
                "anew."
            )
            raise ValueError(msg)
    unknown = [name for name in target_sums if name not in known]
    if unknown:
        warn_user(
            f"{first} is {describe_scale(total)}, but the scale of {' and '.join(unknown)} is unknown: the cells do "
            "not sum to one number before log1p. The comparison holds only if the scale is the same."
        )
