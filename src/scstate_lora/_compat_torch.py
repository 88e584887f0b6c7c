"""What the supported versions of torch do differently, apart from the other libraries, which networks never import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all tensors' values together."""
    if hasattr(torch.nn.utils, "get_total_norm"):  # from torch 2.6 on
        return torch.nn.utils.get_total_norm(tensors)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


def clamp_min(values: Tensor, bound: float) -> Tensor:
    """Clamp from below with slope one at exactly the bound, as ``torch.clamp`` before torch 2.14, which has none."""
    return values.masked_fill(values < bound, bound)
