"""The State Transition (ST) network: a set of control cells and a perturbation to the set of perturbed cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scstate_lora.nn.backbones import GPT2Backbone
from scstate_lora.nn.covariates import MultiCovariateEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec


@dataclass(frozen=True)
class STConfig:
    """Sizes of an ST network.

    Parameters
    ----------
    n_genes
        Width of a cell's expression.
    n_perturbations
        Perturbations, the control among them.
    hidden, n_layers, n_heads
        Width, depth and heads of the backbone.
    dropout
        In the backbone and encoders, while training.
    """

    n_genes: int
    n_perturbations: int
    hidden: int
    n_layers: int
    n_heads: int
    dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return asdict(self)


class StateTransition(nn.Module):
    """Set-to-set model of a perturbation (after Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135).

    Prediction = control + shift of the perturbation + deviation of the cell, never below zero. The shift is the same
    for all cells; the deviation comes from a transformer over the set, which reads each cell's expression, the
    perturbation and the covariates. Shift and head start at zero, so an untrained model says exactly "no change", and
    differences between cells are kept. Training first sets the shift to the mean shift: the transformer learns what
    that leaves.

    Parameters
    ----------
    config
        Sizes.
    specs
        Covariates other than the perturbation, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    """

    def __init__(self, config: STConfig, specs: Mapping[str, CovariateSpec]) -> None:
        super().__init__()
        hidden = config.hidden
        self.config = config
        self.pert_encoder = _mlp(config.n_perturbations, hidden, config.dropout)
        self.basal_encoder = _mlp(config.n_genes, hidden, config.dropout)
        self.covariate_encoder = MultiCovariateEncoder(specs, hidden, hidden_dims=(hidden,)) if specs else None
        self.transformer_backbone = GPT2Backbone(hidden, config.n_layers, config.n_heads, config.dropout)
        first, last = nn.Linear(hidden, hidden), nn.Linear(hidden, config.n_genes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.project_out = nn.Sequential(first, nn.GELU(), last)
        self.shift = nn.Parameter(torch.zeros(config.n_perturbations, config.n_genes))

    def represent(self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Representation of cells before the head, ``(n_sets, n_cells, hidden)``. Arguments as in :meth:`forward`."""
        n_sets, n_cells, _ = control.shape
        one_hot = nn.functional.one_hot(pert, self.config.n_perturbations).to(control.dtype)  # (n_sets, n_perts)
        tokens = self.basal_encoder(control) + self.pert_encoder(one_hot).unsqueeze(1)
        if self.covariate_encoder is not None:
            flat = {name: values.reshape(-1) for name, values in covariates.items()}  # (n_sets * n_cells,)
            tokens = tokens + self.covariate_encoder(flat).view(n_sets, n_cells, -1)
        return self.transformer_backbone(tokens)

    def deviation(self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Change of each cell beyond its perturbation's shift, as the control. Arguments as in :meth:`forward`."""
        return self.project_out(self.represent(control, pert, covariates))

    def move(self, control: Tensor, pert: Tensor, deviation: Tensor) -> Tensor:
        """Control cells, moved by their perturbation's shift and their own deviation."""
        # clamp, not relu: its slope at exactly zero is one, so an unexpressed gene can be learned to rise.
        return torch.clamp(control + self.shift[pert].unsqueeze(1) + deviation, min=0)

    def forward(self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Predict perturbed cells.

        Parameters
        ----------
        control
            log1p expression of control cells, ``(n_sets, n_cells, n_genes)``.
        pert
            Code of each set's perturbation, int64 ``(n_sets,)``.
        covariates
            Codes or standardised numbers of each cell, ``(n_sets, n_cells)`` each.

        Returns
        -------
        log1p expression of the same cells, perturbed, ``(n_sets, n_cells, n_genes)``.
        """
        return self.move(control, pert, self.deviation(control, pert, covariates))


def _mlp(n_in: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden))
