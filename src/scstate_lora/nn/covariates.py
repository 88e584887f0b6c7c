"""Covariate encoder: any number of categorical and continuous covariates to one vector a cell."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class ContinuousEncoder(nn.Module):
    """MLP 1 -> hidden -> out with SiLU, for a standardised number.

    Parameters
    ----------
    hidden_dim, output_dim
        Widths.
    """

    def __init__(self, hidden_dim: int = 128, output_dim: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, output_dim))
        self.unknown = nn.Parameter(torch.zeros(output_dim))

    def forward(self, values: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Numbers ``(n,)`` to ``(n, output_dim)``; where ``dropped (n,)`` is True, the vector for "unknown"."""
        encoded = self.net(values.unsqueeze(-1))
        return encoded if dropped is None else torch.where(dropped.unsqueeze(-1), self.unknown, encoded)


class CategoricalEncoder(nn.Module):
    """One vector a category, and one more for "unknown".

    Parameters
    ----------
    n_categories
        Known categories; code ``n_categories`` is the unknown one.
    output_dim
        Width.
    """

    def __init__(self, n_categories: int, output_dim: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_categories + 1, output_dim)

    def forward(self, codes: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Codes ``(n,)`` to ``(n, output_dim)``; where ``dropped (n,)`` is True, the row for "unknown"."""
        if dropped is not None:
            codes = torch.where(dropped, self.embedding.num_embeddings - 1, codes)
        return self.embedding(codes)


class CombinationMLP(nn.Module):
    """Concatenated covariate vectors to one: in -> hidden[0] -> hidden[1] -> out with SiLU, then LayerNorm.

    Parameters
    ----------
    input_dim, hidden_dims, output_dim
        Widths.
    """

    def __init__(self, input_dim: int, hidden_dims: tuple[int, ...], output_dim: int) -> None:
        super().__init__()
        widths = [input_dim, *hidden_dims]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], output_dim), nn.LayerNorm(output_dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, input_dim)`` to ``(n, output_dim)``."""
        return self.net(x)


class MultiCovariateEncoder(nn.Module):
    """Encode all covariates of a cell and combine them by an MLP, which can learn their interactions.

    Parameters
    ----------
    n_categories
        Covariate name to its number of categories, or to None when it is continuous.
    output_dim
        Width of the combined vector.
    embed_dim
        Width of every covariate's own vector.
    hidden_dims
        Hidden widths of the combination.
    dropout
        Share of a cell's covariates that are replaced by "unknown" while training, each on its own, so that the
        unknown rows are trained.
    """

    def __init__(
        self,
        n_categories: Mapping[str, int | None],
        output_dim: int,
        *,
        embed_dim: int = 256,
        hidden_dims: tuple[int, ...] = (1024, 512),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.names = list(n_categories)
        self.dropout = dropout
        # Keyed by position: a covariate's name may hold a dot, which a module's name may not.
        self.encoders = nn.ModuleList(
            ContinuousEncoder(output_dim=embed_dim) if n is None else CategoricalEncoder(n, embed_dim)
            for n in n_categories.values()
        )
        self.combination = CombinationMLP(embed_dim * len(self.names), hidden_dims, output_dim)

    def forward(self, covariates: Mapping[str, Tensor]) -> Tensor:
        """Codes or standardised numbers, each ``(n,)``, to ``(n, output_dim)``."""
        encoded = []
        for name, encoder in zip(self.names, self.encoders, strict=True):
            values = covariates[name]
            dropped = torch.rand(len(values), device=values.device) < self.dropout if self.training else None
            encoded.append(encoder(values, dropped))
        return self.combination(torch.cat(encoded, dim=-1))
