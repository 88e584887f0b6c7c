"""The layout of tables of scores: columns, averages with intervals and reasons, skill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from scstate_lora import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scstate_lora.metrics.perturbation import Direction

ALL = "all"
"""Name of the average over contexts, perturbations or targets."""

SCORE_COLUMNS = [
    *("value", "split_sd", "skill", "ci_low", "ci_high", "direction", "lowest", "highest"),
    *("n_control", "n_measured", "weight", "reason", "skill_reason"),
]
"""Columns of a score, after those that say which it is."""

CALIBRATION_COLUMNS = ["yardstick", "dynamic_range", "baseline_saturation"]
"""Columns of scores of predicted cells: the baseline at which the skill is 0, and whether the metric is usable."""

NO_RANGE = "the ceiling does not exceed the floor by twice the noise of the random halves"
MIN_CELLS = 10


class Counting(NamedTuple):
    """Which contexts count in an average, and with what weight."""

    min_cells: int = MIN_CELLS
    """Fewest control cells, and fewest measured cells, of a context that counts."""
    weights: Literal["equal", "cells"] = "equal"
    """Whether contexts that count weigh the same, or as their number of measured cells."""

    @classmethod
    def checked(cls, min_cells: int, weights: str) -> Counting:
        """Check what a user chose; a ValueError says what is allowed."""
        if min_cells < 1:
            msg = f"min_cells={min_cells!r} must be 1 or more: 1 lets every context count."
            raise ValueError(msg)
        if weights not in ("equal", "cells"):
            msg = f"weights={weights!r} is not possible; use 'equal' or 'cells'."
            raise ValueError(msg)
        return cls(min_cells, weights)  # type: ignore[arg-type]  # one of the two


EQUAL = Counting()
"""The default: contexts of 10 cells or more count, all the same."""


def weights_of(
    names: Sequence[str], counts: Sequence[tuple[int, int]], counting: Counting
) -> tuple[np.ndarray, dict[str, str]]:
    """Weigh contexts for an average.

    Parameters
    ----------
    names, counts
        Name of each, and its numbers of control and of measured cells.
    counting
        Which count.

    Returns
    -------
    Weight of each, ``(n,)``, 0 for one that does not count; and of these why, by name.
    """
    weights = np.ones(len(names))
    too_few = {}
    for i, (name, (n_control, n_measured)) in enumerate(zip(names, counts, strict=True)):
        if counting.weights == "cells":
            weights[i] = n_measured
        few = [
            f"{n} {kind}" for n, kind in ((n_control, "control"), (n_measured, "measured")) if n < counting.min_cells
        ]
        if few:
            weights[i] = 0
            too_few[name] = f"{' and '.join(few)} cells, under min_cells={counting.min_cells}"
    return weights, too_few


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Average the finite values ``(n,)`` with a weight above 0; NaN without any."""
    counts = np.isfinite(values) & (weights > 0)
    return float(np.average(values[counts], weights=weights[counts])) if counts.any() else np.nan


def average(values: np.ndarray, *, weights: np.ndarray | None = None, n_boot: int, seed: int = 0) -> dict[str, float]:
    """Average the finite values, with a 95 % bootstrap interval; NaN without any.

    Parameters
    ----------
    values
        Scores, ``(n,)``.
    weights
        Weight of each, ``(n,)``; equal by default. Those of 0 do not count.
    n_boot, seed
        Bootstrap samples and their seed.
    """
    weight = np.ones(len(values)) if weights is None else weights
    counts = np.isfinite(values) & (weight > 0)
    low, high = metrics.bootstrap_interval(values[counts], weights=weight[counts], n_boot=n_boot, seed=seed)
    return {"value": mean(values, weight), "ci_low": low, "ci_high": high}


def intervals(
    values: np.ndarray, weights: np.ndarray, *, sizes: np.ndarray, n_boot: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap the average of every row, as :func:`average` does, or the ratio of two averages.

    Parameters
    ----------
    values, weights
        Scores and their weights, ``(n_averages, n)``.
    sizes
        Denominators of scores that are ratios, whose numerators are the values; 1 of others. ``(n_averages, n)``.
    n_boot, seed
        As in :func:`average`.

    Returns
    -------
    Lower and upper ends, ``(n_averages,)`` each.
    """
    counts = np.isfinite(values) & (weights > 0)
    low, high = np.full((2, len(values)), np.nan)
    patterns, group = np.unique(counts, axis=0, return_inverse=True)
    for i, columns in enumerate(patterns):
        n = int(columns.sum())
        if n < 2:
            continue
        drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n))
        for row in np.flatnonzero(group.ravel() == i):
            weight = weights[row, columns]
            above = (values[row, columns] * weight)[drawn].sum(axis=1)
            below = (sizes[row, columns] * weight)[drawn].sum(axis=1)
            if (below > 0).all():
                low[row], high[row] = np.quantile(above / below, [0.025, 0.975])
    return low, high


def average_sd(values: np.ndarray, sds: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Compute the standard deviation of an average of independent scores; NaN where none varies over the halves.

    Parameters
    ----------
    values, sds
        Scores ``(n,)`` and the standard deviation of each, NaN where it does not vary.
    weights
        As in :func:`average`.
    """
    weight = np.ones(len(values)) if weights is None else weights
    counts = np.isfinite(values) & (weight > 0)
    if not np.isfinite(sds[counts]).any():
        return np.nan
    return float(np.sqrt(np.nansum(np.square(weight[counts] * sds[counts]))) / weight[counts].sum())


def reason_of_average(
    values: np.ndarray,
    reasons: Sequence[str] | np.ndarray,
    names: Iterable[str],
    too_few: Mapping[str, str] | None = None,
) -> str:
    """Say which scores an average lacks, or why there is none.

    Parameters
    ----------
    values, reasons, names
        Scores ``(n,)``, why each is NaN, and of what each is.
    too_few
        Why some do not count, by name.
    """
    why = {name: (too_few or {}).get(name, reason) for name, reason in zip(names, reasons, strict=True)}
    missing = [f"{name}: {reason}" for name, reason in why.items() if reason]
    counts = np.isfinite(values) & np.array([name not in (too_few or {}) for name in why])
    if counts.any():
        return f"without {'; '.join(missing)}" if missing else ""
    return "; ".join(missing if too_few else dict.fromkeys(why.values()))


class _Marked(Protocol):
    """A score and its standard deviation over the random halves."""

    @property
    def value(self) -> float: ...

    @property
    def sd(self) -> float: ...


def skill(own: float, floor: _Marked, ceiling: _Marked, *, direction: Direction) -> dict[str, float | str]:
    """Place a score between floor and ceiling; NaN and a reason where their distance is within its noise.

    Parameters
    ----------
    own, floor, ceiling
        Scores.
    direction
        Of the metric.

    Returns
    -------
    The columns ``skill`` and ``skill_reason``.
    """
    good, low, high = metrics.goodness([own, floor.value, ceiling.value], direction=direction)
    noise = float(np.sqrt(np.nansum(np.square([floor.sd, ceiling.sd]))))
    value = float(metrics.skill(good, floor=low, ceiling=high, noise=noise))
    is_flat = np.isnan(value) and np.isfinite([good, low, high]).all()
    return {"skill": value, "skill_reason": NO_RANGE if is_flat else ""}
