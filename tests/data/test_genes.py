from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.data.genes import gene_names, match_genes, take_columns, unique_names

HUMAN = [f"GENE{i}" for i in range(20)]
ENSEMBL = [f"ENSG{i:011d}" for i in range(20)]
MOUSE_ENSEMBL = [f"ENSMUSG{i:011d}" for i in range(20)]


def test_gene_names_from_the_index_or_a_column():
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["symbol"] = pd.Categorical(["b", "a", "c"])
    assert gene_names(adata) == ["0", "1", "2"]
    assert gene_names(adata, "symbol") == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (["a", "b", "a"], ValueError, r"adata\.var\['symbol'\] holds 'a' more than once.*duplicated\(\)"),
        (["a", None, None], ValueError, r"adata\.var\['symbol'\] has 2 missing names of 3.*notna"),
    ],
)
def test_unusable_gene_column_raises(column, error, message):
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["symbol"] = column
    with pytest.raises(error, match=message):
        gene_names(adata, "symbol")


def test_absent_gene_column_raises():
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["symbol"] = ["a", "b", "c"]
    with pytest.raises(KeyError, match=r"adata\.var\['symbols'\] does not exist. Did you mean 'symbol'"):
        gene_names(adata, "symbols")


def test_names_that_are_the_same_as_text_raises():
    with pytest.raises(ValueError, match=r"x holds '1' more than once\. Names must be unique: do y"):
        unique_names([1, "1"], "x", "do y")


def test_genes_are_matched_by_name():
    assert match_genes(["c", "a", "x"], ["a", "b", "c"]).tolist() == [1, -1, 0]


def test_a_tenth_of_the_genes_is_enough():
    assert (match_genes([*HUMAN[:2], "other"], HUMAN) >= 0).sum() == 2


@pytest.mark.parametrize(
    ("found", "wanted", "hint"),
    [
        ([g.capitalize() for g in HUMAN], HUMAN, r"Ignoring case 100% would match: mouse symbols"),
        (ENSEMBL, [f"{g}.3" for g in ENSEMBL], r"Without version suffixes .* 100% would match"),
        ([f"{g}.7" for g in ENSEMBL], ENSEMBL, r"Without version suffixes"),
        (MOUSE_ENSEMBL, ENSEMBL, r"Ensembl ids of two species \(ENSMUSG…, ENSG…\)"),
        (ENSEMBL, HUMAN, r"Name the column of adata\.var .*gene_key="),
        (HUMAN[:1], HUMAN, "gene_key="),
    ],
)
def test_under_a_tenth_of_the_genes_raises(found, wanted, hint):
    with pytest.raises(ValueError, match=hint) as error:
        match_genes(found, wanted)
    assert f"The data has {', '.join(found[:3])}" in str(error.value)
    assert f"the model has {', '.join(wanted[:3])}" in str(error.value)
    assert "of the model's 20 genes" in str(error.value)


def test_columns_are_taken_in_order_and_absent_ones_are_empty():
    x = sparse.random(6, 5, density=0.6, format="csr", dtype=np.float32, random_state=0)
    taken = take_columns(x, np.array([4, -1, 0]))
    assert (taken.toarray()[:, [0, 2]] == x.toarray()[:, [4, 0]]).all()
    assert (taken.toarray()[:, 1] == 0).all()
    assert taken.dtype == np.float32
    assert taken.has_sorted_indices
    assert take_columns(x, np.arange(5)) is x
