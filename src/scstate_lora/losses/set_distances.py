"""Distances between predicted and measured sets of cells, by the names of the training options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from geomloss import SamplesLoss
from torch import Tensor

from scstate_lora._compat_torch import clamp_min
from scstate_lora.losses.distribution import energy_distance

if TYPE_CHECKING:
    from collections.abc import Callable

BLUR = 0.05
"""Scale below which the Sinkhorn transport does not resolve cells, relative to the spread of the measured cells."""
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def sinkhorn(x: Tensor, y: Tensor, *, blur: float = BLUR) -> Tensor:
    """Sinkhorn divergence with quadratic cost (Feydy et al. 2019, arXiv:1810.08278), by ``geomloss``.

    Both sets are divided by the spread of `y`, the root mean squared distance of its cells to their mean, so that
    `blur` means the same for genes and for any embedding. Computed in float32 whatever the autocast context, on
    centred data.

    Parameters
    ----------
    x, y
        Sets of cells, ``(n_sets, n, n_features)`` and ``(n_sets, m, n_features)``.
    blur
        Scale below which the transport does not resolve cells, relative to the spread of `y`.

    Returns
    -------
    One divergence per set, float32 ``(n_sets,)``, never negative except for rounding. For sets that differ by a
    translation it is half the squared distance of their means, in units of the spread.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = _centred(x, y)
        spread = _spread(y)
        loss = SamplesLoss("sinkhorn", p=2, blur=blur, backend="tensorized")
        return loss(x / spread, y / spread)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy (Gretton et al. 2012) with a mean of Gaussian kernels, biased: never negative.

    The squared kernel widths are a quarter to four times the mean squared distance between measured cells.

    Parameters
    ----------
    x, y
        Sets of cells, ``(n_sets, n, n_features)`` and ``(n_sets, m, n_features)``.

    Returns
    -------
    One value per set, float32 ``(n_sets,)``, at most 2.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = _centred(x, y)
        width = 2 * _spread(y).square()

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            norms = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)  # (n_sets, n, m)
            squared = clamp_min(norms - 2 * a @ b.transpose(-1, -2), 0) / width
            return torch.stack([torch.exp(-squared / (2 * share)) for share in _BANDWIDTHS]).mean(dim=(0, -2, -1))

        return clamp_min(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y), 0)


def mse_of_means(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance between the means of the sets, summed over features, float32 ``(n_sets,)``.

    Parameters
    ----------
    x, y
        Predicted and measured sets, ``(n_sets, n_cells, n_features)``.
    """
    return (x.float().mean(dim=-2) - y.float().mean(dim=-2)).square().sum(-1)


SET_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "energy": energy_distance,
    "sinkhorn": sinkhorn,
    "mmd": mmd,
    "mse": mse_of_means,
}


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.float(), y.float()
    centre = y.detach().mean(dim=-2, keepdim=True)
    return x - centre, y - centre


def _spread(y: Tensor) -> Tensor:
    """Root mean squared distance of cells to the origin, ``(n_sets, 1, 1)``; 1 if all cells lie there."""
    squared = y.detach().square().sum(-1).mean(-1)
    return torch.where(squared > 0, squared, 1.0).sqrt()[:, None, None]
