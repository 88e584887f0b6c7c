"""Contrastive loss on labels: cells of one label together, others apart."""

from __future__ import annotations

import torch
from torch import Tensor


def supervised_contrastive(z: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362), ``L_out``.

    Parameters
    ----------
    z
        Unit-length embeddings, ``(n, d)``.
    labels
        Integer labels, ``(n,)``. Cells that are alone with their label in the batch are left out.
    temperature
        Divides the cosine similarities.

    Returns
    -------
    Mean over cells, a scalar; zero with gradient when no two cells share a label.
    """
    with torch.autocast(device_type=z.device.type, enabled=False):
        similarity = z.float() @ z.float().T / temperature  # (n, n); bfloat16 would leave two digits of it
    self_pair = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_prob = similarity - similarity.masked_fill(self_pair, float("-inf")).logsumexp(dim=1, keepdim=True)
    positive = (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~self_pair
    n_positive = positive.sum(1)
    has = n_positive > 0
    if not has.any():
        return (z * 0).sum()
    return -(log_prob.masked_fill(~positive, 0).sum(1)[has] / n_positive[has]).mean()
