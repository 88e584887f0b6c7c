"""Whether the right genes are called, in the right direction and by the right amount: scores of two DE tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.changes import FDR

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from scstate_lora.metrics.de_tables import DETable


def sig_jaccard(pred: DETable, real: DETable, *, targets: ArrayLike | None = None, fdr: float = FDR) -> np.ndarray:
    """Jaccard index of the genes that are called in the prediction and in the measured cells.

    Genes called on both sides over those called on either. 1 where no gene is called on either side: both say that
    nothing changes.

    Parameters
    ----------
    pred, real
        Tables of the predicted and the measured cells, the same perturbation in the same row, against the same controls
        (:func:`de_table`).
    targets
        For every perturbation the position of the gene that it acts on among all genes, or -1, ``(n_perturbations,)``
        or, of combinations, ``(n_perturbations, n_positions)``: these genes are left out of the perturbation's score,
        as their change is what the experiment did. None leaves out no gene.
    fdr
        Genes below this FDR are called.

    Returns
    -------
    float64 ``(n_perturbations,)``.

    Raises
    ------
    ValueError
        If the tables differ in perturbations or tested genes, or `targets` does not fit them.

    References
    ----------
    ``de_wilcoxon_sig_jaccard`` of the ``cell-eval2`` package 0.20 (2026).
    """
    scored = _scored(pred, real, targets)
    called, changed = scored & (pred.fdr < fdr), scored & (real.fdr < fdr)
    either = (called | changed).sum(axis=1)
    return np.where(either > 0, (called & changed).sum(axis=1) / np.maximum(either, 1), 1.0)


def direction_fidelity_yield(
    pred: DETable, real: DETable, *, targets: ArrayLike | None = None, fdr: float = FDR
) -> np.ndarray:
    """Genes called in the prediction that move the measured way, over the larger of both numbers of called genes.

    The lesser of a precision and a coverage: calling too many genes and calling too few both cost. The direction is
    compared whether or not the measured change is significant itself; a gene without any measured change has no
    direction and does not count.

    Parameters
    ----------
    pred, real, targets, fdr
        As in :func:`sig_jaccard`.

    Returns
    -------
    float64 ``(n_perturbations,)``; NaN where no gene is called on either side.

    Raises
    ------
    ValueError
        As in :func:`sig_jaccard`.

    References
    ----------
    ``de_wilcoxon_direction_fidelity_yield_raw`` of the ``cell-eval2`` package 0.20 (2026).
    """
    scored = _scored(pred, real, targets)
    directed, agree = _directions(pred, real)
    called = scored & (pred.fdr < fdr) & directed
    n_called, n_changed = called.sum(axis=1), (scored & (real.fdr < fdr)).sum(axis=1)
    most = np.maximum(n_called, n_changed)
    return np.where(most > 0, (called & agree).sum(axis=1) / np.maximum(most, 1), np.nan)


def direction_reach(
    pred: DETable, real: DETable, *, targets: ArrayLike | None = None, fdr: float = FDR, purity: float = 0.9
) -> np.ndarray:
    """How far down the predicted ranking of the changed genes can one go with the direction right for most of them.

    The genes that change when measured are put in the order of the prediction's confidence: those called first, then by
    FDR, p-value and absolute fold change. The score is the largest number of genes from the top among which the share
    with the measured direction is at least `purity`, over the number of changed genes.

    Parameters
    ----------
    pred, real, targets, fdr
        As in :func:`sig_jaccard`.
    purity
        Share of right directions to hold.

    Returns
    -------
    float64 ``(n_perturbations,)``; NaN where no gene changes when measured.

    Raises
    ------
    ValueError
        As in :func:`sig_jaccard`.

    References
    ----------
    ``de_wilcoxon_direction_reach_raw`` of the ``cell-eval2`` package 0.20 (2026).
    """
    scored = _scored(pred, real, targets)
    directed, agree = _directions(pred, real)
    scores = np.full(len(scored), np.nan)
    for row, changed in enumerate(scored & (real.fdr < fdr)):
        n_changed = int(changed.sum())
        if not n_changed:
            continue
        genes = np.flatnonzero(changed & directed[row])
        confidence = -np.abs(pred.lfc[row, genes]), pred.p_value[row, genes], pred.fdr[row, genes]
        right = agree[row, genes[np.lexsort(confidence)]]
        depth = np.arange(1, len(right) + 1)
        deep_enough = np.flatnonzero(np.cumsum(right) / depth >= purity)
        scores[row] = (deep_enough[-1] + 1 if len(deep_enough) else 0) / n_changed
    return scores


def lfc_nmae(
    pred: DETable, real: DETable, *, targets: ArrayLike | None = None, fdr: float = FDR, min_genes: int = 10
) -> np.ndarray:
    """Absolute error of the predicted log fold changes over the absolute measured ones, summed over the changed genes.

    0 is right, 1 is what predicting no change gets; lower is better, without upper limit.

    Parameters
    ----------
    pred, real, targets, fdr
        As in :func:`sig_jaccard`; the genes are those called in the measured cells.
    min_genes
        Fewest genes; a ratio of a few genes is noise.

    Returns
    -------
    float64 ``(n_perturbations,)``; NaN with fewer genes.

    Raises
    ------
    ValueError
        As in :func:`sig_jaccard`.

    References
    ----------
    ``de_wilcoxon_lfc_nmae`` of the ``cell-eval2`` package 0.20 (2026).
    """
    changed = _scored(pred, real, targets) & (real.fdr < fdr)
    error = np.where(changed, np.abs(pred.lfc - real.lfc), 0.0).sum(axis=1)
    size = np.where(changed, np.abs(real.lfc), 0.0).sum(axis=1)
    is_known = (changed.sum(axis=1) >= min_genes) & (size > 0)
    return np.where(is_known, error / np.where(is_known, size, 1.0), np.nan)


def _scored(pred: DETable, real: DETable, targets: ArrayLike | None) -> np.ndarray:
    """Which genes count for which perturbation, bool ``(n_perturbations, n_tested)``."""
    if pred.fdr.shape != real.fdr.shape or not np.array_equal(pred.genes, real.genes):
        msg = (
            f"The tables must have the same perturbations and tested genes; found {pred.fdr.shape} predicted and "
            f"{real.fdr.shape} measured. Make both with the measured control cells, which decide what is tested."
        )
        raise ValueError(msg)
    scored = np.ones(real.fdr.shape, dtype=bool)
    if targets is not None:
        own = np.asarray(targets)
        if own.ndim not in (1, 2) or len(own) != len(scored):
            msg = f"targets must hold one gene position for each of the {len(scored)} perturbations; found {own.shape}."
            raise ValueError(msg)
        for column in own.reshape(len(scored), -1).T:
            scored &= real.genes[None, :] != column[:, None]
    return scored


def _directions(pred: DETable, real: DETable) -> tuple[np.ndarray, np.ndarray]:
    """Whether a gene moves when measured, and whether the predicted move has the same sign."""
    return real.lfc != 0, (np.sign(pred.lfc) == np.sign(real.lfc)) & (real.lfc != 0)
