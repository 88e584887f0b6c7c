"""How active each gene programme is over time, under sham and under burn, with its exact rate of change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.datasets.wound_genes import PROGRAMMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHANNELS: tuple[str, ...] = (*PROGRAMMES, "systemic", "own")
"""Drivers of expression over time: the programmes, a burn response shared by all cells, one specific to each type."""


@dataclass(frozen=True)
class Course:
    """Values over time and their time derivative (per day), two arrays of one shape."""

    value: NDArray[np.float64]
    rate: NDArray[np.float64]

    def __mul__(self, scale: NDArray[np.float64]) -> Course:
        """Scale by a factor that does not depend on time."""
        return Course(self.value * scale, self.rate * scale)


def rising(time: NDArray[np.float64], midpoint: NDArray[np.float64] | float, width: float) -> Course:
    """Logistic rise from 0 to 1; `midpoint` and `width` in days."""
    value = 1 / (1 + np.exp(-(time - midpoint) / width))
    return Course(value, value * (1 - value) / width)


def falling(time: NDArray[np.float64], midpoint: NDArray[np.float64] | float, width: float) -> Course:
    """Logistic fall from 1 to 0; `midpoint` and `width` in days."""
    course = rising(time, midpoint, width)
    return Course(1 - course.value, -course.rate)


def bump(time: NDArray[np.float64], peak: NDArray[np.float64] | float, width: float) -> Course:
    """Gaussian bump of height 1; `peak` and `width` in days."""
    distance = (time - peak) / width
    value = np.exp(-0.5 * distance**2)
    return Course(value, -value * distance / width)


def polarisation(time: NDArray[np.float64], lag: NDArray[np.float64]) -> Course:
    """Progress of a macrophage from M1-like (0) to M2-like (1)."""
    return rising(time, 11.5 + lag, 1.6)


def activity(time: NDArray[np.float64], burned: NDArray[np.bool_], delay: NDArray[np.float64]) -> Course:
    """Activity of every channel in every cell, before the cell's own sensitivity.

    Parameters
    ----------
    time
        Days since wounding, each cell by its own clock, ``(n_cells,)``.
    burned
        Whether the cell's wound is a burn, ``(n_cells,)``.
    delay
        Days by which a burn delays this cell, ``(n_cells,)``; without effect under sham.

    Returns
    -------
    Arrays ``(n_cells, n_channels)`` in the order of `CHANNELS`.
    """
    burn = burned.astype(np.float64)
    lag = delay * burn
    axis = polarisation(time, lag)
    courses = {
        "inflammation": bump(time, 6 + 1.6 * lag, 3.0) * (1 + 0.4 * burn),
        "interferon": bump(time, 8 + 1.6 * lag, 3.0) * (0.4 + 0.8 * burn),
        "stress": falling(time, 10 + lag, 2.5) * (0.3 + 0.9 * burn),
        "proliferation": bump(time, 10 + lag, 2.7) * (1 + 0.2 * burn),
        "remodelling": rising(time, 12 + lag, 1.6) * (1 + 0.5 * burn),
        "M1": Course(1 - axis.value, -axis.rate),
        "M2": axis,
        "systemic": bump(time, 16, 3.5) * burn,
        "own": bump(time, 12, 3.0) * burn,
    }
    return Course(
        np.stack([courses[channel].value for channel in CHANNELS], axis=1),
        np.stack([courses[channel].rate for channel in CHANNELS], axis=1),
    )


def composition(time: float, *, burned: bool) -> dict[str, float]:
    """Return the expected share of each cell type in a wound at `time` days; a burn runs four days behind."""
    t = np.asarray(time - (4.0 if burned else 0.0))
    late = float(rising(t, 13, 2.5).value)
    early = 1 - late
    weights = {
        "keratinocyte": 0.12 + 0.08 * late,
        "fibroblast": 0.16 + 0.06 * late,
        "myofibroblast": 0.04 + 0.10 * float(bump(t, 14, 4.0).value),
        "pericyte": 0.04 + 0.01 * late,
        "endothelial": 0.06 + 0.06 * float(bump(t, 12, 4.0).value),
        "macrophage": 0.10 + 0.12 * early,
        "monocyte": 0.04 + 0.08 * early,
        "dendritic": 0.04 + 0.01 * early,
        "neutrophil": 0.02 + 0.16 * early,
        "T cell": 0.05 + 0.03 * float(bump(t, 13, 4.0).value),
        "Schwann": 0.03,
    }
    total = sum(weights.values())
    return {cell_type: weight / total for cell_type, weight in weights.items()}
