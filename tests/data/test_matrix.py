from __future__ import annotations

import math
import warnings

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scstate_lora.config import DataConfig
from scstate_lora.data import log_expression
from scstate_lora.data.matrix import MatrixStats, Moments, check_scale, log_normalize, log_raw, resolve_scale
from scstate_lora.data.registry import Registry
from scstate_lora.data.stream import read_matrix

COUNTS = np.random.default_rng(1).poisson(2.0, (20, 8))


def _log(counts, target=1e4):
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * target)


def _csr(values):
    return sparse.csr_matrix(np.asarray(values, dtype=np.float32))


def _stats(values):
    return MatrixStats.of(_csr(values))


def _plain(x):
    matrix = read_matrix(ad.AnnData(x))
    assert isinstance(matrix, sparse.csr_matrix)
    assert matrix.dtype == np.float32
    assert matrix.has_sorted_indices
    assert (matrix.data != 0).all()
    return matrix.toarray()


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sparse.csr_matrix, sparse.csc_matrix])
def test_every_number_type_and_form_is_read(dtype, form):
    if dtype == "float16" and form in (sparse.csr_matrix, sparse.csc_matrix):
        form = np.asarray  # scipy has no sparse float16
    assert (_plain(form(COUNTS.astype(dtype))) == COUNTS).all()


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_array])
def test_sparse_arrays_are_read(form):
    assert (_plain(form(COUNTS)) == COUNTS).all()


def test_bool_and_numpy_matrix_are_read():
    assert (_plain(COUNTS > 0) == (COUNTS > 0)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (_plain(np.matrix(COUNTS)) == COUNTS).all()


def test_input_is_neither_changed_nor_shared():
    # Unsorted, with a duplicate and a stored zero: all three are repaired in the copy alone.
    data, indices = np.array([2.0, 1.0, 1.0, 0.0], np.float32), np.array([2, 0, 0, 1], np.int32)
    stored = sparse.csr_matrix((data.copy(), indices.copy(), np.array([0, 4])), shape=(1, 3))
    adata = ad.AnnData(sparse.csr_matrix((1, 3), dtype=np.float32), layers={"counts": stored})
    matrix = read_matrix(adata, "counts")
    assert matrix.toarray().tolist() == [[2.0, 0.0, 2.0]]
    matrix.data[:] = 7
    counts = adata.layers["counts"]
    assert counts.data.tolist() == data.tolist()
    assert counts.indices.tolist() == indices.tolist()


def test_view_is_read(adata):
    view = adata[3:9, ["G4", "G1"]]
    assert (read_matrix(view).toarray() == adata.X.toarray()[3:9][:, [4, 1]]).all()
    assert view.is_view


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_backed_file_and_its_views_are_read(tmp_path, form):
    ad.AnnData(form(COUNTS.astype(np.float32)), layers={"raw": form(COUNTS)}).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert (read_matrix(backed).toarray() == COUNTS).all()
    assert (read_matrix(backed, "raw").toarray() == COUNTS).all()
    assert (read_matrix(backed[[1, 5], ::2]).toarray() == COUNTS[[1, 5]][:, ::2]).all()
    backed.file.close()


def test_absent_layer_raises(adata):
    adata.layers["counts"] = adata.X
    with pytest.raises(KeyError, match=r"adata\.layers\['count'\] does not exist. Did you mean 'counts'"):
        read_matrix(adata, "count")


def test_absent_matrix_raises(adata):
    adata.X = None
    with pytest.raises(ValueError, match=r"adata\.X is None.*layer="):
        read_matrix(adata)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_anndata_raises(shape):
    with pytest.raises(ValueError, match=f"empty: {shape[0]} cells x {shape[1]} genes"):
        read_matrix(ad.AnnData(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("dtype", [object, complex, str])
def test_matrix_without_real_numbers_raises(dtype):
    with pytest.raises(TypeError, match=r"adata\.X has dtype .* expected numbers"):
        read_matrix(ad.AnnData(COUNTS.astype(dtype)))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"adata\.X holds 1 NaN values"),
        (np.inf, r"adata\.X holds 1 infinite values"),
        (-1.5, r"adata\.X holds negative values \(smallest -1.5\).*layer="),
    ],
)
def test_impossible_value_raises(form, value, message):
    x = COUNTS.astype(np.float32)
    x[3, 2] = value
    with pytest.raises(ValueError, match=message):
        read_matrix(ad.AnnData(form(x)))


def test_only_zeros_raises():
    with pytest.raises(ValueError, match=r"adata\.X holds only zeros"):
        read_matrix(ad.AnnData(np.zeros((3, 2), np.float32)))


@pytest.mark.parametrize(
    ("values", "scale", "reason"),
    [
        (COUNTS, "counts", "every value is a whole number"),
        (COUNTS > 0, "counts", "every value is a whole number"),
        (_log(COUNTS), "log1p", "fractional"),
        (np.log1p(COUNTS), "log1p", "fractional"),
        (COUNTS * 30.5, "counts", "too large for log1p"),  # ambient RNA removed, for instance
    ],
)
def test_scale_is_decided_from_the_values(values, scale, reason):
    decided, why = resolve_scale(_stats(values), None, "adata.X")
    assert decided == scale
    assert reason in why


