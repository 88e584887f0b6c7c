"""The shift of a new batch, told apart from its mix of cell types, and how far it can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

_MIN_CELLS = 10
_SHARPNESS = 2.0
_ONE_TYPE = 0.95
_N_STEPS = 50
_SETTLED = 1e-3


class CompositionShift(NamedTuple):
    """What to subtract from the logits of new cells, and what was found on the way."""

    offset: np.ndarray
    """Subtracted from every cell's logits, float64 ``(n_classes,)`` with mean 0; all 0 where the shift is off."""
    proportions: np.ndarray
    """Mix of classes that the shifted cells show, float64 ``(n_classes,)``; a means to the shift, and sharper than the
    mean of their probabilities."""
    scale: float
    """Share of the estimated shift that is applied, 0 to 1."""
    changed: float
    """Share of the cells whose most likely class it changes."""
    note: str
    """Whether it is on, reduced or off, and why."""


def composition_shift(
    logits: np.ndarray,
    class_logits: np.ndarray,
    *,
    n_prior: float = 50.0,
    max_changed: float = 0.05,
) -> CompositionShift:
    """Estimate by how much a new batch's logits are off, beyond what its mix of cell types explains.

    The mean of the new cells minus the mix of the training classes' means that the predicted proportions imply, times
    ``n / (n + n_prior)``; proportions and shift are computed in turn until they settle. A linear classifier sees a
    shift of expression only as a constant per class, so that logits are all it takes: no gene is read again.

    Proportions are means of squared, renormalised probabilities: a classifier of few training cells spreads
    probability over all classes, and a mix that inherits this mistakes composition for shift.

    A shift and an unusual composition can look the same, most of all with few cells or one type. So at most a share
    `max_changed` of the labels changes, which is also the most accuracy that it can cost: a shift that would change
    more is reduced. It is off for fewer than 10 cells, and where the proportions do not settle. Score novelty before
    it: a type that was never seen is moved onto known ones.

    Parameters
    ----------
    logits
        Of the new cells of one batch, ``(n_cells, n_classes)``.
    class_logits
        Mean logits of the training cells of each class, ``(n_classes, n_classes)``, a row a class.
    n_prior
        Number of cells at which half of the estimate is used.
    max_changed
        Largest share of cells whose most likely class may change, 0 to 1.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, or an option is out of its range.

    References
    ----------
    The mix of classes in new data is that of label shift (Saerens et al. 2002, Adjusting the outputs of a classifier to
    new a priori probabilities); here it serves to find what remains beside it.
    """
    cells, means = np.asarray(logits, dtype=np.float64), np.asarray(class_logits, dtype=np.float64)
    _check(cells, means, n_prior, max_changed)
    n_cells, n_classes = cells.shape
    off = np.zeros(n_classes)
    if n_cells < _MIN_CELLS:
        shown = _proportions(cells, off) if n_cells else np.full(n_classes, 1 / n_classes)
        note = f"off: {n_cells} cells, and fewer than {_MIN_CELLS} say nothing of their batch"
        return CompositionShift(off, shown, 0.0, 0.0, note)
    offset, settled = _settle(cells, means, n_prior)
    if not settled:
        note = f"off: the proportions of types did not settle in {_N_STEPS} steps"
        return CompositionShift(off, _proportions(cells, off), 0.0, 0.0, note)
    whole = _changed(cells, offset)
    scale = _largest_scale(cells, offset, max_changed)
    offset = scale * offset
    shown = _proportions(cells, offset)
    changed = _changed(cells, offset)
    note = f"on: {changed:.1%} of the labels change"
    if scale < 1:
        note = f"reduced to {scale:.0%}: the whole shift would change {whole:.1%} of the labels, not {max_changed:.0%}"
    if shown.max() >= _ONE_TYPE:
        note += f"; {shown.max():.0%} of the cells look like one type, so that batch and type are hard to tell apart"
    return CompositionShift(offset, shown, scale, changed, note)


def _settle(cells: np.ndarray, means: np.ndarray, n_prior: float) -> tuple[np.ndarray, bool]:
    """Compute proportions and shift in turn; the shift ``(n_classes,)``, and whether it settled."""
    shrunk = len(cells) / (len(cells) + n_prior)
    mean, offset = cells.mean(axis=0), np.zeros(cells.shape[1])
    before = _proportions(cells, offset)
    for _ in range(_N_STEPS):
        offset = shrunk * (mean - before @ means)
        offset -= offset.mean()  # a constant for all classes says nothing
        now = _proportions(cells, offset)
        if np.abs(now - before).sum() < _SETTLED:
            return offset, True
        before = now
    return offset, False


def _proportions(cells: np.ndarray, offset: np.ndarray) -> np.ndarray:
    return softmax(_SHARPNESS * (cells - offset), axis=1).mean(axis=0)


def _changed(cells: np.ndarray, offset: np.ndarray) -> float:
    return float(np.mean(cells.argmax(axis=1) != (cells - offset).argmax(axis=1)))


def _largest_scale(cells: np.ndarray, offset: np.ndarray, max_changed: float) -> float:
    """Largest share of the shift, up to 1, with which no more labels change than allowed.

    A cell keeps its class up to one scale and loses it for good beyond, so the scales need only be sorted.
    """
    kept = cells.argmax(axis=1)
    lead = np.take_along_axis(cells, kept[:, None], axis=1) - cells  # (n_cells, n_classes), 0 for the class itself
    loss = offset[kept][:, None] - offset  # of the lead, at the whole shift
    with np.errstate(divide="ignore", invalid="ignore"):
        limits = np.where(loss > 0, lead / loss, np.inf).min(axis=1)
    n_allowed = int(np.floor(max_changed * len(cells) + 1e-9))
    if n_allowed >= len(cells):
        return 1.0
    return float(min(1.0, np.sort(limits)[n_allowed] * (1 - 1e-6)))


def _check(cells: np.ndarray, means: np.ndarray, n_prior: float, max_changed: float) -> None:
    if cells.ndim != 2 or means.shape != (cells.shape[1],) * 2:
        msg = (
            f"logits {cells.shape} must be (n_cells, n_classes) and class_logits {means.shape} (n_classes, n_classes), "
            "with the same classes."
        )
        raise ValueError(msg)
    if not (np.isfinite(cells).all() and np.isfinite(means).all()):
        msg = "logits and class_logits must be finite. Leave blocked classes out, or block them after the shift."
        raise ValueError(msg)
    if not 0 <= max_changed <= 1 or n_prior < 0:
        msg = f"max_changed={max_changed} must lie between 0 and 1, and n_prior={n_prior} be 0 or more."
        raise ValueError(msg)
