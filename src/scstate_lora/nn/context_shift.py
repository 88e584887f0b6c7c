"""The shift of a perturbation in a context, by what it did in contexts alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec


def places(covariates: Mapping[str, Tensor], specs: Mapping[str, CovariateSpec]) -> Tensor:
    """Lay the covariates of sets out as coordinates, ``(n_sets, n_coordinates)``: means over the cells that tell.

    Two levels of a categorical covariate are at distance one. A continuous one is standardised as it is. Cells that do
    not tell are left out; of a set without any that do, the coordinates are zero.

    Parameters
    ----------
    covariates
        Codes or standardised numbers of each cell, ``(n_sets, n_cells)`` each.
    specs
        The covariates, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    """
    found = []
    for name, spec in specs.items():
        values = covariates[name]
        if spec.n_categories is None:
            known = values.isfinite()
            found.append((values.nan_to_num().sum(1) / known.sum(1).clamp(min=1)).unsqueeze(-1))
        else:
            told = F.one_hot(values, spec.n_categories + 1)[..., :-1].float()  # the last code is "unknown"
            found.append(told.sum(1) / told.sum((1, 2)).clamp(min=1).unsqueeze(-1) / 2**0.5)
    return torch.cat(found, dim=-1) if found else torch.zeros(0)


def n_coordinates(specs: Mapping[str, CovariateSpec]) -> int:
    """Count the columns of :func:`places`."""
    return sum(spec.n_categories or 1 for spec in specs.values())


class ContextShift(nn.Module):
    """Mean of a Gaussian process over contexts and perturbations, beyond the shift that all contexts share.

    A context is known by the mean of its control cells, c, and by its covariates, z. What the training groups showed
    beyond the common shift is carried over by a kernel, and genes that are higher in the context than on average change
    by a share of that more::

        shift = sum_g k(g) (p . p_g) alpha_g + slope (c - centre)
        k(g) = exp(-(|B (c - c_g)|^2 + |reach (z - z_g)|^2) / width)

    Nothing in it is trained by gradient: :func:`scstate_lora.training.st.context_prior.fit_contexts` solves for
    it. Without references it is zero.

    Parameters
    ----------
    n_inputs, pert_dim
        Width of a cell, and numbers that describe a perturbation.
    n_references, n_directions
        Training groups, and directions in which their contexts' cells differ.
    n_coordinates
        Of their covariates, see :func:`places`.
    """

    centre: Tensor
    basis: Tensor
    points: Tensor
    perts: Tensor
    alpha: Tensor
    width: Tensor
    slope: Tensor
    reach: Tensor

    def __init__(
        self, n_inputs: int, pert_dim: int, *, n_references: int = 0, n_directions: int = 0, n_coordinates: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("basis", torch.zeros(n_inputs, n_directions))
        self.register_buffer("points", torch.zeros(n_references, n_directions + n_coordinates))
        self.register_buffer("perts", torch.zeros(n_references, pert_dim))
        self.register_buffer("alpha", torch.zeros(n_references, n_inputs))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("slope", torch.zeros(()))
        self.register_buffer("reach", torch.zeros(()))

    def forward(self, control_mean: Tensor, pert: Tensor, place: Tensor) -> Tensor:
        """Shift of sets, ``(n_sets, n_inputs)``.

        Parameters
        ----------
        control_mean
            Mean of each set's control cells, ``(n_sets, n_inputs)``.
        pert
            What describes each set's perturbation, ``(n_sets, pert_dim)``.
        place
            Coordinates of each set's covariates, ``(n_sets, n_coordinates)``; or none, ``(0,)``, without covariates.
        """
        beyond = control_mean - self.centre
        found = beyond @ self.basis
        if place.numel():
            found = torch.cat([found, self.reach * place], dim=-1)
        distances = found.unsqueeze(1) - self.points  # (n_sets, n_references, n_directions + n_coordinates)
        kernel = torch.exp(-distances.square().sum(-1) / self.width) * (pert @ self.perts.T)
        perturbed = (pert != 0).any(dim=-1, keepdim=True)
        return kernel @ self.alpha + self.slope * beyond * perturbed
