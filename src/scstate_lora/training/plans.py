"""What every training plan shares: a weighted sum of named loss terms, and the optimiser."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from scstate_lora.nn.hyper_connections import mhc_layers, mhc_parameters
from scstate_lora.training.distributed import alone, mean_over_processes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


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
        # Checkpoints hold what is trained only; names and shapes are compared before, by check_resumable.
        self.strict_loading = False
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.weights = {name: w for name, w in weights.items() if w}

    @abstractmethod
    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the unweighted loss terms of a batch, scalars by name. A term without a weight is only logged.

        If several processes train together, ``batch`` is this process' share. A term that is a mean over cells (or
        sets) needs nothing more: means over equal shares average to the mean over all. A term that compares cells with
        one another must :func:`~scstate_lora.training.distributed.gather` them first.
        """

    def weight(self, name: str) -> float:
        """Return the weight of a term at the current step."""
        return self.weights[name]

    def backbone(self) -> nn.Module:
        """Return the most expensive part, to which ``compile`` and ``gradient_checkpointing`` apply.

        It has an attribute ``gradient_checkpointing``.
        """
        msg = f"{type(self).__name__} cannot be compiled or checkpointed: leave out these options."
        raise ValueError(msg)

    def connections(self) -> dict[str, str] | None:
        """Describe what no tensor shows of the network's hyper-connections, by layer; None without any."""
        descriptions = {
            name: f"{layer.kind}, {layer.mixing.sinkhorn.n_iters} iterations"
            for name, layer in mhc_layers(self).items()
        }
        return descriptions or None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Lightning's hook: the weighted loss, and the terms for the history."""
        return self._step(batch)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Lightning's hook: as in training, but without gradient, and on whole batches in every process."""
        with alone():
            return self._step(batch)

    def _step(self, batch: dict[str, Any]) -> dict[str, Any]:
        terms = self.terms(batch)
        loss = torch.stack([self.weight(name) * term for name, term in terms.items() if name in self.weights]).sum()
        logged = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        averaged = mean_over_processes(torch.stack([value.float() for value in logged.values()]))
        logged = dict(zip(logged, averaged, strict=True))
        return {"loss": loss, "logged": logged}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook: free gradients as soon as they are used, not after the next batch's forward pass."""
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters in groups with options of AdamW.

        Hyper-connections are not decayed: that would pull their logits towards even mixing of all streams, in what each
        layer reads and writes.
        """
        undecayed = {id(p) for p in mhc_parameters(self).values()}
        trainable = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in trainable if id(p) not in undecayed]}]
        if connections := [p for p in trainable if id(p) in undecayed]:
            groups.append({"params": connections, "weight_decay": 0.0})
        return groups

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the trainable parameters, with the schedule stepped once per optimiser step."""
        groups = self.parameter_groups()
        trainable = [p for group in groups for p in group["params"]]
        # The fused version is much faster on a CPU. Lightning does not clip gradients for it under autocast.
        on_cpu = all(p.device.type == "cpu" for p in trainable)
        fused = True if on_cpu and str(self.trainer.precision) == "32-true" else None
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = min(self.warmup_steps, total // 5)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
