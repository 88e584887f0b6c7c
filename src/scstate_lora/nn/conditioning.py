"""Conditioning: base embedding and covariate vector to the conditioned embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conditioner(nn.Module):
    """concat(base, covariates) -> Linear -> LayerNorm -> SiLU, then unit length.

    It starts close to the identity on the base embedding: the linear layer is the identity on the base half and small
    on the covariate half, and the LayerNorm's small gain keeps SiLU in its linear range, where signs survive.

    Parameters
    ----------
    dim
        Width of the base embedding, of the covariate vector and of the result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)
        with torch.no_grad():
            self.linear.bias.zero_()
            self.linear.weight[:, :dim] = torch.eye(dim)
            self.linear.weight[:, dim:].normal_(std=0.1 / dim)  # a tenth of the base's length, at any width
            self.norm.weight.fill_(0.1)

    def forward(self, base: Tensor, covariates: Tensor) -> Tensor:
        """Two tensors ``(n, dim)`` to unit-length embeddings ``(n, dim)``."""
        return F.normalize(F.silu(self.norm(self.linear(torch.cat([base, covariates], dim=-1)))), dim=-1)
