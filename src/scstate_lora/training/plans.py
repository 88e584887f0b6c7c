"""Training plans: the named loss terms of each model, their weights and the optimiser."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.losses import energy_distance, supervised_contrastive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.conditioned_se import ConditionedSE
    from scstate_lora.nn.se_encoder import SEEncoder
    from scstate_lora.nn.transition import StateTransition


class Plan(L.LightningModule):
    """A weighted sum of named loss terms, minimised by AdamW with linear warm-up and cosine decay.

    Parameters
    ----------
    lr, weight_decay
        Peak learning rate, and weight decay.
    warmup_steps
        Optimiser steps over which the learning rate rises.
    weights
        Weight of each term; a term of weight 0 is not computed.
    """

    def __init__(self, *, lr: float, weight_decay: float, warmup_steps: int, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.weights = {name: w for name, w in weights.items() if w}

    @abstractmethod
    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the unweighted loss terms of a batch, scalars by name."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Lightning's hook: the weighted loss, and the terms for the history."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Lightning's hook: as in training, without gradient."""
        return self._step(batch, "val")

    def _step(self, batch: dict[str, Any], phase: str) -> dict[str, Any]:
        terms = self.terms(batch)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        logged = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        # on_epoch for validation: early stopping watches the epoch's mean.
        self.log_dict({f"{phase}/{name}": value for name, value in logged.items()}, batch_size=1)
        return {"loss": loss, "logged": logged}

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over what is trainable, with the schedule stepped once an optimiser step."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.lr, weight_decay=self.weight_decay)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = min(self.warmup_steps, total // 5)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class BasePlan(Plan):
    """Self-supervised training of a compact SE base.

    Terms: ``expression``, the mean squared error of sampled genes predicted by the expression head (SE's own
    objective); ``readout``, the same for the most variable genes by a linear readout of the embedding, which is cheap
    enough to ask for all of them in every step.

    Parameters
    ----------
    encoder
        The network.
    readout
        Linear map from the embedding to normalised log expression, used in training only.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(self, encoder: SEEncoder, readout: nn.Linear, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.readout = readout

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a batch of :class:`~scstate_lora.training.batches.CellBatches` with ``readout`` targets."""
        embedding = self.encoder(batch["genes"], batch["values"])
        predicted = self.encoder.predict_expression(embedding, batch["target_genes"], batch["read_depth"])
        return {
            "expression": F.mse_loss(predicted, batch["targets"]),
            "readout": F.mse_loss(self.readout(embedding), batch["readout"]),
        }


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


class STPlan(Plan):
    """Training of a State Transition model.

    Terms: ``energy``, the energy distance between predicted and real sets, unbiased so that training and validation
    sets of different sizes compare; ``deviation``, the mean squared length of the cells' deviations from the shift.

    Parameters
    ----------
    network
        The network.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(self, network: StateTransition, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a :class:`~scstate_lora.data.sets.SetBatch`."""
        deviation = self.network.deviation(batch["control"], batch["pert"], batch["covariates"])
        predicted = self.network.move(batch["control"], batch["pert"], deviation)
        return {
            "energy": energy_distance(predicted, batch["target"], unbiased=True).mean(),
            "deviation": deviation.square().sum(-1).mean(),
        }
