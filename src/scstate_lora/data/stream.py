"""Expression matrices of an AnnData or a file, read and checked by rows, so that memory stays small."""

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
from scstate_lora.data.storage import InMemory, Stored, find_storage, layers_of, lazy_matrix, open_file, read_table

if TYPE_CHECKING:
    from anndata import AnnData

# What a chunk holds at most, unless one row alone holds more: with its copies some 100 MB.
_CHUNK_VALUES = 4_000_000
# Values that are read and thrown away rather than read around: about a chunk of compressed storage.
_GAP_VALUES = 50_000
# Values that stay in the processor's caches while they are described.
_CACHED_VALUES = 250_000


@dataclass(frozen=True)
class ExpressionSource:
    """Rows of an expression matrix, wherever it is.

    Parameters
    ----------
    name
        What a user calls the matrix, ``adata.X`` for instance.
    n_cells, n_genes
        Its shape.
    """

    name: str
    n_cells: int
    n_genes: int
    _stored: Stored
    _rows: np.ndarray | None = None  # of a view: rows and columns of what is stored
    _columns: np.ndarray | None = None

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells ``start`` to ``stop``.

        Returns
        -------
        float32 matrix of shape ``(stop - start, n_genes)`` that nothing else shares, without stored zeros, column
        indices sorted. Its values are not checked, see :meth:`scan`.

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
        As :meth:`read`.

        Raises
        ------
        ValueError
            As in :meth:`scan`.
        """
        matrix = self._unchecked()
        check_values(describe_matrix(matrix), self.name)
        return matrix

    def share_all(self) -> tuple[sparse.csr_matrix, MatrixStats]:
        """Read and check all cells, and describe their values.

        Returns
        -------
        As :meth:`read`, but not to be changed: a matrix in memory that has the form already is not copied, and shares
        its arrays with the AnnData. And its description.

        Raises
        ------
        ValueError
            As in :meth:`scan`.
        """
        matrix = self._in_form()
        if matrix is None:
            matrix = self._unchecked()
        stats = describe_matrix(matrix)
        check_values(stats, self.name)
        return matrix, stats

    @property
    def n_stored(self) -> int:
        """Number of stored values; rows outside of a view are counted too."""
        return int(self._stored.offsets[-1])

    @property
    def in_memory(self) -> bool:
        """Whether the matrix is in memory."""
        return isinstance(self._stored, InMemory)

    def _unchecked(self) -> sparse.csr_matrix:
        chunks = self.chunks() if self._stored.dense else [(0, self.n_cells)]  # dense rows are larger than sparse ones
        blocks = [self.read(*bounds) for bounds in chunks]
        return blocks[0] if len(blocks) == 1 else sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    def _in_form(self) -> sparse.csr_matrix | None:
        """Give the matrix in memory itself if it is as :meth:`read` gives it, else None."""
        if not isinstance(self._stored, InMemory) or self._stored.dense or self._rows is not None:
            return None
        matrix = self._stored.matrix
        if matrix.dtype != np.float32 or not matrix.has_canonical_format or np.count_nonzero(matrix.data) < matrix.nnz:
            return None
        return sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)

    def chunks(self) -> list[tuple[int, int]]:
        """Divide the cells by the number of stored values: ``(start, stop)`` of every chunk."""
        ends = self._stored.offsets
        if self._rows is not None:
            ends = np.concatenate([[0], np.cumsum(np.diff(ends)[self._rows])])
        return _chunks(ends, _CHUNK_VALUES)

    def scan(self, *, checksum: bool = False, progress: bool = False) -> MatrixStats:
        """Read all cells once, a chunk at a time, and check the values.

        Parameters
        ----------
        checksum
            Compute the checksum too.
        progress
            Show a bar.

        Raises
        ------
        ValueError
            If values are NaN, infinite or negative, or all zero, or the file is damaged.
        """
        chunks = progress_bar(self.chunks(), desc=f"Checking {self.name}", unit="chunk", disable=not progress)
        described = (MatrixStats.of(self.read(*bounds), checksum=checksum) for bounds in chunks)
        stats = reduce(add, described, MatrixStats())
        check_values(stats, self.name)
        return stats

    def _gather(self, rows: np.ndarray) -> Any:
        """Read rows in any order: near ones in one go, as a file is slow at many small reads."""
        if isinstance(self._stored, InMemory):
            return self._stored.matrix[rows]
        wanted, order = np.unique(rows, return_inverse=True)
        offsets = self._stored.offsets
        gaps = offsets[wanted[1:]] - offsets[wanted[:-1] + 1] > _GAP_VALUES
        full = np.diff(offsets[wanted] // _CHUNK_VALUES) > 0  # or a block of near rows could span the file
        blocks = []
        for near in np.split(wanted, np.flatnonzero(gaps | full) + 1):
            read = self._stored.rows(int(near[0]), int(near[-1]) + 1)
            blocks.append(sparse.csr_matrix(read[near - near[0]], dtype=np.float32))
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))[order]


def describe_matrix(matrix: sparse.csr_matrix) -> MatrixStats:
    """Describe a CSR matrix without stored zeros, a part at a time that stays in the processor's caches."""
    stats, ends = MatrixStats(), matrix.indptr
    for start, stop in _chunks(ends, _CACHED_VALUES):
        first, last = int(ends[start]), int(ends[stop])
        stats += MatrixStats.of_rows(matrix.data[first:last], ends[start : stop + 1] - first)
    return stats


