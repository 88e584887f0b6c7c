"""Arrays of cells for a network: row selection and conversion to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


def to_tensors(batch: Any) -> Any:
    """Convert NumPy arrays in nested dicts to tensors."""
    if isinstance(batch, dict):
        return {key: to_tensors(value) for key, value in batch.items()}
    return torch.from_numpy(batch)


def take(arrays: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Take rows of every array in a nested dict; sparse matrices become dense."""
    taken: dict[str, Any] = {}
    for key, value in arrays.items():
        if isinstance(value, dict):
            taken[key] = take(value, rows)
        else:
            part = value[rows]
            taken[key] = part.toarray() if hasattr(part, "toarray") else part
    return taken
