"""Add an embedding to a copy of a file of cells, block by block, or columns; the matrix is only copied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._compat import open_zarr
from scstate_lora.io.atomic import in_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMATS = (".h5ad", ".zarr", ".npy")
"""Formats of an embedding; the first two hold the whole data set, the last only the matrix."""

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
        An ``.h5ad`` or ``.zarr``, which is only read.
    out
        A path with the same ending, or an ``.npy`` for the embedding alone. An existing file is replaced; it may be
        `cells` itself.
    blocks
        Number of the first row, and rows, of consecutive blocks, float32 ``(n, shape[1])``.
    shape
        Shape of the embedding.
    key
        Key of the embedding in ``obsm``.
    uns
        Nested dict that is merged into ``uns``.

    Raises
    ------
    OSError
        If writing fails; an existing file at `out` is unchanged.
    """
    cells, out = Path(cells), Path(out)
    with in_place(out) as temporary:
        if out.suffix == ".npy":
            # A plain file rather than a memory map, whose pages count as used memory.
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


def write_columns(
    cells: str | Path,
    out: str | Path,
    *,
    obs: pd.DataFrame,
    obsm: Mapping[str, pd.DataFrame],
    uns: Mapping[str, Any],
) -> None:
    """Write a copy of a file of cells with further columns, whole or not at all.

    Parameters
    ----------
    cells
        An ``.h5ad`` or ``.zarr``, which is only read.
    out
        A path with the same ending. An existing file is replaced; it may be `cells` itself.
    obs
        Columns, one row per cell; those of the same names are replaced.
    obsm
        Tables by their key in ``obsm``, one row per cell.
    uns
        Nested dict that is merged into ``uns``.

    Raises
    ------
    OSError
        If writing fails; an existing file at `out` is unchanged.
    """
    cells, out = Path(cells), Path(out)
    with in_place(out) as temporary:
        if out.suffix == ".zarr":
            import zarr

            shutil.copytree(cells, temporary)
            _add_columns(open_zarr(temporary, "r+"), obs, obsm, uns)
            zarr.consolidate_metadata(str(temporary))
        else:
            import h5py

            shutil.copyfile(cells, temporary)
            with h5py.File(temporary, "r+") as file:
                _add_columns(file, obs, obsm, uns)


def _add_columns(group: Any, obs: pd.DataFrame, obsm: Mapping[str, pd.DataFrame], uns: Mapping[str, Any]) -> None:
    """Write columns of ``obs``, tables of ``obsm`` and ``uns`` into a store that anndata wrote."""
    from anndata.io import write_elem

    _make_groups(group)
    present = [str(name) for name in group["obs"].attrs["column-order"]]
    for name in obs:
        values = obs[name]
        write_elem(
            group["obs"], name, values.array if isinstance(values.dtype, pd.CategoricalDtype) else values.to_numpy()
        )
    group["obs"].attrs["column-order"] = [*present, *(name for name in obs if name not in present)]
    for key, table in obsm.items():
        write_elem(group["obsm"], key, table)
    _merge_uns(group, uns)


def _make_groups(group: Any) -> None:
    from anndata.io import write_elem

    for name in ("obsm", "uns"):
        if name not in group:
            write_elem(group, name, {})


def _merge_uns(group: Any, uns: Mapping[str, Any]) -> None:
    from anndata.io import read_elem, write_elem

    for name, value in uns.items():
        stored = read_elem(group["uns"][name]) if name in group["uns"] else {}
        write_elem(group["uns"], name, _merged(stored, value))


def _add(
    group: Any, blocks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, int], key: str, uns: Mapping[str, Any]
) -> None:
    """Write ``obsm[key]`` and ``uns`` into a store that anndata wrote."""
    from anndata.io import write_elem

    _make_groups(group)
    if key in group["obsm"]:
        del group["obsm"][key]
    n_rows = max(1, min(shape[0], _CHUNK_BYTES // (4 * shape[1])))
    # anndata writes an empty array with its attributes, which is then resized and filled.
    is_zarr = not hasattr(group, "filename")
    chunks = {"chunks": (n_rows, shape[1])} if is_zarr else {"chunks": (n_rows, shape[1]), "maxshape": (None, shape[1])}
    write_elem(group["obsm"], key, np.zeros((0, shape[1]), dtype=np.float32), dataset_kwargs=chunks)
    array = group["obsm"][key]
    array.resize(shape)
    for first, rows in blocks:
        array[first : first + len(rows)] = rows
    _merge_uns(group, uns)


def _merged(old: Any, new: Any) -> Any:
    """Merge nested dicts; new values take precedence."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
