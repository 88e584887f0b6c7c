"""Training of STTransition: its loss terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scstate_lora.losses import energy_distance
from scstate_lora.training.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scstate_lora.nn.transition import StateTransition


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

    def backbone(self) -> nn.Module:
        """Give the transformer."""
        return self.network.transformer_backbone

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a :class:`~scstate_lora.data.sets.SetBatch`."""
        deviation = self.network.deviation(batch["control"], batch["pert"], batch["covariates"])
        predicted = self.network.move(batch["control"], batch["pert"], deviation)
        return {
            "energy": energy_distance(predicted, batch["target"], unbiased=True).mean(),
            "deviation": deviation.square().sum(-1).mean(),
        }
