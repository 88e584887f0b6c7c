"""Sentences for the SE network: each cell's most expressed genes, with ties and padding sampled per cell."""

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
# packed with its value into one sortable integer, then unpacked. Coverage cannot trace code compiled by numba.
_M1, _M2 = 0x85EBCA6B, 0xC2B2AE35
_I1, _I2 = pow(_M1, -1, 2**32), pow(_M2, -1, 2**32)
_STEP = np.uint64(0x9E3779B9)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@numba.njit(inline="always")
def _mix(h: Any) -> Any:  # pragma: no cover  (compiled)
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
def _threshold(keys: Any, n_largest: Any, pool: Any, counts: Any) -> Any:  # pragma: no cover  (compiled)
    """Find the smallest of the `n_largest` largest keys by radix selection, eleven bits at a time."""
    n, left = len(keys), n_largest
    pool[:n] = keys
    for shift in (53, 42, 31, 20, 9, 0):
        low, mask = np.uint64(shift), np.uint64(2047 if shift else 511)
        counts[:] = 0
        for i in range(n):
            counts[(pool[i] >> low) & mask] += 1
        digit = 2047
        while counts[digit] < left:  # all of these are among the largest
            left -= counts[digit]
            digit -= 1
        n_candidates = 0
        for i in range(n):  # branch-free, as a branch would be mispredicted
            key = pool[i]
            pool[n_candidates] = key
            n_candidates += ((key >> low) & mask) == np.uint64(digit)
        n = n_candidates
        if n == left:
            break
    return pool[:n].min()


@numba.njit(cache=True, nogil=True)
def _tokenize(
    data: Any,
    indices: Any,
    indptr: Any,
    vocabulary: Any,
    matched_genes: Any,
    n_columns: Any,
    cls_column: Any,
    pad: Any,
    seeds: Any,
    genes: Any,
    values: Any,
    lengths: Any,
) -> None:  # pragma: no cover  (compiled)
    n_genes = genes.shape[1]
    row = np.empty(1, dtype=np.uint64)
    pool = np.empty(1, dtype=np.uint64)
    counts = np.empty(2048, dtype=np.int64)
    absent = np.empty(len(matched_genes) + 1, dtype=np.int32)
    expressed = np.zeros(matched_genes[-1] + 1, dtype=np.bool_)
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
        n_kept = min(n, n_genes)
        keys = row[:n]
        if n > n_genes:
            threshold = _threshold(keys, n_genes, pool, counts)
            n_high = 0
            for i in range(n):
                key = row[i]
                row[n_high] = key
                n_high += key >= threshold
            keys = row[:n_high]
            if n_high > n_genes:  # two columns with the same gene and value
                keys = np.sort(keys)[n_high - n_genes :].copy()
        elif n >= len(matched_genes):  # the sentence may be repeated, from the highest value
            keys = np.sort(keys)[::-1].copy()
        value, value_bits = values[cell, 1:], values[cell, 1:].view(np.uint32)
        for i in range(n_kept):
            genes[cell, i] = np.int64(_unmix(keys[i] & _LOW) ^ seed)
            value_bits[i] = np.uint32(keys[i] >> _HALF)
        for i in range(n_kept):
            value[i] = 100.0 * value[i] / total
        lengths[cell] = n_kept
        if cls_column >= 0:
            values[cell, 0] = 100.0 * of_cls / total if n else 100.0 / n_columns
        if n_kept == n_genes or not pad:
            continue
        for i in range(start, stop):
            if vocabulary[indices[i]] >= 0:
                expressed[vocabulary[indices[i]]] = True
        n_absent = 0
        for gene in matched_genes:
            absent[n_absent] = gene
            n_absent += not expressed[gene]
        for i in range(start, stop):
            if vocabulary[indices[i]] >= 0:
                expressed[vocabulary[indices[i]]] = False
        for i in range(n_kept, n_genes):
            if n_absent:  # an unexpressed gene
                draw = _mix((seed + np.uint64(i + 1) * _STEP) & _LOW)
                position = np.int64((draw * np.uint64(n_absent)) >> _HALF)
                genes[cell, i] = absent[position]
                if n_columns >= n_genes:  # enough genes to sample without replacement
                    n_absent -= 1
                    absent[position] = absent[n_absent]
            else:  # every gene is expressed: repeat the sentence
                genes[cell, i] = genes[cell, i - n_kept]
                values[cell, i + 1] = values[cell, i + 1 - n_kept]
        if n_kept == 0:  # an empty cell: equal shares, as from a softmax of zeros
            values[cell, 1:] = 100.0 / n_columns


def cell_seeds(names: Sequence[str], seed: int) -> np.ndarray:
    """Derive a 32-bit seed for every cell from its name, so that its tokens depend on neither order nor neighbours."""
    prefix = f"{seed}\x00"
    digests = b"".join(hashlib.blake2b((prefix + name).encode(), digest_size=4).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint32).copy()


class Sentences(NamedTuple):
    """Tokenised cells."""

    genes: np.ndarray
    """Vocabulary indices, int64 ``(n_cells, n_tokens - 1)``, in no particular order."""
    values: np.ndarray
    """Count values of the CLS token and the genes, in percent of the cell's total, float32 ``(n_cells, n_tokens)``."""
    lengths: np.ndarray
    """Number of expressed genes in the sentence, int64 ``(n_cells,)``; they come before the padding."""


@dataclass(frozen=True)
class Tokenizer:
    """Convert expression to sentences.

    A sentence holds the ``n_tokens - 1`` most expressed genes of a cell, with ties broken at random. A cell with fewer
    expressed genes is padded with random unexpressed genes, without replacement unless the data have fewer genes than
    the sentence. A cell's randomness depends only on its seed and on the genes' vocabulary indices.

    Parameters
    ----------
    vocabulary
        Vocabulary index of every column of the data, int64 ``(n_columns,)``; -1 for a gene to leave out.
    n_tokens
        Length of a sentence, including the CLS token.
    cls_gene
        Position, among the columns in the vocabulary, of the gene whose count value the CLS token takes; None: 0.
    pad
        Pad short sentences; otherwise the entries beyond a sentence's length are undefined.
    """

    vocabulary: np.ndarray
    n_tokens: int
    cls_gene: int | None = None
    pad: bool = True

    @classmethod
    def of_columns(cls, n_columns: int, *, n_tokens: int) -> Self:
        """Make a tokenizer for data whose columns are the vocabulary."""
        return cls(np.arange(n_columns), n_tokens)

    @cached_property
    def _matched_genes(self) -> tuple[np.ndarray, int, int]:
        """Vocabulary indices in the data, the number of columns in the vocabulary, and the CLS column (-1 if none)."""
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
        Sentences; a cell without expression has equal values for all genes.
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
            *self._matched_genes,
            self.pad,
            seeds,
            *sentences,
        )
        return sentences
