"""An embedding in obsm as the base."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.data.bound import BoundData
from scstate_lora.model.se.obsm_embedding import ObsmBase
from tests.builders import QUICK


def _with_pca(wound, n=200, **setup):
    adata = wound[:n].copy()
    x = np.log1p(adata.X.toarray() if sparse.issparse(adata.X) else adata.X)
    x = x - x.mean(0)
    adata.obsm["X_pca"] = (x @ np.linalg.svd(x, full_matrices=False)[2][:12].T + 5).astype(np.float32)
    options = {"covariate_keys": ["condition", "timepoint"], "cell_type_key": "cell_type", "embed_key": "X_pca"}
    ssl.LoRACovariateSE.setup_anndata(adata, **{**options, **setup})
    return adata


@pytest.fixture(scope="module")
def fitted(wound):
    """A model on a PCA. Not to be changed."""
    model = ssl.LoRACovariateSE(_with_pca(wound), conditioning={"n_steps": 6})
    model.train(**QUICK)
    return model


def test_training_cells_are_centred_and_of_unit_length_on_average(wound):
    adata = _with_pca(wound)
    model = ssl.LoRACovariateSE(adata)
    train = (adata.obs["scstate_split"] == "train").to_numpy()
    z = model.base.embed(BoundData(model.registry, adata))
    assert z.dtype == np.float32
    np.testing.assert_allclose(z[train].mean(0), 0, atol=1e-5)
    assert (z[train] ** 2).sum(1).mean() == pytest.approx(1, abs=1e-4)
    assert np.abs(z[~train].mean(0)).max() > 1e-3  # others do not count
    assert (model.base.dim, model.base.name) == (12, "adata.obsm['X_pca']")


def test_only_the_conditioning_is_trained(fitted):
    assert set(fitted.history.columns) >= {"contrastive", "covariates", "preservation", "counterfactual"}
    assert "reconstruction" not in fitted.history
    assert fitted.history["step"].max() >= 6
    assert fitted.history.loc[fitted.history["phase"] == "train", "loss"].notna().all()
    assert fitted.network.encoder is None
    assert "X_pca" in repr(fitted)
    assert "reconstruction" not in repr(fitted)


def test_cells_are_embedded_under_their_own_and_other_covariates(fitted):
    z = fitted.get_latent_representation()
    assert z.shape == (200, 12)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(fitted.adata.obsm["X_scstate_lora"], z)
    moved = fitted.get_latent_representation(covariates={"condition": "burn"})
    is_burn = (fitted.adata.obs["condition"] == "burn").to_numpy()
    np.testing.assert_allclose(moved[is_burn], z[is_burn], atol=1e-6)
    assert (np.abs(moved - z)[~is_burn].max(1) > 1e-5).all()


def test_saved_and_loaded_it_embeds_new_cells_alike(fitted, wound, tmp_path):
    fitted.save(tmp_path / "se")
    files = {file.name for file in (tmp_path / "se").iterdir()}
    assert not {"base.safetensors", "lora.default.safetensors"} & files
    assert "conditioning.default.safetensors" in files
    notice = (tmp_path / "se" / "NOTICE").read_text()
    assert "adata.obsm['X_pca']" in notice
    assert fitted.base.sha256() in notice
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se")
    few = fitted.adata[[5, 3, 150]].copy()
    expected = fitted.get_latent_representation(few, key_added=None)
    np.testing.assert_array_equal(loaded.get_latent_representation(few, key_added=None), expected)
    np.testing.assert_allclose(expected, fitted.get_latent_representation(key_added=None)[[5, 3, 150]], atol=1e-6)
    assert loaded.base.sha256() == fitted.base.sha256()
    with pytest.raises(ValueError, match="takes no base="):
        ssl.LoRACovariateSE.load(tmp_path / "se", base=tmp_path)


def test_embeddings_of_another_width_or_none_raise(fitted):
    few = fitted.adata[:10].copy()
    few.obsm["X_pca"] = few.obsm["X_pca"][:, :7]
    with pytest.raises(ValueError, match=r"adata\.obsm\['X_pca'\].*7.*12"):
        fitted.get_latent_representation(few)
    del few.obsm["X_pca"]
    with pytest.raises(KeyError, match=r"adata\.obsm\['X_pca'\]"):
        fitted.get_latent_representation(few)


def test_a_base_besides_raises(wound, trained):
    with pytest.raises(ValueError, match=r"base= and embed_key='X_pca' each name a base"):
        ssl.LoRACovariateSE(_with_pca(wound), base=trained[1].base)


def test_an_embedding_that_is_the_same_for_all_raises(wound):
    adata = _with_pca(wound)
    adata.obsm["X_pca"][:] = 2.0
    with pytest.raises(ValueError, match=r"adata\.obsm\['X_pca'\] is the same for all training cells"):
        ssl.LoRACovariateSE(adata)


def test_metadata_restores_the_base():
    base = ObsmBase("X_scvi", np.array([0.1, -2.0, 1 / 3], dtype=np.float32), 1.7)
    again = ObsmBase.restore(base.metadata())
    np.testing.assert_array_equal(again.mean, base.mean)
    assert (again.key, again.scale, again.sha256()) == (base.key, base.scale, base.sha256())
    other = ObsmBase("X_scvi", base.mean + 1, 1.7)
    assert other.sha256() != base.sha256()
