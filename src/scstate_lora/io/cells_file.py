"""Add an embedding to a copy of a file of cells, block by block, and put the copy in place at the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora._compat import open_zarr
from scstate_lora.io.atomic import in_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMATS = (".h5ad", ".zarr", ".npy")
"""What an embedding can be written to; the first two hold all of the cells, the last the numbers alone."""

_CHUNK_BYTES = 2**20


def write_embedding(
    cells: str | Path,
    out: str | Path,
    blocks: Iterable[tuple[int, np.ndarray]],
    *,
    shape: tuple[int, int],
    key: str,
    uns: Mapping[str, Any],
) -> None:
    """Write a copy of a file of cells with an embedding in ``obsm``, whole or not at all.

    Parameters
    ----------
    cells
        An ``.h5ad`` or ``.zarr``; only read.
    out
        A path with the same ending, or an ``.npy`` for the embedding alone. What was there is replaced; may be `cells`.
    blocks
        First row and rows of consecutive blocks, float32 ``(n, shape[1])``.
    shape
        Of the embedding.
    key
        Its key in ``obsm``.
    uns
        Nested keys to values that are added to ``uns``.

    Raises
    ------
    OSError
        Writing failed; what was at `out` is unchanged.
    """
    cells, out = Path(cells), Path(out)
    with in_place(out) as temporary:
        if out.suffix == ".npy":
            # Python's own file, as memory that is mapped to a file counts as used.
            with temporary.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _, rows in blocks:
                    file.write(np.ascontiguousarray(rows, dtype="<f4").data)
        elif out.suffix == ".zarr":
            import zarr

            shutil.copytree(cells, temporary)
            _add(open_zarr(temporary, "r+"), blocks, shape, key, uns)
            zarr.consolidate_metadata(str(temporary))
        else:
            import h5py

            shutil.copyfile(cells, temporary)
            with h5py.File(temporary, "r+") as file:
                _add(file, blocks, shape, key, uns)


def _add(
    group: Any, blocks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, int], key: str, uns: Mapping[str, Any]
) -> None:
    """Write ``obsm[key]`` and ``uns`` of a store that anndata wrote."""
    from anndata.io import read_elem, write_elem

    for name in ("obsm", "uns"):
        if name not in group:
            write_elem(group, name, {})
    if key in group["obsm"]:
        del group["obsm"][key]
    n_rows = max(1, min(shape[0], _CHUNK_BYTES // (4 * shape[1])))
    # anndata writes the array's description, an empty one; it is then filled.
    is_zarr = not hasattr(group, "filename")
    chunks = {"chunks": (n_rows, shape[1])} if is_zarr else {"chunks": (n_rows, shape[1]), "maxshape": (None, shape[1])}
    write_elem(group["obsm"], key, np.zeros((0, shape[1]), dtype=np.float32), dataset_kwargs=chunks)
    array = group["obsm"][key]
    array.resize(shape)
    for first, rows in blocks:
        array[first : first + len(rows)] = rows
    for name, value in uns.items():
        stored = read_elem(group["uns"][name]) if name in group["uns"] else {}
        write_elem(group["uns"], name, _merged(stored, value))


def _merged(old: Any, new: Any) -> Any:
    """Nested dicts joined; what is new wins."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
