"""The expression matrix of an AnnData: read and checked once, then cached until it changes."""

from __future__ import annotations

import weakref
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from scstate_lora.data.stream import open_source

if TYPE_CHECKING:
    from collections.abc import Hashable

    from anndata import AnnData

    from scstate_lora.data.matrix import MatrixStats

# A matrix on disk with more stored values than this (2 GB as CSR) is checked at set-up without being cached in memory.
_MAX_CACHED_VALUES = 250_000_000
# Number of values compared to detect that a matrix was changed in place.
_SAMPLED_VALUES = 50_000


class Expression(NamedTuple):
    """A checked matrix."""

    matrix: sparse.csr_matrix
    """float32 ``(n_cells, n_genes)``, without stored zeros and with sorted column indices. Do not modify it: it may
    share memory with the AnnData."""
    stats: MatrixStats
    """Summary of the values; for a view, of the parent's whole matrix if that was cached."""


class _CacheEntry(NamedTuple):
    state: Hashable
    expression: Expression


# Keyed by the id of an AnnData (which is not hashable) and by layer; an entry is dropped with its AnnData.
_CACHE: dict[int, dict[str | None, _CacheEntry]] = {}


def read_expression(adata: AnnData, layer: str | None = None) -> Expression:
    """Read and check ``adata.X`` or a layer; return the cached result if the matrix has not changed.

    Parameters
    ----------
    adata
        Annotated data, which may be backed. Rows of a view are taken from its parent's matrix if that was cached.
    layer
        Layer to read instead of ``adata.X``.

    Raises
    ------
    KeyError, TypeError, ValueError
        As in :func:`~scstate_lora.data.stream.open_source`, and if a value is negative, NaN or infinite.
    """
    if adata.is_view:
        parent: AnnData = adata._adata_ref  # no public name; see open_source
        whole = _cached(parent, layer)
        if whole is None:
            return Expression(*open_source(adata, layer).share_all())
        rows, columns = np.arange(parent.n_obs)[adata._oidx], np.arange(parent.n_vars)[adata._vidx]
        part = whole.matrix[rows]
        if len(columns) < parent.n_vars or (np.diff(columns) < 0).any():
            part = part[:, columns]
            part.sort_indices()
        return Expression(sparse.csr_matrix(part), whole.stats)
    expression = _cached(adata, layer)
    return _read_and_cache(adata, layer) if expression is None else expression


def check_expression(adata: AnnData, layer: str | None = None) -> tuple[MatrixStats, str]:
    """Check and summarise ``adata.X`` or a layer; a matrix that fits into memory is cached for :func:`read_expression`.

    Returns
    -------
    The summary, and the matrix's name for messages.
    """
    source = open_source(adata, layer)
    if adata.is_view or (not source.in_memory and source.n_stored > _MAX_CACHED_VALUES):
        return source.scan(), source.name
    return read_expression(adata, layer).stats, source.name


def _read_and_cache(adata: AnnData, layer: str | None) -> Expression:
    expression = Expression(*open_source(adata, layer).share_all())
    if id(adata) not in _CACHE:
        weakref.finalize(adata, _CACHE.pop, id(adata), None)
    _CACHE.setdefault(id(adata), {})[layer] = _CacheEntry(_state(adata, layer), expression)
    return expression


def _cached(adata: AnnData, layer: str | None) -> Expression | None:
    entry = _CACHE.get(id(adata), {}).get(layer)
    return None if entry is None or entry.state != _state(adata, layer) else entry.expression


def _state(adata: AnnData, layer: str | None) -> Hashable:
    """Identify the current content of a matrix: by identity and sampled values, or by its file's size and time."""
    matrix: Any = adata.X if layer is None else adata.layers.get(layer)
    if matrix is None:
        return None
    if adata.isbacked and layer is None:
        path = Path(str(adata.filename))
        status = path.stat() if path.exists() else None
        return str(path), matrix.shape, None if status is None else (status.st_mtime_ns, status.st_size)
    arrays = [matrix.data, matrix.indices, matrix.indptr] if sparse.issparse(matrix) else [matrix]
    if not all(isinstance(array, np.ndarray) for array in arrays):  # a lazy array
        return id(matrix), matrix.shape
    return id(matrix), matrix.shape, *(_sample(array) for array in arrays)


def _sample(array: np.ndarray) -> tuple[int, int]:
    flat = array.reshape(-1, order="A") if array.flags.forc else array[:: max(1, len(array) // 1000)].ravel()
    step = max(1, flat.size // _SAMPLED_VALUES)
    return array.size, zlib.crc32(np.ascontiguousarray(flat[::step]).data.cast("B"))
