"""Training of LoRACovariateSE: its loss terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from scstate_lora.losses import supervised_contrastive
from scstate_lora.training.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from scstate_lora.nn.conditioned_se import ConditionedSE


class SEPlan(Plan):
    """Training of a conditioned SE model.

    Terms: ``reconstruction``, mean squared error of sampled genes predicted from the conditioned embedding by the
    frozen expression head; ``contrastive``, supervised contrastive loss on the labels; ``preservation``, 1 - cosine
    between the conditioned and the base embedding.

    Parameters
    ----------
    network
        The network; its base is frozen but for adapters.
    temperature
        Of the contrastive loss.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(self, network: ConditionedSE, *, temperature: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.temperature = temperature

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch with ``covariates`` and ``labels``."""
        adapted, conditioned = self.network(batch["genes"], batch["values"], batch["covariates"])
        terms = {}
        if "reconstruction" in self.weights:
            asked = batch["target_genes"], batch["read_depth"]
            predicted = self.network.predict_expression(adapted, conditioned, *asked)
            terms["reconstruction"] = F.mse_loss(predicted, batch["targets"])
        if "contrastive" in self.weights:
            terms["contrastive"] = supervised_contrastive(conditioned, batch["labels"], temperature=self.temperature)
        if "preservation" in self.weights:
            terms["preservation"] = (
                1 - F.cosine_similarity(conditioned, batch["base"][:, : conditioned.shape[1]], dim=1)
            ).mean()
        return terms
