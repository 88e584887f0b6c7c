"""Whether the right genes change, by Welch's t-test against the control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora.metrics.perturbation import checked_cells

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FDR = 0.05


class GeneChanges(NamedTuple):
    """Change of every gene against the control cells, arrays of shape ``(n_genes,)``."""

    delta: np.ndarray
    """Difference of the means."""
    t: np.ndarray
    """Welch's t; 0 for a gene without difference, infinite for one that differs and is constant on both sides."""
    fdr: np.ndarray
    """Two-sided p-values, adjusted over the genes by Benjamini and Hochberg."""

    def strongest(self, n_top: int) -> np.ndarray:
        """Positions of at most `n_top` significant genes (FDR under 5 %), the largest absolute change first."""
        significant = np.flatnonzero(self.fdr < FDR)
        return significant[np.argsort(-np.abs(self.delta[significant]), kind="stable")][:n_top]


def gene_changes(cells: ArrayLike, control: ArrayLike) -> GeneChanges:
    """Test every gene for a change of its mean by Welch's t-test.

    As :func:`scipy.stats.ttest_ind` with ``equal_var=False``, without copies of the cells in float64, and defined for
    genes that are constant on both sides.

    Parameters
    ----------
    cells, control
        Perturbed and control cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``, log1p scale.

    Raises
    ------
    ValueError
        If they do not have the same genes, either has fewer than two cells, or a number is not finite.
    """
    from scipy import stats

    sides = [checked_cells(cells, "cells"), checked_cells(control, "control")]
    if sides[0].shape[1] != sides[1].shape[1]:
        msg = f"cells have {sides[0].shape[1]} genes and control {sides[1].shape[1]}."
        raise ValueError(msg)
    if min(map(len, sides)) < 2:
        msg = f"A t-test needs two cells on either side; there are {len(sides[0])} and {len(sides[1])}."
        raise ValueError(msg)
    (mean, part), (before, other) = (
        (side.mean(axis=0, dtype=np.float64), side.var(axis=0, dtype=np.float64, ddof=1) / len(side)) for side in sides
    )
    delta, error = mean - before, part + other
    # The float32 mean of equal cells is off by about 1e-7, which is no change.
    is_unchanged = np.abs(delta) <= 1e-6 * np.maximum(1.0, np.abs(before))
    is_constant = error <= 1e-14
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(is_constant, np.where(is_unchanged, 0.0, np.sign(delta) * np.inf), delta / np.sqrt(error))
        degrees = error**2 / (part**2 / (len(sides[0]) - 1) + other**2 / (len(sides[1]) - 1))
    p = 2 * stats.t.sf(np.abs(t), np.where(is_constant, 1.0, degrees))
    return GeneChanges(delta, t, np.asarray(stats.false_discovery_control(p)))


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
    predicted = checked_cells(pred, "pred").mean(axis=0, dtype=np.float64)
    t = np.abs(gene_changes(real, control).t)
    finite = t[np.isfinite(t)]
    largest = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    weights = np.square(np.minimum(t, largest) / largest)
    if not weights.sum() > 0:
        msg = "No gene differs between the measured and the control cells: no gene has a weight."
        raise ValueError(msg)
    return float(np.average(np.square(predicted - np.asarray(real).mean(axis=0, dtype=np.float64)), weights=weights))


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
    measured = _measured(real, control).strongest(n_top)
    predicted = gene_changes(pred, control).strongest(len(measured))
    return len(np.intersect1d(measured, predicted)) / len(measured)


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
    changed = np.flatnonzero(_measured(real, control).fdr < FDR)
    predicted = gene_changes(pred, control).strongest(n_top)
    if not len(predicted):
        msg = "No gene changes in the predicted cells (FDR under 5 %)."
        raise ValueError(msg)
    return len(np.intersect1d(changed, predicted)) / len(predicted)


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
    measured = _measured(real, control)
    top = measured.strongest(n_top)
    moved = checked_cells(pred, "pred").mean(axis=0, dtype=np.float64) - np.asarray(control).mean(
        axis=0, dtype=np.float64
    )
    return float(np.mean(np.sign(moved[top]) == np.sign(measured.delta[top])))


def _measured(real: ArrayLike, control: ArrayLike) -> GeneChanges:
    changes = gene_changes(real, control)
    if not (changes.fdr < FDR).any():
        msg = "No gene changes in the measured cells (FDR under 5 %)."
        raise ValueError(msg)
    return changes
