"""Shares with their intervals, and how far a stated confidence can be believed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


def wilson_interval(
    n_hits: np.ndarray | int, n: np.ndarray | int, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the interval of a share; it stays within 0 and 1, and holds for few cells and for shares of 0 and 1.

    Parameters
    ----------
    n_hits, n
        Number of hits, and of trials, of any one shape.
    level
        Coverage.

    Returns
    -------
    Lower and upper end, of the same shape; NaN without trials.

    References
    ----------
    Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    from scipy.stats import norm

    hits, trials = np.asarray(n_hits, dtype=float), np.asarray(n, dtype=float)
    z = float(norm.ppf(0.5 + level / 2))
    trials = np.where(trials > 0, trials, np.nan)
    share, weight = hits / trials, 1 / (1 + z**2 / trials)
    middle = weight * (share + z**2 / (2 * trials))
    half = weight * z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At the ends rounding would leave 1e-17 outside of what was seen.
    return np.clip(np.minimum(middle - half, share), 0, 1), np.clip(np.maximum(middle + half, share), 0, 1)


class Reliability(NamedTuple):
    """Confidence and accuracy of the cells in bins of confidence, ``(n_bins,)`` each, bins without cells left out."""

    confidence: np.ndarray
    """Mean confidence."""
    accuracy: np.ndarray
    """Share of correct cells."""
    n_cells: np.ndarray
    """Number of cells."""
    n_correct: np.ndarray
    """Number of correct cells."""

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of accuracy from confidence, weighted by cells."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.n_cells))


def reliability(confidence: np.ndarray, correct: np.ndarray, *, n_bins: int = 10) -> Reliability:
    """Compare confidence with accuracy, in bins of equal width over 0 to 1.

    Parameters
    ----------
    confidence
        Stated probability of being correct, ``(n_cells,)``, within 0 and 1.
    correct
        Whether each cell is, bool ``(n_cells,)``.
    n_bins
        Number of bins.

    Raises
    ------
    ValueError
        If there is no cell, a confidence is outside 0 to 1 or NaN, shapes differ, or `n_bins` is below 1.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    stated, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    if stated.shape != right.shape or stated.ndim != 1 or not len(stated):
        msg = f"confidence has shape {stated.shape} and correct {right.shape}; both must be (n_cells,), with a cell."
        raise ValueError(msg)
    if not ((stated >= 0) & (stated <= 1)).all():
        msg = "confidence must be probabilities, 0 to 1 and not NaN. A score of another range has no calibration."
        raise ValueError(msg)
    if n_bins < 1:
        msg = f"n_bins={n_bins} must be 1 or more."
        raise ValueError(msg)
    bins = np.minimum((stated * n_bins).astype(int), n_bins - 1)
    n_cells = np.bincount(bins, minlength=n_bins)
    kept = n_cells > 0
    n_cells = n_cells[kept]
    sums = np.bincount(bins, weights=stated, minlength=n_bins)[kept]
    n_correct = np.bincount(bins, weights=right, minlength=n_bins)[kept].astype(int)
    return Reliability(sums / n_cells, n_correct / n_cells, n_cells, n_correct)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, n_bins: int = 10) -> float:
    """Compute the mean distance of accuracy from confidence over bins of confidence; 0 is calibrated.

    Parameters
    ----------
    confidence, correct, n_bins
        As in :func:`reliability`, with its errors.
    """
    return reliability(confidence, correct, n_bins=n_bins).error
