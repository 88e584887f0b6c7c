"""The network of LoRACovariateSE: a frozen SE encoder with adapters, the covariate encoder and the conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scstate_lora.nn.conditioning import Conditioner
from scstate_lora.nn.covariates import MultiCovariateEncoder
from scstate_lora.nn.lora import train_adapters_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec
    from scstate_lora.nn.se_encoder import SEEncoder


class ConditionedSE(nn.Module):
    """SE embedding that knows the cell's covariates.

    Parameters
    ----------
    encoder
        SE network, its weights frozen, adapters injected (see :func:`scstate_lora.nn.lora.add_lora`).
    specs
        Covariates, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    """

    def __init__(self, encoder: SEEncoder, specs: Mapping[str, CovariateSpec]) -> None:
        super().__init__()
        dim = encoder.config.output_dim
        self.encoder = encoder
        self.covariate_encoder = MultiCovariateEncoder(specs, dim)
        self.conditioner = Conditioner(dim)

    def train(self, mode: bool = True) -> ConditionedSE:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but the frozen encoder stays in ``eval``, its adapters' dropout excepted."""
        super().train(mode)
        if mode:
            train_adapters_only(self.encoder)
        return self

    def forward(self, genes: Tensor, values: Tensor, covariates: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed cells: sentences ``(n, T - 1)``, ``(n, T)`` and covariates ``(n,)`` each.

        Returns
        -------
        The adapted encoder's embedding ``(n, embedding_dim)`` and the conditioned one, ``(n, output_dim)`` of unit
        length.
        """
        adapted = self.encoder(genes, values)
        cell = adapted[:, : self.encoder.config.output_dim]
        return adapted, self.conditioner(cell, self.covariate_encoder(covariates))

    def predict_expression(self, adapted: Tensor, conditioned: Tensor, genes: Tensor, read_depth: Tensor) -> Tensor:
        """Expression of ``genes (g,)`` from both embeddings of :meth:`forward`, by the frozen head; ``(n, g)``."""
        # What the encoder says of the data set goes along unchanged.
        whole = torch.cat([conditioned, adapted[:, conditioned.shape[1] :]], dim=1)
        return self.encoder.predict_expression(whole, genes, read_depth)
