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
    """SE embedding conditioned on the covariates of the cell.

    Parameters
    ----------
    encoder
        SE network with frozen weights, with or without adapters (see :func:`scstate_lora.nn.lora.add_lora`); None if
        the base embedding comes from elsewhere.
    conditioning
        Combines the embedding with covariates.
    """

    def __init__(self, encoder: SEEncoder | None, conditioning: Conditioning) -> None:
        super().__init__()
        self.encoder = encoder
        self.conditioning = conditioning

    def train(self, mode: bool = True) -> ConditionedSE:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but the frozen encoder stays in ``eval``, except for the dropout of its adapters."""
        self.training = mode
        self.conditioning.train(mode)
        if self.encoder is not None:
            if mode:
                train_adapters_only(self.encoder)
            else:
                self.encoder.eval()
        return self

    def forward(self, genes: Tensor, values: Tensor, covariates: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed cells, from sentences and covariates.

        Parameters
        ----------
        genes, values
            Sentences, ``(n, T - 1)`` and ``(n, T)``, as in :meth:`~scstate_lora.nn.se_encoder.SEEncoder.forward`.
        covariates
            Codes or standardised values, ``(n,)`` each.

        Returns
        -------
        The embedding of the adapted encoder, ``(n, embedding_dim)``, and the conditioned embedding, ``(n, dim)`` of
        unit length.
        """
        adapted = self.adapt(genes, values)
        return adapted, self.condition(adapted, covariates)

    def adapt(self, genes: Tensor, values: Tensor) -> Tensor:
        """Embed sentences with the adapted encoder, ``(n, embedding_dim)``."""
        assert self.encoder is not None  # only an SE network reads sentences
        return self.encoder(genes, values)

    def condition(self, adapted: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Condition embeddings of the encoder ``(n, embedding_dim)`` on covariates, ``(n, dim)``."""
        return self.conditioning(adapted[:, : self.conditioning.dim], covariates)

    def predict_expression(self, adapted: Tensor, conditioned: Tensor, genes: Tensor, read_depth: Tensor) -> Tensor:
        """Predict the expression of ``genes (g,)`` from both embeddings of :meth:`forward`, ``(n, g)``."""
        assert self.encoder is not None  # only an SE network has an expression head
        # The entries that describe the data set are kept as the encoder computed them.
        whole = torch.cat([conditioned, adapted[:, conditioned.shape[1] :]], dim=1)
        return self.encoder.predict_expression(whole, genes, read_depth)
