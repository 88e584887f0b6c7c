"""Contrastive losses on labels: they pull cells of the same label together and push others apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def supervised_contrastive(z: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (SupCon; Khosla et al. 2020, arXiv:2004.11362), ``L_out``.

    Every cell of the same label is a positive, and all other cells are in the denominator.

    Parameters
    ----------
    z
        Unit-length embeddings, ``(n, d)``.
    labels
        Integer labels, ``(n,)``. Cells whose label occurs once in the batch are left out.
    temperature
        Divides the cosine similarities.

    Returns
    -------
    Mean over cells, a scalar; zero with gradient when no two cells share a label.
    """
    similarity, positive, itself = _pairs(z, labels, temperature)
    log_prob = similarity - similarity.masked_fill(itself, float("-inf")).logsumexp(dim=1, keepdim=True)
    return _mean_over_positives(-log_prob, positive, z)


def info_nce(z: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) for every pair of cells of the same label.

    The denominator of a pair holds the pair itself and the cells of other labels, so that other cells of the same label
    are not pushed away, unlike in SupCon.

    Parameters
    ----------
    z, labels, temperature
        As in :func:`supervised_contrastive`.

    Returns
    -------
    Mean over cells of the mean over their positives, a scalar; zero with gradient when no two cells share a label.
    """
    similarity, positive, itself = _pairs(z, labels, temperature)
    negatives = similarity.masked_fill(positive | itself, float("-inf")).logsumexp(dim=1, keepdim=True)
    return _mean_over_positives(torch.logaddexp(similarity, negatives) - similarity, positive, z)


def nt_xent(z: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """NT-Xent (SimCLR; Chen et al. 2020, arXiv:2002.05709), with the next cell of the same label as second view.

    Each cell has one positive, the next cell of the same label in the batch (for the last one, the first), and all
    others are in the denominator.

    Parameters
    ----------
    z, labels, temperature
        As in :func:`supervised_contrastive`.

    Returns
    -------
    Mean over cells, a scalar; zero with gradient when no two cells share a label.
    """
    similarity, positive, itself = _pairs(z, labels, temperature)
    log_prob = similarity - similarity.masked_fill(itself, float("-inf")).logsumexp(dim=1, keepdim=True)
    # argmax gives the first positive after the cell or, if none follows, the first of all.
    later = positive.triu(diagonal=1)  # (n, n)
    candidates = torch.where(later.any(dim=1, keepdim=True), later, positive)
    partner = F.one_hot(candidates.int().argmax(dim=1), len(z)).bool() & positive
    return _mean_over_positives(-log_prob, partner, z)


CONTRASTIVE: dict[str, Callable[..., Tensor]] = {
    "supcon": supervised_contrastive,
    "infonce": info_nce,
    "ntxent": nt_xent,
}
"""The losses by the names of the options."""


def _pairs(z: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities, the mask of positive pairs, and the mask of pairs of a cell with itself: ``(n, n)`` each."""
    with torch.autocast(device_type=z.device.type, enabled=False):
        similarity = z.float() @ z.float().T / temperature  # bfloat16 would keep two digits
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return similarity, (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~itself, itself


def _mean_over_positives(loss: Tensor, positive: Tensor, z: Tensor) -> Tensor:
    """Mean, over cells with positives, of the mean loss over their positives."""
    n_positive = positive.sum(1)
    has_positive = n_positive > 0
    if not has_positive.any():
        return (z * 0).sum()
    return (loss.masked_fill(~positive, 0).sum(1)[has_positive] / n_positive[has_positive]).mean()
