from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.io import cells_file
from scstate_lora.io.cells_file import write_columns, write_embedding

if TYPE_CHECKING:
    from pathlib import Path

Z = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
UNS = {"scstate_lora": {"embed": {"X_state": {"base": "SE", "n_tokens": 64}}}}


@pytest.fixture(params=[".h5ad", ".zarr"])
def cells(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"cells{request.param}"
    adata = ad.AnnData(
        sparse.random(30, 12, 0.3, format="csr", dtype=np.float32, random_state=0),
        obs=pd.DataFrame({"type": pd.Categorical(["a", "b", "c"] * 10)}, index=[f"c{i}" for i in range(30)]),
        obsm={"X_pca": np.ones((30, 2))},
        uns={"note": "kept", "scstate_lora": {"registry": "{}", "embed": {"X_other": {"base": "compact"}}}},
        layers={"counts": sparse.csr_matrix(np.eye(30, 12))},
    )
    adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
    return path


def _read(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def _write(cells: Path, out: Path, **changes: object) -> None:
    blocks = ((start, Z[start : start + 7]) for start in range(0, 30, 7))
    write_embedding(cells, out, **{"blocks": blocks, "shape": Z.shape, "key": "X_state", "uns": UNS, **changes})


def _fingerprint(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files if f.is_file())).hexdigest()


def test_a_copy_holds_the_cells_and_the_embedding(cells: Path, tmp_path: Path) -> None:
    before = _fingerprint(cells)
    out = tmp_path / "deep" / f"out{cells.suffix}"
    _write(cells, out)
    assert _fingerprint(cells) == before
    written, original = _read(out), _read(cells)
    np.testing.assert_array_equal(written.obsm["X_state"], Z)
    assert written.obsm["X_state"].dtype == np.float32
    np.testing.assert_array_equal(written.obsm["X_pca"], original.obsm["X_pca"])
    assert (written.X != original.X).nnz == 0
    assert (written.layers["counts"] != original.layers["counts"]).nnz == 0
    pd.testing.assert_frame_equal(written.obs, original.obs)
    assert written.uns["note"] == "kept"
    assert written.uns["scstate_lora"]["registry"] == "{}"
    assert set(written.uns["scstate_lora"]["embed"]) == {"X_other", "X_state"}
    assert written.uns["scstate_lora"]["embed"]["X_state"]["n_tokens"] == 64
    assert [f.name for f in out.parent.iterdir()] == [out.name]


def test_the_input_itself_can_be_replaced_and_written_again(cells: Path) -> None:
    _write(cells, cells)
    _write(cells, cells, blocks=[(0, -Z)])
    written = _read(cells)
    np.testing.assert_array_equal(written.obsm["X_state"], -Z)
    assert written.uns["note"] == "kept"


def test_the_numbers_alone(cells: Path, tmp_path: Path) -> None:
    _write(cells, tmp_path / "z.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), Z)
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy", mmap_mode="r")[7], Z[7])


def test_a_failure_leaves_what_was_there_raises(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out{cells.suffix}"
    _write(cells, out)
    before = _fingerprint(out)

    def broken():
        yield 0, Z[:7]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="Existing content is unchanged"):
        _write(cells, out, blocks=broken())
    assert _fingerprint(out) == before
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([cells.name, out.name])


def test_a_file_without_obsm_gets_one(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "cells.h5ad"
    ad.AnnData(np.ones((30, 2))).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obsm"], file["uns"]
    _write(path, path)
    np.testing.assert_array_equal(ad.read_h5ad(path).obsm["X_state"], Z)


def test_it_is_stored_in_chunks_of_rows(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py
    import zarr

    monkeypatch.setattr(cells_file, "_CHUNK_BYTES", 100)
    out = tmp_path / f"out{cells.suffix}"
    _write(cells, out)
    stored = h5py.File(out) if out.suffix == ".h5ad" else zarr.open_group(out, mode="r")
    assert stored["obsm"]["X_state"].chunks == (6, 4)
    np.testing.assert_array_equal(_read(out).obsm["X_state"], Z)


def _columns(path: Path) -> dict[str, pd.DataFrame]:
    names = _read(path).obs_names
    obs = pd.DataFrame(
        {"label": pd.Categorical(["x", "y"] * 15), "type": np.arange(30), "score": np.linspace(0, 1, 30)}, index=names
    )
    return {"obs": obs, "obsm": {"p": pd.DataFrame(Z[:, :2], index=names, columns=["x", "y"])}, "uns": UNS}


def test_a_copy_holds_the_cells_and_the_columns(cells: Path, tmp_path: Path) -> None:
    before, columns = _fingerprint(cells), _columns(cells)
    out = tmp_path / "deep" / f"out{cells.suffix}"
    write_columns(cells, out, **columns)
    assert _fingerprint(cells) == before
    written, original = _read(out), _read(cells)
    assert list(written.obs) == ["type", "label", "score"]
    pd.testing.assert_frame_equal(written.obs, columns["obs"][["type", "label", "score"]])
    pd.testing.assert_frame_equal(written.obsm["p"], columns["obsm"]["p"])
    assert (written.X != original.X).nnz == 0
    assert (written.layers["counts"] != original.layers["counts"]).nnz == 0
    assert set(written.uns["scstate_lora"]["embed"]) == {"X_other", "X_state"}
    write_columns(out, out, **columns)
    assert list(_read(out).obs) == ["type", "label", "score"]


def test_columns_that_cannot_be_written_leave_what_was_there_raises(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out{cells.suffix}"
    _write(cells, out)
    before, columns = _fingerprint(out), _columns(cells)

    def fail(*_: object) -> None:  # after columns and tables, so that the copy is half written
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(cells_file, "_merge_uns", fail)
    with pytest.raises(OSError, match="Existing content is unchanged"):
        write_columns(cells, out, **columns)
    assert _fingerprint(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([cells.name, out.name])


def test_cells_without_any_column_get_some(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    ad.AnnData(np.ones((30, 2), dtype=np.float32), obs=pd.DataFrame(index=[f"c{i}" for i in range(30)])).write_h5ad(
        path
    )
    write_columns(path, path, **_columns(path))
    assert list(_read(path).obs) == ["label", "type", "score"]
