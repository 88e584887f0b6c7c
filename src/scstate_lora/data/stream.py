"""Expression matrices of an AnnData or a file, read and checked in chunks of rows to limit memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scstate_lora._utils import did_you_mean, progress_bar
from scstate_lora.data.matrix import MatrixStats, check_values
from scstate_lora.data.storage import (
    InMemory,
    Stored,
    layers_of,
    lazy_matrix,
    open_file,
    open_storage,
    read_log_note,
    read_table,
)

if TYPE_CHECKING:
    from anndata import AnnData

# Largest number of values per chunk, unless a single row has more: about 100 MB including copies.
_CHUNK_VALUES = 4_000_000
# Gaps up to this size are read through instead of seeking: about one chunk of compressed storage.
_GAP_VALUES = 50_000
# Number of values that stay in the CPU's caches while they are summarised.
_CACHED_VALUES = 250_000


@dataclass(frozen=True)
class ExpressionSource:
    """Rows of an expression matrix, in memory or on disk.

    Parameters
    ----------
    name
        Name of the matrix for the user, for example ``adata.X``.
    n_cells, n_genes
        Shape of the matrix.
    """

    name: str
    n_cells: int
    n_genes: int
    _stored: Stored
    _rows: np.ndarray | None = None  # for a view: its rows and columns in the stored matrix
    _columns: np.ndarray | None = None

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``start`` to ``stop``.

        Returns
        -------
        float32 matrix of shape ``(stop - start, n_genes)``, in its own memory, without stored zeros and with sorted
        column indices. Its values are not checked; see :meth:`scan`.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        start, stop, _ = slice(start, stop).indices(self.n_cells)
        if stop <= start:
            return sparse.csr_matrix((0, self.n_genes), dtype=np.float32)
        block = self._stored.rows(start, stop) if self._rows is None else self._gather(self._rows[start:stop])
        if self._columns is not None:
            block = block[:, self._columns]
        matrix = sparse.csr_matrix(block, dtype=np.float32, copy=isinstance(self._stored, InMemory))
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix

    def read_all(self) -> sparse.csr_matrix:
        """Read and check all cells.

        Returns
        -------
        As from :meth:`read`.

        Raises
        ------
        ValueError
            As in :meth:`scan`.
        """
        matrix = self._unchecked()
        check_values(describe_matrix(matrix), self.name)
        return matrix

    def share_all(self) -> tuple[sparse.csr_matrix, MatrixStats]:
        """Read and check all cells, and summarise their values.

        Returns
        -------
        The matrix as from :meth:`read`, and its summary. Do not modify the matrix: if it is in memory and already in
        this form, it is not copied and shares its arrays with the AnnData.

        Raises
        ------
        ValueError
            As in :meth:`scan`.
        """
        matrix = self._canonical()
        if matrix is None:
            matrix = self._unchecked()
        stats = describe_matrix(matrix)
        check_values(stats, self.name)
        return matrix, stats

    @property
    def n_stored(self) -> int:
        """Number of stored values; for a view, of the whole matrix."""
        return int(self._stored.offsets[-1])

    @property
    def in_memory(self) -> bool:
        """Whether the matrix is in memory."""
        return isinstance(self._stored, InMemory)

    def _unchecked(self) -> sparse.csr_matrix:
        chunks = self.chunks() if self._stored.dense else [(0, self.n_cells)]  # dense rows are larger than sparse ones
        blocks = [self.read(*bounds) for bounds in chunks]
        return blocks[0] if len(blocks) == 1 else sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    def _canonical(self) -> sparse.csr_matrix | None:
        """Return the matrix in memory without a copy if it is already as from :meth:`read`, else None."""
        if not isinstance(self._stored, InMemory) or self._stored.dense or self._rows is not None:
            return None
        matrix = self._stored.matrix
        if matrix.dtype != np.float32 or not matrix.has_canonical_format or np.count_nonzero(matrix.data) < matrix.nnz:
            return None
        return sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)

    def chunks(self) -> list[tuple[int, int]]:
        """Divide the cells into chunks by the number of stored values; return ``(start, stop)`` of every chunk."""
        ends = self._stored.offsets
        if self._rows is not None:
            ends = np.concatenate([[0], np.cumsum(np.diff(ends)[self._rows])])
        return _chunks(ends, _CHUNK_VALUES)

    def scan(self, *, checksum: bool = False, progress: bool = False) -> MatrixStats:
        """Read all cells once, one chunk at a time, and check the values.

        Parameters
        ----------
        checksum
            Also compute the checksum.
        progress
            Show a progress bar.

        Raises
        ------
        ValueError
            If values are NaN, infinite or negative, if all are zero, or if the file is damaged.
        """
        chunks = progress_bar(self.chunks(), desc=f"Checking {self.name}", unit="chunk", disable=not progress)
        parts = (MatrixStats.of(self.read(*bounds), checksum=checksum) for bounds in chunks)
        stats = reduce(add, parts, MatrixStats())
        check_values(stats, self.name)
        return stats

    def _gather(self, rows: np.ndarray) -> Any:
        """Read rows in any order; nearby rows are read together, as many small reads of a file are slow."""
        if isinstance(self._stored, InMemory):
            return self._stored.matrix[rows]
        distinct, order = np.unique(rows, return_inverse=True)
        offsets = self._stored.offsets
        gaps = offsets[distinct[1:]] - offsets[distinct[:-1] + 1] > _GAP_VALUES
        full = np.diff(offsets[distinct] // _CHUNK_VALUES) > 0  # otherwise a run of nearby rows could span the file
        blocks = []
        for nearby in np.split(distinct, np.flatnonzero(gaps | full) + 1):
            block = self._stored.rows(int(nearby[0]), int(nearby[-1]) + 1)
            blocks.append(sparse.csr_matrix(block[nearby - nearby[0]], dtype=np.float32))
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))[order]


def describe_matrix(matrix: sparse.csr_matrix) -> MatrixStats:
    """Summarise a CSR matrix without stored zeros, in parts that fit in the CPU's caches."""
    stats, ends = MatrixStats(), matrix.indptr
    for start, stop in _chunks(ends, _CACHED_VALUES):
        first, last = int(ends[start]), int(ends[stop])
        stats += MatrixStats.of_rows(matrix.data[first:last], ends[start : stop + 1] - first)
    return stats


