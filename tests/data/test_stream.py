from __future__ import annotations

import logging
import tracemalloc
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from scstate_lora.data import storage, stream
from scstate_lora.data.stream import open_cells, open_source, read_matrix

COUNTS = np.random.default_rng(1).poisson(0.7, (50, 8)).astype(np.float32)
FORMS = [np.asarray, sparse.csr_matrix, sparse.csc_matrix]


def _write_zarr(adata, path):
    with warnings.catch_warnings():  # of what the next zarr and anndata will do
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


ZARR_FORMATS = ["zarr", "zarr3"] if hasattr(ad.settings, "zarr_write_format") else ["zarr"]  # anndata 0.12, 0.11


@pytest.fixture(params=["h5ad", *ZARR_FORMATS])
def write(request, tmp_path):
    """Write an AnnData as a file of each kind."""

    def write(adata):
        if request.param == "h5ad":
            adata.write_h5ad(tmp_path / "a.h5ad")
            return tmp_path / "a.h5ad"
        version = {"zarr_write_format": 3 if request.param == "zarr3" else 2} if len(ZARR_FORMATS) == 2 else {}
        with ad.settings.override(**version):
            _write_zarr(adata, tmp_path / "a.zarr")
        assert (tmp_path / "a.zarr" / "zarr.json").exists() == (request.param == "zarr3")
        return tmp_path / "a.zarr"

    return write


def _example(form=sparse.csr_matrix):
    obs = pd.DataFrame({"kind": pd.Categorical(np.tile(["a", "b"], 25))}, index=[f"cell{i}" for i in range(50)])
    var = pd.DataFrame({"symbol": list("ABCDEFGH")}, index=[f"G{i}" for i in range(8)])
    return ad.AnnData(form(COUNTS), obs=obs, var=var, layers={"counts": form(COUNTS * 2)}, obsm={"big": COUNTS})


def _check(source, expected):
    """Rows come in canonical form, in chunks of any size, and equal what is expected."""
    assert (source.n_cells, source.n_genes) == expected.shape
    for start, stop in [(0, len(expected)), (3, 4), (5, 11), (len(expected) - 1, len(expected) + 9), (7, 7)]:
        matrix = source.read(start, stop)
        assert type(matrix) is sparse.csr_matrix
        assert matrix.dtype == np.float32
        assert matrix.has_canonical_format
        assert (matrix.data != 0).all()
        assert (matrix.toarray() == expected[start:stop]).all()
    assert source.chunks()[0][0] == 0
    assert source.chunks()[-1][1] == len(expected)
    assert (source.read_all().toarray() == expected).all()
    stats = source.scan()
    assert (stats.n_cells, stats.n_stored) == (len(expected), np.count_nonzero(expected))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", [40, 10**6])
def test_matrices_in_memory_and_their_views_are_read(form, values, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK_VALUES", values)
    adata = _example(form)
    _check(open_source(adata), COUNTS)
    _check(open_source(adata, "counts"), COUNTS * 2)
    _check(open_source(adata[10:40, ["G5", "G1"]]), COUNTS[10:40][:, [5, 1]])
    rows = np.random.default_rng(0).permutation(50)[:30]
    _check(open_source(adata[rows][:, ::2], "counts"), COUNTS[rows][:, ::2] * 2)
    assert (open_source(adata, "counts").name, open_source(adata).name) == ("adata.layers['counts']", "adata.X")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("values", "gap"), [(40, 3), (10**6, 10**6)])
