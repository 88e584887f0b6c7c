"""The expression matrix of an AnnData, read and checked once for as long as it does not change."""

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

# A matrix in a file with more stored values than this (2 GB as CSR) is checked at set-up without being held in memory.
_HELD_VALUES = 250_000_000
# Values that are looked at to notice a matrix that was changed in place.
_SAMPLED_VALUES = 50_000


class Expression(NamedTuple):
    """A checked matrix."""

    matrix: sparse.csr_matrix
    """float32 ``(n_cells, n_genes)``, without stored zeros, column indices sorted; not to be changed, as it may share
    memory with the AnnData."""
    stats: MatrixStats
    """Description of the values, of the whole matrix where this is a part of one."""


class _Held(NamedTuple):
    state: Hashable
    expression: Expression


# By the id of an AnnData, and layer. AnnData objects are not hashable; an entry goes with its AnnData.
_HELD: dict[int, dict[str | None, _Held]] = {}


def read_expression(adata: AnnData, layer: str | None = None) -> Expression:
    """Read and check ``adata.X`` or a layer, or give what was read before if the matrix is still the same.

    Parameters
    ----------
    adata
        May be a view, whose rows are taken from the whole where that was read before, or backed.
    layer
        Layer to read in place of ``adata.X``.

    Raises
    ------
    KeyError, TypeError, ValueError
        As in :func:`~scstate_lora.data.stream.open_source`, and where a value is negative, NaN or infinite.
    """
    if adata.is_view:
        parent: AnnData = adata._adata_ref  # no public name; see open_source
        whole = _held(parent, layer)
        if whole is None:
            return Expression(*open_source(adata, layer).share_all())
        rows, columns = np.arange(parent.n_obs)[adata._oidx], np.arange(parent.n_vars)[adata._vidx]
        part = whole.matrix[rows]
        if len(columns) < parent.n_vars or (np.diff(columns) < 0).any():
            part = part[:, columns]
            part.sort_indices()
        return Expression(sparse.csr_matrix(part), whole.stats)
    held = _held(adata, layer)
    if held is None:
        held = _hold(adata, layer)
    return held


def check_expression(adata: AnnData, layer: str | None = None) -> tuple[MatrixStats, str]:
    """Describe and check ``adata.X`` or a layer; what fits into memory is held for :func:`read_expression`.

    Returns
    -------
    The description, and the matrix's name for messages.
    """
    source = open_source(adata, layer)
    if adata.is_view or (not source.in_memory and source.n_stored > _HELD_VALUES):
        return source.scan(), source.name
    return read_expression(adata, layer).stats, source.name


def _hold(adata: AnnData, layer: str | None) -> Expression:
    expression = Expression(*open_source(adata, layer).share_all())
    if id(adata) not in _HELD:
        weakref.finalize(adata, _HELD.pop, id(adata), None)
    _HELD.setdefault(id(adata), {})[layer] = _Held(_state(adata, layer), expression)
    return expression


def _held(adata: AnnData, layer: str | None) -> Expression | None:
    held = _HELD.get(id(adata), {}).get(layer)
    return None if held is None or held.state != _state(adata, layer) else held.expression


def _state(adata: AnnData, layer: str | None) -> Hashable:
    """Tell whether a matrix is the same as before: its identity and a sample of its values, or those of its file."""
    matrix: Any = adata.X if layer is None else adata.layers.get(layer)
    if matrix is None:
        return None
    if adata.isbacked and layer is None:
        path = Path(str(adata.filename))
        status = path.stat() if path.exists() else None
        return str(path), matrix.shape, None if status is None else (status.st_mtime_ns, status.st_size)
    arrays = [matrix.data, matrix.indices, matrix.indptr] if sparse.issparse(matrix) else [matrix]
    if not all(isinstance(array, np.ndarray) for array in arrays):  # lazily read from elsewhere
        return id(matrix), matrix.shape
    return id(matrix), matrix.shape, *(_sample(array) for array in arrays)


def _sample(array: np.ndarray) -> tuple[int, int]:
    flat = array.reshape(-1, order="A") if array.flags.forc else array[:: max(1, len(array) // 1000)].ravel()
    step = max(1, flat.size // _SAMPLED_VALUES)
    return array.size, zlib.crc32(np.ascontiguousarray(flat[::step]).data.cast("B"))
