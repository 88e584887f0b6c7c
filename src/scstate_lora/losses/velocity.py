"""Agreement between the predicted shift of cells and their RNA velocity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SHORTEST = 0.01
"""Length of a shift, relative to the velocity, below which its direction is not normalised by its own length."""

_ALIGNMENT_KINDS = ("direction", "l2")
_NORMS = ("l1", "l2")


class VelocityParts(NamedTuple):
    """Parts of a velocity loss, for logs: detached float32 scalars, weighted means over the cells included.

    Attributes
    ----------
    direction
        1 - cosine of shift and velocity.
    magnitude
        Absolute difference of their lengths.
    cos_similarity
        Cosine of shift and velocity.
    magnitude_st
        Length of the model's shift.
    magnitude_v
        Length of the velocity.
    avg_confidence
        Unweighted mean confidence of the cells included; 0 if none is.
    """

    direction: Tensor
    magnitude: Tensor
    cos_similarity: Tensor
    magnitude_st: Tensor
    magnitude_v: Tensor
    avg_confidence: Tensor


class VelocityAlignmentLoss(nn.Module):
    """Align the predicted shift dz of a cell with its RNA velocity v, in direction and length.

    Per cell, ``L_dir = 1 - cos(dz, v)``, ``L_mag = | |dz| - |v| |`` and ``L = L_dir + beta L_mag``; or, with
    ``kind="l2"``, the mean of (dz - v)² over features. Averaged over cells, weighted by their confidence. Computed in
    float32 whatever the autocast context.

    - Features with a velocity of NaN, such as genes without a fit, are also left out of the shift of that cell; cells
      without any known velocity are dropped.
    - A cell with zero velocity has no direction: it contributes to ``L_mag`` only.
    - For a shift shorter than a hundredth of the velocity, the cosine is computed as if it were that long, so that it
      rises linearly from zero. This bounds the gradient, which points along v for a model that starts at "no change".

    Lengths are compared without rescaling. RNA velocity has an arbitrary time scale, which the fit does not determine,
    so unless v was brought to the scale of dz, use ``beta=0``, the direction alone.

    Parameters
    ----------
    beta
        Weight of the lengths; without effect if ``kind="l2"``.
    min_confidence
        Cells below this confidence are dropped.
    kind
        ``"direction"`` or ``"l2"``.

    Raises
    ------
    ValueError
        If `beta` or `min_confidence` is negative or NaN, or `kind` is unknown.
    """

    def __init__(self, beta: float = 1.0, *, min_confidence: float = 0.0, kind: str = "direction") -> None:
        super().__init__()
        _check_not_negative(beta=beta, min_confidence=min_confidence)
        _check_choice("kind", kind, _ALIGNMENT_KINDS)
        self.beta, self.min_confidence, self.kind = float(beta), float(min_confidence), kind

    def forward(
        self, shift: Tensor, velocity: Tensor, confidence: Tensor | None = None
    ) -> tuple[Tensor, VelocityParts]:
        """Compute the loss of a batch.

        Parameters
        ----------
        shift
            Predicted change of each cell, ``(..., n_features)``.
        velocity
            RNA velocity in the same space, ``(..., n_features)``.
        confidence
            One value per cell, 0 or more, ``(...)``; NaN counts as 0. None: 1 for all cells.

        Returns
        -------
        The loss, a float32 scalar, zero with gradient if no cell is left; and its parts.

        Raises
        ------
        ValueError
            If the shapes do not match.
        """
        if shift.shape != velocity.shape:
            msg = f"shift has shape {tuple(shift.shape)} and velocity {tuple(velocity.shape)}; they must be the same."
            raise ValueError(msg)
        with torch.autocast(device_type=shift.device.type, enabled=False):
            dz, v = shift.float().flatten(0, -2), velocity.detach().float().flatten(0, -2)  # (n_cells, n_features)
            trust = _confidence(confidence, shift)  # (n_cells,)
            known = v.isfinite()
            dz, v = torch.where(known, dz, 0.0), torch.where(known, v, 0.0)
            included = known.any(-1) & (trust >= self.min_confidence)
            dz_length, v_length = torch.linalg.vector_norm(dz, dim=-1), torch.linalg.vector_norm(v, dim=-1)
            moving = v_length > 0

            floor = SHORTEST * torch.where(moving, v_length, 1.0)
            cosine = (dz * v).sum(-1) / (dz_length.maximum(floor) * torch.where(moving, v_length, 1.0))
            weight = trust * included
            direction = _weighted_mean(1 - cosine, weight * moving)
            magnitude = _weighted_mean((dz_length - v_length).abs(), weight)
            if self.kind == "l2":
                squared = (dz - v).square().sum(-1) / known.sum(-1).clamp(min=1)
                loss = _weighted_mean(squared, weight)
            else:
                loss = direction + self.beta * magnitude
            parts = VelocityParts(
                direction=direction.detach(),
                magnitude=magnitude.detach(),
                cos_similarity=_weighted_mean(cosine.detach(), weight * moving),
                magnitude_st=_weighted_mean(dz_length.detach(), weight),
                magnitude_v=_weighted_mean(v_length, weight),
                avg_confidence=_weighted_mean(trust, included.float()),
            )
        return loss, parts


class VelocityRegularizationLoss(nn.Module):
    """Penalise the shift of cells without a confident velocity.

    Per cell, the mean over features of the absolute (``"l1"``) or squared (``"l2"``) change, times 1 - confidence; then
    the mean over all cells. Without confidences it is plain L1 or L2 on the change. Computed in float32 whatever the
    autocast context.

    Parameters
    ----------
    norm
        ``"l1"`` or ``"l2"``.

    Raises
    ------
    ValueError
        If `norm` is unknown.
    """

    def __init__(self, norm: str = "l1") -> None:
        super().__init__()
        _check_choice("norm", norm, _NORMS)
        self.norm = norm

    def forward(self, shift: Tensor, confidence: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        shift
            Predicted change of each cell, ``(..., n_features)``.
        confidence
            One value per cell, clipped to 0 to 1, ``(...)``; NaN counts as 0. None: 0 for all cells.

        Returns
        -------
        A float32 scalar.

        Raises
        ------
        ValueError
            If the shapes do not match.
        """
        with torch.autocast(device_type=shift.device.type, enabled=False):
            dz = shift.float().flatten(0, -2)
            size = (dz.abs() if self.norm == "l1" else dz.square()).mean(-1)
            if confidence is not None:
                size = size * (1 - _confidence(confidence, shift).clamp(0, 1))
            return size.sum() / max(1, len(size))


