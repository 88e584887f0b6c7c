"""Batch sources: numbered batches, each determined by its seed and number, fed to Lightning by a loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np


class BatchSource(Protocol):
    """Numbered batches of numpy arrays."""

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


def make_loader(source: BatchSource, *, train: bool, start: int = 0) -> DataLoader:
    """Load a source's batches: new ones every epoch for training, from ``start`` on; the same ones for validation."""
    dataset: Dataset = source  # type: ignore[assignment]  # anything indexable serves
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
