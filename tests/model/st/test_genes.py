"""Genes that a model predicts: all by default; single cells deviate in those that vary or respond most."""

from __future__ import annotations

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.data import log_expression
from scstate_lora.model.st import genes as choice
from tests.builders import QUICK, SMALL_ST

SETUP = {"pert_key": "guide", "control": "none", "cell_type_key": "type", "test_size": 0.1}


@pytest.fixture(scope="module")
def screen():
    """600 cells x 200 genes in three types: `a` moves genes 0-9, `b` 10-14; genes 50-149 vary within conditions."""
    rng = np.random.default_rng(0)
    n = 600
    obs = pd.DataFrame(
        {"guide": rng.choice(["none", "a", "b"], n), "type": rng.choice(["T", "B", "N"], n)},
        index=[f"c{i}" for i in range(n)],
    )
    rates = np.tile(np.exp(rng.normal(0, 0.3, 200)), (n, 1))
    for guide, moved, fold in (("a", slice(0, 10), 5.0), ("b", slice(10, 15), 3.0)):
        rates[(obs["guide"] == guide).to_numpy(), moved] *= fold
    rates[:, 50:150] *= rng.gamma(0.3, 3.0, (n, 100))
    return ad.AnnData(
        rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(200)])
    )


@pytest.fixture
def adata(screen, monkeypatch):
    """The screen, set up, where 40 variable genes and 12 responders are many."""
    monkeypatch.setattr(choice, "_N_VARIABLE", 40)
    monkeypatch.setattr(choice, "_N_RESPONDERS", 12)
    adata = screen.copy()
    ssl.STTransition.setup_anndata(adata, **SETUP)
    return adata


def _trained(adata, **model):
    st = ssl.STTransition(adata, model={**SMALL_ST, **model})
    st.train(2, **QUICK)
    return st


def _delta(predicted, adata):
    logged = log_expression(adata)[adata.obs_names.get_indexer(predicted.obs["control_cell"])].toarray()
    return predicted.X.mean(0) - logged[:, adata.var_names.get_indexer(predicted.var_names)].mean(0)


def test_all_genes_are_predicted_in_order_and_the_network_reads_some(adata):
    st = _trained(adata)
    assert st.genes == list(adata.var_names)
    n_read = len(st.design.read_genes)
    assert 40 < n_read <= 52
    assert st.network.config.n_inputs == n_read
    assert st.design.gene_note == (
        "all 200 genes; cells deviate from the shift in the 40 most variable, "
        f"{n_read - 40} more that respond most to perturbations"
    )
    assert len({f"G{i}" for i in range(10)} & set(st.design.read_genes)) >= 4
    assert len({f"G{i}" for i in range(10, 15)} & set(st.design.read_genes)) >= 4
    predicted = st.predict(target="a")
    assert list(predicted.var_names) == list(adata.var_names)
    labels, types = adata.obs["guide"].to_numpy(), adata.obs["type"].to_numpy()
    logged, train = log_expression(adata).toarray(), (adata.obs["scstate_split"] == "train").to_numpy()

    def mean(guide, kind):
        return logged[train & (labels == guide) & (types == kind)].mean(0)

    by_type = [mean("a", kind) - mean("none", kind) for kind in "TBN"]
    further = adata.var_names.get_indexer(st.design.further_genes)
    assert len(further) == 200 - n_read
    delta = _delta(predicted, adata)
    # Types are weighted by their control cells, and a fall is half clipped: about the mean shift.
    assert np.abs(delta - np.mean(by_type, axis=0))[further].mean() < 0.1
    assert np.corrcoef(delta[further], np.mean(by_type, axis=0)[further])[0, 1] > 0.9
    assert np.corrcoef(delta, np.mean(by_type, axis=0))[0, 1] > 0.9


def test_genes_that_the_network_reads_are_predicted_as_if_there_were_no_others(adata):
    st = _trained(adata)
    few = _trained(adata, n_genes=1, genes=st.design.read_genes)
    assert few.genes == st.design.read_genes
    np.testing.assert_allclose(st.predict(target="b")[:, few.genes].X, few.predict(target="b").X, atol=1e-5)
    np.testing.assert_allclose(
        st.get_latent_representation(key_added=None), few.get_latent_representation(key_added=None), atol=1e-4
    )