def test_backed_and_opened_files_and_their_views_are_read(form, values, gap, write, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK_VALUES", values)
    monkeypatch.setattr(stream, "_GAP_VALUES", gap)
    path = write(_example(form))
    opened = [open_cells(path)]
    if path.suffix == ".h5ad":
        opened.append(ad.read_h5ad(path, backed="r"))
    rows = np.random.default_rng(0).permutation(50)[:30]
    for adata in opened:
        _check(open_source(adata), COUNTS)
        _check(open_source(adata[10:40, ["G5", "G1"]]), COUNTS[10:40][:, [5, 1]])
        _check(open_source(adata[rows]), COUNTS[rows])
        twice = np.array([3, 3, 49, 0, *range(10, 20)])
        _check(open_source(adata[twice]), COUNTS[twice])
        _check(open_source(adata[adata.obs["kind"] == "b"]), COUNTS[1::2])


def test_unsorted_file_with_duplicates_is_read_in_canonical_form(tmp_path):
    # Unsorted, with a duplicate and a stored zero, of integers.
    messy = sparse.csr_matrix((np.array([2, 1, 1, 0]), np.array([2, 0, 0, 1]), np.array([0, 4, 4])), shape=(2, 3))
    ad.AnnData(messy).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["X/data"][:].tolist() == [2, 1, 1, 0]
    _check(open_source(open_cells(tmp_path / "a.h5ad")), np.array([[2.0, 0, 2], [0, 0, 0]]))


def test_rows_do_not_share_memory_with_the_matrix():
    adata = _example()
    open_source(adata).read(0, 50).data[:] = 7
    open_source(adata).read_all().data[:] = 7
    assert (adata.X.toarray() == COUNTS).all()


def test_chunks_hold_few_values_and_at_least_one_row(monkeypatch):
    adata = _example()
    stored = np.diff(adata.X.indptr)
    for values in (1, 30, 100):
        monkeypatch.setattr(stream, "_CHUNK_VALUES", values)
        bounds = open_source(adata).chunks()
        assert all(stored[a:b].sum() <= values or b == a + 1 for a, b in bounds)
        assert [a for a, _ in bounds] == [0, *(b for _, b in bounds[:-1])]
    assert len(bounds) <= 2 * stored.sum() / 100 + 1
    dense = open_source(_example(np.asarray)).chunks()
    assert dense == [(a, min(a + 12, 50)) for a in range(0, 50, 12)]  # 12 rows of 8 values are at most 100


def test_view_of_a_backed_file_is_not_read_whole(tmp_path, monkeypatch):
    _example().write_h5ad(tmp_path / "a.h5ad")
    reads = []
    read = storage._read
    monkeypatch.setattr(storage, "_read", lambda *args: reads.append(args[1:3]) or read(*args))
    view = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")[[40, 2, 3]]
    monkeypatch.setattr(stream, "_GAP_VALUES", 10)
    assert (open_source(view).read(0, 3).toarray() == COUNTS[[40, 2, 3]]).all()
    ends = np.concatenate([[0], np.cumsum((COUNTS > 0).sum(axis=1))])
    assert set(reads) == {(0, 51), (ends[2], ends[4]), (ends[40], ends[41])}


def test_columns_on_disk_are_read_once_and_warns(write, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("scstate_lora"), "propagate", True)
    open_source(open_cells(write(_example(sparse.csc_matrix))))
    assert "adata.X is stored by column (CSC)" in caplog.text
    assert caplog.records[0].levelname == "WARNING"
    caplog.clear()
    open_source(_example(sparse.csc_matrix))
    assert not caplog.records


def test_opened_cells_hold_obs_var_and_one_matrix(write):
    path = write(_example())
    cells = open_cells(path)
    pd.testing.assert_frame_equal(cells.obs, _example().obs)
    pd.testing.assert_frame_equal(cells.var, _example().var)
    assert not sparse.issparse(cells.X)
    assert not isinstance(cells.X, np.ndarray)
    assert (len(cells.obsm), len(cells.uns)) == (0, 0)
    assert not set(cells.layers) - {None}  # which is X, from anndata 0.13 on
    cells = open_cells(str(path), "counts")
    assert cells.X is None
    assert (open_source(cells, "counts").read_all().toarray() == COUNTS * 2).all()
    assert open_source(cells, "counts").name == "adata.layers['counts']"


def test_progress_bar_is_shown_if_requested(capsys):
    open_source(_example()).scan()
    assert capsys.readouterr().err == ""
    open_source(_example()).scan(progress=True)
    assert "Checking adata.X" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "1 NaN"), (-np.inf, "1 infinite"), (-2, r"negative values \(smallest -2\)")]
)
def test_impossible_value_in_any_chunk_raises(kind, value, message, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK_VALUES", 20)
    x = COUNTS.copy()
    x[41, 3] = value
    adata = ad.AnnData(sparse.csr_matrix(x))
    if kind == "file":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = open_cells(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=rf"adata\.X holds {message}"):
        open_source(adata).scan()
    with pytest.raises(ValueError, match=rf"adata\.X holds {message}"):
        read_matrix(adata)


def test_only_zeros_raises():
    with pytest.raises(ValueError, match="holds only zeros"):
        open_source(ad.AnnData(sparse.csr_matrix((5, 3), dtype=np.float32))).scan()


def _write_by_rows(group, *, n_cells, n_genes, per_cell):
    """Store a CSR matrix without ever holding it."""
    n_stored = n_cells * per_cell
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
    chunk = 100_000
    offsets = np.arange(n_cells + 1) * per_cell
    if isinstance(group, h5py.Group):
        group["indptr"] = offsets
        data, indices = (group.create_dataset(k, n_stored, "i4", chunks=(chunk,)) for k in ("data", "indices"))
    else:
        group["indptr"] = offsets
        data, indices = (group.create(k, shape=(n_stored,), dtype="i4", chunks=(chunk,)) for k in ("data", "indices"))
    for start in range(0, n_stored, 10 * chunk):
        at = np.arange(start, min(start + 10 * chunk, n_stored))
        indices[at[0] : at[-1] + 1] = at % per_cell * (n_genes // per_cell)
        data[at[0] : at[-1] + 1] = 1 + at % 3


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_memory_does_not_grow_with_the_file(ending, tmp_path, monkeypatch):
    n_cells, n_genes, per_cell = 100_000, 2000, 40
    path = tmp_path / f"a.{ending}"
    tables = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(n_cells).astype(str)), shape=(n_cells, n_genes))
    tables.write_h5ad(path) if ending == "h5ad" else _write_zarr(tables, path)
    file = h5py.File(path, "a") if ending == "h5ad" else zarr.open_group(path, mode="a")
    _write_by_rows(file.create_group("X"), n_cells=n_cells, n_genes=n_genes, per_cell=per_cell)
    if ending == "h5ad":
        file.close()
    whole = n_cells * per_cell * 8  # bytes of the values and their columns
    monkeypatch.setattr(stream, "_CHUNK_VALUES", 80_000)
    cells = open_cells(path)
    tracemalloc.start()
    source = open_source(cells)
    stats = source.scan()
    n_stored = sum(source.read(start, start + 2000).nnz for start in range(0, n_cells, 2000))
    view = open_source(cells[::2])
    n_half = sum(view.read(start, start + 2000).nnz for start in range(0, n_cells // 2, 2000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stats.n_stored == n_stored == 2 * n_half == n_cells * per_cell
    assert (stats.n_stored, stats.largest) == (n_stored, 3)
    assert peak < whole / 4


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_absent_file_raises(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"The (file|directory) .*{name} does not exist"):
        open_cells(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.loom", r"neither an \.h5ad file nor a \.zarr directory"),
        ("a", r"neither an \.h5ad file nor a \.zarr directory"),
        ("a.zarr.zip", "zipped zarr store.*Unzip it"),
        ("a.zarr", "a zarr store is a directory"),
        ("a.h5ad", "cannot be opened: .*damaged"),
    ],
)
def test_other_file_raises(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"not what it seems")
    with pytest.raises(ValueError, match=message):
        open_cells(tmp_path / name)


@pytest.mark.parametrize(("name", "message"), [("a.h5ad", "is a directory"), ("a.zarr", "cannot be opened: .*damaged")])
def test_other_directory_raises(tmp_path, name, message):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=message):
        open_cells(tmp_path / name)


