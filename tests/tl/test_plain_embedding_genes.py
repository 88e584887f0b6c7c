"""`embed` finds the genes of the data in a published checkpoint's vocabulary, whatever they are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.data.bound import BoundData

CHECKPOINT = Path(__file__).parents[1] / "data" / "arc" / "folder"
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def base():
    return ssl.SEBase.load(CHECKPOINT)


@pytest.fixture(scope="module")
def cells(base):
    """40 cells of counts of the base's genes by symbol, in the base's order. Not to be changed."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.8, (40, len(base.genes))).astype(np.float32)
    x[4] = 0
    obs = pd.DataFrame({"day": np.tile(["d1", "d2"], 20)}, index=[f"cell{i}" for i in range(40)])
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=base.genes))


@pytest.fixture(scope="module")
def expected(cells, base):
    return _embed(cells, base)


def _embed(adata, base, **options):
    return tl.embed(adata.copy(), base, key_added=None, progress_bar=False, **options)


def _ensembl(n, *, version=""):
    return [f"ENSG{10_000 + i:011d}{version}" for i in range(n)]


@pytest.mark.parametrize("version", ["", ".7"])
@pytest.mark.parametrize("as_category", [False, True])
def test_symbols_in_a_column_beside_ensembl_ids_are_found(cells, expected, base, version, as_category):
    adata = cells.copy()
    adata.var["chromosome"] = "chr1"
    adata.var["gene_name"] = pd.Categorical(base.genes) if as_category else base.genes
    adata.var["feature_types"] = "Gene Expression"
    adata.var_names = _ensembl(adata.n_vars, version=version)
    np.testing.assert_array_equal(tl.embed(adata, base, progress_bar=False), expected)
    assert "by adata.var['gene_name']" in adata.uns["scstate_lora"]["embed"]["X_state"]["genes"]
    np.testing.assert_array_equal(_embed(adata, base, gene_key="gene_name"), expected)


def test_missing_names_in_the_column_are_unknown_genes(cells, base):
    adata = cells.copy()
    adata.var["gene_name"] = [None if i >= 50 else gene for i, gene in enumerate(base.genes)]
    adata.var_names = _ensembl(adata.n_vars)
    np.testing.assert_array_equal(_embed(adata, base), _embed(cells[:, :50], base))


@pytest.mark.parametrize(("of_data", "of_base"), [("", ""), (".4", ""), ("", ".4"), (".4", ".12")])
def test_ensembl_ids_with_and_without_version_are_found(cells, expected, base, of_data, of_base):
    knows_ids = replace(base, genes=_ensembl(len(base.genes), version=of_base))
    adata = cells.copy()
    adata.var["symbol"] = base.genes
    adata.var_names = _ensembl(adata.n_vars, version=of_data)
    np.testing.assert_array_equal(_embed(adata, knows_ids), expected)


def test_unknown_genes_are_dropped_whatever_their_counts(cells, expected, base):
    rng = np.random.default_rng(1)
    others = sparse.csr_matrix(rng.poisson(50, (40, 30)).astype(np.float32))
    names = [*base.genes, *(f"UNKNOWN{i}" for i in range(30))]
    adata = ad.AnnData(sparse.hstack([cells.X, others], format="csr"), obs=cells.obs, var=pd.DataFrame(index=names))
    np.testing.assert_array_equal(_embed(adata, base), expected)
    between = adata[:, np.r_[60:75, 0:30, 75:90, 30:60]].copy()
    np.testing.assert_array_equal(_embed(between, base), expected)


def test_order_of_genes_matters_only_through_the_fourth(cells, expected, base):
    """CLS takes the count value of the data's fourth known gene, as in Arc's own tool; nothing else has an order."""
    rng = np.random.default_rng(2)
    order = np.r_[rng.permutation(3), 3, 4 + rng.permutation(56)]
    permuted = _embed(cells[:, order], base)
    np.testing.assert_allclose(permuted, expected, atol=TOLERANCE)
    moved = cells[:, np.r_[4, 1, 2, 0, 3, 5:60]]  # another gene is the fourth
    alike = np.asarray(cells.X[:, 0] == cells.X[:, 3].toarray()).ravel()
    difference = np.abs(_embed(moved, base) - expected).max(axis=1)
    assert 0 < alike.sum() < 40
    assert difference[alike].max() < TOLERANCE
    assert difference[~alike].max() > 1e-4


def test_absent_genes_are_not_in_the_sentence(cells, base):
    few = cells[:, np.r_[0:30]].copy()
    found = tl.embed(few, base, progress_bar=False)
    assert few.uns["scstate_lora"]["embed"]["X_state"]["genes"].startswith("30 of the data's 30 genes")
    # In a sentence that holds them all, nothing is random.
    whole = [_embed(few, base, n_tokens=31, seed=seed) for seed in (0, 1)]
    np.testing.assert_allclose(*whole, atol=TOLERANCE)
    assert found.shape == whole[0].shape


def test_mouse_symbols_raises(cells, base):
    adata = cells.copy()
    adata.var_names = [gene.title() for gene in base.genes]
    with pytest.raises(ValueError, match=r"Only 2 of the data's 60 genes.*mouse symbols \(Actb\) against human"):
        tl.embed(adata, base, progress_bar=False)
    assert not adata.obsm
    assert not adata.uns


def test_too_few_matched_genes_raises(cells, base):
    adata = cells.copy()
    adata.var_names = [*base.genes[:3], *(f"UNKNOWN{i}" for i in range(57))]
    with pytest.raises(ValueError, match=r"Only 3 of the data's 60 genes.*at least 10% of the smaller set is needed"):
        tl.embed(adata, base, progress_bar=False)
    assert not adata.obsm
    adata.var_names = [*base.genes[:6], *(f"UNKNOWN{i}" for i in range(54))]
    assert np.isfinite(tl.embed(adata, base, progress_bar=False)).all()


def test_ensembl_ids_without_symbols_raises(cells, base):
    adata = cells.copy()
    adata.var_names = _ensembl(60)
    with pytest.raises(ValueError, match="Ensembl ids, the base symbols: add a column with the symbols"):
        tl.embed(adata, base, progress_bar=False)
    adata.var_names = [f"ENSMUSG{i:011d}" for i in range(60)]
    with pytest.raises(ValueError, match="of a species other than human"):
        tl.embed(adata, base, progress_bar=False)


def test_repeated_names_raises(cells, base):
    adata = cells.copy()
    adata.var_names = [base.genes[0], base.genes[0], *base.genes[2:]]
    with pytest.raises(ValueError, match=r"adata\.var_names holds 'TP53' more than once"):
        tl.embed(adata, base, progress_bar=False)


def test_a_model_of_cells_with_ensembl_ids_finds_the_symbols_by_gene_key(cells, expected, base):
    adata = cells.copy()
    adata.var["symbol"] = base.genes
    adata.var_names = _ensembl(60)
    model = ssl.setup_anndata(adata, covariate_keys="day", base=base, gene_key="symbol").se
    np.testing.assert_array_equal(model.base.embed(BoundData(model.registry, adata)), expected)
    np.testing.assert_array_equal(tl.embed(adata, model, progress_bar=False), expected)
