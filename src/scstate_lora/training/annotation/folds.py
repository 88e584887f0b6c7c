"""Cells that are left out in turn, so that every choice is made on cells that nothing was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCHES = "left-out batches"
_MAX_FOLDS = 5


@dataclass(frozen=True)
class Folds:
    """Which cells are left out together.

    Parameters
    ----------
    number
        Fold of every cell, int64 ``(n_cells,)``; -1 for a cell that is never left out.
    kind
        What is left out, in words: ``"left-out batches"``, for instance.
    """

    number: np.ndarray
    kind: str

    def __len__(self) -> int:
        return int(self.number.max()) + 1

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of every fold, as :meth:`rows` gives them."""
        return map(self.rows, range(len(self)))

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit to without a fold, and its own."""
        return np.flatnonzero(self.number != fold), np.flatnonzero(self.number == fold)

    def starting_learnable(self, allowed: np.ndarray) -> Folds:
        """Begin with the fold of most learnable cells if the first has less than half as many.

        An encoder is tried on the first fold, and a batch of labels that no other has would say nothing.

        Parameters
        ----------
        allowed
            As in :meth:`learnable`.
        """
        counts = np.bincount(self.number[self.learnable(allowed)], minlength=len(self))
        best = int(counts.argmax())
        if 2 * counts[0] >= counts[best]:
            return self
        order = np.arange(len(self))
        order[[0, best]] = best, 0
        return Folds(np.where(self.number < 0, -1, order[self.number]), self.kind)

    def learnable(self, allowed: np.ndarray) -> np.ndarray:
        """Find cells that are left out while others have one of their open classes, bool ``(n_cells,)``.

        Parameters
        ----------
        allowed
            Classes that each cell's label leaves open, bool ``(n_cells, n_classes)``.
        """
        found = np.zeros(len(allowed), dtype=bool)
        for inside, outside in self:
            found[outside] = (allowed[outside] & allowed[inside].any(axis=0)).any(axis=1)
        return found


def make_folds(strata: np.ndarray, batches: np.ndarray | None, *, is_val: np.ndarray | None = None, seed: int) -> Folds:
    """Divide cells into folds: whole batches where there are several, otherwise cells at random within strata.

    Parameters
    ----------
    strata
        Code of each cell's label, ``(n_cells,)``.
    batches
        Code of each cell's batch, ``(n_cells,)``, -1 where it is unknown; None without batches.
    is_val
        Validation cells, bool ``(n_cells,)``: where there are any, they are the only fold.
    seed
        Seed of the random division.
    """
    if is_val is not None and is_val.any():
        return Folds(np.where(is_val, 0, -1), "validation cells")
    if batches is not None and len(np.unique(batches)) > 1:
        return Folds(_batches_in_folds(batches), BATCHES)
    rng = np.random.default_rng(seed)
    number = np.empty(len(strata), dtype=np.int64)
    place = 0
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        number[rows] = (place + np.arange(len(rows))) % _MAX_FOLDS  # rare labels do not all end in the first fold
        place += len(rows)
    return Folds(np.unique(number, return_inverse=True)[1].astype(np.int64), "left-out cells")


def _batches_in_folds(batches: np.ndarray) -> np.ndarray:
    """Put batches, the largest first, into the fold that has the fewest cells."""
    levels, codes, sizes = np.unique(batches, return_inverse=True, return_counts=True)
    cells = np.zeros(min(_MAX_FOLDS, len(levels)), dtype=np.int64)
    fold_of = np.empty(len(levels), dtype=np.int64)
    for level in np.argsort(-sizes, kind="stable"):
        fold_of[level] = cells.argmin()
        cells[fold_of[level]] += sizes[level]
    return fold_of[codes]
