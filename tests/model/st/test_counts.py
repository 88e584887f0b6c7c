"""Counts drawn for predicted cells: whole numbers whose zeros, means and spread are those of measured cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import workflow
from scstate_lora.data import log_expression
from scstate_lora.model.st.counts import draw_counts
from tests.builders import QUICK, SMALL_ST

SETUP = {"pert_key": "guide", "control": "none", "cell_type_key": "type", "test_size": 0.3, "val_size": 0.0}


def _log(counts):
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def _gamma_poisson(fold, n, *, seed, dispersion=0.5):
    """Counts of cells of different depth whose mean rates are multiplied by `fold`."""
    rng = np.random.default_rng(seed)
    rate = np.exp(np.random.default_rng(0).normal(-1.5, 1.3, len(fold))) * fold
    depth = rng.lognormal(0, 0.3, n)[:, None]
    return rng.poisson(rng.gamma(1 / dispersion, dispersion, (n, len(fold))) * rate * depth).astype(np.float32)


@pytest.fixture(scope="module")
def experiment():
    """Control cells, and cells with some genes up fourfold, others down to a quarter, one from nothing."""
    fold = np.ones(300)
    fold[:30], fold[30:60] = 4.0, 0.25
    silent = np.ones(300)
    silent[0] = 1e-9
    return _gamma_poisson(silent, 400, seed=1), _gamma_poisson(fold, 400, seed=2)


def _draw(control, target, **changed):
    mean = np.broadcast_to(_log(target).mean(axis=0), control.shape)
    arguments = {"contexts": np.full(len(control), "T"), "seed": 0, **changed}
    return draw_counts(sparse.csr_matrix(control), control.sum(axis=1), mean, **arguments)


def test_zeros_means_and_spread_are_those_of_the_measured_cells(experiment):
    control, measured = experiment
    drawn = _draw(control, measured)
    assert sparse.issparse(drawn)
    assert drawn.format == "csr"
    x = drawn.toarray()
    assert (x == np.rint(x)).all()
    assert (x >= 0).all()
    per_count = 1e4 / control.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.log1p(x * per_count).mean(0), _log(measured).mean(0), atol=0.06)
    assert abs((x == 0).mean() - (measured == 0).mean()) < 0.02
    assert abs((control == 0).mean() - (measured == 0).mean()) > 0.001
    for genes in (slice(1, 30), slice(30, 60), slice(60, 300)):
        assert abs((x == 0)[:, genes].mean() - (measured == 0)[:, genes].mean()) < 0.03
        ratio = _log(x)[:, genes].std(axis=0).mean() / _log(measured)[:, genes].std(axis=0).mean()
        assert 0.9 < ratio < 1.1
    assert x[:, 0].sum() > 0  # not expressed by any control cell
    np.testing.assert_allclose(np.log(x.sum(1)), np.log(control.sum(1)), atol=0.8)
    assert np.corrcoef(x.sum(1), control.sum(1))[0, 1] > 0.7


def test_no_change_gives_the_control_cells_themselves(experiment):
    control, _ = experiment
    x = _draw(control, control).toarray()
    assert (x != control).mean() < 0.01


def test_draws_depend_on_the_seed_alone_and_blocks_change_nothing_else(experiment, monkeypatch):
    control, measured = experiment
    contexts = np.where(np.arange(400) % 2, "T", "B")
    first, again, other = (_draw(control, measured, contexts=contexts, seed=s).toarray() for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.01
    monkeypatch.setattr("scstate_lora.model.st.counts._CELLS", 50)
    monkeypatch.setattr("scstate_lora.model.st.counts._GENES", 70)
    x = _draw(control, measured, contexts=contexts).toarray()
    assert np.corrcoef(x.sum(1), control.sum(1))[0, 1] > 0.7  # in the order of the cells
    assert abs((x == 0).mean() - (measured == 0).mean()) < 0.02


def test_contexts_with_one_cell_and_cells_without_counts_work():
    control = np.array([[0, 0, 0], [3, 0, 1], [0, 2, 5]], dtype=np.float32)
    mean = np.full((3, 3), 1.5)
    x = draw_counts(
        sparse.csr_matrix(control), control.sum(axis=1), mean, np.array(["none", "one", "two"]), seed=0
    ).toarray()
    assert np.isfinite(x).all()


@pytest.fixture(scope="module")
def model():
    """400 cells x 120 genes in two types, and a model that predicts 80 of the genes."""
    rng = np.random.default_rng(0)
    guides, types = rng.choice(["none", "a", "b"], 400), rng.choice(["T", "B"], 400)
    rates = np.tile(np.exp(rng.normal(-0.5, 1, 120)), (400, 1))
    rates[guides == "a", :10] *= 6
    counts = rng.poisson(rates * rng.gamma(2, 0.5, rates.shape)).astype(np.float32)
    obs = pd.DataFrame({"guide": guides, "type": types}, index=[f"c{i}" for i in range(400)])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(120)]))
    ssl.STTransition.setup_anndata(adata, **SETUP)
    st = ssl.STTransition(adata, model={**SMALL_ST, "n_genes": 80})
    st.train(2, **QUICK)
    return st


def test_prediction_holds_counts_and_says_so(model):
    mean, counts = model.predict(target="a"), model.predict(target="a", output="counts")
    assert sparse.issparse(counts.X)
    assert (counts.X.data == np.rint(counts.X.data)).all()
    assert counts.obs_names.equals(mean.obs_names)
    assert counts.var_names.equals(mean.var_names)
    record = counts.uns["scstate_lora"]["predict"]
    assert record["scale"] == "counts"
    controls = model.adata[counts.obs["control_cell"]]
    genes = model.adata.var_names.get_indexer(counts.var_names)
    others = np.delete(controls.X.toarray(), genes, axis=1).sum(axis=1)
    np.testing.assert_array_equal(counts.obs["library_size"], counts.X.toarray().sum(axis=1) + others)
    logged = log_expression(counts).toarray()
    expected = np.log1p(1e4 * counts.X.toarray() / counts.obs["library_size"].to_numpy()[:, None])
    np.testing.assert_allclose(logged, expected, rtol=1e-5)
    at_depth = np.log1p(1e4 * counts.X.toarray() / np.asarray(controls.X.sum(axis=1)))  # of the control cells
    np.testing.assert_allclose(at_depth.mean(0), mean.X.mean(0), atol=0.06)
    again = model.predict(target=["b", "a"], output="counts")
    np.testing.assert_array_equal(again.X[mean.n_obs :].toarray(), counts.X.toarray())
    sc.pp.normalize_total(counts)
    sc.pp.log1p(counts)


def test_scores_of_counts_are_those_of_their_log_expression(model):
    counts = model.predict(target="a", output="counts")
    test = model.adata[(model.adata.obs["scstate_split"] == "test").to_numpy()]
    logged = counts.copy()
    logged.X = log_expression(counts).toarray()
    logged.uns["scstate_lora"]["predict"]["scale"] = "log1p_cp10k"
    tables = [
        ssl.tl.evaluate_perturbation(pred, test, model.adata, context_key="type", n_boot=5) for pred in (counts, logged)
    ]
    same = tables[0]["metric"] != "expr_mse_unbiased_capped_norm"  # in sums of counts deep cells weigh more
    np.testing.assert_allclose(tables[0]["value"][same], tables[1]["value"][same], rtol=1e-4)
    np.testing.assert_allclose(tables[0]["value"][~same], tables[1]["value"][~same], atol=0.3)


def test_subset_of_genes_still_has_the_whole_depth(model):
    counts = model.predict(target="a", output="counts")
    np.testing.assert_allclose(
        log_expression(counts[:, :5].copy()).toarray(), log_expression(counts).toarray()[:, :5], rtol=1e-6
    )
    del counts.obs["library_size"]
    with pytest.raises(KeyError, match=r"pred.obs\['library_size'\] does not exist"):
        log_expression(counts)


def test_counts_go_to_a_file_sparse(model, tmp_path):
    sizes = workflow.predict_to_file(model, model.adata, tmp_path / "a.h5ad", targets=["a", "b"], output="counts")
    written, expected = ad.read_h5ad(tmp_path / "a.h5ad"), model.predict(target=["a", "b"], output="counts")
    assert sizes == expected.shape
    assert sparse.issparse(written.X)
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(written.obs["library_size"], expected.obs["library_size"])
    assert written.uns["scstate_lora"]["predict"]["scale"] == "counts"


def test_ensemble_of_counts_raises(model):
    counts = model.predict(target="a", output="counts")
    with pytest.raises(ValueError, match="counts"):
        ssl.tl.ensemble([counts, counts])


def test_counts_where_there_are_none_raises(model):
    with pytest.raises(ValueError, match=r"output='count' is unknown. Did you mean 'counts'"):
        model.predict(target="a", output="count")
    logged = model.adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    ssl.STTransition.setup_anndata(logged, **SETUP)
    st = ssl.STTransition(logged, model=SMALL_ST)
    with pytest.raises(ValueError, match="output='counts' needs counts, but the model was set up on log1p"):
        st.predict(target="a", output="counts", allow_untrained=True)
    fractional = model.adata.copy()
    fractional.X = fractional.X * 1.5
    ssl.STTransition.setup_anndata(fractional, **SETUP, input_scale="counts")
    st = ssl.STTransition(fractional, model=SMALL_ST)
    with pytest.raises(ValueError, match="output='counts' needs whole numbers"):
        st.predict(target="a", output="counts", allow_untrained=True)
    embedded = model.adata.copy()
    embedded.obsm["X_e"] = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    ssl.STTransition.setup_anndata(embedded, **SETUP, embed_key="X_e")
    st = ssl.STTransition(embedded, model={**SMALL_ST, "space": "embedding"})
    with pytest.raises(ValueError, match="output='counts' needs a model of genes"):
        st.predict(target="a", output="counts", allow_untrained=True)
