"""Distances between a predicted and a measured set of cells, by the name under which a model may be trained on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from geomloss import SamplesLoss
from torch import Tensor

from scstate_lora.losses.distribution import energy_distance

if TYPE_CHECKING:
    from collections.abc import Callable

BLUR = 0.05
"""Scale below which Sinkhorn's transport does not tell cells apart, as a share of the spread of the measured cells."""
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def energy(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased energy distance, ``(n_sets,)``: see :func:`~scstate_lora.losses.energy_distance`."""
    return energy_distance(x, y, unbiased=True)


def sinkhorn(x: Tensor, y: Tensor, *, blur: float = BLUR) -> Tensor:
    """Sinkhorn divergence with quadratic cost (Feydy et al. 2019, arXiv:1810.08278), by ``geomloss``.

    Both sets are divided by the spread of `y`, the root of its mean squared distance to its mean, so that `blur` means
    the same for genes and for any embedding. Computed in float32 whatever the autocast context, on centred data.

    Parameters
    ----------
    x, y
        Sets of cells, ``(n_sets, n, n_features)`` and ``(n_sets, m, n_features)``.
    blur
        Scale below which the transport does not tell cells apart, as a share of the spread of `y`.

    Returns
    -------
    One divergence a set, float32 ``(n_sets,)``, never negative but for rounding; half the squared distance of the
    means, in units of the spread, for sets of one shape.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = _centred(x, y)
        spread = _spread(y)
        loss = SamplesLoss("sinkhorn", p=2, blur=blur, backend="tensorized")
        return loss(x / spread, y / spread)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy (Gretton et al. 2012) with a mean of Gaussian kernels, biased: never negative.

    The kernels' squared widths are a quarter to four times the mean squared distance of the measured cells.

    Parameters
    ----------
    x, y
        Sets of cells, ``(n_sets, n, n_features)`` and ``(n_sets, m, n_features)``.

    Returns
    -------
    One number a set, float32 ``(n_sets,)``, at most 2.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = _centred(x, y)
        width = 2 * _spread(y).square()

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            norms = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
            squared = (norms - 2 * a @ b.transpose(-1, -2)).clamp(min=0) / width
            return torch.stack([torch.exp(-squared / (2 * share)) for share in _BANDWIDTHS]).mean(dim=(0, -2, -1))

        return (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).clamp(min=0)


def mse_of_means(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance of the sets' means, summed over features, float32 ``(n_sets,)``.

    Parameters
    ----------
    x, y
        Predicted and measured sets, ``(n_sets, n_cells, n_features)``.
    """
    return (x.float().mean(dim=-2) - y.float().mean(dim=-2)).square().sum(-1)


SET_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "energy": energy,
    "sinkhorn": sinkhorn,
    "mmd": mmd,
    "mse": mse_of_means,
}


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.float(), y.float()
    centre = y.detach().mean(dim=-2, keepdim=True)
    return x - centre, y - centre


def _spread(y: Tensor) -> Tensor:
    """Root of the mean squared distance of cells to zero, ``(n_sets, 1, 1)``; 1 where they are all there."""
    squared = y.detach().square().sum(-1).mean(-1)
    return torch.where(squared > 0, squared, 1.0).sqrt()[:, None, None]