def test_shallow_counts_are_not_mistaken_for_log1p():
    shallow = np.random.default_rng(0).poisson(0.05, (200, 100))
    assert resolve_scale(_stats(shallow), None, "adata.X")[0] == "counts"


def test_input_scale_overrides():
    fractional = COUNTS * 0.5
    assert resolve_scale(_stats(fractional), None, "adata.X")[0] == "log1p"
    assert resolve_scale(_stats(fractional), "counts", "adata.X") == ("counts", "as given by input_scale")
    assert resolve_scale(_stats(_log(COUNTS)), "log1p", "adata.X") == ("log1p", "as given by input_scale")


@pytest.mark.parametrize(
    ("values", "input_scale", "message"),
    [
        (COUNTS, "log", "input_scale='log' is unknown. Did you mean 'log1p'"),
        (COUNTS, "log1p", "every value of adata.X is a whole number .*use 'counts'"),
        (COUNTS * 30.5, "log1p", "reaches 2.*log1p values stay below 20"),
        (_log(COUNTS), "counts", "is log1p of normalised counts .*use input_scale='log1p'"),
        (np.expm1(_log(COUNTS)), None, "neither counts nor log1p.*Run sc.pp.log1p"),
        (np.expm1(_log(COUNTS, target=1)), None, "neither counts nor log1p"),
    ],
)
def test_scale_that_contradicts_the_values_raises(values, input_scale, message):
    with pytest.raises(ValueError, match=message):
        resolve_scale(_stats(values), input_scale, "adata.X")


def test_new_data_of_the_same_scale_passes():
    for values, input_scale in [(COUNTS, None), (COUNTS, "counts"), (_log(COUNTS), None), (COUNTS * 30.5, None)]:
        scale, reason = resolve_scale(_stats(values), input_scale, "adata.X")
        check_scale(_stats(values[:3]), scale, reason, "adata.X")
    check_scale(_stats(COUNTS * 0.5), "counts", "as given by input_scale", "adata.X")


@pytest.mark.parametrize(
    ("setup", "input_scale", "new", "kind"),
    [
        (_log(COUNTS), None, COUNTS, "counts"),
        (_log(COUNTS), None, COUNTS * 30.5, "counts"),
        (COUNTS, None, _log(COUNTS), "log1p values"),
        (COUNTS, "counts", np.log1p(COUNTS), "log1p values"),
        (COUNTS, None, np.expm1(_log(COUNTS)), "normalised counts"),
    ],
)
def test_new_data_of_another_scale_raises(setup, input_scale, new, kind):
    scale, reason = resolve_scale(_stats(setup), input_scale, "adata.X")
    with pytest.raises(ValueError, match=rf"adata\.X looks like {kind} .*set up on {scale}"):
        check_scale(_stats(new), scale, reason, "adata.X")


