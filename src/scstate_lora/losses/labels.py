"""Loss of labels that may be coarse, and of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def label_loss(outputs: Tensor, goal: Tensor) -> Tensor:
    """Compute the loss of every cell.

    Parameters
    ----------
    outputs
        Logits ``(..., n, n_classes)``, or predicted numbers ``(..., n, 1)``.
    goal
        Classes that each cell's label leaves open, bool ``(n, n_classes)``: the loss is minus the log of the sum of
        their probabilities; or numbers ``(n,)``: half of the squared error.

    Returns
    -------
    ``(..., n)``.
    """
    if goal.dtype == torch.bool:
        log_p = outputs.log_softmax(-1).masked_fill(~goal, -torch.inf)
        return -log_p.logsumexp(-1)
    return 0.5 * (outputs[..., 0] - goal) ** 2
