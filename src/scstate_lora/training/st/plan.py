"""Training of STTransition: its loss terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from scstate_lora.losses import SET_DISTANCES, VelocityAlignmentLoss, VelocityRegularizationLoss, warmed_up
from scstate_lora.training.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scstate_lora.config import STObjectiveConfig
    from scstate_lora.nn.transition import Prediction, StateTransition


class STPlan(Plan):
    """Training of a State Transition model.

    Terms:

    ``energy``, ``sinkhorn``, ``mmd``, ``mse``
        Distances between predicted and measured sets, see :data:`scstate_lora.losses.SET_DISTANCES`.
    ``deviation``
        Mean squared length of the cells' change beyond the shift of their perturbation.
    ``l1``
        Mean absolute change of a cell's features.
    ``decoder``
        Mean squared error of the expression decoded from the embedding of measured cells.
    ``confidence``
        Squared error of the predicted loss of a set, in units of the mean distance.
    ``batch``
        Cross-entropy of the batch of a set.
    ``velocity``
        :class:`~scstate_lora.losses.VelocityAlignmentLoss` of the change; its parts are logged as ``velocity_...``.
    ``velocity_regularization``
        :class:`~scstate_lora.losses.VelocityRegularizationLoss` of the change.

    Parameters
    ----------
    network
        The network.
    objective
        Options of the velocity terms.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(self, network: StateTransition, *, objective: STObjectiveConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.velocity_warmup_steps = objective.velocity_warmup_steps
        self.velocity = VelocityAlignmentLoss(
            objective.velocity_beta, min_confidence=objective.velocity_min_confidence, kind=objective.velocity_kind
        )
        self.regularization = VelocityRegularizationLoss()

    def backbone(self) -> nn.Module:
        """Return the transformer."""
        return self.network.transformer_backbone

    def weight(self, name: str) -> float:
        """Return the weight of a term at the current step; that of the velocity increases."""
        if name != "velocity" or not self.training:
            return self.weights[name]
        longest = int(self.trainer.estimated_stepping_batches) // 2
        return warmed_up(
            self.global_step, weight=self.weights[name], warmup_steps=min(self.velocity_warmup_steps, longest)
        )

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a :class:`~scstate_lora.data.sets.SetBatch`."""
        control, target = batch["control"], batch["target"]
        predicted = self.network(control, batch["pert"], batch["covariates"], batch.get("batch_codes"))
        distances = {
            name: distance(predicted.cells, target) for name, distance in SET_DISTANCES.items() if name in self.weights
        }
        terms = {name: by_set.mean() for name, by_set in distances.items()}
        if "deviation" in self.weights:
            terms["deviation"] = predicted.change.square().sum(-1).mean()
        if "l1" in self.weights:
            terms["l1"] = (predicted.cells - control).abs().mean()
        if "decoder" in self.weights:
            terms["decoder"] = F.mse_loss(self.network.decode(target), batch["target_genes"])
        terms |= self._tokens(predicted, distances, batch)
        if "velocity" in batch:
            terms |= self._velocities(predicted.cells - control, batch)
        return terms

    def _tokens(self, predicted: Prediction, distances: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Terms of the tokens beside the cells."""
        terms = {}
        if predicted.confidence is not None and "confidence" in self.weights:
            by_set = sum(self.weights[name] * distance for name, distance in distances.items())
            terms["confidence"] = F.mse_loss(predicted.confidence, by_set.detach())  # type: ignore[union-attr]  # never empty
        if predicted.batch_scores is not None and "batch" in self.weights:
            labels = batch["batch_labels"]
            known = labels >= 0
            entropy = F.cross_entropy(predicted.batch_scores, labels.clamp(min=0), reduction="none")
            terms["batch"] = (entropy * known).sum() / known.sum().clamp(min=1)
        return terms

    def _velocities(self, change: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Terms of the RNA velocity, and their parts."""
        confidence = batch.get("velocity_confidence")
        terms = {}
        if "velocity" in self.weights:
            terms["velocity"], parts = self.velocity(change, batch["velocity"], confidence)
            terms |= {f"velocity_{name}": value for name, value in parts._asdict().items()}
        if "velocity_regularization" in self.weights:
            terms["velocity_regularization"] = self.regularization(change, confidence)
        return terms
