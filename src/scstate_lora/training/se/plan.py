"""Training of LoRACovariateSE: its loss terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from scstate_lora.losses import CONTRASTIVE, grouped_energy_distance
from scstate_lora.training.distributed import gather
from scstate_lora.training.plans import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from scstate_lora.nn.conditioned_se import ConditionedSE


class SEPlan(Plan):
    """Training of a conditioned SE model.

    Terms:

    ``reconstruction``
        Mean squared error of sampled genes, predicted from the conditioned embedding by the frozen expression head.
    ``contrastive``
        One of :data:`scstate_lora.losses.CONTRASTIVE` on the labels.
    ``covariates``
        Cross-entropy or squared error of the covariates, predicted from the conditioned embedding by linear heads.
        Covariates withheld from a cell do not count.
    ``preservation``
        1 - cosine between the conditioned and the base embedding.
    ``counterfactual``
        Energy distance between cells moved to another combination of covariates and the cells of the same type that
        were measured there.
    ``batch``
        Energy distance between the cells of one batch and those of the others, of the same type and covariates: a
        maximum mean discrepancy with the distance as its kernel (Sejdinovic et al. 2013, doi:10.1214/13-AOS1140).

    Parameters
    ----------
    network
        The network; its base is frozen except for adapters.
    contrastive
        Name of the contrastive loss.
    temperature
        Of the contrastive loss.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(self, network: ConditionedSE, *, contrastive: str, temperature: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.contrastive = CONTRASTIVE[contrastive]
        self.temperature = temperature

    def backbone(self) -> nn.Module:
        """Return the base's transformer; without one, nothing can be compiled or checkpointed."""
        return super().backbone() if self.network.encoder is None else self.network.encoder.transformer_encoder

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch of :class:`~scstate_lora.training.se.batches.SEBatches`."""
        network = self.network
        if "genes" in batch:
            base, adapted = batch["base"], gather(network.adapt(batch["genes"], batch["values"]))
        else:  # without adapters the encoder would return the base embedding
            base = adapted = gather(batch["base"])
        embedded = self._condition(adapted, batch)
        conditioned = embedded["covariates"]
        terms: dict[str, Tensor] = {}
        if "reconstruction" in self.weights:
            predicted = network.predict_expression(adapted, conditioned, batch["target_genes"], batch["read_depth"])
            terms["reconstruction"] = F.mse_loss(predicted, batch["targets"])
        if "contrastive" in self.weights:
            terms["contrastive"] = self.contrastive(conditioned, batch["labels"], temperature=self.temperature)
        if "covariates" in self.weights:
            terms["covariates"] = network.conditioning.heads.loss(conditioned, batch["covariates"])
        if "preservation" in self.weights:
            terms["preservation"] = (
                1 - F.cosine_similarity(conditioned, base[:, : conditioned.shape[1]], dim=1)
            ).mean()
        if "counterfactual" in self.weights:
            terms["counterfactual"] = _matching(embedded["moved"], embedded["own"], batch)
        if "batch" in self.weights:
            terms["batch"] = _mixing(embedded["own"], batch)
        return terms

    def _condition(self, adapted: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Embed cells with some covariates withheld and, for the terms that need them, with their own and moved."""
        kinds = ["covariates"]
        if "counterfactual" in self.weights or "batch" in self.weights:
            kinds.append("own")
        if "counterfactual" in self.weights:
            kinds.append("moved")
        together = {name: torch.cat([batch[kind][name] for kind in kinds]) for name in batch["covariates"]}
        conditioned = self.network.condition(adapted.repeat(len(kinds), 1), together)
        return dict(zip(kinds, conditioned.split(len(adapted)), strict=True))


def _matching(moved: Tensor, own: Tensor, batch: Mapping[str, Any]) -> Tensor:
    sides = torch.arange(int(batch["side"].max()) + 1, device=own.device)
    return grouped_energy_distance(moved, own, batch["moved_side"][:, None] == sides, batch["side"][:, None] == sides)


def _mixing(own: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Energy distance between each batch of a context and the context's other batches."""
    known = batch["batches"] >= 0
    pairs = torch.stack([batch["context"], batch["batches"]], dim=1)[known].unique(dim=0)  # (n_pairs, 2)
    here = (batch["context"][:, None] == pairs[:, 0]) & known[:, None]
    mine = here & (batch["batches"][:, None] == pairs[:, 1])
    return grouped_energy_distance(own, own, mine, here & ~mine)
