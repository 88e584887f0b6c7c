"""The layout of tables of scores: columns, averages with intervals and reasons, skill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALL = "all"
"""Name of the average over contexts, perturbations or targets."""

SCORE_COLUMNS = ["value", "skill", "ci_low", "ci_high", "direction", "lowest", "highest", "reason"]
"""Columns of a score, after those that say which it is."""


def average(values: np.ndarray, *, n_boot: int, seed: int = 0) -> dict[str, float]:
    """Average the finite values, with a 95 % bootstrap interval; NaN without any.

    Parameters
    ----------
    values
        Scores, ``(n,)``.
    n_boot, seed
        Bootstrap samples and their seed.
    """
    finite = values[np.isfinite(values)]
    low, high = metrics.bootstrap_interval(finite, n_boot=n_boot, seed=seed)
    return {"value": float(finite.mean()) if len(finite) else np.nan, "ci_low": low, "ci_high": high}


def reason_of_average(values: np.ndarray, reasons: Sequence[str] | np.ndarray, names: Iterable[str]) -> str:
    """Say which scores an average lacks, or why there is none.

    Parameters
    ----------
    values, reasons, names
        Scores ``(n,)``, why each is NaN, and of what each is.
    """
    if not np.isfinite(values).any():
        return "; ".join(dict.fromkeys(reasons))
    missing = [f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason]
    return f"without {'; '.join(missing)}" if missing else ""


def skill_of_averages(good: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> float:
    """Skill of the averages over the contexts in which model, yardstick and ceiling all have a value.

    Parameters
    ----------
    good, floor, ceiling
        Scores of the three by context, ``(n_contexts,)``, larger being better.
    """
    columns = np.stack([good, floor, ceiling])
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    if not columns.shape[1]:
        return np.nan
    own, low, high = columns.mean(axis=1)
    return float(metrics.skill(own, floor=low, ceiling=high))