def warmed_up(step: int, *, weight: float = 0.1, warmup_steps: int = 1000) -> float:
    """Raise the weight of a loss linearly over the first optimiser steps, and keep it constant afterwards.

    Parameters
    ----------
    step
        Number of optimiser steps done, 0 at the start.
    weight
        Weight after the warm-up.
    warmup_steps
        Length of the warm-up; 0 for none.

    Returns
    -------
    0 at the first step of a warm-up, `weight` from step `warmup_steps` on.

    Raises
    ------
    ValueError
        If an argument is negative.
    """
    _check_not_negative(step=step, weight=weight, warmup_steps=warmup_steps)
    return weight * min(1.0, step / warmup_steps) if warmup_steps else weight


def _confidence(confidence: Tensor | None, shift: Tensor) -> Tensor:
    """One weight per cell, ``(n_cells,)``."""
    if confidence is None:
        return torch.ones(shift.shape[:-1].numel(), device=shift.device)
    if confidence.shape != shift.shape[:-1]:
        msg = (
            f"confidence has shape {tuple(confidence.shape)}; for a shift of shape {tuple(shift.shape)} it must be "
            f"{tuple(shift.shape[:-1])}, one value per cell."
        )
        raise ValueError(msg)
    return confidence.detach().float().flatten().nan_to_num(nan=0.0).clamp(min=0)


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; zero with gradient if all weights are zero."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def _check_not_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            msg = f"{name}={number!r} must be 0 or more."
            raise ValueError(msg)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        msg = f"{name}={value!r} is unknown. Choose one of {', '.join(map(repr, choices))}."
        raise ValueError(msg)
