"""STTransition by its options: spaces, features, losses, adapters, hyper-connections."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.data import log_expression
from tests.builders import QUICK, SMALL_ST

TARGETS = tuple("ABCDEFGHIJ")


def _screen() -> ad.AnnData:
    """1200 cells x 24 genes; a perturbation changes genes as its two features say, A by most."""
    rng = np.random.default_rng(0)
    n = 1200
    features = pd.DataFrame(rng.normal(size=(10, 2)), index=list(TARGETS), columns=["f", "g"])
    features.loc["A"] = [2.0, -1.5]
    loading = np.zeros((2, 24))
    loading[0, :4], loading[1, 4:8] = 1.2, 1.2
    names = rng.choice(["none", *TARGETS], n, p=[0.2, *[0.08] * 10])
    effect = np.array([np.zeros(24) if name == "none" else features.loc[name].to_numpy() @ loading for name in names])
    counts = rng.poisson(np.exp(1.0 + 0.3 * rng.normal(size=24) + effect)).astype(np.float32)
    obs = pd.DataFrame(
        {"guide": names, "cell_type": rng.choice(["x", "y"], n), "batch": rng.choice(["1", "2"], n)},
        index=[f"cell{i}" for i in range(n)],
    )
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(24)]))
    adata.obsm["X_other"] = (log_expression_of(counts) @ rng.normal(size=(24, 6))).astype(np.float32)
    adata.uns["features"] = features
    return adata


def log_expression_of(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return _screen()


def _set_up(screen: ad.AnnData, **more) -> ad.AnnData:
    adata = screen.copy()
    options = {"pert_key": "guide", "control": "none", "cell_type_key": "cell_type", "batch_key": "batch", **more}
    ssl.STTransition.setup_anndata(adata, **options)
    return adata


def _delta(predicted: ad.AnnData, adata: ad.AnnData) -> np.ndarray:
    control = log_expression(adata)[(adata.obs["guide"] == "none").to_numpy()].toarray()
    return predicted.X.mean(axis=0) - control.mean(axis=0)


def test_features_predict_perturbations_that_were_never_seen(screen):
    adata = _set_up(screen, holdout={"guide": ["D", "E"]})
    st = ssl.STTransition(adata, model=SMALL_ST, pert_features=screen.uns["features"])
    st.train(max_epochs=2, **QUICK)
    logged = log_expression(adata).toarray()
    deltas = {}
    for name in ("D", "E"):
        real = logged[(adata.obs["guide"] == name).to_numpy()].mean(0) - logged[
            (adata.obs["guide"] == "none").to_numpy()
        ].mean(0)
        deltas[name] = _delta(st.predict(target=name), adata)
        assert np.corrcoef(deltas[name], real)[0, 1] > 0.7
    both = _delta(st.predict(target="D+E"), adata)
    assert np.corrcoef(both, deltas["D"] + deltas["E"])[0, 1] > 0.8
    with pytest.raises(ValueError, match=r"target='Z' has no row in pert_features"):
        st.predict(target="Z")
    with pytest.raises(ValueError, match=r"No training cell has adata.obs\['guide'\] = 'D', 'E'.*pert_features="):
        ssl.STTransition(adata, model=SMALL_ST)


def test_features_are_saved_with_the_model(screen, tmp_path):
    adata = _set_up(screen, holdout={"guide": ["D", "E"]})
    st = ssl.STTransition(adata, model=SMALL_ST, pert_features=screen.uns["features"])
    st.train(max_epochs=1, **QUICK)
    st.save(tmp_path / "st")
    again = ssl.STTransition.load(tmp_path / "st", adata=adata)
    np.testing.assert_array_equal(again.predict(target="E").X, st.predict(target="E").X)
    assert "features of 10 perturbations" in again.summary().set_index("part").loc["perturbation encoder", "note"]


def test_an_embedding_is_predicted_and_expression_decoded_from_it(screen):
    adata = _set_up(screen, embed_key="X_other")
    st = ssl.STTransition(adata, model={**SMALL_ST, "space": "embedding"})
    st.train(max_epochs=4, lr=3e-3, **QUICK)
    predicted = st.predict(target="A")
    assert predicted.obsm["X_other"].shape == (predicted.n_obs, 6)
    assert predicted.obsm["X_other"].min() < 0
    assert list(predicted.var_names) == st.genes
    assert predicted.X.min() >= 0
    assert predicted.uns["scstate_lora"]["predict"]["space"] == "X_other"
    real = adata.obsm["X_other"][(adata.obs["guide"] == "A").to_numpy()].mean(0)
    before = adata.obsm["X_other"][(adata.obs["guide"] == "none").to_numpy()].mean(0)
    assert np.linalg.norm(predicted.obsm["X_other"].mean(0) - real) < 0.5 * np.linalg.norm(before - real)
    assert {"decoder", "energy"} <= set(st.history.columns)
    bare = ssl.STTransition(adata, model={**SMALL_ST, "space": "embedding", "gene_decoder": False})
    bare.train(max_epochs=1, **QUICK)
    assert bare.predict(target="A").n_vars == 0
    with pytest.raises(ValueError, match="space='embedding' needs one to work in"):
        ssl.STTransition(_set_up(screen), model={**SMALL_ST, "space": "embedding"})


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("finetune", ["lora", "frozen"])
def test_of_the_backbone_only_what_is_asked_for_trains(screen, backbone, finetune, tmp_path):
    adata = _set_up(screen)
    st = ssl.STTransition(adata, model={**SMALL_ST, "backbone": backbone}, finetune=finetune)
    before = {name: p.detach().clone() for name, p in st.network.named_parameters()}
    st.train(max_epochs=1, mhc=finetune == "lora", **QUICK)
    moved = {
        n.replace(".inner.", ".")
        for n, p in st.network.named_parameters()
        if n in before and not torch.equal(p, before[n])
    }
    inside = {name for name in moved if name.startswith("transformer_backbone")}
    assert all("lora_" in name for name in inside)
    assert {"pert_encoder.0.weight", "basal_encoder.0.weight", "project_out.3.weight"} <= moved
    table = st.summary().set_index("part")
    assert table.loc["backbone", "trained"] == 0
    if finetune == "lora":
        assert table.loc["hyper-connections", "trained"] > 0
        assert (st.mhc_diagnostics()[["row_error", "column_error"]] < 1e-3).all().all()
    st.save(tmp_path / "st")
    again = ssl.STTransition.load(tmp_path / "st", adata=adata)
    np.testing.assert_array_equal(again.predict(target="A").X, st.predict(target="A").X)


def test_connections_change_nothing_at_first_and_stay_as_they_are(screen):
    adata = _set_up(screen)
    plain = ssl.STTransition(adata, model=SMALL_ST)
    wrapped = ssl.STTransition(adata, model=SMALL_ST)
    wrapped.train(max_epochs=1, mhc={"kind": "features"}, lr=1e-9, weight_decay=0.0, **QUICK)
    plain.train(max_epochs=1, lr=1e-9, weight_decay=0.0, **QUICK)
    np.testing.assert_allclose(wrapped.predict(target="A").X, plain.predict(target="A").X, atol=1e-4)
    with pytest.raises(ValueError, match="kind='features' exists, 'streams' is requested"):
        wrapped.train(max_epochs=1, mhc=True, **QUICK)
    wrapped.train(max_epochs=1, **QUICK)
    assert wrapped.mhc is not None


def test_connections_that_depend_on_the_cells_are_described_by_training_cells(screen, tmp_path):
    st = ssl.STTransition(_set_up(screen), model=SMALL_ST)
    st.train(max_epochs=1, mhc={"dynamic": True}, lr=1e-2, **QUICK)
    st.save(tmp_path / "st")
    without_cells = ssl.STTransition.load(tmp_path / "st")
    by_cells, static = st.mhc_matrices()[0], without_cells.mhc_matrices()[0]
    np.testing.assert_allclose(by_cells.sum(axis=1), 1, atol=1e-3)
    assert np.abs(by_cells - static).max() > 1e-7


def test_tokens_beside_the_cells_tell_of_the_set(screen):
    adata = _set_up(screen)
    st = ssl.STTransition(adata, model={**SMALL_ST, "confidence_token": True, "batch_token": True})
    st.train(max_epochs=1, **QUICK)
    assert {"confidence", "batch"} <= set(st.history.columns)
    expected = st.predict(target="A").obs["expected_loss"]
    assert (expected >= 0).all()
    assert expected.notna().all()
    with pytest.raises(ValueError, match="batch_token needs several batches"):
        ssl.STTransition(_set_up(screen, batch_key=None), model={**SMALL_ST, "batch_token": True})


def test_velocity_is_read_from_a_layer_and_its_parts_are_logged(screen):
    adata = _set_up(screen)
    adata.layers["velocity"] = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    adata.obs["velocity_confidence"] = np.float32(0.5)
    st = ssl.STTransition(adata, model=SMALL_ST, objective={"velocity_key": "velocity", "velocity_warmup_steps": 5})
    st.train(max_epochs=1, **QUICK)
    train = st.history[st.history["phase"] == "train"]
    assert {"velocity", "velocity_cos_similarity", "velocity_magnitude_st", "velocity_avg_confidence"} <= set(train)
    assert (train["velocity_avg_confidence"] == 0.5).all()
    with pytest.raises(KeyError, match=r"adata.layers\['velocty'\] does not exist. Did you mean 'velocity'"):
        ssl.STTransition(adata, model=SMALL_ST, objective={"velocity_key": "velocty"}).train(max_epochs=1, **QUICK)


def test_other_losses_and_forms_train(screen):
    adata = _set_up(screen)
    objective = {"energy": 0.0, "sinkhorn": 1.0, "mmd": 1.0, "mse": 0.1, "l1": 0.1}
    st = ssl.STTransition(adata, model={**SMALL_ST, "residual": "latent"}, objective=objective)
    st.train(max_epochs=3, lr=3e-3, **QUICK)
    train = st.history[st.history["phase"] == "train"]
    assert {"sinkhorn", "mmd", "mse", "l1"} <= set(train.columns)
    assert train["sinkhorn"].iloc[-5:].mean() < train["sinkhorn"].iloc[:5].mean()
    assert "shift" not in set(st.summary()["part"])
    with pytest.raises(ValueError, match="nothing compares the cells"):
        ssl.STTransition(adata, objective={"energy": 0})
    with pytest.raises(ValueError, match=r"finetune='lor' is unknown. Did you mean 'lora'"):
        ssl.STTransition(adata, finetune="lor")
    with pytest.raises(ValueError, match="finetune='full' has none"):
        ssl.STTransition(adata, lora={"r": 4}, finetune="full")
