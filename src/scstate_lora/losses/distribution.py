"""Distances between sets of cells."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Energy distance between sets of cells, ``2 E|x - y| - E|x - x'| - E|y - y'|``.

    By default the V-statistic with Euclidean norms: all pairs count, a cell with itself included, so it is never
    negative and is zero for equal sets, but grows as sets get smaller. (``geomloss.SamplesLoss("energy")`` is half of
    it.) Computed in float32 whatever the autocast context, on centred data, because ``|x|² - 2xy + |y|²`` loses its
    digits far from the origin.

    Parameters
    ----------
    x, y
        Sets of cells, ``(..., n, n_features)`` and ``(..., m, n_features)``.
    unbiased
        Take the U-statistic, which leaves a cell's pair with itself out: its expectation does not depend on the sizes
        of the sets, which need two cells each, but it can fall below zero.

    Returns
    -------
    One distance a set, ``(...)``, float32.

    References
    ----------
    Székely & Rizzo 2013, Energy statistics, doi:10.1016/j.jspi.2013.03.018.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = x.float(), y.float()
        n, m = x.shape[-2], y.shape[-2]
        center = (x.detach().sum(dim=-2, keepdim=True) + y.detach().sum(dim=-2, keepdim=True)) / (n + m)
        x, y = x - center, y - center
        of_x, of_y = _squared_norms(x), _squared_norms(y)
        between = _distances(x, y, of_x, of_y).mean(dim=(-2, -1))
        within_x = _distances(x, x, of_x, of_x, same=True).mean(dim=(-2, -1))
        within_y = _distances(y, y, of_y, of_y, same=True).mean(dim=(-2, -1))
        if unbiased:
            return 2 * between - within_x * n / (n - 1) - within_y * m / (m - 1)
        return (2 * between - within_x - within_y).clamp(min=0)


def grouped_energy_distance(x: Tensor, y: Tensor, x_members: Tensor, y_members: Tensor) -> Tensor:
    """Mean over groups of the unbiased energy distance between a group's cells of x and its cells of y.

    All groups are computed at once, from one matrix of distances: a batch holds many small ones.

    Parameters
    ----------
    x, y
        Cells, ``(n, n_features)`` and ``(m, n_features)``.
    x_members, y_members
        Which of the cells belong to which group, bool ``(n, n_groups)`` and ``(m, n_groups)``; a cell may be in
        several groups, or in none. A group with fewer than two cells on a side is left out.

    Returns
    -------
    Mean weighted by the number of a group's cells of x, a float32 scalar; zero with gradient when no group is left.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = x.float(), y.float()
        n, m = x_members.sum(0), y_members.sum(0)
        kept = (n > 1) & (m > 1)
        if not kept.any():
            return (x * 0).sum()
        in_x, in_y, n, m = x_members[:, kept].float(), y_members[:, kept].float(), n[kept], m[kept]
        center = (x.detach().sum(dim=0) + y.detach().sum(dim=0)) / (len(x) + len(y))
        x, y = x - center, y - center
        of_x, of_y = _squared_norms(x), _squared_norms(y)
        between = torch.einsum("ng,nm,mg->g", in_x, _distances(x, y, of_x, of_y), in_y) / (n * m)
        within_x = torch.einsum("ng,nm,mg->g", in_x, _distances(x, x, of_x, of_x, same=True), in_x) / (n * (n - 1))
        within_y = torch.einsum("ng,nm,mg->g", in_y, _distances(y, y, of_y, of_y, same=True), in_y) / (m * (m - 1))
        return ((2 * between - within_x - within_y) * n / n.sum()).sum()


def _squared_norms(x: Tensor) -> Tensor:
    """Squared lengths of cells, ``(..., n)``."""
    return torch.linalg.vecdot(x, x)


def _distances(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, *, same: bool = False) -> Tensor:
    """Euclidean distances ``(..., n, m)`` by the squared norms, with gradient zero where the distance is zero."""
    norms = of_x.unsqueeze(-1) + of_y.unsqueeze(-2)
    # The factor goes to the small product: twice x would be a copy of all cells, kept for the gradient.
    squared = norms - 2 * (x @ y.mT)
    # What is left of the norms' digits is rounding: a cell and its copy in the other set are at distance zero.
    zero = squared <= 1e-6 * norms
    if same:
        zero = zero | torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    # The square root's slope at zero is infinite: those entries never enter it.
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
