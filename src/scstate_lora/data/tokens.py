"""Sentences for the SE network: each cell's most expressed genes, with ties and padding drawn per cell."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy import sparse

# A bijection of 32-bit integers (the finaliser of MurmurHash3) and its inverse: a gene's random rank among ties is
# packed beside its value in one sortable integer, and unpacked again. Coverage cannot see into what numba compiles.
_M1, _M2 = 0x85EBCA6B, 0xC2B2AE35
_I1, _I2 = pow(_M1, -1, 2**32), pow(_M2, -1, 2**32)
_STEP = np.uint64(0x9E3779B9)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@numba.njit(inline="always")
def _mix(h: Any) -> Any:  # pragma: no cover  (compiled by numba: coverage sees no line run)
    h = np.uint64(h)
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(_M1)) & _LOW
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(_M2)) & _LOW
    return h ^ (h >> np.uint64(16))


@numba.njit(inline="always")
def _unmix(h: Any) -> Any:  # pragma: no cover  (compiled)
    h = np.uint64(h)
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(_I2)) & _LOW
    h ^= (h >> np.uint64(13)) ^ (h >> np.uint64(26))
    h = (h * np.uint64(_I1)) & _LOW
    return h ^ (h >> np.uint64(16))


@numba.njit(inline="always")
def _least_kept(keys: Any, wanted: Any, pool: Any, counts: Any) -> Any:  # pragma: no cover  (compiled)
    """Find the smallest of the `wanted` largest keys: radix selection, eleven bits at a time."""
    n, left = len(keys), wanted
    pool[:n] = keys
    for shift in (53, 42, 31, 20, 9, 0):
        low, mask = np.uint64(shift), np.uint64(2047 if shift else 511)
        counts[:] = 0
        for i in range(n):
            counts[(pool[i] >> low) & mask] += 1
        digit = 2047
        while counts[digit] < left:  # these are kept, whatever follows
            left -= counts[digit]
            digit -= 1
        kept = 0
        for i in range(n):  # without a branch: which keys stay cannot be predicted
            key = pool[i]
            pool[kept] = key
            kept += ((key >> low) & mask) == np.uint64(digit)
        n = kept
        if n == left:
            break
    return pool[:n].min()


@numba.njit(cache=True, nogil=True)
def _tokenize(
    data: Any,
    indices: Any,
    indptr: Any,
    vocabulary: Any,
    kept_genes: Any,
    n_columns: Any,
    cls_column: Any,
    pad: Any,
    seeds: Any,
    genes: Any,
    values: Any,
    lengths: Any,
) -> None:  # pragma: no cover  (compiled)
    wanted = genes.shape[1]
    row = np.empty(1, dtype=np.uint64)
    pool = np.empty(1, dtype=np.uint64)
    counts = np.empty(2048, dtype=np.int64)
    absent = np.empty(len(kept_genes) + 1, dtype=np.int32)
    expressed = np.zeros(kept_genes[-1] + 1, dtype=np.bool_)
    for cell in range(len(seeds)):
        start, stop = indptr[cell], indptr[cell + 1]
        seed = np.uint64(seeds[cell])
        if stop - start > len(row):
            row = np.empty(2 * (stop - start), dtype=np.uint64)
            pool = np.empty(2 * (stop - start), dtype=np.uint64)
        bits = data[start:stop].view(np.uint32)  # positive floats sort like their bit patterns
        n, total, of_cls = 0, 0.0, 0.0
        for i in range(stop - start):
            column = indices[start + i]
            gene = vocabulary[column]
            if gene < 0:
                continue
            total += data[start + i]
            if column == cls_column:
                of_cls = data[start + i]
            row[n] = (np.uint64(bits[i]) << _HALF) | _mix((np.uint64(gene) ^ seed) & _LOW)
            n += 1
        kept = min(n, wanted)
        keys = row[:n]
        if n > wanted:
            least = _least_kept(keys, wanted, pool, counts)
            n_high = 0
            for i in range(n):
                key = row[i]
                row[n_high] = key
                n_high += key >= least
            keys = row[:n_high]
            if n_high > wanted:  # two columns of one gene and value
                keys = np.sort(keys)[n_high - wanted :].copy()
        elif n >= len(kept_genes):  # the sentence may start again: from the highest
            keys = np.sort(keys)[::-1].copy()
        value, value_bits = values[cell, 1:], values[cell, 1:].view(np.uint32)
        for i in range(kept):
            genes[cell, i] = np.int64(_unmix(keys[i] & _LOW) ^ seed)
            value_bits[i] = np.uint32(keys[i] >> _HALF)
        for i in range(kept):
            value[i] = 100.0 * value[i] / total
        lengths[cell] = kept
        if cls_column >= 0:
            values[cell, 0] = 100.0 * of_cls / total if n else 100.0 / n_columns
        if kept == wanted or not pad:
            continue
        for i in range(start, stop):
            if vocabulary[indices[i]] >= 0:
                expressed[vocabulary[indices[i]]] = True
        n_absent = 0
        for gene in kept_genes:
            absent[n_absent] = gene
            n_absent += not expressed[gene]
        for i in range(start, stop):
            if vocabulary[indices[i]] >= 0:
                expressed[vocabulary[indices[i]]] = False
        for i in range(kept, wanted):
            if n_absent:  # an unexpressed gene
                draw = _mix((seed + np.uint64(i + 1) * _STEP) & _LOW)
                place = np.int64((draw * np.uint64(n_absent)) >> _HALF)
                genes[cell, i] = absent[place]
                if n_columns >= wanted:  # without replacement, as there are enough
                    n_absent -= 1
                    absent[place] = absent[n_absent]
            else:  # every gene is expressed: the sentence starts again
                genes[cell, i] = genes[cell, i - kept]
                values[cell, i + 1] = values[cell, i + 1 - kept]
        if kept == 0:  # an empty cell: equal shares, the softmax of zeros
            values[cell, 1:] = 100.0 / n_columns


def cell_seeds(names: Sequence[str], seed: int) -> np.ndarray:
    """Make a 32-bit seed of every cell from its name, so that its tokens depend on neither order nor neighbours."""
    prefix = f"{seed}\x00"
    digests = b"".join(hashlib.blake2b((prefix + name).encode(), digest_size=4).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint32).copy()


class Sentences(NamedTuple):
    """Tokenised cells."""

    genes: np.ndarray
    """Vocabulary indices, int64 ``(n_cells, n_tokens - 1)``, in no particular order."""
    values: np.ndarray
    """Count values of CLS and the genes, 100 x share of the cell's total, float32 ``(n_cells, n_tokens)``."""
    lengths: np.ndarray
    """Expressed genes in the sentence, int64 ``(n_cells,)``; they come first, padding follows."""