CASES = {
    "counts": COUNTS,
    "log": _log(COUNTS),
    "normalised": np.expm1(_log(COUNTS)),
    "shifted": 1e6 + np.random.default_rng(0).random((20, 8)),
    "empty cells": np.where(np.arange(20)[:, None] % 3 == 0, 0, _log(COUNTS)),
    "large": np.where(np.arange(20)[:, None] == 13, 1e38, COUNTS + 0.5),
    "bad": np.where(np.eye(20, 8) == 1, [np.nan, -np.inf, np.inf, -3, 1, 2, 3, np.nan], COUNTS),
    "all bad": np.full((3, 2), np.nan),
    "zeros": np.zeros((20, 8)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_stats_of_parts_add_up_to_those_of_the_whole(case, rows):
    matrix = _csr(CASES[case])
    whole = MatrixStats.of(matrix, checksum=True)
    blocks = (matrix[i : i + rows] for i in range(0, matrix.shape[0], rows))
    parts = sum((MatrixStats.of(block, checksum=True) for block in blocks), MatrixStats())
    exact = ["n_cells", "n_stored", "n_nan", "n_inf", "largest", "smallest", "whole"]
    assert [getattr(parts, name) for name in exact] == [getattr(whole, name) for name in exact]
    assert parts.checksum == (MatrixStats() + parts).checksum
    assert parts.sums.constant == whole.sums.constant
    np.testing.assert_allclose([parts.sums.mean, parts.sums.squares], [whole.sums.mean, whole.sums.squares], rtol=1e-6)
    if whole.largest <= 20:
        assert parts.unlogged[math.e].count == whole.unlogged[math.e].count
        assert parts.unlogged[math.e].constant == whole.unlogged[math.e].constant == (case in ("log", "empty cells"))


def test_stats_describe_a_matrix():
    stats = MatrixStats.of(_csr([[0, 2, 1.5], [0, 0, 0], [np.nan, -np.inf, -4]]))
    assert (stats.n_cells, stats.n_stored, stats.n_nan, stats.n_inf) == (3, 5, 1, 1)
    assert (stats.largest, stats.smallest, stats.whole) == (2, -4, False)
    assert (stats.sums.count, stats.sums.mean) == (1, 3.5)
    fractional = np.where(COUNTS > 0, COUNTS + 0.5, 0)
    stats = MatrixStats.of(_csr(fractional))
    assert stats.sums.mean == pytest.approx(fractional.sum(axis=1).mean())
    assert stats.sums.squares == pytest.approx(20 * fractional.sum(axis=1).var())
    assert stats.unlogged[math.e].mean == pytest.approx(np.expm1(fractional).sum(axis=1).mean())
    assert MatrixStats.of(_csr(COUNTS)).sums.count == 0  # whole numbers are counts whatever they sum to


def test_spread_of_large_sums_is_exact():
    # Sums of squares in float64 would cancel: 1e12 squared is beyond its digits.
    values = 1e12 + np.arange(6.0)
    moments = sum((Moments.of(part) for part in np.split(values, 3)), Moments())
    assert moments.squares == pytest.approx(np.arange(6).var() * 6)


@pytest.mark.parametrize(
    ("values", "input_scale"),
    [(_log(COUNTS), "counts"), (np.expm1(_log(COUNTS)), None), (np.expm1(_log(COUNTS, target=1)), None)],
)
def test_scale_that_contradicts_the_values_of_parts_raises(values, input_scale):
    stats = sum((_stats(values[i : i + 1]) for i in range(20)), MatrixStats())
    with pytest.raises(ValueError, match="every cell"):
        resolve_scale(stats, input_scale, "adata.X")


def test_log_normalize_is_log1p_of_counts_per_10000():
    matrix = _csr(COUNTS)
    normalized = log_normalize(matrix, "counts")
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.toarray(), _log(COUNTS), rtol=1e-5)
    assert (matrix.toarray() == COUNTS).all()
    assert log_normalize(matrix, "log1p") is matrix


def test_log_normalize_of_some_genes_uses_the_library_size_of_all():
    totals = COUNTS.sum(axis=1)
    some = log_normalize(_csr(COUNTS[:, :3]), "counts", totals)
    np.testing.assert_allclose(some.toarray(), _log(COUNTS)[:, :3], rtol=1e-5)


def test_log_normalize_keeps_an_empty_cell_at_zero():
    counts = COUNTS.copy()
    counts[4] = 0
    assert (log_normalize(_csr(counts), "counts").toarray()[4] == 0).all()


def test_log_raw_does_not_scale_to_library_size():
    matrix = _csr(COUNTS)
    np.testing.assert_allclose(log_raw(matrix, "counts").toarray(), np.log1p(COUNTS), rtol=1e-6)
    assert (matrix.toarray() == COUNTS).all()
    assert log_raw(matrix, "log1p") is matrix


def test_log_expression_of_registered_data_and_of_predictions(adata):
    expected = _log(adata.X.toarray())
    Registry.create(adata, DataConfig()).write(adata)
    np.testing.assert_allclose(log_expression(adata).toarray(), expected, rtol=1e-5)
    predicted = ad.AnnData(
        expected.astype(np.float32),
        uns={"scstate_lora": {"predict": {"scale": "log1p_cp10k", "pert_key": "arm", "control": "none"}}},
    )
    read = log_expression(predicted)
    assert (read.toarray() == predicted.X).all()
    assert sparse.issparse(read)


def test_log_expression_of_data_not_set_up_raises(adata):
    with pytest.raises(KeyError, match=r"not set up. Run ssl\.setup_anndata"):
        log_expression(adata)


def test_checksum_depends_on_values_and_positions():
    matrix = sparse.csr_matrix(np.array([[1, 2, 0], [0, 0, 3], [4, 0, 0]], dtype=np.float32))
    changed = {
        "value": [[1, 2, 0], [0, 0, 5], [4, 0, 0]],
        "column": [[1, 0, 2], [0, 0, 3], [4, 0, 0]],
        "rows": [[0, 0, 3], [1, 2, 0], [4, 0, 0]],
        "two values": [[2, 1, 0], [0, 0, 3], [4, 0, 0]],
        "row ends": [[1, 0, 0], [0, 2, 3], [4, 0, 0]],
    }
    checksums = {
        MatrixStats.of(sparse.csr_matrix(np.array(rows, dtype=np.float32)), checksum=True).checksum
        for rows in changed.values()
    }
    assert len(checksums | {MatrixStats.of(matrix, checksum=True).checksum}) == 6
    assert (
        MatrixStats.of(matrix.astype(np.float32).copy(), checksum=True).checksum
        == MatrixStats.of(matrix, checksum=True).checksum
    )
    halves = MatrixStats.of(matrix[:1], checksum=True), MatrixStats.of(matrix[1:], checksum=True)
    assert (halves[0] + halves[1]).checksum != (halves[1] + halves[0]).checksum
