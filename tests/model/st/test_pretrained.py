from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.data import log_expression
from scstate_lora.io.published.st_checkpoint import read_st_folder
from scstate_lora.model.st.published import GENE_RANGE, st_tensors
from tests.builders import QUICK, st_network

ARC = Path(__file__).parents[2] / "data" / "arc_st"
SETUP = {"pert_key": "gene", "control": "non-targeting", "cell_type_key": "cell_type", "batch_key": "batch"}


def _cells(targets=("TP53", "IFNG"), n_genes: int = 30, seed: int = 0) -> ad.AnnData:
    """160 cells with the genes that the published models read, among others, and an embedding of 16 numbers."""
    rng = np.random.default_rng(seed)
    n = 160
    obs = pd.DataFrame(
        {
            "gene": rng.choice(["non-targeting", *targets], n),
            "cell_type": rng.choice(["A", "B"], n),
            "batch": rng.choice(["batch0", "batch1", "batch2"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    counts = rng.poisson(np.exp(rng.normal(0.5, 0.5, n_genes)), (n, n_genes)).astype(np.float32)
    counts[:, 3] += 3 * (obs["gene"] == targets[0])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)]))
    adata.obsm["X_state"] = rng.normal(size=(n, 16)).astype(np.float32)
    return adata


def _published(form: str, adata: ad.AnnData | None = None, **given) -> ssl.STTransition:
    adata = _cells() if adata is None else adata
    key = {"embed_key": "X_state"} if form in ("decoder", "embedding", "residual_decoder") else {}
    ssl.STTransition.setup_anndata(adata, **SETUP, **key)
    return ssl.STTransition(adata, pretrained=ARC / form, **given)