@dataclass(frozen=True)
class Tokenizer:
    """Turn expression into sentences.

    The ``n_tokens - 1`` highest genes of every cell, ties at random; a cell with fewer expressed genes is filled with
    unexpressed ones at random, each once unless the data have fewer genes than the sentence. A cell's randomness comes
    from its own seed and the genes' places in the vocabulary alone.

    Parameters
    ----------
    vocabulary
        Vocabulary index of every column of the data, int64 ``(n_columns,)``; -1 for a gene that is left out.
    n_tokens
        Length of a sentence, the CLS token included.
    cls_gene
        The CLS token takes the count value of this one of the kept columns, counted in the data's order; None: 0.
    pad
        Fill short sentences; otherwise what lies beyond a sentence's length means nothing.
    """

    vocabulary: np.ndarray
    n_tokens: int
    cls_gene: int | None = None
    pad: bool = True

    @classmethod
    def of_columns(cls, n_columns: int, *, n_tokens: int) -> Self:
        """Make a tokenizer of data whose columns are the vocabulary itself."""
        return cls(np.arange(n_columns), n_tokens)

    @cached_property
    def _known(self) -> tuple[np.ndarray, int, int]:
        """Vocabulary indices that occur, number of columns that are known, and the one whose value CLS takes or -1."""
        columns = np.flatnonzero(self.vocabulary >= 0)
        has_cls = self.cls_gene is not None and self.cls_gene < len(columns)
        return np.unique(self.vocabulary[columns]), len(columns), int(columns[self.cls_gene]) if has_cls else -1

    def __call__(self, x: sparse.csr_matrix, seeds: np.ndarray) -> Sentences:
        """Tokenise cells.

        Parameters
        ----------
        x
            log1p expression, float32 CSR ``(n_cells, n_columns)``, without stored zeros or duplicates.
        seeds
            From :func:`cell_seeds`, ``(n_cells,)``.

        Returns
        -------
        Sentences. A cell without any expression has equal shares of all genes.
        """
        sentences = Sentences(
            genes=np.zeros((x.shape[0], self.n_tokens - 1), dtype=np.int64),
            values=np.zeros((x.shape[0], self.n_tokens), dtype=np.float32),
            lengths=np.zeros(x.shape[0], dtype=np.int64),
        )
        _tokenize(
            np.ascontiguousarray(x.data, dtype=np.float32),
            x.indices.astype(np.int32, copy=False),
            x.indptr,
            self.vocabulary,
            *self._known,
            self.pad,
            seeds,
            *sentences,
        )
        return sentences
