"""The network of LoRACovariateSE: a frozen SE encoder with adapters, and the conditioning on covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scstate_lora.nn.lora import train_adapters_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.conditioning import Conditioning
    from scstate_lora.nn.se_encoder import SEEncoder


class ConditionedSE(nn.Module):
    """SE embedding that knows the cell's covariates.

    Parameters
    ----------
    encoder
        SE network, its weights frozen, with or without adapters (see :func:`scstate_lora.nn.lora.add_lora`); None where
        the base embedding comes from elsewhere.
    conditioning
        What joins the embedding with covariates.
    """

    def __init__(self, encoder: SEEncoder | None, conditioning: Conditioning) -> None:
        super().__init__()
        self.encoder = encoder
        self.conditioning = conditioning

    def train(self, mode: bool = True) -> ConditionedSE:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but the frozen encoder stays in ``eval``, its adapters' dropout excepted."""
        self.training = mode
        self.conditioning.train(mode)
        if self.encoder is not None:
            if mode:
                train_adapters_only(self.encoder)
            else:
                self.encoder.eval()
        return self

    def forward(self, genes: Tensor, values: Tensor, covariates: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed cells: sentences ``(n, T - 1)``, ``(n, T)`` and covariates ``(n,)`` each.

        Returns
        -------
        The adapted encoder's embedding ``(n, embedding_dim)`` and the conditioned one, ``(n, output_dim)`` of unit
        length.
        """
        adapted = self.adapt(genes, values)
        return adapted, self.condition(adapted, covariates)

    def adapt(self, genes: Tensor, values: Tensor) -> Tensor:
        """Embedding ``(n, embedding_dim)`` of sentences by the encoder with its adapters."""
        assert self.encoder is not None  # without one there are no sentences
        return self.encoder(genes, values)

    def condition(self, adapted: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Conditioned embedding ``(n, dim)`` of cells from the encoder's ``(n, embedding_dim)``."""
        return self.conditioning(adapted[:, : self.conditioning.dim], covariates)

    def predict_expression(self, adapted: Tensor, conditioned: Tensor, genes: Tensor, read_depth: Tensor) -> Tensor:
        """Expression of ``genes (g,)`` from both embeddings of :meth:`forward`, by the frozen head; ``(n, g)``."""
        assert self.encoder is not None  # only an SE network has an expression head
        # What the encoder says of the data set goes along unchanged.
        whole = torch.cat([conditioned, adapted[:, conditioned.shape[1] :]], dim=1)
        return self.encoder.predict_expression(whole, genes, read_depth)
