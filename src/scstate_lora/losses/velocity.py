"""Agreement of a model's shift of cells with their RNA velocity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SHORTEST = 0.01
"""Below this share of the velocity's length a shift has no direction worth dividing by its own length for."""

_ALIGNMENT_KINDS = ("direction", "l2")
_NORMS = ("l1", "l2")


class VelocityParts(NamedTuple):
    """What a velocity loss is made of, for logs: detached float32 scalars, weighted means over the cells that counted.

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
        Confidence of the cells that counted, unweighted mean; 0 when none did.
    """

    direction: Tensor
    magnitude: Tensor
    cos_similarity: Tensor
    magnitude_st: Tensor
    magnitude_v: Tensor
    avg_confidence: Tensor


class VelocityAlignmentLoss(nn.Module):
    """Let a model's shift dz of a cell point where its RNA velocity v points, and be as long.

    Of a cell, ``L_dir = 1 - cos(dz, v)``, ``L_mag = | |dz| - |v| |`` and ``L = L_dir + beta L_mag``; or, with
    ``kind="l2"``, the mean of (dz - v)² over features. Averaged over cells with their confidence as weight. Computed in
    float32 whatever the autocast context.

    - A feature whose velocity is NaN, as of a gene without a fit, is left out of that cell's shift too; a cell of which
      no velocity is known is dropped.
    - A cell that is known to stand still has no direction: it counts in ``L_mag`` alone.
    - Where a shift is shorter than a hundredth of its velocity the cosine is taken as if it were that long, so that it
      rises linearly from zero. The gradient is thereby bounded, and points along v for a model that starts at
      "no change".

    The lengths are compared as they are. RNA velocity has a time scale of its own, which the fit does not know, so
    where v was not brought to the scale of dz, ``beta=0`` asks for the direction alone.

    Parameters
    ----------
    beta
        Weight of the lengths. Without effect on ``kind="l2"``.
    min_confidence
        Cells under this confidence are dropped.
    kind
        ``"direction"`` or ``"l2"``.

    Raises
    ------
    ValueError
        `beta` or `min_confidence` is negative or NaN, or `kind` is unknown.
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
            What the model changed of each cell, ``(..., n_features)``.
        velocity
            RNA velocity in the same space, ``(..., n_features)``.
        confidence
            One number a cell, 0 or more, ``(...)``; NaN is 0, and 1 is taken for all when None.

        Returns
        -------
        The loss, a float32 scalar, zero with gradient when no cell is left; and its parts.

        Raises
        ------
        ValueError
            Shapes do not fit.
        """
        if shift.shape != velocity.shape:
            msg = f"shift has shape {tuple(shift.shape)} and velocity {tuple(velocity.shape)}; they must be the same."
            raise ValueError(msg)
        with torch.autocast(device_type=shift.device.type, enabled=False):
            dz, v = shift.float().flatten(0, -2), velocity.detach().float().flatten(0, -2)  # (n_cells, n_features)
            trusted = _confidence(confidence, shift)
            known = v.isfinite()
            dz, v = torch.where(known, dz, 0.0), torch.where(known, v, 0.0)
            kept = known.any(-1) & (trusted >= self.min_confidence)
            dz_length, v_length = torch.linalg.vector_norm(dz, dim=-1), torch.linalg.vector_norm(v, dim=-1)
            moving = v_length > 0

            floor = SHORTEST * torch.where(moving, v_length, 1.0)
            cosine = (dz * v).sum(-1) / (dz_length.maximum(floor) * torch.where(moving, v_length, 1.0))
            weight = trusted * kept
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
                avg_confidence=_weighted_mean(trusted, kept.float()),
            )
        return loss, parts


class VelocityRegularizationLoss(nn.Module):
    """Keep small the shift of cells for which no velocity vouches.

    Of a cell, the mean over features of the absolute (``"l1"``) or squared (``"l2"``) change, times 1 - confidence;
    then the mean over all cells. Without confidences it is plain L1 or L2 on the change. Computed in float32 whatever
    the autocast context.

    Parameters
    ----------
    norm
        ``"l1"`` or ``"l2"``.

    Raises
    ------
    ValueError
        `norm` is unknown.
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
            What the model changed of each cell, ``(..., n_features)``.
        confidence
            One number a cell, taken as 0 below 0 and as 1 above 1, ``(...)``; NaN is 0, and 0 is taken for all when
            None.

        Returns
        -------
        A float32 scalar.

        Raises
        ------
        ValueError
            Shapes do not fit.
        """
        with torch.autocast(device_type=shift.device.type, enabled=False):
            dz = shift.float().flatten(0, -2)
            size = (dz.abs() if self.norm == "l1" else dz.square()).mean(-1)
            if confidence is not None:
                size = size * (1 - _confidence(confidence, shift).clamp(0, 1))
            return size.sum() / max(1, len(size))


def warmed_up(step: int, *, weight: float = 0.1, warmup_steps: int = 1000) -> float:
    """Raise a loss's weight linearly over the first optimiser steps, and keep it from there on.

    Parameters
    ----------
    step
        Optimiser steps done, 0 at the start.
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
        An argument is negative.
    """
    _check_not_negative(step=step, weight=weight, warmup_steps=warmup_steps)
    return weight * min(1.0, step / warmup_steps) if warmup_steps else weight


def _confidence(confidence: Tensor | None, shift: Tensor) -> Tensor:
    """One weight a cell, ``(n_cells,)``."""
    if confidence is None:
        return torch.ones(shift.shape[:-1].numel(), device=shift.device)
    if confidence.shape != shift.shape[:-1]:
        msg = (
            f"confidence has shape {tuple(confidence.shape)}; of a shift of shape {tuple(shift.shape)} it must be "
            f"{tuple(shift.shape[:-1])}, one number a cell."
        )
        raise ValueError(msg)
    return confidence.detach().float().flatten().nan_to_num(nan=0.0).clamp(min=0)


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean, zero with gradient when all weights are zero."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def _check_not_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            msg = f"{name}={number!r} must be 0 or more."
            raise ValueError(msg)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        msg = f"{name}={value!r} is unknown. There are: {', '.join(map(repr, choices))}."
        raise ValueError(msg)