def _chunks(ends: np.ndarray, n_values: int) -> list[tuple[int, int]]:
    """Divide rows by their number of values, given the offset of each row and the total, ``(n_rows + 1,)``."""
    n_rows = len(ends) - 1
    bounds, start = [], 0
    while start < n_rows:
        last = int(np.searchsorted(ends, ends[start] + n_values, side="right")) - 1
        stop = min(max(last, start + 1), n_rows)
        bounds.append((start, stop))
        start = stop
    return bounds


def open_source(adata: AnnData, layer: str | None = None) -> ExpressionSource:
    """Open ``adata.X`` or a layer for reading by rows; only CSC matrices on disk are read immediately.

    Parameters
    ----------
    adata
        Annotated data, which may be a view, backed, or from :func:`open_cells`. The matrix may be dense, CSR or CSC, of
        any integer or float type. CSC is read into memory, as its rows are scattered over the file, and a warning is
        logged.
    layer
        Layer to read instead of ``adata.X``.

    Raises
    ------
    KeyError
        If the layer does not exist.
    TypeError
        If the matrix is not numeric.
    ValueError
        If the matrix is absent or empty, or the file is damaged.
    """
    name = matrix_name(layer)
    if layer is not None and layer not in adata.layers:
        msg = f"{name} does not exist. {did_you_mean(layer, adata.layers.keys())}"
        raise KeyError(msg)
    check_not_empty(adata)
    # A view's own X would be a copy, or load a whole backed view into memory: rows are taken from its parent instead.
    parent = adata._adata_ref if adata.is_view else adata
    matrix = parent.X if layer is None else parent.layers[layer]
    if matrix is None:
        msg = f"{name} is None: the expression matrix is missing. Store counts or log1p values there, or give layer=."
        raise ValueError(msg)
    stored = open_storage(matrix, name)
    if not adata.is_view:
        return ExpressionSource(name, adata.n_obs, adata.n_vars, stored)
    rows, columns = np.arange(parent.n_obs)[adata._oidx], np.arange(parent.n_vars)[adata._vidx]
    all_columns = np.array_equal(columns, np.arange(parent.n_vars))
    return ExpressionSource(name, adata.n_obs, adata.n_vars, stored, rows, None if all_columns else columns)


def read_matrix(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Read all of ``adata.X`` or a layer as a checked CSR matrix; the input is not modified.

    Parameters
    ----------
    adata, layer
        As in :func:`open_source`.

    Returns
    -------
    float32 matrix of shape ``(n_cells, n_genes)``, without stored zeros and with sorted column indices.

    Raises
    ------
    KeyError
        If the layer does not exist.
    TypeError
        If the matrix is not numeric.
    ValueError
        If the matrix is absent or empty, or holds NaN, infinite or negative values.
    """
    return open_source(adata, layer).read_all()


def open_cells(path: str | Path, layer: str | None = None) -> AnnData:
    """Open a file of cells for :func:`open_source`: ``obs`` and ``var`` are read, the matrix stays on disk.

    Parameters
    ----------
    path
        An ``.h5ad`` file or ``.zarr`` directory written by anndata.
    layer
        Layer to open instead of ``X``.

    Returns
    -------
    An AnnData with ``obs``, ``var``, the one matrix, in ``X`` or its layer, and the note on the base of its logarithm;
    nothing else is taken from the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    KeyError
        If the layer does not exist.
    ValueError
        If the file has another format, is damaged, or holds no matrix.
    """
    from anndata import AnnData

    path = Path(path).expanduser()
    file = open_file(path)
    obs, var = (read_table(file, key, path) for key in ("obs", "var"))
    uns = read_log_note(file)
    if layer is None:
        if "X" not in file:
            msg = f"{path} holds no X. {layers_of(file)}"
            raise ValueError(msg)
        return AnnData(lazy_matrix(file["X"], path), obs=obs, var=var, uns=uns)
    if "layers" not in file or layer not in file["layers"]:
        msg = f"{path} has no layer {layer!r}. {did_you_mean(layer, file['layers'] if 'layers' in file else [])}"
        raise KeyError(msg)
    return AnnData(obs=obs, var=var, uns=uns, layers={layer: lazy_matrix(file["layers"][layer], path)})


def check_not_empty(adata: AnnData) -> None:
    """Raise a ValueError for an AnnData without cells or without genes."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes. Give data with cells and genes."
        raise ValueError(msg)


def matrix_name(layer: str | None) -> str:
    """Return the name of the matrix as a user would write it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"