def _chunks(ends: np.ndarray, n_values: int) -> list[tuple[int, int]]:
    """Divide rows by their values, given the number of values before each row and of all ``(n_rows + 1,)``."""
    n_rows = len(ends) - 1
    bounds, start = [], 0
    while start < n_rows:
        fitting = int(np.searchsorted(ends, ends[start] + n_values, side="right")) - 1
        stop = min(max(fitting, start + 1), n_rows)
        bounds.append((start, stop))
        start = stop
    return bounds


def open_source(adata: AnnData, layer: str | None = None) -> ExpressionSource:
    """Open ``adata.X`` or a layer to be read by rows. Nothing is read yet, with one exception.

    Parameters
    ----------
    adata
        May be a view, backed, or from :func:`open_cells`; the matrix may be dense, CSR, CSC, of any integer or float
        type. CSC is read into memory, as its rows are all over the file; a log line says so.
    layer
        Layer to read in place of ``adata.X``.

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
    # A view's own X would be a copy, or all of a backed view in memory: take the rows of what it is a view of.
    parent = adata._adata_ref if adata.is_view else adata
    matrix = parent.X if layer is None else parent.layers[layer]
    if matrix is None:
        msg = f"{name} is None: there is no expression matrix. Put counts or log1p values there, or name a layer=."
        raise ValueError(msg)
    stored = find_storage(matrix, name)
    if not adata.is_view:
        return ExpressionSource(name, adata.n_obs, adata.n_vars, stored)
    rows, columns = np.arange(parent.n_obs)[adata._oidx], np.arange(parent.n_vars)[adata._vidx]
    every_column = np.array_equal(columns, np.arange(parent.n_vars))
    return ExpressionSource(name, adata.n_obs, adata.n_vars, stored, rows, None if every_column else columns)


def read_matrix(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Read all of ``adata.X`` or a layer as a checked CSR matrix, without touching the input.

    Parameters
    ----------
    adata, layer
        See :func:`open_source`.

    Returns
    -------
    float32 matrix of shape ``(n_cells, n_genes)``, without stored zeros, column indices sorted.

    Raises
    ------
    KeyError
        If the layer does not exist.
    TypeError
        If the matrix is not numeric.
    ValueError
        If the matrix is absent, empty, or holds NaN, infinite or negative values.
    """
    return open_source(adata, layer).read_all()


def open_cells(path: str | Path, layer: str | None = None) -> AnnData:
    """Open a file of cells for :func:`open_source`: its obs and var are read, the matrix stays in the file.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` directory that anndata wrote.
    layer
        Layer to open in place of ``X``.

    Returns
    -------
    An AnnData with ``obs``, ``var`` and, in its place, the one matrix. Nothing else of the file is there.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    KeyError
        If the layer does not exist.
    ValueError
        If the file is of another kind, damaged, or holds no matrix.
    """
    from anndata import AnnData

    path = Path(path).expanduser()
    file = open_file(path)
    obs, var = (read_table(file, key, path) for key in ("obs", "var"))
    if layer is None:
        if "X" not in file:
            msg = f"{path} holds no X. {layers_of(file)}"
            raise ValueError(msg)
        return AnnData(lazy_matrix(file["X"], path), obs=obs, var=var)
    if "layers" not in file or layer not in file["layers"]:
        msg = f"{path} has no layer {layer!r}. {did_you_mean(layer, file['layers'] if 'layers' in file else [])}"
        raise KeyError(msg)
    return AnnData(obs=obs, var=var, layers={layer: lazy_matrix(file["layers"][layer], path)})


def check_not_empty(adata: AnnData) -> None:
    """Raise a ValueError for an AnnData without cells or without genes."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes. Give one with cells and genes."
        raise ValueError(msg)


def matrix_name(layer: str | None) -> str:
    """Name the matrix as a user would write it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"
