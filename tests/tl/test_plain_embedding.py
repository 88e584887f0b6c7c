from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc

import scstate_lora as ssl
from scstate_lora import tl
from tests.builders import QUICK, wound

COMPACT = {"n_steps": 10, "d_model": 16, "d_hid": 16, "n_layers": 1, "n_heads": 2, "output_dim": 8, "n_tokens": 33}


def _wound():
    return wound(200, seed=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model and the directory it is saved in."""
    adata = _wound()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition", "timepoint"])
    model = ssl.LoRACovariateSE(adata, compact=COMPACT, conditioning={"n_steps": 5})
    model.train(max_epochs=2, **QUICK)
    path = tmp_path_factory.mktemp("saved") / "se"
    model.save(path)
    return model, path


def test_is_the_base_of_a_trained_model_without_adapters_and_covariates(trained):
    model, path = trained
    adata = model.adata
    conditioned = model.get_latent_representation()
    plain = adata.obsm["X_scstate_base"].copy()
    for base in (model, model.base, path, str(path)):
        np.testing.assert_array_equal(tl.embed(adata, base), plain)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)
    assert np.abs(conditioned - plain).max() > 1e-3
    changed = adata.copy()
    changed.obs["condition"] = changed.obs["condition"].to_numpy()[::-1]
    np.testing.assert_array_equal(tl.embed(changed, model), plain)


def test_cells_need_not_be_set_up_and_are_only_added_to(trained):
    model, _ = trained
    adata = _wound()
    before = adata.copy()
    embedding = tl.embed(adata, model)
    np.testing.assert_array_equal(embedding, tl.embed(model.adata, model))
    np.testing.assert_array_equal(adata.obsm["X_state"], embedding)
    assert list(adata.obsm) == ["X_state"]
    assert list(adata.uns) == ["scstate_lora"]
    made = adata.uns["scstate_lora"]["embed"]["X_state"]
    assert (made["scale"], made["n_tokens"], made["seed"], made["matrix"]) == ("counts", 33, 0, "adata.X")
    assert "200 of the data's 200 genes" in made["genes"]
    assert (adata.X != before.X).nnz == 0


def test_genes_are_matched_by_name(trained):
    model, _ = trained
    adata = _wound()
    # The same sentences, whose genes are summed in another order.
    np.testing.assert_allclose(tl.embed(adata[:, ::-1].copy(), model), tl.embed(adata, model), atol=1e-5)
    named = adata.copy()
    named.var["symbol"] = named.var_names.to_numpy()
    named.var_names = [f"ID{i}" for i in range(named.n_vars)]
    np.testing.assert_array_equal(tl.embed(named, model, gene_key="symbol"), tl.embed(adata, model))


def test_key_added_names_where_it_goes(trained):
    model, _ = trained
    adata = _wound()
    tl.embed(adata, model, key_added=None)
    assert not adata.obsm
    tl.embed(adata, model, key_added="X_mine")
    assert list(adata.obsm) == ["X_mine"]


def test_layer_and_scale_that_are_given_hold_for_registered_cells_too(trained):
    model, _ = trained
    adata = model.adata.copy()
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    adata.layers["logged"] = logged.X
    of_layer = tl.embed(adata, model, layer="logged")
    del logged.uns["scstate_lora"]
    np.testing.assert_array_equal(of_layer, tl.embed(logged, model, input_scale="log1p"))
    assert np.abs(of_layer - tl.embed(adata, model)).max() > 1e-4


def test_model_without_base_raises():
    adata = _wound()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition")
    with pytest.raises(ValueError, match=r"no base yet: call \.train\(\)"):
        tl.embed(adata, ssl.LoRACovariateSE(adata))


def test_base_that_is_none_raises(trained, tmp_path):
    with pytest.raises(TypeError, match="found dict"):
        tl.embed(_wound(), {})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tl.embed(_wound(), tmp_path / "nowhere")


def test_unusable_cells_raise(trained):
    model, _ = trained
    adata = _wound()
    other = adata.copy()
    other.var_names = other.var_names.str.upper()
    with pytest.raises(ValueError, match="mouse symbols"):
        tl.embed(other, model)
    with pytest.raises(KeyError, match=r"adata\.layers\['raw'\]"):
        tl.embed(adata, model, layer="raw")
    with pytest.raises(KeyError, match="symbol"):
        tl.embed(adata, model, gene_key="symbol")
    with pytest.raises(ValueError, match="use 'counts'"):
        tl.embed(adata, model, input_scale="log1p")
    adata.X = adata.X.toarray()
    adata.X[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        tl.embed(adata, model)
    assert not adata.obsm


def test_logarithms_to_another_base_are_read_as_natural_ones(trained):
    model, _ = trained
    natural, other = _wound(), _wound()
    for adata, base in ((natural, None), (other, 2)):
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata, base=base)
    np.testing.assert_allclose(tl.embed(other, model), tl.embed(natural, model), atol=1e-4)


def test_unusable_values_with_counts_in_raw_say_how_to_use_them(trained):
    model, _ = trained
    adata = _wound()
    adata.raw = adata
    adata.X = np.sqrt(adata.X)
    with pytest.raises(ValueError, match=r"square-root-transformed.*adata\.raw holds counts of 200 genes"):
        tl.embed(adata, model)
