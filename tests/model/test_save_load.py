from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.data.bound import BoundData
from scstate_lora.model import SEBase
from tests.builders import QUICK


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    trained[1].save(folder / "se")
    trained[2].save(folder / "st")
    return folder


def test_loaded_embedding_model_gives_equal_bits(trained, saved):
    adata, se, _ = trained
    loaded = ssl.LoRACovariateSE.load(saved / "se", adata=adata)
    for covariates in (None, {"timepoint": "day14"}):
        np.testing.assert_array_equal(
            loaded.get_latent_representation(covariates=covariates, key_added=None),
            se.get_latent_representation(covariates=covariates, key_added=None),
        )
    np.testing.assert_array_equal(
        loaded.base.embed(BoundData(loaded.registry, adata)), se.base.embed(BoundData(se.registry, adata))
    )
    assert loaded.registry == se.registry
    assert (loaded.lora, loaded.compact, loaded.objective) == (se.lora, se.compact, se.objective)
    pd.testing.assert_frame_equal(loaded.history, se.history, check_exact=True)
    pd.testing.assert_frame_equal(loaded.base_history, se.base_history, check_exact=True)
    assert repr(loaded) == repr(se)


def test_loaded_transition_model_gives_equal_bits(trained, saved):
    adata, _, st = trained
    loaded = ssl.STTransition.load(saved / "st", adata=adata)
    np.testing.assert_array_equal(loaded.predict(target="burn").X, st.predict(target="burn").X)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(key_added=None), st.get_latent_representation(key_added=None)
    )
    pd.testing.assert_frame_equal(loaded.history, st.history, check_exact=True)
    assert repr(loaded) == repr(st)


def test_a_model_with_a_foreign_base_is_loaded_too(trained, wound, setup, make_se, tmp_path):
    order = np.random.default_rng(3).permutation(200)
    adata = wound[:, order].copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata, base=trained[1].base)
    se.train(max_epochs=1, **QUICK)
    se.save(tmp_path / "se")
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=adata)
    assert len(loaded.base_history) == 0
    np.testing.assert_array_equal(loaded.get_latent_representation(), se.get_latent_representation())


def test_the_directory_holds_json_safetensors_histories_and_a_notice(trained, saved):
    se = trained[1]
    files = {file.name for file in (saved / "se").iterdir()}
    assert files == {
        "model.json",
        "lora.default.safetensors",
        "conditioning.default.safetensors",
        "base.safetensors",
        "base_cells.safetensors",
        "split.safetensors",
        "history.default.csv",
        "base_history.csv",
        "NOTICE",
    }
    metadata = json.loads((saved / "se" / "model.json").read_text())
    assert metadata["base"]["sha256"] == se.base.sha256()
    notice = (saved / "se" / "NOTICE").read_text()
    for part in (se.base.name, se.base.sha256(), se.base.licence):
        assert part in notice


def test_a_loaded_model_trains_on(trained, saved):
    adata, se, st = trained
    for cls, name, model in ((ssl.LoRACovariateSE, "se", se), (ssl.STTransition, "st", st)):
        loaded = cls.load(saved / name, adata=adata)
        loaded.train(max_epochs=1, **QUICK)
        assert loaded.history["step"].max() > model.history["step"].max()
        assert loaded.history["epoch"].max() == model.history["epoch"].max() + 1


def test_saving_again_replaces_the_model(trained, tmp_path):
    trained[2].save(tmp_path / "model")
    trained[1].save(tmp_path / "model")
    assert ssl.LoRACovariateSE.load(tmp_path / "model").is_trained


def test_without_data_cells_must_be_given_raises(trained, saved):
    adata, se, st = trained
    loaded = ssl.LoRACovariateSE.load(saved / "se")
    with pytest.raises(ValueError, match=r"LoRACovariateSE was loaded without data. Pass adata="):
        loaded.get_latent_representation()
    with pytest.raises(ValueError, match=r"STTransition was loaded without data. Pass adata="):
        ssl.STTransition.load(saved / "st").predict(target="burn")
    np.testing.assert_array_equal(
        loaded.get_latent_representation(adata, key_added=None), se.get_latent_representation(key_added=None)
    )
    np.testing.assert_array_equal(
        ssl.STTransition.load(saved / "st").predict(adata, target="burn").X, st.predict(target="burn").X
    )


def test_training_on_cells_that_were_not_set_up_raises(wound, saved):
    loaded = ssl.LoRACovariateSE.load(saved / "se", adata=wound.copy())
    with pytest.raises(KeyError, match=r"adata\.obs\['scstate_split'\] does not exist: run ssl\.setup_anndata"):
        loaded.train(**QUICK)


def test_another_class_raises(saved):
    with pytest.raises(ValueError, match=r"holds a STTransition, not a LoRACovariateSE. Load it by ssl\.STTransition"):
        ssl.LoRACovariateSE.load(saved / "st")
    with pytest.raises(
        ValueError, match=r"holds a STTransition without a base. Give the directory of a LoRACovariateSE"
    ):
        SEBase.load(saved / "st")


def test_missing_directory_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ssl.STTransition.load(tmp_path / "nowhere")


def test_what_is_no_anndata_raises(saved):
    with pytest.raises(TypeError, match="Expected an AnnData, found str"):
        ssl.STTransition.load(saved / "st", adata="cells.h5ad")
