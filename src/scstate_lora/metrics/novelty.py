"""How unlike all known cell types a cell is: uncertainty and distance in one score, and how well it finds new types."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import entr, logsumexp

_TINY = 1e-6
_BLOCK = 8192


def normalized_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Compute the entropy of each cell's distribution over classes, 0 for one certain class, 1 for all alike.

    Parameters
    ----------
    probabilities
        ``(n_cells, n_classes)``, at least two classes, rows summing to 1.

    Raises
    ------
    ValueError
        If the shape is another, or rows are no distributions.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        msg = f"probabilities have shape {p.shape}; they must be (n_cells, n_classes), with two classes or more."
        raise ValueError(msg)
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-4)):
        msg = "Rows of probabilities must be 0 or more, sum to 1 and hold no NaN. Take the softmax of logits first."
        raise ValueError(msg)
    return np.clip(entr(p).sum(axis=1) / np.log(p.shape[1]), 0, 1)


def logit_energy(logits: np.ndarray) -> np.ndarray:
    """Compute the energy of each cell, larger where less speaks for any class.

    ``-log sum_k exp(logit_k - mean logit)``, the mean being that of the cell over classes.
    Entropy forgets how much evidence there is and sees only how it divides: cells of a new type that resemble one known
    type are certain by it. Leaving types of blood cells out, energy found them better (AUROC 0.81 against 0.76).

    Parameters
    ----------
    logits
        ``(n_cells, n_classes)``, neither shifted nor divided by a temperature; at least two classes, all allowed ones.

    Returns
    -------
    Between ``-inf`` and ``-log(n_classes)``, which is no evidence at all, ``(n_cells,)``.

    Raises
    ------
    ValueError
        If the shape is another, or a logit is not finite.

    References
    ----------
    Liu et al., Energy-based out-of-distribution detection, NeurIPS 2020.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or not np.isfinite(values).all():
        msg = f"logits {values.shape} must be finite and (n_cells, n_classes), with two classes or more."
        raise ValueError(msg)
    return -logsumexp(values - values.mean(axis=1, keepdims=True), axis=1)


class ClassDistances(NamedTuple):
    """Means of the known classes and the metric within them; ``nearest(x)`` is the distance to the closest mean."""

    means: np.ndarray
    """float64 ``(n_classes, n_dims)``."""
    whitening: np.ndarray
    """Times which differences have unit covariance within classes, float64 ``(n_dims, n_dims)``."""

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Compute the Mahalanobis distance of cells to the closest class mean, ``(n_cells,)``.

        Parameters
        ----------
        x
            Embedding, ``(n_cells, n_dims)``.

        Raises
        ------
        ValueError
            If it has another number of dimensions.
        """
        cells = np.asarray(x, dtype=np.float64)
        if cells.ndim != 2 or cells.shape[1] != self.means.shape[1]:
            msg = f"The embedding has shape {cells.shape}; classes have {self.means.shape[1]} dimensions."
            raise ValueError(msg)
        centres = self.means @ self.whitening  # (n_classes, n_dims)
        found = np.empty(len(cells))
        for start in range(0, len(cells), _BLOCK):
            points = cells[start : start + _BLOCK] @ self.whitening
            squares = np.stack([np.square(points - centre).sum(axis=1) for centre in centres], axis=1)
            found[start : start + _BLOCK] = np.sqrt(squares.min(axis=1))
        return found


def fit_class_distances(x: np.ndarray, classes: np.ndarray) -> ClassDistances:
    """Fit class means and a covariance that all classes share, shrunk as far as the number of cells asks for.

    Parameters
    ----------
    x
        Embedding of training cells, ``(n_cells, n_dims)``; tens of dimensions, such as a PCA, not genes.
    classes
        Class number or name of each cell, ``(n_cells,)``.

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or there are no more cells than classes.

    References
    ----------
    Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018; shrinkage by Ledoit
    & Wolf (2004).
    """
    from sklearn.covariance import ledoit_wolf

    cells = np.asarray(x, dtype=np.float64)
    if cells.ndim != 2 or np.shape(classes) != cells.shape[:1] or not np.isfinite(cells).all():
        msg = (
            f"The embedding {cells.shape} must be finite and (n_cells, n_dims), classes {np.shape(classes)} (n_cells,)."
        )
        raise ValueError(msg)
    names, codes = np.unique(np.asarray(classes), return_inverse=True)
    if len(cells) <= len(names):
        msg = f"{len(cells)} cells of {len(names)} classes say nothing of the spread within a class. Give more cells."
        raise ValueError(msg)
    means = np.stack([cells[codes == code].mean(axis=0) for code in range(len(names))])
    covariance, _ = ledoit_wolf(cells - means[codes], assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values.max()) * 1e-10, np.finfo(np.float64).tiny)
    return ClassDistances(means, vectors / np.sqrt(np.maximum(values, floor)))


class NoveltyScale(NamedTuple):
    """What is usual for known cells that were held out; puts uncertainty and distance on one scale."""

    uncertainty_center: float
    """Median of the uncertainty."""
    uncertainty_spread: float
    """Median distance from it."""
    distance_center: float
    """Median of the log distance."""
    distance_spread: float
    """Median distance from it."""
    threshold: float
    """Score above which a cell counts as unknown."""

    def score(self, uncertainty: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Compute the novelty of cells, ``(n_cells,)``; near 0 for a usual known cell, larger for a stranger one.

        Parameters
        ----------
        uncertainty, distance
            As they were fitted, of cells before any shift: a shift moves cells of a new type onto known ones.
        """
        uncertain = (np.asarray(uncertainty, dtype=np.float64) - self.uncertainty_center) / self.uncertainty_spread
        far = (_log(distance) - self.distance_center) / self.distance_spread
        return uncertain + far


