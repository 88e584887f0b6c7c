"""Training of a classifier's encoder and heads together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scstate_lora._logging import logger
from scstate_lora.losses.labels import label_loss
from scstate_lora.training.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scstate_lora.nn.classifier import ClassifierNetwork


class ClassifierPlan(Plan):
    """Training of an encoder and its heads, each at a learning rate of its own.

    Terms: one a target, the weighted mean of :func:`~scstate_lora.losses.labels.label_loss` of its heads; and
    ``encoder``, which is 1 in steps that train the encoder and 0 in those that do not, and only logged.

    Parameters
    ----------
    network
        The network.
    backbone_lr, adapter_lr
        Peak learning rates of the encoder's weights and of its adapters; the heads have ``lr``.
    unfreeze_epoch
        Epoch from which on the encoder is trained, for the log.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(
        self, network: ClassifierNetwork, *, backbone_lr: float, adapter_lr: float, unfreeze_epoch: int, **kwargs: Any
    ) -> None:
        super().__init__(weights=dict.fromkeys(network.names, 1.0), **kwargs)
        self.network = network
        self.backbone_lr, self.adapter_lr, self.unfreeze_epoch = backbone_lr, adapter_lr, unfreeze_epoch

    def backbone(self) -> nn.Module:
        """Return the encoder's transformer, where it has one that can be compiled."""
        part = getattr(self.network.encoder, "transformer_encoder", None)
        return super().backbone() if part is None else part

    def on_train_epoch_start(self) -> None:
        """Lightning's hook: say when the encoder begins to be trained."""
        if self.unfreeze_epoch and self.current_epoch == self.unfreeze_epoch and self.trainer.is_global_zero:
            logger.info("Epoch %d: the encoder is unfrozen and trained from here on.", self.current_epoch + 1)

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch of :class:`~scstate_lora.training.annotation.batches.LabelledBatches`."""
        trained = "tokens" in batch
        embedding = self.network.embed(batch["tokens"]) if trained else batch["embedding"]
        terms = {}
        for name, added in self.network(embedding).items():
            start, goal, weights = (batch[part][name] for part in ("start", "goal", "weights"))
            # In validation the members' mean counts, which is what predictions use.
            outputs = start + (added if self.training else added.mean(0, keepdim=True))
            terms[name] = (label_loss(outputs, goal) * weights).mean()
        return {**terms, "encoder": torch.tensor(float(trained), device=embedding.device)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Heads, adapters and the encoder's own weights, each with its learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                of_encoder = self.adapter_lr if "lora_" in name else self.backbone_lr
                groups.setdefault(of_encoder if name.startswith("encoder.") else self.lr, []).append(parameter)
        return [{"params": parameters, "lr": lr} for lr, parameters in groups.items()]
