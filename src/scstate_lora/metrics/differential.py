"""Whether the right genes change, by Welch's t-test against the control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.changes import Change, GeneChanges

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def gene_changes(cells: ArrayLike, control: ArrayLike) -> GeneChanges:
    """Test every gene for a change of its mean by Welch's t-test.

    As :func:`scipy.stats.ttest_ind` with ``equal_var=False``, and defined for genes that are constant on both sides.

    Parameters
    ----------
    cells, control
        Perturbed and control cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``, log1p scale.

    Raises
    ------
    ValueError
        If they do not have the same genes, either has fewer than two cells, or a number is not finite.
    """
    return Change.of(cells, control).genes


def weighted_mse(pred: ArrayLike, real: ArrayLike, control: ArrayLike) -> float:
    """Squared difference of the means, averaged over genes, weighted by the evidence that each changes when measured.

    The weight of a gene is its squared Welch t, measured cells against controls, over the sum of all. So the many
    unchanged genes hardly count, and predicting the controls scores badly.

    Parameters
    ----------
    pred, real, control
        Predicted, measured and control cells, ``(n, n_genes)`` each; the weights do not depend on the predicted ones.

    Raises
    ------
    ValueError
        If no gene changes, and as :func:`gene_changes`.

    References
    ----------
    After the weighted MSE of Mejia et al. (2025), Diversity by design.
    """
    return weighted_mse_of(*_changes(pred, real, control))


def de_overlap(pred: ArrayLike, real: ArrayLike, control: ArrayLike, *, n_top: int = 50) -> float:
    """Share of the `n_top` most changed genes that are also among the `n_top` most changed of the prediction.

    Changed genes have an FDR under 5 % (:func:`gene_changes`) and are ordered by the absolute change of their mean; if
    fewer than `n_top` change in the measured cells, their number takes its place.

    Parameters
    ----------
    pred, real, control
        Predicted, measured and control cells, shapes ``(n, n_genes)``.
    n_top
        Genes compared.

    Raises
    ------
    ValueError
        If no gene changes in the measured cells, and as :func:`gene_changes`.
    """
    return overlap_of(*_changes(pred, real, control), n_top=n_top)


def de_precision(pred: ArrayLike, real: ArrayLike, control: ArrayLike, *, n_top: int = 50) -> float:
    """Share of the `n_top` most changed genes of the prediction that change at all in the measured cells.

    Parameters
    ----------
    pred, real, control, n_top
        As in :func:`de_overlap`; if fewer genes change in the predicted cells, their number takes its place.

    Raises
    ------
    ValueError
        If no gene changes in the predicted cells, and as :func:`de_overlap`.
    """
    return precision_of(*_changes(pred, real, control), n_top=n_top)


def de_direction(pred: ArrayLike, real: ArrayLike, control: ArrayLike, *, n_top: int = 50) -> float:
    """Share of the `n_top` most changed genes whose predicted mean moves the same way, up or down.

    Parameters
    ----------
    pred, real, control, n_top
        As in :func:`de_overlap`. A gene whose predicted mean does not move at all counts as wrong.

    Raises
    ------
    ValueError
        As in :func:`de_overlap`.
    """
    return direction_of(*_changes(pred, real, control), n_top=n_top)


def weighted_mse_of(predicted: Change, measured: Change) -> float:
    """:func:`weighted_mse` of two changes, each against controls of its own."""
    return float(np.average(np.square(predicted.cells.mean - measured.cells.mean), weights=measured.weights))


def overlap_of(predicted: Change, measured: Change, *, n_top: int) -> float:
    """:func:`de_overlap` of two changes, each against controls of its own."""
    top = _changed(measured).strongest(n_top)
    return len(np.intersect1d(top, predicted.strongest(len(top)))) / len(top)


def precision_of(predicted: Change, measured: Change, *, n_top: int) -> float:
    """:func:`de_precision` of two changes, each against controls of its own."""
    changed = _changed(measured).significant
    top = predicted.strongest(n_top)
    if not len(top):
        msg = "No gene changes in the predicted cells (FDR under 5 %)."
        raise ValueError(msg)
    return len(np.intersect1d(changed, top)) / len(top)


def direction_of(predicted: Change, measured: Change, *, n_top: int) -> float:
    """:func:`de_direction` of two changes, each against controls of its own."""
    top = _changed(measured).strongest(n_top)
    return float(np.mean(np.sign(predicted.moved[top]) == np.sign(measured.delta[top])))


def _changes(pred: ArrayLike, real: ArrayLike, control: ArrayLike) -> tuple[Change, Change]:
    return Change.of(pred, control), Change.of(real, control)


def _changed(measured: Change) -> Change:
    if not len(measured.significant):
        msg = "No gene changes in the measured cells (FDR under 5 %)."
        raise ValueError(msg)
    return measured
