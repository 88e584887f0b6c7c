"""Batch sources: numbered batches, each determined by its seed and number, and the loader that gives them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler

from scstate_lora.inference.arrays import to_tensors
from scstate_lora.training.distributed import place, share

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class BatchSource(Protocol):
    """Numbered batches of numpy arrays, each determined by the seed and its number.

    If several processes train together, each takes an equal share of the rows of every array. A source whose batches
    hold arrays without one row per cell names their keys in an attribute ``shared: frozenset[str]``.
    """

    steps_per_epoch: int

    def __getitem__(self, step: int) -> Mapping[str, Any]: ...


class _StepSampler(Sampler[int]):
    """Yield the numbers of the batches from the current one to the end of the epoch.

    The current one is read from the run's progress, however often the loader is restarted: a resumed run starts in the
    middle.
    """

    def __init__(self, n_steps: int, *, start: int, progress: Any) -> None:
        self.n_steps = n_steps
        self.start = start
        self.progress = progress

    def __iter__(self) -> Iterator[int]:
        # A generator, to read the progress at the first batch: Lightning makes iterators before it restores it.
        done = 0 if self.progress is None else self.progress.total.ready
        yield from range(self.start + done, self.start + done + self.n_steps - done % self.n_steps)

    def __len__(self) -> int:
        return self.n_steps


def shared_keys(source: BatchSource) -> Collection[str]:
    """Keys of the arrays of a source's batches that have no row per cell."""
    return getattr(source, "shared", frozenset())


class _Shares(Dataset):
    """Give this process its share of every batch; the rank is read per batch, as processes start after the loader."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, step: int) -> Mapping[str, Any]:
        batch = self.source[step]
        rank, n_processes = place()
        if n_processes == 1:
            return batch
        return share(batch, shared=shared_keys(self.source), rank=rank, n_processes=n_processes)


def make_loader(source: BatchSource, *, train: bool, start: int = 0, progress: Any = None) -> DataLoader:
    """Load a source's batches.

    Parameters
    ----------
    source
        The batches.
    train
        In training each of several processes gets its share. Validation batches, which may have any size, are whole in
        every process.
    start
        Number of the first batch.
    progress
        Progress of Lightning's loop, which counts the batches drawn so far: every pass continues from there. Without it
        every pass has the same batches.
    """
    dataset: Dataset = _Shares(source) if train else source  # type: ignore[assignment]  # anything indexable serves
    sampler = _StepSampler(source.steps_per_epoch, start=start, progress=progress)
    return DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=to_tensors)
