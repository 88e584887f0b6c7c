"""Sentences for the SE network: each cell's most expressed genes, with ties and padding drawn per cell."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy import sparse

# A bijection of 32-bit integers (the finaliser of MurmurHash3) and its inverse: a gene's random rank among ties can
# be packed beside its value in one sortable integer, and unpacked again.
_M1, _M2 = 0x85EBCA6B, 0xC2B2AE35
_I1, _I2 = pow(_M1, -1, 2**32), pow(_M2, -1, 2**32)
_LOW = np.uint64(0xFFFFFFFF)


@numba.njit(inline="always")
def _mix(h: int) -> int:  # pragma: no cover  (compiled by numba, which coverage cannot see into)
    h = np.uint64(h)
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(_M1)) & _LOW
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(_M2)) & _LOW
    return h ^ (h >> np.uint64(16))


@numba.njit(inline="always")
def _unmix(h: int) -> int:  # pragma: no cover  (compiled by numba)
    h = np.uint64(h)
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(_I2)) & _LOW
    h ^= (h >> np.uint64(13)) ^ (h >> np.uint64(26))
    h = (h * np.uint64(_I1)) & _LOW
    return h ^ (h >> np.uint64(16))


@numba.njit(cache=True)
def _tokenize(data, indices, indptr, n_genes, seeds, genes, values):  # type: ignore[no-untyped-def]  # pragma: no cover
    wanted = genes.shape[1]
    expressed = np.zeros(n_genes, dtype=np.bool_)
    for cell in range(len(seeds)):
        start, stop = indptr[cell], indptr[cell + 1]
        row = data[start:stop]
        n = stop - start
        seed = np.uint64(seeds[cell])
        total = np.float32(0.0)
        for v in row:
            total += v
        bits = row.view(np.uint32)  # positive floats sort like their bit patterns
        keys = np.empty(n, dtype=np.uint64)
        for i in range(n):
            rank = _mix((np.uint64(indices[start + i]) ^ seed) & _LOW)
            keys[i] = (np.uint64(bits[i]) << np.uint64(32)) | rank
        keys.sort()
        kept = min(n, wanted)
        for i in range(kept):
            key = keys[n - 1 - i]
            genes[cell, i] = np.int64(_unmix(key & _LOW) ^ seed)
            values[cell, i + 1] = (
                np.float32(100.0) * np.array([key >> np.uint64(32)]).astype(np.uint32).view(np.float32)[0] / total
            )
        if kept < wanted and n < n_genes:
            for i in range(start, stop):
                expressed[indices[i]] = True
            state = _mix(seed)
            draw = np.uint64(0)
            for i in range(kept, wanted):
                while True:  # unexpressed genes, with replacement
                    draw += np.uint64(1)
                    state = _mix((seed + draw * np.uint64(0x9E3779B9)) & _LOW)
                    gene = np.int64((state * np.uint64(n_genes)) >> np.uint64(32))
                    if not expressed[gene]:
                        break
                genes[cell, i] = gene
            for i in range(start, stop):
                expressed[indices[i]] = False
        elif kept < wanted:  # every gene is expressed: repeat them in order
            for i in range(kept, wanted):
                genes[cell, i] = genes[cell, i % kept]
                values[cell, i + 1] = values[cell, i % kept + 1]


def cell_seeds(names: Sequence[str], seed: int) -> np.ndarray:
    """A 32-bit seed of every cell from its name, so that its tokens depend on neither order nor neighbours."""
    prefix = f"{seed}\x00"
    digests = b"".join(hashlib.blake2b((prefix + name).encode(), digest_size=4).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint32).copy()


def tokenize(x: sparse.csr_matrix, seeds: np.ndarray, *, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn expression into sentences.

    The ``n_tokens - 1`` highest genes of every cell, ties in random order; a cell with fewer expressed genes is filled
    with unexpressed ones, drawn with replacement. The randomness of a cell comes from its own seed alone.

    Parameters
    ----------
    x
        log1p expression without stored zeros, float32 CSR ``(n_cells, n_genes)``.
    seeds
        From :func:`cell_seeds`, ``(n_cells,)``.
    n_tokens
        Length of a sentence, the CLS token included.

    Returns
    -------
    Gene indices int64 ``(n_cells, n_tokens - 1)`` and count values float32 ``(n_cells, n_tokens)``: 100 x the gene's
    share of the cell's total, 0 for CLS.
    """
    genes = np.zeros((x.shape[0], n_tokens - 1), dtype=np.int64)
    values = np.zeros((x.shape[0], n_tokens), dtype=np.float32)
    data = np.ascontiguousarray(x.data, dtype=np.float32)
    _tokenize(data, x.indices.astype(np.int32, copy=False), x.indptr, x.shape[1], seeds, genes, values)
    return genes, values
