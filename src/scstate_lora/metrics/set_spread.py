"""How a pair of sets varies around its means, from moments and distances that are already known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.spread import cell_cov_corr

if TYPE_CHECKING:
    from scstate_lora.metrics.set_pairs import SetPair

_MOST_CELLS = 500


def sd_ratio_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.sd_ratio` of a pair."""
    predicted, measured = _deviations(pair)
    if not measured.sum() > 0:
        msg = "The measured cells are all equal: their standard deviation is 0."
        raise ValueError(msg)
    return float(predicted.sum() / measured.sum())


def sd_r2_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.sd_r2` of a pair."""
    return _r2(*_deviations(pair), what="standard deviation")


def detection_r2_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.detection_r2` of a pair."""
    return _r2(pair.predicted.detection, pair.measured.detection, what="detection rate")


def detection_mae_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.detection_mae` of a pair."""
    return float(np.abs(pair.predicted.detection - pair.measured.detection).mean())


def centered_e_distance_of(pair: SetPair) -> float:
    """:func:`scstate_lora.metrics.centered_energy_distance` of a pair, of at most 1,000 cells on either side."""
    x, y = pair.predicted.centred, pair.measured.centred
    apart = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    along = [(side @ apart.astype(np.float32)).astype(np.float64) for side in (x, y)]
    between = pair.squared - 2 * along[0][:, None] + 2 * along[1] + float(apart @ apart)
    mean = float(np.sqrt(np.maximum(between, 0)).mean())
    return max(0.0, 2 * mean - pair.predicted.spread.mean - pair.measured.spread.mean)


def cell_cov_corr_of(pred: np.ndarray, real: np.ndarray, control: np.ndarray) -> float:
    """:func:`scstate_lora.metrics.cell_cov_corr`, of at most 500 evenly chosen cells of each kind."""
    return cell_cov_corr(*(cells[:: -(-len(cells) // _MOST_CELLS)] for cells in (pred, real, control)))


def _deviations(pair: SetPair) -> tuple[np.ndarray, np.ndarray]:
    sides = pair.predicted.moments, pair.measured.moments
    if min(side.n_cells for side in sides) < 2:
        found = " and ".join(str(side.n_cells) for side in sides)
        msg = f"A standard deviation needs two cells on either side; there are {found}."
        raise ValueError(msg)
    return np.sqrt(sides[0].variance), np.sqrt(sides[1].variance)


def _r2(pred: np.ndarray, real: np.ndarray, *, what: str) -> float:
    total = np.square(real - real.mean()).sum()
    if not total > 1e-12 * np.square(real).sum():
        msg = f"The {what} of all genes is the same in the measured cells: there is nothing to explain."
        raise ValueError(msg)
    return float(1 - np.square(pred - real).sum() / total)
