"""Storage of expression matrices: in memory, or in an HDF5 file or zarr store whose rows are read on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._compat import open_zarr, zarr_path
from scstate_lora._logging import logger

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class InMemory:
    """A CSR or dense matrix in memory."""

    matrix: Any

    @property
    def dense(self) -> bool:
        """Whether zeros are stored."""
        return not sparse.issparse(self.matrix)

    @property
    def offsets(self) -> np.ndarray:
        """Offset of the first value of every row, and the total number of values, ``(n_rows + 1,)``."""
        n_rows, n_columns = self.matrix.shape
        return np.arange(n_rows + 1) * n_columns if self.dense else self.matrix.indptr

    def rows(self, start: int, stop: int) -> Any:
        """Take rows, which may share memory with the matrix."""
        return self.matrix[start:stop]


@dataclass(frozen=True)
class DenseOnDisk:
    """A dense HDF5 or zarr array."""

    array: Any
    name: str
    dense = True

    @property
    def offsets(self) -> np.ndarray:
        """As in :class:`InMemory`."""
        return np.arange(self.array.shape[0] + 1) * self.array.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows."""
        return _read(self.array, start, stop, self.name)


@dataclass(frozen=True)
class SparseOnDisk:
    """A CSR or CSC matrix in an HDF5 or zarr group, with the offsets of its rows (CSC: columns) in memory."""

    group: Any
    shape: tuple[int, int]
    offsets: np.ndarray
    name: str
    dense = False

    @classmethod
    def open(cls, dataset: Any, name: str) -> SparseOnDisk:
        """Read the offsets, and check that they match the number of values."""
        group, shape = dataset.group, dataset.shape
        n_offsets = group["indptr"].shape[0]
        offsets = _read(group["indptr"], 0, n_offsets, name).astype(np.int64)
        is_valid = n_offsets == 1 + shape[0 if dataset.format == "csr" else 1] and offsets[0] == 0
        is_valid = is_valid and bool((np.diff(offsets) >= 0).all())
        if not is_valid or {group["data"].shape[0], group["indices"].shape[0]} != {int(offsets[-1])}:
            raise _damaged(group, name, "the number of its values does not match its offsets")
        return cls(group, shape, offsets, name)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read rows of a CSR matrix."""
        return sparse.csr_matrix(self._slice(start, stop, self.shape[1]), shape=(stop - start, self.shape[1]))

    def transposed(self) -> sparse.csr_matrix:
        """Read a whole CSC matrix and convert it to CSR."""
        return sparse.csc_matrix(self._slice(0, self.shape[1], self.shape[0]), shape=self.shape).tocsr()

    def _slice(self, start: int, stop: int, n_minor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        indices = _read(self.group["indices"], first, last, self.name)
        # SciPy does not check the indices: an invalid one would crash.
        if indices.size and (indices.min() < 0 or indices.max() >= n_minor):
            raise _damaged(self.group, self.name, "it has indices outside its shape")
        values = _read(self.group["data"], first, last, self.name)
        return values, indices, self.offsets[start : stop + 1] - first


Stored = InMemory | DenseOnDisk | SparseOnDisk


def open_storage(matrix: Any, name: str) -> Stored:
    """Wrap a matrix according to how it is stored."""
    from anndata.abc import CSCDataset, CSRDataset

    on_disk = isinstance(matrix, CSRDataset | CSCDataset)
    dtype = matrix.group["data"].dtype if on_disk else matrix.dtype
    if dtype.kind not in "biuf":
        msg = f"{name} has dtype {dtype}, expected numbers (any integer or float type)."
        raise TypeError(msg)
    if isinstance(matrix, CSRDataset):
        return SparseOnDisk.open(matrix, name)
    if isinstance(matrix, CSCDataset):
        logger.warning(
            "%s is stored by column (CSC), so single cells cannot be read: the whole matrix is read into memory. To "
            "save memory, store it as CSR: adata.X = adata.X.tocsr() before adata.write_h5ad(...).",
            name,
        )
        return InMemory(SparseOnDisk.open(matrix, name).transposed())
    if sparse.issparse(matrix):
        return InMemory(matrix.tocsr())
    if _is_h5(matrix) or _is_zarr(matrix):
        return DenseOnDisk(matrix, name)
    return InMemory(np.asarray(matrix))


def _is_h5(stored: Any) -> bool:
    import h5py

    return isinstance(stored, h5py.Dataset | h5py.Group)


def _is_zarr(stored: Any) -> bool:
    import zarr

    return isinstance(stored, zarr.Array | zarr.Group)


def _read(array: Any, start: int, stop: int, name: str) -> np.ndarray:
    """Read a slice of a stored array."""
    try:
        return np.asarray(array[start:stop])
    except (OSError, RuntimeError, ValueError) as error:  # from the decompressors of HDF5 and zarr
        raise _damaged(array, name, str(error)) from error


def _damaged(stored: Any, name: str, problem: str) -> ValueError:
    path = stored.file.filename if _is_h5(stored) else zarr_path(stored)
    return ValueError(f"{name} of {path} cannot be read: {problem}. The file is damaged: copy or write it again.")


def open_file(path: Path) -> Any:
    """Open an .h5ad file or a .zarr directory as an HDF5 or zarr group."""
    kind = path.suffix.lower()
    if path.name.lower().endswith(".zarr.zip"):
        msg = f"{path} is a zipped zarr store, whose rows are slow to read. Unzip it and give the .zarr directory."
        raise ValueError(msg)
    if kind not in (".h5ad", ".zarr"):
        msg = f"{path} is neither an .h5ad file nor a .zarr directory. Write the AnnData with write_h5ad or write_zarr."
        raise ValueError(msg)
    if not path.exists():
        msg = f"The {'file' if kind == '.h5ad' else 'directory'} {path} does not exist. Check the path."
        raise FileNotFoundError(msg)
    if kind == ".h5ad" and path.is_dir():
        msg = f"{path} is a directory, but .h5ad is a file format. If it is a zarr store, let its name end in .zarr."
        raise ValueError(msg)
    if kind == ".zarr" and not path.is_dir():
        msg = f"{path} is a file, but a zarr store is a directory. Unpack it if it is an archive."
        raise ValueError(msg)
    try:
        if kind == ".h5ad":
            import h5py

            return h5py.File(path, "r")
        return open_zarr(path, "r")
    except (PermissionError, BlockingIOError):  # their messages are clear
        raise
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be opened: {error}. It is damaged or of another format: copy or write it again."
        raise ValueError(msg) from error


def read_table(file: Any, key: str, path: Path) -> pd.DataFrame:
    """Read ``obs`` or ``var``."""
    from anndata.io import read_elem

    if key not in file:
        msg = f"{path} has no {key}: it was not written by anndata. Write the AnnData with write_h5ad or write_zarr."
        raise ValueError(msg)
    try:
        table = read_elem(file[key])
    except Exception as error:  # HDF5, zarr and anndata raise different ones
        msg = f"{key} of {path} cannot be read: {error}. It is damaged or from a newer anndata: copy or write it again."
        raise ValueError(msg) from error
    if not isinstance(table, pd.DataFrame):
        msg = (
            f"{key} of {path} has the layout of an old anndata (before 0.7). Read the file with anndata.read_h5ad and "
            "write it again."
        )
        raise ValueError(msg)
    return table


def read_log_note(file: Any) -> dict[str, Any]:
    """Read the base of the logarithm, as scanpy notes it in ``uns``; empty without such a note."""
    from anndata.io import read_elem

    return {"log1p": read_elem(file["uns"]["log1p"])} if "uns" in file and "log1p" in file["uns"] else {}


def lazy_matrix(stored: Any, path: Path) -> Any:
    """Wrap a stored matrix so that an AnnData can hold it without reading it."""
    from anndata.io import sparse_dataset

    if not hasattr(stored, "keys"):
        return stored
    try:
        return sparse_dataset(stored)
    except (ValueError, KeyError) as error:
        msg = f"{stored.name} of {path} is not a matrix written by anndata: {error}."
        raise ValueError(msg) from error


def layers_of(file: Any) -> str:
    """Describe the layers of a file, for messages."""
    layers = list(file["layers"]) if "layers" in file else []
    return f"Its layers are {', '.join(map(repr, layers))}: give one as layer=." if layers else "It has no layers."
