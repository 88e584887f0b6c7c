"""`decode_expression`: from an embedding back to expression, by the base's own decoder."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.inference import embed as inference_embed

ARC = Path(__file__).parents[1] / "data" / "arc"
GENES = ["CD4", "TP53", "GAPDH"]


@pytest.fixture(scope="module")
def base():
    return ssl.SEBase.load(ARC / "folder")


@pytest.fixture
def embedded(base):
    """30 cells with their embedding; of the decoded genes TP53 alone is among the data's."""
    rng = np.random.default_rng(0)
    genes = [gene for gene in base.genes if gene not in ("CD4", "GAPDH")]
    x = sparse.csr_matrix(rng.poisson(1.0, (30, len(genes))).astype(np.float32))
    obs = pd.DataFrame({"day": rng.choice(["d1", "d2"], 30)}, index=[f"cell{i}" for i in range(30)])
    adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))
    tl.embed(adata, base, progress_bar=False)
    return adata


def _decode(adata, base, genes=GENES, **options):
    return tl.decode_expression(adata, base, genes=genes, progress_bar=False, **options)


def test_cells_by_genes_with_the_cells_own_table(embedded, base):
    before = embedded.copy()
    decoded = _decode(embedded, base)
    assert decoded.shape == (30, 3)
    assert decoded.X.dtype == np.float32
    assert np.isfinite(decoded.X).all()
    assert decoded.X.std(axis=0).min() > 0  # cells differ
    assert decoded.X.std(axis=1).min() > 0  # and genes
    assert list(decoded.var_names) == GENES
    pd.testing.assert_frame_equal(decoded.obs, embedded.obs)
    assert dict(decoded.uns["scstate_lora"]["decode_expression"]) == {
        "base": base.name,
        "obsm_key": "X_state",
        "read_depth": 4.0,
        "scale": "log1p",
    }
    assert (embedded.X != before.X).nnz == 0
    assert set(embedded.uns["scstate_lora"]) == {"embed"}


