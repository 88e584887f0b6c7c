"""Whether a predicted effect resembles the effect of its own perturbation more than those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

_TIE = 1e-9  # cosines of float32 effects that differ by less count as equal


def discrimination_score(
    pred_deltas: ArrayLike,
    real_deltas: ArrayLike,
    *,
    excluded: Sequence[Sequence[int]] | None = None,
    rank_by: Literal["others", "all"] = "others",
) -> np.ndarray:
    """Perturbation discrimination score by cosine, one number per perturbation.

    The measured effects are ranked by their cosine with the predicted effect of one perturbation; the score is 1 minus
    the share of the other perturbations whose effect is nearer than the true one. 1: the true effect is the nearest. 0:
    it is the farthest. A tie counts half, so one prediction for all perturbations, and a random one, score 0.5 on
    average. The size of a predicted effect does not matter.

    Parameters
    ----------
    pred_deltas, real_deltas
        Predicted and measured change of the mean against control, shape ``(n_perturbations, n_genes)``, the same
        perturbation in the same row.
    excluded
        For every perturbation the positions of genes to leave out of its score: the perturbed gene itself, whose change
        gives it away. None leaves out no gene.
    rank_by
        ``"others"`` divides the rank by the n - 1 other perturbations. ``"all"`` divides by n, as the cell-eval package
        does: the worst score is then 1 / n, and chance is 0.5 + 1 / (2 n).

    Returns
    -------
    float64 ``(n_perturbations,)``; NaN where the predicted effect is zero, which has no direction.

    Raises
    ------
    ValueError
        If shapes differ, there are fewer than two perturbations, a number is not finite, or `excluded` does not have
        one entry per perturbation or leaves no gene.

    References
    ----------
    Wu et al. (2024), PerturBench, the rank metric; the Virtual Cell Challenge (2025), the perturbation discrimination
    score.
    """
    pred, real = np.asarray(pred_deltas, dtype=np.float64), np.asarray(real_deltas, dtype=np.float64)
    if pred.shape != real.shape or pred.ndim != 2 or not pred.size:
        msg = (
            "Effects must have shape (n_perturbations, n_genes), the same for both; found "
            f"{pred.shape} predicted and {real.shape} measured."
        )
        raise ValueError(msg)
    n, n_genes = pred.shape
    if n < 2:
        msg = "Telling perturbations apart needs at least two; there is 1."
        raise ValueError(msg)
    if not (np.isfinite(pred).all() and np.isfinite(real).all()):
        msg = "An effect is NaN or infinite."
        raise ValueError(msg)
    if rank_by not in ("others", "all"):
        msg = f"rank_by={rank_by!r} is not possible; use 'others' or 'all'."
        raise ValueError(msg)
    if excluded is not None and len(excluded) != n:
        msg = f"excluded has {len(excluded)} entries for {n} perturbations; give one each; it may be empty."
        raise ValueError(msg)
    hidden = [np.unique(np.asarray(genes, dtype=np.intp)) for genes in (((),) * n if excluded is None else excluded)]
    if any(len(genes) == n_genes for genes in hidden):
        msg = f"excluded leaves none of the {n_genes} genes to compare."
        raise ValueError(msg)
    seen = pred.copy()
    for row, genes in zip(seen, hidden, strict=True):
        row[genes] = 0
    squares = np.square(real).sum(axis=1)
    # Squared length of every measured effect over the genes that each prediction is compared by, (n, n).
    lengths = np.array([squares - np.square(real[:, genes]).sum(axis=1) for genes in hidden])
    is_zero = lengths <= 1e-12 * squares  # rounding of the subtraction
    size = np.linalg.norm(seen, axis=1)
    scale = np.sqrt(np.where(is_zero, 1.0, lengths)) * np.where(size > 0, size, 1.0)[:, None]
    cosines = np.where(is_zero, 0.0, seen @ real.T / scale)
    gaps = cosines - np.diag(cosines)[:, None]
    nearer = (gaps > _TIE).sum(axis=1) + 0.5 * ((np.abs(gaps) <= _TIE).sum(axis=1) - 1)
    return np.where(size > 0, 1 - nearer / (n - 1 if rank_by == "others" else n), np.nan)