def test_truncated_file_raises(tmp_path):
    _example().write_h5ad(tmp_path / "a.h5ad")
    written = (tmp_path / "a.h5ad").read_bytes()
    (tmp_path / "a.h5ad").write_bytes(written[: len(written) // 2])
    with pytest.raises(ValueError, match=r"a\.h5ad cannot be opened: .*truncated.*copy or write it again"):
        open_cells(tmp_path / "a.h5ad")


def test_damaged_values_raises(tmp_path):
    adata = ad.AnnData(sparse.csr_matrix(np.random.default_rng(0).poisson(1, (300, 200)).astype(np.float32)))
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(tmp_path / "a.h5ad") as file:
        at = file["X/data"].id.get_chunk_info(0).byte_offset
    with (tmp_path / "a.h5ad").open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\0" * 200)
    with pytest.raises(ValueError, match=r"adata\.X of .*a\.h5ad cannot be read: .*The file is damaged"):
        open_source(open_cells(tmp_path / "a.h5ad")).scan()


def test_damaged_zarr_values_raises(tmp_path):
    _write_zarr(_example(), tmp_path / "a.zarr")
    chunk = next(path for path in (tmp_path / "a.zarr" / "X" / "data").rglob("0") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"adata\.X of .*a\.zarr/X/data cannot be read: .*The file is damaged"):
        open_source(open_cells(tmp_path / "a.zarr")).scan()


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("part", "index", "value", "message"),
    [
        ("indices", 5, 1000, "indices outside its shape"),
        ("indices", 5, -1, "indices outside its shape"),
        ("indptr", 3, 10**6, "number of its values does not match its offsets"),
        ("indptr", -1, 10**6, "number of its values does not match its offsets"),
        ("indptr", 0, 1, "number of its values does not match its offsets"),
    ],
)
def test_impossible_offsets_and_indices_raises(tmp_path, form, part, index, value, message):
    _example(form).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file["X"][part][index] = value
    with pytest.raises(ValueError, match=message):
        open_source(open_cells(tmp_path / "a.h5ad")).scan()


def _old_layout(file):
    del file["obs"]
    file["obs"] = np.array([(b"a", 1.0)] * 50, dtype=[("index", "S1"), ("n", "f8")])


def _no_var(file):
    del file["var"]


def _unknown_encoding(file):
    file["obs/kind"].attrs["encoding-type"] = "of-tomorrow"


def _no_matrix(file):
    del file["X"]


def _no_matrix_or_layers(file):
    del file["X"], file["layers"]


def _other_group(file):
    del file["X"]
    file.create_group("X")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            _old_layout,
            r"obs of .*a\.h5ad has the layout of an old anndata .*anndata\.read_h5ad and write it again",
            marks=pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning"),
        ),
        (_no_var, r"a\.h5ad has no var: it was not written by anndata"),
        (_unknown_encoding, r"obs of .*a\.h5ad cannot be read: .*newer anndata"),
        (_no_matrix, r"a\.h5ad holds no X\. Its layers are 'counts': give one as layer="),
        (_no_matrix_or_layers, r"a\.h5ad holds no X\. It has no layers"),
        (_other_group, r"/X of .*a\.h5ad is not a matrix written by anndata"),
    ],
)
def test_file_of_another_layout_raises(tmp_path, change, message):
    _example().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        open_cells(tmp_path / "a.h5ad")


def test_absent_layer_in_a_file_raises(write):
    path = write(_example())
    with pytest.raises(KeyError, match=r"has no layer 'count'\. Did you mean 'counts'"):
        open_cells(path, "count")
    with pytest.raises(KeyError, match=r"adata\.layers\['counts'\] does not exist"):
        open_source(open_cells(path), "counts")


def test_absent_matrix_of_an_opened_layer_raises(write):
    with pytest.raises(ValueError, match=r"adata\.X is None.*layer="):
        open_source(open_cells(write(_example()), "counts"))