def test_what_is_decoded_is_written_and_read(embedded, base, tmp_path):
    decoded = _decode(embedded, base)
    decoded.write_h5ad(tmp_path / "decoded.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "decoded.h5ad").X, decoded.X)


def test_genes_come_in_the_order_asked_for_and_do_not_influence_each_other(embedded, base):
    decoded = _decode(embedded, base)
    for genes in (GENES[::-1], np.array(GENES), pd.Index(GENES), tuple(GENES), base.genes, ["TP53"]):
        again = _decode(embedded, base, genes)
        assert list(again.var_names) == list(genes)
        shared = [gene for gene in GENES if gene in list(genes)]
        np.testing.assert_allclose(again[:, shared].X, decoded[:, shared].X, atol=1e-6)


def test_cells_do_not_influence_each_other(embedded, base):
    decoded = _decode(embedded, base)
    chosen = embedded[[7, 3, 20]]
    np.testing.assert_allclose(_decode(chosen, base).X, decoded[[7, 3, 20]].X, atol=1e-6)


@pytest.mark.parametrize("form", ["folder", "no_rda/model.ckpt", "no_dataset/model.ckpt"])
def test_read_depth_matters_to_a_base_that_is_told_it(embedded, form):
    base = ssl.SEBase.load(ARC / form)
    tl.embed(embedded, base, progress_bar=False)
    default, given, low = (_decode(embedded, base, **depth).X for depth in ({}, {"read_depth": 4}, {"read_depth": 0.5}))
    np.testing.assert_array_equal(default, given)
    assert (np.abs(low - default).max() > 1e-3) == base.encoder.config.rda


@pytest.mark.parametrize("n_pairs", [1, 2, 7, 50])
def test_pieces_give_the_same(embedded, base, n_pairs, monkeypatch):
    genes = base.genes[:9]
    whole = _decode(embedded, base, genes).X
    monkeypatch.setattr(inference_embed, "_PAIR_ACTIVATIONS", n_pairs * 3 * base.encoder.config.decoder_dim)
    np.testing.assert_allclose(_decode(embedded, base, genes).X, whole, atol=1e-6)


def test_result_shares_nothing_with_the_cells(embedded, base):
    decoded = _decode(embedded, base)
    embedding, x = embedded.obsm["X_state"].copy(), embedded.X.copy()
    decoded.X[:] = -1
    decoded.obs["day"] = "other"
    np.testing.assert_array_equal(embedded.obsm["X_state"], embedding)
    assert (embedded.X != x).nnz == 0
    assert set(embedded.obs["day"]) == {"d1", "d2"}
    embedded.obsm["X_state"][:] = 0
    assert (decoded.X == -1).all()


def test_base_may_be_a_path_or_a_model_and_the_key_another(embedded, base):
    expected = _decode(embedded, base).X
    embedded.obsm["X_mine"] = embedded.obsm.pop("X_state").astype(np.float64)
    np.testing.assert_array_equal(_decode(embedded, ARC / "folder", obsm_key="X_mine").X, expected)
    model = ssl.setup_anndata(embedded, covariate_keys="day", base=base).se
    decoded = _decode(embedded, model, obsm_key="X_mine")
    np.testing.assert_array_equal(decoded.X, expected)
    assert decoded.uns["scstate_lora"]["decode_expression"]["obsm_key"] == "X_mine"


def test_a_table_as_embedding(embedded, base):
    expected = _decode(embedded, base).X
    embedded.obsm["X_state"] = pd.DataFrame(embedded.obsm["X_state"], index=embedded.obs_names)
    np.testing.assert_array_equal(_decode(embedded, base).X, expected)


def test_backed_cells(embedded, base, tmp_path):
    expected = _decode(embedded, base).X
    embedded.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(_decode(backed, base).X, expected)
    backed.file.close()


def test_an_unknown_gene_raises(embedded, base):
    message = r"1 of 2 genes are not in the vocabulary of folder.*: GAPDHH. Did you mean 'GAPDH'"
    with pytest.raises(KeyError, match=message):
        _decode(embedded, base, ["TP53", "GAPDHH"])
    with pytest.raises(KeyError, match=r"7 of 7 genes.*: g0, g1, g2, g3, g4, …\."):
        _decode(embedded, base, [f"g{i}" for i in range(7)])


@pytest.mark.parametrize("genes", ["TP53", {"TP53": 1}, 5, None])
def test_genes_that_are_no_list_raises(embedded, base, genes):
    with pytest.raises(TypeError, match=rf"genes must be a list of names, found {type(genes).__name__}"):
        _decode(embedded, base, genes)


def test_another_width_raises(embedded, base):
    message = r"adata\.obsm\['X_pca'\] has shape \(30, 8\), but embeddings of folder .* have 18 numbers \(8 of the cell"
    embedded.obsm["X_pca"] = embedded.obsm["X_state"][:, :8]
    with pytest.raises(ValueError, match=message):
        _decode(embedded, base, obsm_key="X_pca")
    with pytest.raises(ValueError, match=r"has shape \(30, 18\), but embeddings of no_dataset .* have 8 numbers"):
        _decode(embedded, ARC / "no_dataset" / "model.ckpt")


def test_an_absent_embedding_raises(embedded, base):
    with pytest.raises(KeyError, match=r"adata\.obsm\['X_stat'\] does not exist\. Did you mean 'X_state'"):
        _decode(embedded, base, obsm_key="X_stat")
    with pytest.raises(KeyError, match="None are available"):
        _decode(ad.AnnData(np.ones((2, 2), dtype=np.float32)), base)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_raises(embedded, base, value):
    embedded.obsm["X_state"][4, 2] = value
    with pytest.raises(ValueError, match=r"adata\.obsm\['X_state'\] holds NaN or infinite values"):
        _decode(embedded, base)


@pytest.mark.parametrize("read_depth", [-1, np.nan, np.inf, "4", None])
def test_a_read_depth_that_makes_no_sense_raises(embedded, base, read_depth):
    with pytest.raises(ValueError, match=r"read_depth=.* must be a number, 0 or more"):
        _decode(embedded, base, read_depth=read_depth)


def test_a_base_that_is_none_raises(embedded, tmp_path):
    with pytest.raises(TypeError, match="base must be a LoRACovariateSE, an SEBase, a path or a hub id, found int"):
        _decode(embedded, 3)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _decode(embedded, tmp_path / "nowhere")


def test_no_genes_raises(embedded, base):
    with pytest.raises(ValueError, match="genes is empty"):
        _decode(embedded, base, [])


def test_genes_may_be_a_column_of_names(embedded, base):
    names = pd.Series(GENES, index=[7, 8, 9])
    np.testing.assert_array_equal(_decode(embedded, base, names).X, _decode(embedded, base).X)


def test_genes_may_be_given_by_place(embedded, base):
    decoded = tl.decode_expression(embedded, base, GENES, progress_bar=False)
    np.testing.assert_array_equal(decoded.X, _decode(embedded, base).X)
