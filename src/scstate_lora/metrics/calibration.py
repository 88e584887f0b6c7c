"""Probabilities that mean what they say, fitted on cells that were held out: temperature, label sets, a promised error.

How far a confidence can be believed is measured by :func:`~scstate_lora.metrics.reliability`. All promises here are
for cells that are exchangeable with the held-out ones: hold out whole batches where new batches will be asked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

_COLDEST, _HOTTEST = 0.01, 100.0
_N_THRESHOLDS = 20
_FIRST_SHARE = 0.25


def fit_temperature(logits: np.ndarray, labels: np.ndarray, *, weights: np.ndarray | None = None) -> float:
    """Find the temperature by which logits are divided before the softmax, by the likelihood of held-out labels.

    Above 1 the model was too sure, below 1 too hesitant. The most likely class of a cell never changes. One more cell,
    evenly of all classes, is counted, so that a model that is right about all of few held-out cells is not taken to be
    right about every cell.

    Parameters
    ----------
    logits
        Of held-out cells, ``(n_cells, n_classes)``.
    labels
        Class number of each, int ``(n_cells,)``; or, for labels that leave several classes open, bool
        ``(n_cells, n_classes)``.
    weights
        Weight of each cell, ``(n_cells,)``; 1 by default.

    Returns
    -------
    A temperature between 0.01 and 100; near the upper end the logits say nothing of the labels.

    Raises
    ------
    ValueError
        If shapes do not fit, there is no cell, a logit is not finite, or a label is not a class.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017; the cell that is added follows the smoothed targets
    of Platt (1999), Probabilistic outputs for support vector machines.
    """
    from scipy.optimize import minimize_scalar

    values = np.asarray(logits, dtype=np.float64)
    allowed = _allowed(values, labels, "logits")
    if not np.isfinite(values).all():
        msg = "logits must be finite. Leave blocked classes out before the temperature is fitted."
        raise ValueError(msg)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(values / np.exp(log_temperature), axis=1)
        open_to = np.logaddexp.reduce(np.where(allowed, log_p, -np.inf), axis=1)
        return -float(shares @ open_to + log_p.mean(axis=0).mean())

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    minimum = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(minimum.x))


class LabelSets(NamedTuple):
    """Split-conformal sets of labels: ``sets(probabilities)`` are those of new cells."""

    threshold: float
    """Classes whose score is at most this are in the set."""
    coverage: float
    """The share of cells whose true label is in its set, as promised."""
    n_cells: int
    """Number of held-out cells it was fitted on."""

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the label sets of cells, bool ``(n_cells, n_classes)``; a set holds at least the most likely class.

        Parameters
        ----------
        probabilities
            ``(n_cells, n_classes)``, computed as for the held-out cells.
        """
        # The score of the likeliest class is 0, and no threshold is lower: no set is empty.
        return _adaptive_scores(np.asarray(probabilities, dtype=np.float64)) <= self.threshold


