"""Covariate encoder: any number of categorical and continuous covariates to one vector per cell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

Activation = Literal["silu", "relu", "gelu", "tanh"]
Combine = Literal["concat_mlp", "add"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class CovariateSpec:
    """How one covariate is encoded.

    Parameters
    ----------
    n_categories
        Number of categories, without "unknown"; None for a continuous covariate.
    embed_dim
        Width of the covariate's vector.
    hidden_dim, activation
        Hidden width and activation of the :class:`ContinuousEncoder` of a continuous covariate.
    """

    n_categories: int | None
    embed_dim: int = 256
    hidden_dim: int = 128
    activation: Activation = "silu"

    def encoder(self) -> nn.Module:
        """Make the network that encodes the covariate as ``(n, embed_dim)``."""
        if self.n_categories is None:
            return ContinuousEncoder(self.hidden_dim, self.embed_dim, activation=self.activation)
        return CategoricalEncoder(self.n_categories, self.embed_dim)


class ContinuousEncoder(nn.Module):
    """MLP 1 -> hidden -> out for a standardised value; NaN, "unknown", has a learned vector.

    Parameters
    ----------
    hidden_dim, output_dim
        Widths.
    activation
        ``"silu"``, ``"relu"``, ``"gelu"`` or ``"tanh"``.

    Raises
    ------
    ValueError
        If the activation is unknown.
    """

    def __init__(self, hidden_dim: int = 128, output_dim: int = 256, *, activation: Activation = "silu") -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            msg = f"activation={activation!r} is unknown. Choose one of {', '.join(map(repr, _ACTIVATIONS))}."
            raise ValueError(msg)
        self.net = nn.Sequential(
            nn.Linear(1, hidden_dim), _ACTIVATIONS[activation](), nn.Linear(hidden_dim, output_dim)
        )
        self.unknown = nn.Parameter(torch.zeros(output_dim))

    def forward(self, values: Tensor) -> Tensor:
        """Encode values ``(n,)``, NaN for "unknown", as ``(n, output_dim)``."""
        unknown = values.isnan()
        # Replaced before the net, too: a NaN that passes through it would make the gradient of its weights NaN.
        encoded = self.net(values.masked_fill(unknown, 0).unsqueeze(-1))  # (n,) -> (n, 1) -> (n, output_dim)
        return torch.where(unknown.unsqueeze(-1), self.unknown.to(encoded.dtype), encoded)


class CategoricalEncoder(nn.Module):
    """One vector per category, and one more for "unknown".

    Parameters
    ----------
    n_categories
        Number of categories; the code ``n_categories`` stands for "unknown".
    output_dim
        Width.
    """

    def __init__(self, n_categories: int, output_dim: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_categories + 1, output_dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Encode codes ``(n,)``, ``n_categories`` for "unknown", as ``(n, output_dim)``."""
        return self.embedding(codes)


class CombinationMLP(nn.Module):
    """Combine concatenated covariate vectors: in -> hidden[0] -> hidden[1] -> out with SiLU, then LayerNorm.

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

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """Combine vectors ``(n, embed_dim)``, one per covariate, to ``(n, output_dim)``."""
        return self.net(torch.cat(vectors, dim=-1))


class CombinationSum(nn.Module):
    """Sum of covariate vectors, each through its own linear layer, then LayerNorm: effects add, without interaction.

    Parameters
    ----------
    input_dims
        Width of each covariate's vector.
    output_dim
        Width of the result.
    """

    def __init__(self, input_dims: list[int], output_dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(dim, output_dim) for dim in input_dims)
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """Combine vectors ``(n, embed_dim)``, one per covariate, to ``(n, output_dim)``."""
        projected = [project(vector) for project, vector in zip(self.projections, vectors, strict=True)]
        return self.norm(torch.stack(projected).sum(dim=0))


class MultiCovariateEncoder(nn.Module):
    """Encode all covariates of a cell and combine them into one vector.

    The input marks unknown values: the code ``n_categories``, or NaN. The vectors for "unknown" are trained only if
    such inputs occur in training.

    Parameters
    ----------
    specs
        Covariates by name, in order.
    output_dim
        Width of the combined vector.
    combine
        ``"concat_mlp"``: an MLP over all vectors, which can learn interactions. ``"add"``: the sum of the vectors, each
        through its own linear layer.
    hidden_dims
        Hidden widths of the MLP.

    Raises
    ------
    ValueError
        If no covariate is given, or `combine` is unknown.
    """

    def __init__(
        self,
        specs: Mapping[str, CovariateSpec],
        output_dim: int,
        *,
        combine: Combine = "concat_mlp",
        hidden_dims: tuple[int, ...] = (1024, 512),
    ) -> None:
        super().__init__()
        if not specs:
            msg = "MultiCovariateEncoder needs at least one covariate."
            raise ValueError(msg)
        self.names = list(specs)
        # Keyed by position: the name of a covariate may contain a dot, that of a module may not.
        self.encoders = nn.ModuleList(spec.encoder() for spec in specs.values())
        widths = [spec.embed_dim for spec in specs.values()]
        self.combination: CombinationMLP | CombinationSum
        if combine == "concat_mlp":
            self.combination = CombinationMLP(sum(widths), hidden_dims, output_dim)
        elif combine == "add":
            self.combination = CombinationSum(widths, output_dim)
        else:
            msg = f"combine={combine!r} is unknown. Choose one of 'concat_mlp', 'add'."
            raise ValueError(msg)

    def forward(self, covariates: Mapping[str, Tensor]) -> Tensor:
        """Encode codes or standardised values, ``(n,)`` each, as ``(n, output_dim)``."""
        values = [covariates[name] for name in self.names]
        # Cells share few combinations of values, and each combination is encoded once. U combinations, C covariates:
        table = torch.stack([v.float().nan_to_num(nan=torch.inf) for v in values], dim=1)  # (n, C); NaN equals nothing
        combinations, which = table.unique(dim=0, return_inverse=True)  # (U, C), (n,)
        cells = torch.arange(len(which), device=which.device)
        one_of_each = which.new_zeros(len(combinations)).scatter(0, which, cells)  # (U,), a cell of each combination
        encoded = [encode(v[one_of_each]) for encode, v in zip(self.encoders, values, strict=True)]  # (U, embed_dim)
        return F.embedding(which, self.combination(encoded))  # (U, output_dim) -> (n, output_dim)
