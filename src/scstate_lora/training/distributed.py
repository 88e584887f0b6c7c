"""Several processes at one batch: each takes its share of the cells, and losses see all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor

_ALONE = ContextVar("alone", default=False)


def place() -> tuple[int, int]:
    """Rank of this process among those that share a batch, and their number: (0, 1) if it works alone."""
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """Within this context a process works on whole batches of its own, and :func:`gather` changes nothing.

    For validation, and for training on one device in a script whose earlier training used several.
    """
    outer = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(outer)


def gather(values: Any) -> Any:
    """Concatenate the processes' shares of a batch along the first dimension, in the order of their ranks.

    Gradients flow back: with the loss computed from gathered tensors in every process, and gradients averaged over
    the processes as DDP does, parameters get the gradient that one process with the whole batch would give them. That
    holds for parameters used before and after the gathering.

    Parameters
    ----------
    values
        A tensor ``(n, ...)`` with n the same in every process, or a mapping of such, nested or not.

    Returns
    -------
    ``(n_processes * n, ...)``; the values as they are if a process works alone. A mapping comes back as a dict.

    Notes
    -----
    A collective operation: every process must call it, in the same order, and only on arrays with one row per cell, not
    on those all cells share (``target_genes``).
    """
    if isinstance(values, Mapping):
        return {key: gather(value) for key, value in values.items()}
    if place()[1] == 1:
        return values
    if values.requires_grad:
        return _Gather.apply(values)
    return _all_gather(values)


class _Gather(torch.autograd.Function):
    """all_gather with a gradient: the sum over processes of what each sends back to this process' part.

    As ``torch.distributed.nn.functional.all_gather``, which torch 2.13 calls deprecated; its successor is private.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.n = len(values)
        return _all_gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The sum has a factor n_processes too many for a loss that all processes share; DDP's mean takes it out again.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        return total[rank * ctx.n : (rank + 1) * ctx.n]


def _all_gather(values: Tensor) -> Tensor:
    sent = values.detach().contiguous()
    if sent.dtype == torch.bool:  # not every backend sends bits
        return _all_gather(sent.to(torch.uint8)).bool()
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sent)
    return torch.cat(parts)


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor over the processes that share a batch, without gradient."""
    n = place()[1]
    if n == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / n


def share(batch: Any, *, shared: Collection[str], rank: int, n_processes: int) -> Any:
    """Take one process' equal share of a batch: consecutive rows of every array.

    Parameters
    ----------
    batch
        Arrays or tensors ``(n, ...)``, n the same for all, in nested mappings.
    shared
        Keys of arrays without one row per cell; these stay whole.
    rank, n_processes
        Whose share of how many.

    Raises
    ------
    ValueError
        If the rows do not divide equally.
    """
    taken: dict[str, Any] = {}
    for key, value in batch.items():
        if key in shared:
            taken[key] = value
        elif isinstance(value, Mapping):
            taken[key] = share(value, shared=shared, rank=rank, n_processes=n_processes)
        else:
            check_divides(len(value), n_processes)
            n = len(value) // n_processes
            taken[key] = value[rank * n : (rank + 1) * n]
    return taken


def rows_of(batch: Any, *, shared: Collection[str]) -> int:
    """Count the cells, or sets, of a batch."""
    key = next(key for key in batch if key not in shared)
    return rows_of(batch[key], shared=shared) if isinstance(batch[key], Mapping) else len(batch[key])


def check_divides(n_rows: int, n_processes: int) -> None:
    """Raise a ValueError if a batch does not divide equally among processes."""
    if n_rows % n_processes:
        nearest = max(n_processes, n_rows - n_rows % n_processes)
        msg = (
            f"A batch of {n_rows} does not divide equally among {n_processes} devices, as devices={n_processes} needs. "
            f"Choose a batch_size that is a multiple of {n_processes}, for instance {nearest}, or another number of "
            "devices."
        )
        raise ValueError(msg)
