"""Batch sources: numbered batches, each determined by its seed and number, fed to Lightning by a loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scstate_lora.training.distributed import place, share

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import numpy as np


class BatchSource(Protocol):
    """Numbered batches of numpy arrays, each determined by the seed and its number.

    Where several processes train together, each takes an equal share of the rows of every array. A source whose batches
    hold arrays that belong to no cell names their keys in an attribute ``shared: frozenset[str]``.
    """

    steps_per_epoch: int

    def __getitem__(self, step: int) -> Mapping[str, Any]: ...


class _StepSampler(Sampler[int]):
    """Yield the batch numbers of one epoch, continuing where the last epoch ended (or the same ones every time)."""

    def __init__(self, n_steps: int, *, advance: bool, start: int) -> None:
        self.n_steps = n_steps
        self.advance = advance
        self.start = start

    def __iter__(self) -> Iterator[int]:
        start = self.start
        if self.advance:
            self.start += self.n_steps
        return iter(range(start, start + self.n_steps))

    def __len__(self) -> int:
        return self.n_steps


def shared_keys(source: BatchSource) -> Collection[str]:
    """Keys of a source's batches that belong to no cell."""
    return getattr(source, "shared", frozenset())


class _Shares(Dataset):
    """Give this process its share of every batch. Asked at each one: processes start after the loader was made."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, step: int) -> Mapping[str, Any]:
        batch = self.source[step]
        rank, n_processes = place()
        if n_processes == 1:
            return batch
        return share(batch, shared=shared_keys(self.source), rank=rank, n_processes=n_processes)


def make_loader(source: BatchSource, *, train: bool, start: int = 0) -> DataLoader:
    """Load a source's batches: new ones every epoch for training, from ``start`` on; the same ones for validation.

    In training each of several processes gets its share; validation batches are whole in every one, as they may be of
    any size.
    """
    dataset: Dataset = _Shares(source) if train else source  # type: ignore[assignment]  # anything indexable serves
    sampler = _StepSampler(source.steps_per_epoch, advance=train, start=start)
    return DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=to_tensors)


def to_tensors(batch: Any) -> Any:
    """Numpy arrays in nested dicts to tensors."""
    if isinstance(batch, dict):
        return {key: to_tensors(value) for key, value in batch.items()}
    return torch.from_numpy(batch)


def take(arrays: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Rows of every array in a nested dict; sparse matrices become dense."""
    taken: dict[str, Any] = {}
    for key, value in arrays.items():
        if isinstance(value, dict):
            taken[key] = take(value, rows)
        else:
            picked = value[rows]
            taken[key] = picked.toarray() if hasattr(picked, "toarray") else picked
    return taken