def fit_label_sets(probabilities: np.ndarray, labels: np.ndarray, *, coverage: float = 0.95) -> LabelSets:
    """Fit label sets that hold the true label of a new cell with the promised probability.

    Adaptive prediction sets, without the random tie-break: classes enter by falling probability until the mass before
    them exceeds a threshold. Coverage is at least `coverage` on average over draws of the held-out and the new cells,
    whatever the model; a bad one has large sets. No cell's set is empty, which can only raise the coverage.

    Parameters
    ----------
    probabilities
        Of held-out cells, ``(n_cells, n_classes)``.
    labels
        As in :func:`fit_temperature`. A coarse label is covered by any of the classes it leaves open.
    coverage
        Share of cells whose set is to hold their label, between 0 and 1, both excluded.

    Returns
    -------
    The threshold; ``sets(probabilities)`` of it are the label sets of new cells.

    Raises
    ------
    ValueError
        If shapes do not fit or a label is not a class, `coverage` is out of range, or there are too few held-out cells
        to promise it: ``coverage / (1 - coverage)`` are needed, 19 for 0.95.

    References
    ----------
    Romano et al., Classification with valid and adaptive coverage, NeurIPS 2020; the quantile and its proof as in
    Angelopoulos & Bates 2023, Conformal prediction: a gentle introduction.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    allowed = _allowed(p, labels, "probabilities")
    if not 0 < coverage < 1:
        msg = f"coverage={coverage} must lie between 0 and 1; all labels of all cells is what 1 would promise."
        raise ValueError(msg)
    rank = int(np.ceil((len(p) + 1) * coverage - 1e-9))
    if rank > len(p):
        needed = int(np.ceil(coverage / (1 - coverage) - 1e-9))
        msg = f"{len(p)} held-out cells cannot promise coverage={coverage}: it takes {needed}. Hold out more cells."
        raise ValueError(msg)
    scores = np.where(allowed, _adaptive_scores(p), np.inf).min(axis=1)
    return LabelSets(float(np.sort(scores)[rank - 1]), coverage, len(p))


def _adaptive_scores(p: np.ndarray) -> np.ndarray:
    """Probability of all classes that are likelier than each one, ``(n_cells, n_classes)``; 0 for the likeliest."""
    order = np.argsort(-p, axis=1, kind="stable")
    ordered = np.take_along_axis(p, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


class ErrorPromise(NamedTuple):
    """A confidence from which on labels are given, and what was seen of them on the held-out cells."""

    threshold: float
    """Cells of at least this confidence keep their label; infinite where no threshold keeps the promise."""
    kept: float
    """Share of the held-out cells that do."""
    error: float
    """Share of those that are wrong; NaN where none is kept."""
    bound: float
    """Upper bound of that share on new cells; NaN where none is kept."""


def error_threshold(
    confidence: np.ndarray, correct: np.ndarray, *, max_error: float = 0.05, certainty: float = 0.9
) -> ErrorPromise:
    """Find the lowest confidence from which on labels are wrong no more often than promised.

    Thresholds are tested from the highest to the lowest, each by the exact binomial upper bound of the error among the
    cells it keeps, and the last one before the first failure is taken. As the order is fixed beforehand, no correction
    for many tests is due (fixed-sequence testing): with probability `certainty` over the held-out cells, the error on
    new ones is at most `max_error`. Thresholds are twenty quantiles of the held-out confidence, from the surest quarter
    of the cells to all of them. The first must keep enough cells for the test to bear an error: twice
    ``log(1 - certainty) / log(1 - max_error)``, 90 cells for the defaults; with fewer than half of that no threshold
    can keep the promise.

    Parameters
    ----------
    confidence
        Of the label of each held-out cell, ``(n_cells,)``.
    correct
        Whether it is right, bool ``(n_cells,)``.
    max_error
        Largest share of wrong labels among the labels given, between 0 and 1.
    certainty
        Probability with which this holds, between 0 and 1.

    Raises
    ------
    ValueError
        If shapes differ, there is no cell, a confidence is NaN, or `max_error` or `certainty` is not between 0 and 1.

    References
    ----------
    Angelopoulos et al. 2021, Learn then test: calibrating predictive algorithms to achieve risk control; the bound is
    that of Clopper & Pearson (1934).
    """
    stated, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if stated.shape != right.shape or stated.ndim != 1 or not len(stated) or np.isnan(stated).any():
        msg = f"confidence {stated.shape} and correct {right.shape} must both be (n_cells,), with a cell and no NaN."
        raise ValueError(msg)
    if not (0 < max_error < 1 and 0 < certainty < 1):
        msg = f"max_error={max_error} and certainty={certainty} must lie between 0 and 1."
        raise ValueError(msg)
    falling = np.sort(stated)[::-1]
    first = min(1.0, max(_FIRST_SHARE, cells_to_bear(max_error, certainty) / len(falling)))
    ranks = np.ceil(np.linspace(first, 1.0, _N_THRESHOLDS) * len(falling) - 1e-9).astype(int)
    thresholds = falling[ranks - 1]
    kept = stated >= thresholds[:, None]  # (n_thresholds, n_cells)
    n_kept, n_wrong = kept.sum(axis=1), (kept & ~right).sum(axis=1)
    last, bound = last_safe_step(n_wrong, n_kept, max_error=max_error, certainty=certainty)
    if last is None:
        return ErrorPromise(np.inf, 0.0, np.nan, np.nan)
    share, error = n_kept[last] / len(stated), n_wrong[last] / n_kept[last]
    return ErrorPromise(float(thresholds[last]), float(share), float(error), bound)


def cells_to_bear(max_error: float, certainty: float) -> float:
    """Count the cells among which a test of `max_error` can bear an error: twice those it takes where all are right."""
    return float(2 * np.log(1 - certainty) / np.log(1 - max_error))


def last_safe_step(
    n_wrong: np.ndarray, n: np.ndarray, *, max_error: float, certainty: float
) -> tuple[int | None, float]:
    """Find the last of a fixed sequence of tests before the first whose error may be too large.

    Parameters
    ----------
    n_wrong, n
        Errors, and cells, in each test, from the most cautious one to the boldest, ``(n_tests,)``.
    max_error, certainty
        As in :func:`error_threshold`.

    Returns
    -------
    Its number, None where the first fails already, and the exact upper bound of its error (NaN then).
    """
    from scipy.stats import beta

    bounds = np.where(n_wrong < n, beta.ppf(certainty, n_wrong + 1, np.maximum(n - n_wrong, 1)), 1.0)
    failed = np.flatnonzero(bounds > max_error)
    n_safe = int(failed[0]) if len(failed) else len(bounds)
    return (n_safe - 1, float(bounds[n_safe - 1])) if n_safe else (None, float("nan"))


def _allowed(values: np.ndarray, labels: np.ndarray, name: str) -> np.ndarray:
    """Classes that each label leaves open, bool ``(n_cells, n_classes)``."""
    given = np.asarray(labels)
    if values.ndim != 2 or not values.size or given.shape not in {values.shape, values.shape[:1]}:
        msg = f"{name} {values.shape} must be (n_cells, n_classes), with a cell, and labels {given.shape} (n_cells,)."
        raise ValueError(msg)
    if given.ndim == 2:
        allowed = given.astype(bool)
        if not allowed.any(axis=1).all():
            msg = f"{int((~allowed.any(axis=1)).sum())} cells have no class. Leave cells without a label out."
            raise ValueError(msg)
        return allowed
    if not np.issubdtype(given.dtype, np.integer) or given.min() < 0 or given.max() >= values.shape[1]:
        msg = f"labels must be class numbers from 0 to {values.shape[1] - 1}. Leave cells of other classes out."
        raise ValueError(msg)
    return np.arange(values.shape[1]) == given[:, None]