def test_saved_model_predicts_the_same(adata, tmp_path):
    st = _trained(adata)
    st.save(tmp_path / "st")
    loaded = ssl.STTransition.load(tmp_path / "st", adata=adata)
    assert loaded.genes == st.genes
    np.testing.assert_array_equal(loaded.predict(target="a+b").X, st.predict(target="a+b").X)
    st.train(1, **QUICK)  # further training keeps the shift that was solved for
    shift = loaded.network.further_shift
    np.testing.assert_array_equal(st.network.further_shift.shift, shift.shift)


def test_features_predict_all_genes_too(adata):
    features = pd.DataFrame([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]], index=["a", "b", "c"])
    st = ssl.STTransition(adata, model=SMALL_ST, pert_features=features)
    st.train(1, **QUICK)
    assert np.corrcoef(_delta(st.predict(target="c"), adata), _delta(st.predict(target="a"), adata))[0, 1] > 0.8


def test_where_memory_is_short_variable_responding_and_requested_genes_are_predicted(adata, monkeypatch, caplog):
    monkeypatch.setattr(choice, "_MOST_BYTES", 1000)
    with caplog.at_level(logging.INFO, logger="scstate_lora"):
        st = _trained(adata, genes=["G199", "G0"])
    assert "G199" in st.genes
    assert 40 < len(st.genes) <= 54
    assert st.network.config.n_further == 0
    [said] = [r.getMessage() for r in caplog.records if "respond to a perturbation" in r.getMessage()]
    n_responders, n_missed = (int(text) for text in re.findall(r"of the (\d+).*, (\d+) are", said)[0])
    assert n_responders >= 15
    assert 0 <= n_missed <= n_responders - 12
    predicted = st.predict(target="a")
    record = predicted.uns["scstate_lora"]["predict"]
    assert set(record["genes_left_out"]) == set(adata.var_names) - set(st.genes)
    assert "most variable" in record["gene_choice"]


def test_every_perturbation_has_its_share_of_responders(adata, monkeypatch):
    monkeypatch.setattr(choice, "_N_RESPONDERS", 6)
    monkeypatch.setattr(choice, "_N_VARIABLE", 5)
    st = ssl.STTransition(adata, model=SMALL_ST)
    read = set(st.design.read_genes)
    assert len(read & {f"G{i}" for i in range(10)}) >= 3
    assert len(read & {f"G{i}" for i in range(10, 15)}) >= 3


@pytest.mark.parametrize("model", [{"residual": "latent"}, {"space": "embedding"}])
def test_without_a_shift_of_genes_the_network_predicts_them(screen, monkeypatch, model):
    monkeypatch.setattr(choice, "_N_VARIABLE", 40)
    adata = screen.copy()
    adata.obsm["X_e"] = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    ssl.STTransition.setup_anndata(adata, **SETUP, embed_key="X_e")
    st = _trained(adata, **model)
    assert 40 < len(st.genes) < 200
    assert st.predict(target="a").shape[1] == len(st.genes)


def test_number_or_none_choose_as_they_say(adata):
    assert ssl.STTransition(adata, model={**SMALL_ST, "n_genes": None}).network.config.n_inputs == 200
    few = ssl.STTransition(adata, model={**SMALL_ST, "n_genes": 30, "genes": ["G199"]})
    assert len(few.genes) in (30, 31)
    assert "G199" in few.genes
    with pytest.raises(KeyError, match=r"genes names 'G200', which the data do not have. Did you mean"):
        ssl.STTransition(adata, model={**SMALL_ST, "n_genes": 30, "genes": ["G200"]})
    with pytest.raises(KeyError, match="genes names 'G200'"):
        ssl.STTransition(adata, model={**SMALL_ST, "n_genes": None, "genes": ["G200"]})


def test_counts_of_all_genes_are_drawn(adata):
    st = _trained(adata)
    counts = st.predict(target="a", output="counts")
    assert counts.shape[1] == 200
    np.testing.assert_array_equal(counts.obs["library_size"], np.asarray(counts.X.sum(axis=1)).ravel())
