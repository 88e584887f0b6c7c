"""Stability of a training: variance of the late loss, gradient spikes, improvement of the validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def loss_variance(loss: ArrayLike, *, share: float = 0.1) -> float:
    """Variance of the training loss over the last steps.

    In squared units of the minimised loss, divided by n: it compares trainings with one loss on one data set, and says
    little across data sets. NaN if one of these losses is not finite, as when a training diverged.

    Parameters
    ----------
    loss
        Training loss of every optimiser step, in order, shape ``(n_steps,)``.
    share
        Share of the steps that count, rounded up, at least two steps.

    Raises
    ------
    ValueError
        If there are fewer than two steps, or `share` is not between 0 and 1.
    """
    losses = _vector(loss, "loss")
    if not 0 < share <= 1:
        msg = f"share={share!r} must lie above 0 and be at most 1."
        raise ValueError(msg)
    if len(losses) < 2:
        msg = f"A variance needs the loss of two steps; there are {len(losses)}."
        raise ValueError(msg)
    last = losses[-max(2, int(np.ceil(share * len(losses)))) :]
    return float(last.var()) if np.isfinite(last).all() else float("nan")


def spikes(grad_norm: ArrayLike, *, n_mad: float = 5.0) -> np.ndarray:
    """Find the steps whose gradient norm lies above the median plus `n_mad` median absolute deviations.

    Median and deviation are of the whole training, and the deviation is not scaled to a standard deviation. A norm that
    is not finite is a spike and enters neither.

    Parameters
    ----------
    grad_norm
        Norm of the gradient of every optimiser step, before clipping, shape ``(n_steps,)``.
    n_mad
        Number of deviations.

    Returns
    -------
    Boolean ``(n_steps,)``.

    Raises
    ------
    ValueError
        If there is no step.
    """
    norms = _vector(grad_norm, "grad_norm")
    if not len(norms):
        msg = "There is no gradient norm: the training made no step."
        raise ValueError(msg)
    finite = norms[np.isfinite(norms)]
    if not len(finite):
        return np.ones(len(norms), dtype=bool)
    median = np.median(finite)
    above = norms > median + n_mad * np.median(np.abs(finite - median))
    return above | ~np.isfinite(norms)


def gradient_spikes(grad_norm: ArrayLike, epoch: ArrayLike, *, n_mad: float = 5.0) -> float:
    """Mean number of gradient spikes per epoch.

    A spike is a gradient norm above the median plus `n_mad` median absolute deviations of the whole training, or one
    that is not finite.

    Parameters
    ----------
    grad_norm, epoch
        Norm of the gradient and number of the epoch of every optimiser step, shape ``(n_steps,)``.
    n_mad
        Number of median absolute deviations.

    Raises
    ------
    ValueError
        If there is no step, or the shapes differ.
    """
    is_spike, epochs = spikes(grad_norm, n_mad=n_mad), np.asarray(epoch)
    if epochs.shape != is_spike.shape:
        msg = f"epoch has shape {epochs.shape}, grad_norm {is_spike.shape}; both need one number per step."
        raise ValueError(msg)
    return float(is_spike.sum() / len(np.unique(epochs)))


def validation_improvement(val_loss: ArrayLike) -> float:
    """Share by which the validation loss fell from the first epoch to the best one; 0.2 is 20 %.

    The first validation is after the first epoch, so gains within that epoch, or by a good start, do not count.

    Parameters
    ----------
    val_loss
        Validation loss of every epoch, shape ``(n_epochs,)``.

    Raises
    ------
    ValueError
        If there is no epoch, or the first loss is not above 0.
    """
    losses = _vector(val_loss, "val_loss")
    if not len(losses):
        msg = "There is no validation loss: no cell is a validation cell."
        raise ValueError(msg)
    if not losses[0] > 0:
        msg = f"The validation loss of the first epoch is {losses[0]:.3g}; a share needs one above 0."
        raise ValueError(msg)
    return float((losses[0] - np.nanmin(losses)) / losses[0])


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        msg = f"{name} must be a vector with one number per step or epoch; its shape is {array.shape}."
        raise ValueError(msg)
    return array
