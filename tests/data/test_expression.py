from __future__ import annotations

import gc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.data import expression, stream
from scstate_lora.data.expression import check_expression, read_expression

COUNTS = np.random.default_rng(0).poisson(1.0, (40, 12)).astype(np.float32)


def _cells(matrix):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(40)])
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(12)]))


@pytest.fixture
def scans(monkeypatch):
    """Number of cells in each part of a matrix that is checked."""
    seen = []
    of_rows = stream.MatrixStats.of_rows
    monkeypatch.setattr(
        stream.MatrixStats, "of_rows", lambda values, ends: seen.append(len(ends) - 1) or of_rows(values, ends)
    )
    return seen


FORMS = {
    "csr": sparse.csr_matrix(COUNTS),
    "int64": sparse.csr_matrix(COUNTS.astype(np.int64)),
    "csc": sparse.csc_matrix(COUNTS),
    "dense": COUNTS,
    "fortran": np.asfortranarray(COUNTS),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_checked_once(scans, form):
    adata = _cells(FORMS[form].copy())
    stats, name = check_expression(adata)
    assert name == "adata.X"
    assert stats.whole
    for _ in range(3):
        assert (read_expression(adata).matrix.toarray() == COUNTS).all()
        assert (read_expression(adata[5:9]).matrix.toarray() == COUNTS[5:9]).all()
        part = read_expression(adata[::-1, [7, 2, 3]]).matrix
        assert (part.toarray() == COUNTS[::-1, [7, 2, 3]]).all()
        assert part.has_sorted_indices
    assert sum(scans) == 40


def test_a_matrix_in_the_right_form_is_shared_and_another_copied():
    adata = _cells(FORMS["csr"].copy())
    assert np.shares_memory(read_expression(adata).matrix.data, adata.X.data)
    zeros = FORMS["csr"].copy()
    zeros.data[3] = 0
    adata = _cells(zeros)
    matrix = read_expression(adata).matrix
    assert matrix.nnz == zeros.nnz - 1
    assert adata.X.nnz == zeros.nnz


def test_a_layer_is_cached_beside_the_matrix(scans):
    adata = _cells(FORMS["csr"].copy())
    adata.layers["double"] = FORMS["dense"] * 2
    for _ in range(2):
        assert (read_expression(adata).matrix.toarray() == COUNTS).all()
        assert (read_expression(adata, "double").matrix.toarray() == 2 * COUNTS).all()
    assert sum(scans) == 80


@pytest.mark.parametrize("form", ["csr", "dense", "int64"])
def test_a_changed_matrix_is_read_again(scans, form):
    adata = _cells(FORMS[form].copy())
    read_expression(adata)
    values = adata.X if form == "dense" else adata.X.data
    values *= 3
    assert (read_expression(adata).matrix.toarray() == 3 * COUNTS).all()
    adata.X = FORMS["csr"] * 5
    assert (read_expression(adata).matrix.toarray() == 5 * COUNTS).all()
    assert sum(scans) == 120
    values = adata.X.data
    values[0] = -1
    with pytest.raises(ValueError, match=r"adata\.X holds negative values"):
        read_expression(adata)


def test_a_backed_matrix_is_read_once_unless_it_is_too_large_to_be_cached(tmp_path, scans, monkeypatch):
    _cells(FORMS["csr"]).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    check_expression(backed)
    assert (read_expression(backed).matrix.toarray() == COUNTS).all()
    assert (read_expression(backed[[3, 1]]).matrix.toarray() == COUNTS[[3, 1]]).all()
    assert sum(scans) == 40
    backed.file.close()
    monkeypatch.setattr(expression, "_MAX_CACHED_VALUES", 10)
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    check_expression(backed)
    assert (read_expression(backed).matrix.toarray() == COUNTS).all()
    assert sum(scans) == 120
    backed.file.close()


def test_a_view_of_an_uncached_matrix_is_read_alone(scans):
    adata = _cells(FORMS["csr"].copy())
    assert (read_expression(adata[3:7]).matrix.toarray() == COUNTS[3:7]).all()
    assert sum(scans) == 4


def test_the_cache_is_dropped_with_its_anndata():
    adata = _cells(FORMS["int64"].copy())
    read_expression(adata)
    number = id(adata)
    assert number in expression._CACHE
    del adata
    gc.collect()
    assert number not in expression._CACHE
