"""Whether a metric can tell good from bad on given data, and how much a simple baseline leaves to gain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.perturbation import skill

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def interpolated_duplicate(duplicate: ArrayLike, baseline: ArrayLike, fdr: ArrayLike) -> np.ndarray:
    """Mean expression of half of the measured cells, with noise replaced by a baseline: a good prediction by design.

    ``(1 - fdr) * duplicate + fdr * baseline`` gene by gene: a gene that surely differs is taken from the half, one that
    may well not differ from the baseline. A whole half carries noise into all unchanged genes, and so can score worse
    than a baseline although it knows the answer.

    Parameters
    ----------
    duplicate
        Mean expression of the half that is not scored against, ``(n_genes,)`` or ``(n_perturbations, n_genes)``.
    baseline
        The baseline's mean expression: the mean over perturbations, or the controls.
    fdr
        Adjusted p-values of the half's cells against those that the baseline stands for.

    Raises
    ------
    ValueError
        If shapes do not fit or an FDR is not between 0 and 1.

    References
    ----------
    The interpolated duplicate of Shift Bioscience (2025), Deep learning-based genetic perturbation models do outperform
    uninformative baselines on well-calibrated metrics.
    """
    half, mean, q = (np.asarray(a, dtype=np.float64) for a in (duplicate, baseline, fdr))
    if half.shape != q.shape or mean.shape[-1:] != half.shape[-1:] or not ((q >= 0) & (q <= 1)).all():
        msg = (
            "The duplicate and its FDR must have the same shape, the FDR lie between 0 and 1, and the baseline have "
            f"the same genes; found {half.shape}, {q.shape} and {mean.shape}."
        )
        raise ValueError(msg)
    return (1 - q) * half + q * mean


def dynamic_range_fraction(duplicate: ArrayLike, baseline: ArrayLike, *, perfect: float) -> np.ndarray:
    """Share of a metric's range, from an uninformed baseline to perfect, that a good prediction covers on these data.

    ``(duplicate - baseline) / (perfect - baseline)``, clipped to [-1, 1]. Near 1 the metric tells good from bad; near
    or below 0 it does not, whatever scores the models get.

    Parameters
    ----------
    duplicate
        Score of the :func:`interpolated_duplicate`, one per perturbation or any shape.
    baseline
        Score of the uninformed baseline: the mean over perturbations, or, for changes that are measured against that
        mean, the controls.
    perfect
        Score of a perfect prediction: 1 for a correlation, 0 for an error.

    Returns
    -------
    float64 of the common shape; NaN where the baseline is perfect, or no score is.

    References
    ----------
    As :func:`interpolated_duplicate`.
    """
    good, low = np.asarray(duplicate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    span = perfect - low
    return np.clip((good - low) / np.where(np.isfinite(span) & (span != 0), span, np.nan), -1.0, 1.0)


def baseline_saturation(baseline: ArrayLike, *, control: ArrayLike, replicate: ArrayLike) -> np.ndarray:
    """Share of the range from "no change" to a replicate that the best simple baseline has already covered.

    1: nothing is left for a model to gain; 0: the baseline knows nothing.

    Parameters
    ----------
    baseline, control, replicate
        Scores, larger being better (:func:`goodness`), of the best simple baseline, of the controls as prediction and
        of a replicate; one per perturbation, or any shapes that broadcast.

    Returns
    -------
    float64 of the common shape; NaN where the replicate is not above the controls. Above 1 the baseline beats the
    replicate, below 0 it is worse than the controls.

    References
    ----------
    After the baseline saturation of "When do deep perturbation models beat simple baselines?" (OpenReview U5Gq071xcI).
    """
    return skill(baseline, floor=control, ceiling=replicate)
