"""Distances between sets of cells."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance between sets of cells, ``2 E|x - y| - E|x - x'| - E|y - y'|``.

    The U-statistic with Euclidean norms, which leaves out the pair of a cell with itself: its expectation does not
    depend on the sizes of the sets, but it can fall below zero. Computed in float32 whatever the autocast context, on
    centred data, because ``|x|² - 2xy + |y|²`` loses its digits far from the origin.

    Parameters
    ----------
    x, y
        Sets of cells, ``(..., n, n_features)`` and ``(..., m, n_features)``, of at least two cells each.

    Returns
    -------
    One distance per set, ``(...)``, float32.

    References
    ----------
    Székely & Rizzo 2013, Energy statistics, doi:10.1016/j.jspi.2013.03.018.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = x.float(), y.float()
        n, m = x.shape[-2], y.shape[-2]
        center = (x.detach().sum(dim=-2, keepdim=True) + y.detach().sum(dim=-2, keepdim=True)) / (n + m)
        x, y = x - center, y - center
        x_norms, y_norms = _squared_norms(x), _squared_norms(y)
        between = _distances(x, y, x_norms, y_norms).mean(dim=(-2, -1))
        within_x = _distances(x, x, x_norms, x_norms, same=True).mean(dim=(-2, -1))
        within_y = _distances(y, y, y_norms, y_norms, same=True).mean(dim=(-2, -1))
        return 2 * between - within_x * n / (n - 1) - within_y * m / (m - 1)


def grouped_energy_distance(x: Tensor, y: Tensor, x_members: Tensor, y_members: Tensor) -> Tensor:
    """Mean over groups of the energy distance between the cells of x and the cells of y in a group.

    All groups are computed at once from one distance matrix, as a batch holds many small groups.

    Parameters
    ----------
    x, y
        Cells, ``(n, n_features)`` and ``(m, n_features)``.
    x_members, y_members
        Membership of cells in groups, bool ``(n, n_groups)`` and ``(m, n_groups)``; a cell may be in several groups
        or in none. Groups with fewer than two cells of x or of y are left out.

    Returns
    -------
    Mean weighted by the number of cells of x per group, a float32 scalar; zero with gradient if no group is left.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = x.float(), y.float()
        n, m = x_members.sum(0), y_members.sum(0)
        usable = (n > 1) & (m > 1)  # (n_groups,)
        if not usable.any():
            return (x * 0).sum()
        in_x, in_y, n, m = x_members[:, usable].float(), y_members[:, usable].float(), n[usable], m[usable]
        center = (x.detach().sum(dim=0) + y.detach().sum(dim=0)) / (len(x) + len(y))
        x, y = x - center, y - center
        xx, yy = _squared_norms(x), _squared_norms(y)
        between = torch.einsum("ng,nm,mg->g", in_x, _distances(x, y, xx, yy), in_y) / (n * m)
        within_x = torch.einsum("ng,nm,mg->g", in_x, _distances(x, x, xx, xx, same=True), in_x) / (n * (n - 1))
        within_y = torch.einsum("ng,nm,mg->g", in_y, _distances(y, y, yy, yy, same=True), in_y) / (m * (m - 1))
        return ((2 * between - within_x - within_y) * n / n.sum()).sum()


def _squared_norms(x: Tensor) -> Tensor:
    """Squared norms of cells, ``(..., n)``."""
    return torch.linalg.vecdot(x, x)


def _distances(x: Tensor, y: Tensor, x_norms: Tensor, y_norms: Tensor, *, same: bool = False) -> Tensor:
    """Euclidean distances ``(..., n, m)`` from the squared norms, with zero gradient where the distance is zero."""
    norms = x_norms.unsqueeze(-1) + y_norms.unsqueeze(-2)  # (..., n, 1) + (..., 1, m)
    # The factor is applied to the small product: 2 x would be a copy of all cells, stored for the gradient.
    squared = norms - 2 * (x @ y.mT)
    # Below the precision of the norms it is rounding: a cell and its copy in the other set are at distance zero.
    zero = squared <= 1e-6 * norms
    if same:
        zero = zero | torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    # The slope of the square root at zero is infinite, so these entries do not enter it.
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
