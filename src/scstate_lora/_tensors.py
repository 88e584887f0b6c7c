"""Tensors of networks: compared with those that a network expects, and aligned in memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from torch import Tensor

    ExpectedTensors = Callable[[Mapping[str, Any]], Mapping[str, Tensor]]
    """Gives the state dict of a network of these sizes; on the meta device, as only names, shapes and types count."""

_ALIGNMENT = 64


@contextmanager
def in_float32() -> Iterator[None]:
    """Within this context, or a function decorated by it, torch makes tensors in float32, whatever its default is.

    The default may have been set by another library, and is restored.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def aligned(tensor: Tensor) -> Tensor:
    """Copy a tensor unless it is contiguous and starts at a multiple of 64 bytes, as torch allocates them.

    A tensor that is mapped from a file may start anywhere, and matrix products then round differently.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def compare_tensors(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """List every difference in name, shape and kind of number; values are not compared.

    Parameters
    ----------
    expected
        State dict of the network that receives the tensors; it may be on the meta device.
    stored
        Tensors that were read. They may be of another floating-point precision.

    Returns
    -------
    One line per problem, such as ``missing: norm.weight (16,)``; empty if all tensors fit.
    """
    shared = [name for name in expected if name in stored]
    missing = [f"missing: {name} {tuple(t.shape)}" for name, t in expected.items() if name not in stored]
    unexpected = [f"unexpected: {name} {tuple(t.shape)}" for name, t in stored.items() if name not in expected]
    shapes = [
        f"shape: {name} is {tuple(stored[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in shared
        if stored[name].shape != expected[name].shape
    ]
    types = [
        f"type: {name} is {stored[name].dtype}, expected {expected[name].dtype}"
        for name in shared
        if stored[name].is_floating_point() != expected[name].is_floating_point()
    ]
    return missing + unexpected + shapes + types
