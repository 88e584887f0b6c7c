"""Tokens beside the cells of a set: one predicts the loss of the set, one its batch."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class ConfidenceToken(nn.Module):
    """A learned token after the cells, from which the loss of the set is predicted.

    Named and built as in Arc's published models (doi:10.1101/2025.06.26.661135), so that their weights load.

    Parameters
    ----------
    hidden
        Width of the tokens.
    dropout
        Dropout in training.
    """

    def __init__(self, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.confidence_token = nn.Parameter(torch.randn(1, 1, hidden))
        narrower = [hidden, hidden // 2, hidden // 4]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(narrower):
            layers += [nn.Linear(wide, narrow), nn.LayerNorm(narrow), nn.GELU(), nn.Dropout(dropout)]
        self.confidence_projection = nn.Sequential(*layers, nn.Linear(narrower[-1], 1), nn.ReLU())

    def token(self, n_sets: int) -> Tensor:
        """Give the token for each set, ``(n_sets, 1, hidden)``."""
        return self.confidence_token.expand(n_sets, -1, -1)

    def forward(self, token: Tensor) -> Tensor:
        """Predict the loss, ``(n_sets,)`` and never negative, from the mixed token, ``(n_sets, hidden)``."""
        return self.confidence_projection(token).squeeze(-1)  # (B, 1) -> (B,)


class BatchToken(nn.Module):
    """A learned token before the cells, from which the batch of the set is predicted.

    Parameters
    ----------
    hidden
        Width of the token.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.batch_token = nn.Parameter(torch.randn(1, 1, hidden))

    def token(self, n_sets: int) -> Tensor:
        """Give the token for each set, ``(n_sets, 1, hidden)``."""
        return self.batch_token.expand(n_sets, -1, -1)