@pytest.mark.parametrize(
    "form", ["trained", "bare_basal", "decoder", "embedding", "batch_encoder", "tokens", "raw", "gpt2"]
)
def test_it_predicts_before_any_training_as_the_published_network_does(form):
    st = _published(form)
    predicted = st.predict(target="TP53", contexts={"cell_type": "A"})
    published, network = read_st_folder(ARC / form, st_tensors), st_network(read_st_folder(ARC / form, st_tensors))
    rows = [st.adata.obs_names.get_loc(name) for name in predicted.obs["control_cell"]]
    if published.reads_genes:
        positions = [st.adata.var_names.get_loc(g) for g in published.input_genes]
        x = log_expression(st.adata)[rows][:, positions].toarray()
    else:
        x = st.adata.obsm["X_state"][rows]
    codes = np.array([published.batches[b] for b in st.adata.obs["batch"].iloc[rows]])
    # Sets are windows of four cells at most: the network is asked about the same ones.
    rng = np.random.default_rng(st.seed)
    expected = np.empty_like(x)
    genes = [None] * len(x)
    for window in np.array_split(rng.permutation(len(x)), -(-len(x) // 4)):
        with torch.no_grad():
            batch = torch.from_numpy(codes[window])[None]
            made = network(torch.from_numpy(x[window])[None], published.perturbations["TP53"][None], {}, batch)
            expected[window] = made.cells[0].numpy()
            for i, row in zip(
                window, [] if network.gene_decoder is None else network.decode(made.cells)[0], strict=False
            ):
                genes[i] = row.numpy()
    if published.reads_genes:
        np.testing.assert_allclose(predicted.X, expected.clip(*GENE_RANGE), atol=1e-5)
        assert list(predicted.var_names) == published.input_genes
    else:
        np.testing.assert_allclose(predicted.obsm["X_state"], expected, atol=1e-5)
        if network.gene_decoder is not None:
            np.testing.assert_allclose(predicted.X, np.array(genes).clip(*GENE_RANGE), atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_expression_on_another_scale_than_it_was_trained_on_warns():
    adata = _cells()
    ssl.STTransition.setup_anndata(adata, **SETUP, target_sum=1e6)
    with pytest.warns(UserWarning, match=r"was trained on log1p of counts per 10,000, but reads .* 1,000,000"):
        ssl.STTransition(adata, pretrained=ARC / "trained")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was trained on log1p")
        _published("trained")


def test_adapters_are_trained_on_it_and_saved_alone(tmp_path):
    shutil.copytree(ARC / "trained", tmp_path / "st")
    adata = _cells()
    ssl.STTransition.setup_anndata(adata, **SETUP)
    st = ssl.STTransition(adata, pretrained=tmp_path / "st")
    assert st.finetune == "lora"
    table = st.summary().set_index("part")
    assert table.loc["backbone", "trained"] == 0
    assert "of st (final.ckpt)" in table.loc["backbone", "note"]
    before = {n: p.detach().clone() for n, p in st.network.named_parameters()}
    st.train(max_epochs=1, lr=1e-2, **QUICK)
    moved = {n for n, p in st.network.named_parameters() if not torch.equal(p, before[n])}
    assert any("lora_B" in n for n in moved)
    assert {"pert_encoder.0.weight", "project_out.0.weight"} <= moved
    assert not [n for n in moved if n.startswith("transformer_backbone") and "lora_" not in n]
    predicted = st.predict(target="TP53").X

    st.save(tmp_path / "small")
    st.save(tmp_path / "whole", save_base=True)
    size = {name: (tmp_path / name / "weights.safetensors").stat().st_size for name in ("small", "whole")}
    assert size["small"] < 0.8 * size["whole"]
    notice = (tmp_path / "small" / "NOTICE").read_text()
    assert "Pretrained model: st (final.ckpt)" in notice
    assert "derivative work" in notice
    for name in size:
        again = ssl.STTransition.load(tmp_path / name, adata=adata)
        np.testing.assert_array_equal(again.predict(target="TP53").X, predicted)
    shutil.move(tmp_path / "st", tmp_path / "moved")
    np.testing.assert_array_equal(
        ssl.STTransition.load(tmp_path / "small", adata=adata, pretrained=tmp_path / "moved").predict(target="TP53").X,
        predicted,
    )
    ssl.STTransition.load(tmp_path / "whole", adata=adata)
    with pytest.raises(FileNotFoundError):
        ssl.STTransition.load(tmp_path / "small", adata=adata)
    with pytest.raises(ValueError, match=r"is not the pretrained model that this one was trained on.*pretrained="):
        ssl.STTransition.load(tmp_path / "small", adata=adata, pretrained=ARC / "bare_basal")


def test_perturbations_that_it_does_not_know_get_an_encoder_of_their_own():
    adata = _cells(targets=("burn",))
    st = _published("trained", adata)
    with pytest.raises(ValueError, match=r"call \.train\(\) before predict"):
        st.predict(target="burn")
    stored = st_network(read_st_folder(ARC / "trained", st_tensors)).state_dict()
    own = st.network.state_dict()
    assert own["pert_encoder.0.weight"].shape == (16, 1)
    assert torch.equal(own["basal_encoder.0.weight"], stored["basal_encoder.0.weight"])
    st.train(max_epochs=1, **QUICK)
    assert st.predict(target="burn").n_vars == 12


@pytest.mark.parametrize("form", ["trained", "decoder", "gpt2"])
def test_the_backbone_alone_serves_data_of_any_size(form, tmp_path):
    adata = _cells(targets=("burn",), n_genes=45)
    ssl.STTransition.setup_anndata(adata, **SETUP)
    st = ssl.STTransition(adata, pretrained=ARC / form, reuse="backbone", finetune="frozen")
    stored = st_network(read_st_folder(ARC / form, st_tensors)).transformer_backbone.state_dict()
    assert st.network.config.hidden == 16
    assert st.network.config.residual == "output"
    for name, tensor in st.network.transformer_backbone.state_dict().items():
        assert torch.equal(tensor, stored[name])
    st.train(max_epochs=1, **QUICK)
    predicted = st.predict(target="burn").X
    assert predicted.shape[1] == 45
    st.save(tmp_path / "model")
    again = ssl.STTransition.load(tmp_path / "model", adata=adata)
    np.testing.assert_array_equal(again.predict(target="burn").X, predicted)


def test_other_sizes_raises_with_both_and_the_two_ways_out():
    adata = _cells()
    adata.obsm["X_state"] = adata.obsm["X_state"][:, :10]
    with pytest.raises(
        ValueError, match=r"reads 16 columns of adata.obsm\['X_state'\]; the data have 10 .*reuse='backbone'"
    ):
        _published("decoder", adata)
    with pytest.raises(ValueError, match=r"Missing are .*GENE.*reuse='backbone'"):
        _published("trained", _cells()[:, 2:].copy())
    adata = _cells()
    ssl.STTransition.setup_anndata(adata, **SETUP)
    with pytest.raises(ValueError, match=r"reads 16 columns of adata\.obsm"):
        ssl.STTransition(adata, pretrained=ARC / "decoder")
    with pytest.raises(FileNotFoundError):
        ssl.STTransition(adata, pretrained=ARC / "nothing")
    with pytest.raises(ValueError, match=r"reuse='bone' is unknown. Did you mean 'backbone'"):
        ssl.STTransition(adata, pretrained=ARC / "trained", reuse="bone")


def test_batches_that_its_table_does_not_have_raises():
    adata = _cells()
    adata.obs["batch"] = adata.obs["batch"].replace({"batch2": "mouse7"})
    st = _published("batch_encoder", adata)
    with pytest.raises(
        ValueError, match=r"adata\.obs\['batch'\] holds 'mouse7', of which batch_encoder.*reuse='backbone'"
    ):
        st.predict(target="TP53")
