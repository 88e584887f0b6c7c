"""Conditioning: from base embedding and covariates to the conditioned embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.nn.covariates import Combine, MultiCovariateEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec


class Conditioner(nn.Module):
    """concat(base, covariates) -> Linear -> LayerNorm -> SiLU, then unit length.

    It starts close to the identity on the base embedding: the linear layer is the identity on the base half and small
    on the covariate half, and the small gain of the LayerNorm keeps SiLU in its linear range, where signs survive.

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
            self.linear.weight[:, dim:].normal_(std=0.1 / dim)  # a tenth of the base, at any width
            self.norm.weight.fill_(0.1)

    def forward(self, base: Tensor, covariates: Tensor) -> Tensor:
        """Combine two tensors ``(n, dim)`` to embeddings ``(n, dim)`` of unit length."""
        return F.normalize(F.silu(self.norm(self.linear(torch.cat([base, covariates], dim=-1)))), dim=-1)


class CovariateHeads(nn.Module):
    """Linear heads that predict each covariate from the conditioned embedding.

    Parameters
    ----------
    specs
        Covariates, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    dim
        Width of the embedding.
    """

    def __init__(self, specs: Mapping[str, CovariateSpec], dim: int) -> None:
        super().__init__()
        self.specs = dict(specs)
        self.scale = dim**0.5  # so that entries of a unit vector are about one
        self.heads = nn.ModuleList(nn.Linear(dim, spec.n_categories or 1) for spec in specs.values())

    def loss(self, conditioned: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Mean over covariates of the cross-entropy or, if continuous, the squared error over cells with known values.

        Parameters
        ----------
        conditioned
            Conditioned embeddings, ``(n, dim)``.
        covariates
            Codes or standardised values, ``(n,)`` each; ``n_categories`` and NaN are unknown.

        Returns
        -------
        A scalar. A covariate without known values contributes zero, with a gradient.
        """
        losses = []
        for (name, spec), head in zip(self.specs.items(), self.heads, strict=True):
            values = covariates[name]
            known = ~values.isnan() if spec.n_categories is None else values < spec.n_categories
            predicted = head(conditioned[known] * self.scale).float()  # (n_known, n_categories or 1)
            if not known.any():  # with gradient, as DDP requires one for every parameter
                losses.append(predicted.sum())
            elif spec.n_categories is None:
                losses.append(F.mse_loss(predicted[:, 0], values[known]))
            else:
                losses.append(F.cross_entropy(predicted, values[known]))
        return torch.stack(losses).mean()


class Conditioning(nn.Module):
    """The modules trained beside the adapters: covariate encoder, conditioner and covariate heads.

    Parameters
    ----------
    specs
        Covariates, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    dim
        Width of the base embedding and of the result.
    combine, hidden_dims
        As in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    """

    def __init__(
        self,
        specs: Mapping[str, CovariateSpec],
        dim: int,
        *,
        combine: Combine = "concat_mlp",
        hidden_dims: tuple[int, ...] = (1024, 512),
    ) -> None:
        super().__init__()
        self.dim = dim
        self.covariate_encoder = MultiCovariateEncoder(specs, dim, combine=combine, hidden_dims=hidden_dims)
        self.conditioner = Conditioner(dim)
        self.heads = CovariateHeads(specs, dim)

    def forward(self, base: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Embed cells, ``(n, dim)`` of unit length, from base embeddings ``(n, dim)`` and covariates ``(n,)`` each."""
        return self.conditioner(base, self.covariate_encoder(covariates))
