"""Cells in, sentences out: rows are read, brought to log1p and tokenised, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

    from scstate_lora.data.tokens import Sentences, Tokenizer

# Arc's rule, cell by cell: above the one a value must be a count, above the other so must the sum of expm1.
_LARGEST_LOG = 35
_LARGEST_TOTAL = 5_000_000


@dataclass(frozen=True)
class SentenceReader:
    """Sentences of consecutive cells; may be called from several threads.

    Parameters
    ----------
    read
        Gives the log1p expression of cells ``start`` to ``stop``, float32 CSR ``(stop - start, n_columns)``.
    tokenizer
        Turns it into sentences.
    seeds
        Seed of every cell, ``(n_cells,)``.
    """

    read: Callable[[int, int], sparse.csr_matrix]
    tokenizer: Tokenizer
    seeds: np.ndarray
    _reading: Lock = field(default_factory=Lock, repr=False, compare=False)

    @classmethod
    def of_matrix(cls, x: sparse.csr_matrix, tokenizer: Tokenizer, seeds: np.ndarray) -> Self:
        """Make a reader of log1p expression in memory, CSR ``(n_cells, n_columns)``."""
        return cls(lambda start, stop: x[start:stop], tokenizer, seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def __call__(self, start: int, stop: int) -> Sentences:
        """Tokenise cells ``start`` to ``stop``."""
        with self._reading:  # files are read by one thread at a time
            x = self.read(start, stop)
        return self.tokenizer(x, self.seeds[start:stop])


def arc_log(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Bring cells to log1p as Arc's own tool does, which guesses for every cell whether it holds counts.

    A cell with a value over 35, or whose values' expm1 sum to more than 5 million, is taken for counts; all others for
    log1p values. Of shallow cells' counts that is wrong: for comparison only.

    Parameters
    ----------
    matrix
        All genes of the data, those outside of the vocabulary too, CSR ``(n_cells, n_genes)``.
    """
    counts_per_row = np.diff(matrix.indptr)
    row = np.repeat(np.arange(matrix.shape[0]), counts_per_row)
    is_large = matrix.data > _LARGEST_LOG
    with np.errstate(over="ignore"):
        totals = np.bincount(row, weights=np.expm1(matrix.data), minlength=matrix.shape[0])
    is_counts = np.bincount(row, weights=is_large, minlength=matrix.shape[0]) > 0
    is_counts |= np.floor(totals) > _LARGEST_TOTAL
    logged = matrix.copy()
    chosen = is_counts[row]
    logged.data[chosen] = np.log1p(logged.data[chosen])
    return logged
