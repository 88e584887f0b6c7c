"""The network of CellTypeClassifier: an encoder of cells, and heads whose effect is zero at first."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from scstate_lora.nn.lora import active_adapter, train_adapters_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.rank_encoder import RankEncoder
    from scstate_lora.nn.se_encoder import SEEncoder


class ResidualHeads(nn.Module):
    """Heads on standardised embeddings, several for one target; the last layer of each is zero at first.

    Parameters
    ----------
    dim
        Width of the embedding.
    n_outputs
        Classes, or 1 for a number.
    hidden_dim
        Width of the hidden layer; None for a linear head.
    dropout
        Dropout before the last layer.
    n_members
        Number of heads.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, dim: int, n_outputs: int, *, hidden_dim: int | None, dropout: float, n_members: int) -> None:
        super().__init__()
        width = dim if hidden_dim is None else hidden_dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("sd", torch.ones(dim))
        if hidden_dim is not None:
            self.first = nn.Parameter(torch.randn(n_members, dim, width) * dim**-0.5)  # as Linear's, unit variance out
            self.first_bias = nn.Parameter(torch.zeros(n_members, 1, width))
        self.last = nn.Parameter(torch.zeros(n_members, width, n_outputs))
        self.last_bias = nn.Parameter(torch.zeros(n_members, 1, n_outputs))
        self.dropout = nn.Dropout(dropout)
        self.hidden_dim = hidden_dim

    def standardise(self, embedding: Tensor) -> None:
        """Take mean and standard deviation of the entries from embeddings ``(n, dim)``; 1 of a constant entry."""
        sd = embedding.std(0, correction=min(1, len(embedding) - 1))
        self.mean.copy_(embedding.mean(0))
        self.sd.copy_(torch.where(sd > 1e-6, sd, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """Compute what each head adds, ``(n_members, n, n_outputs)``, from embeddings ``(n, dim)``."""
        h = ((embedding - self.mean) / self.sd).expand(len(self.last), -1, -1)  # (M, n, dim)
        if self.hidden_dim is not None:
            h = torch.relu(torch.baddbmm(self.first_bias, h, self.first))  # (M, n, hidden)
        return torch.baddbmm(self.last_bias, self.dropout(h), self.last)


class ClassifierNetwork(nn.Module):
    """An encoder, and the heads of every target on its embedding.

    Parameters
    ----------
    encoder
        From tokens to embeddings; None where the embedding comes from elsewhere.
    dim
        Entries of its output that are the embedding.
    heads
        Heads by target.
    """

    def __init__(self, encoder: SEEncoder | RankEncoder | None, dim: int, heads: Mapping[str, ResidualHeads]) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim = dim
        self.heads = nn.ModuleList(heads.values())
        self.names = list(heads)

    def train(self, mode: bool = True) -> ClassifierNetwork:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but an encoder that is frozen stays in ``eval``, except for the dropout of its adapters."""
        self.training = mode
        self.heads.train(mode)
        if self.encoder is None:
            return self
        if mode and active_adapter(self.encoder) is not None:
            train_adapters_only(self.encoder)
        else:
            self.encoder.train(mode and any(p.requires_grad for p in self.encoder.parameters()))
        return self

    def embed(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Embed cells from their tokens, ``(n, dim)``."""
        assert self.encoder is not None  # only a network reads tokens
        return self.encoder(**tokens)[:, : self.dim]

    def heads_by_target(self) -> dict[str, ResidualHeads]:
        """Heads by target."""
        return dict(zip(self.names, cast("list[ResidualHeads]", list(self.heads)), strict=True))

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Compute what the heads of every target add, ``(n_members, n, n_outputs)`` each."""
        return {name: heads(embedding) for name, heads in zip(self.names, self.heads, strict=True)}
