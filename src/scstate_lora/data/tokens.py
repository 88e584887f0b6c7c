"""Sentences for the SE network: each cell's most expressed genes, with ties and padding drawn per cell."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

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


@numba.njit(cache=True)
def _tokenize(
    data: Any, indices: Any, indptr: Any, n_genes: int, seeds: Any, genes: Any, values: Any
) -> None:  # pragma: no cover  (compiled)
    wanted = genes.shape[1]
    top = np.empty(wanted, dtype=np.uint32)
    top_values = top.view(np.float32)
    absent = np.empty(n_genes, dtype=np.int64)
    expressed = np.zeros(n_genes, dtype=np.bool_)
    for cell in range(len(seeds)):
        start, stop = indptr[cell], indptr[cell + 1]
        seed = np.uint64(seeds[cell])
        bits = data[start:stop].view(np.uint32)  # positive floats sort like their bit patterns
        keys = np.empty(stop - start, dtype=np.uint64)
        total = 0.0
        for i in range(len(keys)):
            total += data[start + i]
            keys[i] = (np.uint64(bits[i]) << _HALF) | _mix((np.uint64(indices[start + i]) ^ seed) & _LOW)
        keys.sort()
        kept = min(len(keys), wanted)
        for i in range(kept):
            key = keys[len(keys) - 1 - i]
            genes[cell, i] = np.int64(_unmix(key & _LOW) ^ seed)
            top[i] = np.uint32(key >> _HALF)
        for i in range(kept):
            values[cell, i + 1] = 100.0 * top_values[i] / total
        if kept == wanted:
            continue
        for i in range(start, stop):
            expressed[indices[i]] = True
        n_absent = 0
        for gene in range(n_genes):
            if not expressed[gene]:
                absent[n_absent] = gene
                n_absent += 1
        for i in range(start, stop):
            expressed[indices[i]] = False
        for i in range(kept, wanted):
            if n_absent:  # unexpressed genes, with replacement
                draw = _mix((seed + np.uint64(i + 1) * _STEP) & _LOW)
                genes[cell, i] = absent[np.int64((draw * np.uint64(n_absent)) >> _HALF)]
            else:  # every gene is expressed: the sentence starts again
                genes[cell, i] = genes[cell, i - kept]
                values[cell, i + 1] = values[cell, i + 1 - kept]
        if kept == 0:  # an empty cell: equal shares, the softmax of zeros
            values[cell, 1:] = 100.0 / n_genes


def cell_seeds(names: Sequence[str], seed: int) -> np.ndarray:
    """Make a 32-bit seed of every cell from its name, so that its tokens depend on neither order nor neighbours."""
    prefix = f"{seed}\x00"
    digests = b"".join(hashlib.blake2b((prefix + name).encode(), digest_size=4).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint32).copy()


def tokenize(x: sparse.csr_matrix, seeds: np.ndarray, *, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn expression into sentences.

    The ``n_tokens - 1`` highest genes of every cell, highest first, ties in random order; a cell with fewer expressed
    genes is filled with unexpressed ones, drawn with replacement. A cell's randomness comes from its own seed alone.

    Parameters
    ----------
    x
        log1p expression, float32 CSR ``(n_cells, n_genes)``, without stored zeros or duplicates.
    seeds
        From :func:`cell_seeds`, ``(n_cells,)``.
    n_tokens
        Length of a sentence, the CLS token included.

    Returns
    -------
    Gene indices int64 ``(n_cells, n_tokens - 1)`` and count values float32 ``(n_cells, n_tokens)``: 100 x the gene's
    share of the cell's total, 0 for CLS. A cell without any expression has equal shares of all genes.
    """
    genes = np.zeros((x.shape[0], n_tokens - 1), dtype=np.int64)
    values = np.zeros((x.shape[0], n_tokens), dtype=np.float32)
    data = np.ascontiguousarray(x.data, dtype=np.float32)
    _tokenize(data, x.indices.astype(np.int32, copy=False), x.indptr, x.shape[1], seeds, genes, values)
    return genes, values
