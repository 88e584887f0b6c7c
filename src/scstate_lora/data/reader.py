"""Cells in, sentences out: rows are read, converted to log1p and tokenised one block at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

    from scstate_lora.data.tokens import Sentences, Tokenizer

# Arc's per-cell rule: a cell holds counts if a value exceeds _LARGEST_LOG or sum(expm1) exceeds _LARGEST_TOTAL.
_LARGEST_LOG = 35
_LARGEST_TOTAL = 5_000_000


@dataclass(frozen=True)
class SentenceReader:
    """Sentences of consecutive cells; may be called from several threads.

    Parameters
    ----------
    read
        Returns the log1p expression of cells ``start`` to ``stop``, float32 CSR ``(stop - start, n_columns)``.
    tokenizer
        Converts expression to sentences.
    seeds
        One seed per cell, ``(n_cells,)``.
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
        with self._reading:  # one thread at a time reads the file
            x = self.read(start, stop)
        return self.tokenizer(x, self.seeds[start:stop])


def arc_log(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Convert cells to log1p as Arc's own tool does, which guesses for each cell whether it holds counts.

    A cell with a value over 35, or whose expm1 values sum to more than 5 million, is treated as counts and any other
    cell as log1p values. This is wrong for counts of low read depth: use it for comparison only.

    Parameters
    ----------
    matrix
        All genes of the data, including those outside the vocabulary, CSR ``(n_cells, n_genes)``.
    """
    counts_per_row = np.diff(matrix.indptr)
    row = np.repeat(np.arange(matrix.shape[0]), counts_per_row)
    is_large = matrix.data > _LARGEST_LOG
    with np.errstate(over="ignore"):
        totals = np.bincount(row, weights=np.expm1(matrix.data), minlength=matrix.shape[0])
    is_counts = np.bincount(row, weights=is_large, minlength=matrix.shape[0]) > 0
    is_counts |= np.floor(totals) > _LARGEST_TOTAL
    logged = matrix.copy()
    in_count_cell = is_counts[row]
    logged.data[in_count_cell] = np.log1p(logged.data[in_count_cell])
    return logged
