"""The shift of a perturbation in a context, corrected by its effect in similar contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec


def covariate_coordinates(covariates: Mapping[str, Tensor], specs: Mapping[str, CovariateSpec]) -> Tensor:
    """Coordinates of the covariates of sets, ``(n_sets, n_coordinates)``: means over cells with a known value.

    Two levels of a categorical covariate are at distance one; a continuous covariate is standardised already. A set
    without any known value has coordinates of zero.

    Parameters
    ----------
    covariates
        Codes or standardised values of each cell, ``(n_sets, n_cells)`` each.
    specs
        The covariates, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    """
    coordinates = []
    for name, spec in specs.items():
        values = covariates[name]  # (B, N): B sets, N cells
        if spec.n_categories is None:
            n_known = values.isfinite().sum(1).clamp(min=1)  # (B,)
            coordinates.append((values.nan_to_num().sum(1) / n_known).unsqueeze(-1))  # (B, 1)
        else:
            one_hot = F.one_hot(values, spec.n_categories + 1)[..., :-1].float()  # (B, N, C); the last is "unknown"
            n_known = one_hot.sum((1, 2)).clamp(min=1).unsqueeze(-1)  # (B, 1)
            coordinates.append(one_hot.sum(1) / n_known / 2**0.5)  # (B, C)
    return torch.cat(coordinates, dim=-1) if coordinates else torch.zeros(0)


def n_coordinates(specs: Mapping[str, CovariateSpec]) -> int:
    """Count the columns of :func:`covariate_coordinates`."""
    return sum(spec.n_categories or 1 for spec in specs.values())


class ContextShift(nn.Module):
    """Posterior mean of a Gaussian process over contexts and perturbations, beyond the shift all contexts share.

    A context is described by the mean of its control cells, c, and by the coordinates of its covariates, z. A kernel
    transfers the deviations of the training groups from the common shift, and genes that the context expresses above
    average change in proportion to the excess::

        shift = sum_g k(g) (p . p_g) alpha_g + slope (c - centre)
        k(g) = exp(-(|B (c - c_g)|^2 + |reach (z - z_g)|^2) / width)

    Here p is the perturbation vector, B the ``basis``, ``(B c_g, reach z_g)`` the ``points``, ``width`` the squared
    length scale (times two), ``reach`` the weight of the covariates, and ``alpha`` the dual weights.

    Nothing in it is trained by gradient: :func:`scstate_lora.training.st.context_prior.fit_contexts` solves for it.
    Without references it is zero.

    Parameters
    ----------
    n_inputs, pert_dim
        Features of a cell, and width of a perturbation vector.
    n_references, n_directions
        Number of training groups, and of directions in which the cells of their contexts differ.
    n_coordinates
        Number of coordinates of their covariates, see :func:`covariate_coordinates`.
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

    def forward(self, control_mean: Tensor, pert: Tensor, coordinates: Tensor) -> Tensor:
        """Compute the shift of sets, ``(n_sets, n_inputs)``.

        Parameters
        ----------
        control_mean
            Mean of the control cells of each set, ``(n_sets, n_inputs)``.
        pert
            Perturbation vector of each set, ``(n_sets, pert_dim)``.
        coordinates
            Coordinates of the covariates of each set, ``(n_sets, n_coordinates)``; ``(0,)`` without covariates.
        """
        is_perturbed = (pert != 0).any(dim=-1, keepdim=True)  # (B, 1)
        excess = control_mean - self.centre  # (B, G)
        return self.similarity(control_mean, pert, coordinates) @ self.alpha + self.slope * excess * is_perturbed

    def similarity(self, control_mean: Tensor, pert: Tensor, coordinates: Tensor) -> Tensor:
        """Compute k(g) (p . p_g) of every training group, ``(n_sets, n_references)``; arguments as in `forward`."""
        # B sets, G features, R references, P directions + coordinates
        point = (control_mean - self.centre) @ self.basis
        if coordinates.numel():
            point = torch.cat([point, self.reach * coordinates], dim=-1)  # (B, P)
        difference = point.unsqueeze(1) - self.points  # (B, 1, P) - (R, P) -> (B, R, P)
        return torch.exp(-difference.square().sum(-1) / self.width) * (pert @ self.perts.T)  # (B, R)


class FurtherShift(nn.Module):
    """Shift of genes that the network does not read, by the same kernel as that of the genes it reads.

    Parameters
    ----------
    n_genes, pert_dim
        Number of genes, and width of a perturbation vector.
    n_references
        Number of training groups.
    """

    shift: Tensor
    centre: Tensor
    alpha: Tensor

    def __init__(self, n_genes: int, pert_dim: int, *, n_references: int = 0) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(pert_dim, n_genes))
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("alpha", torch.zeros(n_references, n_genes))

    def forward(self, control_mean: Tensor, pert: Tensor, similarity: Tensor, slope: Tensor) -> Tensor:
        """Compute the shift of sets, ``(n_sets, n_genes)``.

        Parameters
        ----------
        control_mean
            Mean of the control cells of each set, ``(n_sets, n_genes)``.
        pert
            Perturbation vector of each set, ``(n_sets, pert_dim)``.
        similarity, slope
            Of the :class:`ContextShift`, ``(n_sets, n_references)`` and a number.
        """
        is_perturbed = (pert != 0).any(dim=-1, keepdim=True)  # (B, 1)
        by_context = similarity @ self.alpha + slope * (control_mean - self.centre) * is_perturbed
        return pert @ self.shift + by_context  # (B, G)
