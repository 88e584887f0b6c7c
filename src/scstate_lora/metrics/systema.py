"""Scores that do not reward what all perturbations have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.perturbation import pearson_delta

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def pearson_delta_centroid(
    pred_means: ArrayLike, real_means: ArrayLike, *, reference: ArrayLike | None = None
) -> np.ndarray:
    """Pearson correlation of predicted and measured change against the mean of all perturbations, not of the controls.

    What every perturbation does, for instance stress, is in the reference, so predicting only that scores nothing.

    Parameters
    ----------
    pred_means, real_means
        Mean expression of the predicted and the measured cells of every perturbation, ``(n_perturbations, n_genes)``,
        the same perturbation in the same row.
    reference
        Mean over perturbations of their mean expression (not over cells), ``(n_genes,)``; by default that of
        `real_means`. Give that of the training perturbations where there are any, so that it is not known from the
        test.

    Returns
    -------
    float64 ``(n_perturbations,)``; NaN where a difference is the same in every gene, which correlates with nothing.

    Raises
    ------
    ValueError
        If shapes differ or a number is not finite.

    References
    ----------
    Viñas Torné et al. (2025), Systema: a framework for evaluating genetic perturbation response prediction beyond
    systematic variation.
    """
    pred, real = _checked_means(pred_means, real_means)
    center = real.mean(axis=0) if reference is None else np.asarray(reference, dtype=np.float64)
    if center.shape != real.shape[1:] or not np.isfinite(center).all():
        msg = f"The reference must hold one finite number for each of the {real.shape[1]} genes; found {center.shape}."
        raise ValueError(msg)
    return np.array([_pearson(*means, center) for means in zip(pred, real, strict=True)])


def centroid_accuracy(pred_means: ArrayLike, real_means: ArrayLike, *, others: ArrayLike | None = None) -> np.ndarray:
    """Share of the other perturbations that a prediction is farther from than from its own, by Euclidean distance.

    1 is right, 0.5 chance. A perturbation as far as the own one does not count as farther.

    Parameters
    ----------
    pred_means, real_means
        As in :func:`pearson_delta_centroid`.
    others
        Mean measured expression of further perturbations to tell apart from, for instance those of training,
        ``(n_others, n_genes)``.

    Returns
    -------
    float64 ``(n_perturbations,)``.

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or there is only one perturbation in all.

    References
    ----------
    As :func:`pearson_delta_centroid`.
    """
    from scipy.spatial.distance import cdist

    pred, real = _checked_means(pred_means, real_means)
    centroids = real if others is None else np.concatenate([real, _checked_means(others, others)[0]])
    if len(centroids) < 2:
        msg = "Telling perturbations apart needs at least two; there is 1."
        raise ValueError(msg)
    distances = cdist(pred, centroids)
    return (distances > np.diag(distances)[:, None]).sum(axis=1) / (len(centroids) - 1)


def _pearson(pred: np.ndarray, real: np.ndarray, center: np.ndarray) -> float:
    try:
        return pearson_delta(pred, real, center)
    except ValueError:  # the same in every gene
        return np.nan


def _checked_means(pred_means: ArrayLike, real_means: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    pred, real = np.asarray(pred_means, dtype=np.float64), np.asarray(real_means, dtype=np.float64)
    if pred.shape != real.shape or pred.ndim != 2 or not pred.size:
        msg = (
            "Means must have shape (n_perturbations, n_genes), the same for both; found "
            f"{pred.shape} predicted and {real.shape} measured."
        )
        raise ValueError(msg)
    if not (np.isfinite(pred).all() and np.isfinite(real).all()):
        msg = "A mean expression is NaN or infinite."
        raise ValueError(msg)
    return pred, real
