"""The shift of a perturbation in a context, by what it did in contexts alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ContextShift(nn.Module):
    """Mean of a Gaussian process over contexts and perturbations, beyond the shift that all contexts share.

    A context is known by the mean of its control cells, c. What the training groups showed beyond the common shift is
    carried over by a kernel, and genes that are higher in the context than on average change by a share of that more::

        shift = sum_g k(c, c_g) (p . p_g) alpha_g + slope (c - centre),    k(c, c') = exp(-|B (c - c')|^2 / width)

    Nothing in it is trained by gradient: :func:`scstate_lora.training.start.fit_context_shift` solves for it. Without
    references it is zero.

    Parameters
    ----------
    n_inputs, pert_dim
        Width of a cell, and numbers that describe a perturbation.
    n_references, n_directions
        Training groups, and directions in which their contexts differ.
    """

    centre: Tensor
    basis: Tensor
    points: Tensor
    perts: Tensor
    alpha: Tensor
    width: Tensor
    slope: Tensor

    def __init__(self, n_inputs: int, pert_dim: int, *, n_references: int = 0, n_directions: int = 0) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_inputs))
        self.register_buffer("basis", torch.zeros(n_inputs, n_directions))
        self.register_buffer("points", torch.zeros(n_references, n_directions))
        self.register_buffer("perts", torch.zeros(n_references, pert_dim))
        self.register_buffer("alpha", torch.zeros(n_references, n_inputs))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("slope", torch.zeros(()))

    def forward(self, control_mean: Tensor, pert: Tensor) -> Tensor:
        """Shift of sets, ``(n_sets, n_inputs)``.

        Parameters
        ----------
        control_mean
            Mean of each set's control cells, ``(n_sets, n_inputs)``.
        pert
            What describes each set's perturbation, ``(n_sets, pert_dim)``.
        """
        beyond = control_mean - self.centre
        distances = (beyond @ self.basis).unsqueeze(1) - self.points  # (n_sets, n_references, n_directions)
        kernel = torch.exp(-distances.square().sum(-1) / self.width) * (pert @ self.perts.T)
        perturbed = (pert != 0).any(dim=-1, keepdim=True)
        return kernel @ self.alpha + self.slope * beyond * perturbed