def fit_novelty_scale(uncertainty: np.ndarray, distance: np.ndarray, *, rejected: float = 0.05) -> NoveltyScale:
    """Fit centre and spread of both signals, and the threshold, to known cells that were held out.

    Both count alike, in units of their usual spread. Medians, as some held-out cells are mislabelled; the logarithm of
    the distance, as unknown cells lie at a multiple of the usual one.

    A new known cell, exchangeable with these, is rejected with probability `rejected` at most: hold out whole batches,
    or a new batch will be rejected as if its types were new.

    Parameters
    ----------
    uncertainty, distance
        Of :func:`logit_energy` (or :func:`normalized_entropy`) and :meth:`ClassDistances.nearest`, of held-out cells of
        known types, ``(n_cells,)``, from models that were not fitted to them.
    rejected
        Share of known cells that may be called unknown, between 0 and 1.

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or there are too few cells for `rejected`: 19 for 0.05.
    """
    uncertain, far = np.asarray(uncertainty, dtype=np.float64), _log(distance)
    if uncertain.ndim != 1 or uncertain.shape != far.shape or not np.isfinite(uncertain + far).all():
        msg = (
            f"uncertainty {uncertain.shape} and distance {far.shape} must both be (n_cells,), with finite numbers only."
        )
        raise ValueError(msg)
    if not 0 < rejected < 1:
        msg = f"rejected={rejected} must lie between 0 and 1."
        raise ValueError(msg)
    rank = int(np.ceil((len(far) + 1) * (1 - rejected) - 1e-9))
    if rank > len(far):
        needed = int(np.ceil((1 - rejected) / rejected - 1e-9))
        msg = f"{len(far)} held-out cells cannot bound rejected={rejected}: it takes {needed}. Hold out more cells."
        raise ValueError(msg)
    scale = NoveltyScale(*_center_and_spread(uncertain), *_center_and_spread(far), threshold=np.inf)
    return scale._replace(threshold=float(np.sort(scale.score(uncertainty, distance))[rank - 1]))


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(values, dtype=np.float64), 0) + _TINY)


def _center_and_spread(values: np.ndarray) -> tuple[float, float]:
    center = float(np.median(values))
    return center, max(float(np.median(np.abs(values - center))), _TINY)


class NoveltyCheck(NamedTuple):
    """How well a score tells cells of an unknown type from known ones."""

    auroc: float
    """Probability that an unknown cell scores above a known one; 0.5 by chance."""
    found: float
    """Share of unknown cells above the score that rejects `rejected` of the known ones."""
    n_unknown: int
    """Number of unknown cells."""
    n_known: int
    """Number of known cells."""


def novelty_check(score: np.ndarray, is_unknown: np.ndarray, *, rejected: float = 0.05) -> NoveltyCheck:
    """Score how well novelty finds a type that was left out of training, the base's training included.

    Parameters
    ----------
    score
        Larger for stranger cells, ``(n_cells,)``.
    is_unknown
        Whether each cell is of the left-out type, bool ``(n_cells,)``.
    rejected
        Share of known cells at which `found` is read off, between 0 and 1.

    Raises
    ------
    ValueError
        If shapes differ, a score is NaN, or cells of either kind are missing.
    """
    from sklearn.metrics import roc_auc_score

    values, unknown = np.asarray(score, dtype=np.float64), np.asarray(is_unknown, dtype=bool)
    if values.shape != unknown.shape or values.ndim != 1 or np.isnan(values).any():
        msg = f"score {values.shape} and is_unknown {unknown.shape} must both be (n_cells,), without NaN."
        raise ValueError(msg)
    if not 0 < unknown.sum() < len(unknown):
        msg = f"{int(unknown.sum())} of {len(unknown)} cells are unknown; both kinds must be there to be told apart."
        raise ValueError(msg)
    if not 0 < rejected < 1:
        msg = f"rejected={rejected} must lie between 0 and 1."
        raise ValueError(msg)
    cut = np.quantile(values[~unknown], 1 - rejected)
    n_unknown = int(unknown.sum())
    found = float((values[unknown] > cut).mean())
    return NoveltyCheck(float(roc_auc_score(unknown, values)), found, n_unknown, len(unknown) - n_unknown)
