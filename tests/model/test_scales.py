"""Scales of log1p expression, from the set-up to predictions and scores."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scstate_lora as ssl
from tests.builders import QUICK, SMALL_ST

KEYS = {"pert_key": "arm", "control": "none", "cell_type_key": "kind", "test_size": 0.25, "val_size": 0}


@pytest.fixture(scope="module")
def counts():
    """Counts of two kinds of cells under a perturbation that triples five genes."""
    rng = np.random.default_rng(0)
    n = 120
    arm = np.tile(["none", "drug"], n // 2)
    rates = rng.gamma(2, 2, 40) * np.where((arm == "drug")[:, None] & (np.arange(40) < 5), 3, 1)
    obs = pd.DataFrame({"arm": arm, "kind": np.repeat(["T", "B"], n // 2)}, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(
        rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)])
    )


def _logged(counts, target_sum=1e4, base=None):
    logged = counts.copy()
    sc.pp.normalize_total(logged, target_sum=target_sum)
    sc.pp.log1p(logged, base=base)
    return logged


def _predict(adata, **options):
    ssl.STTransition.setup_anndata(adata, **KEYS, **options)
    st = ssl.STTransition(adata, model=SMALL_ST)
    st.train(1, **QUICK)
    return st.predict(target="drug")


def _score(predicted, adata):
    """Score against the test cells, those that the model was not trained on."""
    held_out = adata[(adata.obs["scstate_split"] == "test").to_numpy()]
    return ssl.tl.evaluate_perturbation(predicted.copy(), held_out, held_out, context_key="kind", n_boot=5, min_cells=2)


@pytest.fixture(scope="module")
def of_counts(counts):
    return _predict(counts)


@pytest.mark.parametrize(
    ("target_sum", "base", "name"),
    [(1e4, None, "log1p_cp10k"), (1e4, 2, "log1p_cp10k"), (1e6, 10, "log1p_cpm"), (200, None, "log1p_cp200")],
)
def test_the_scale_of_predictions_is_that_of_the_cells(counts, of_counts, caplog, tmp_path, target_sum, base, name):
    with caplog.at_level(logging.INFO, logger="scstate_lora"):
        predicted = _predict(_logged(counts, target_sum, base))
    record = predicted.uns["scstate_lora"]["predict"]
    assert (record["scale"], record["target_sum"]) == (name, pytest.approx(target_sum, rel=1e-4))
    assert name in caplog.text
    assert ("base" in caplog.text) == (base is not None)
    assert np.median(np.expm1(predicted.X).sum(axis=1)) == pytest.approx(target_sum, rel=0.2)
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    assert (
        ad.read_h5ad(tmp_path / "predicted.h5ad").uns["scstate_lora"]["predict"]["target_sum"] == record["target_sum"]
    )
    if name == "log1p_cp10k":
        np.testing.assert_allclose(predicted.X, of_counts.X, atol=0.01)


def test_an_unknown_scale_is_called_so(counts):
    record = _predict(_logged(counts)[:, :30].copy()).uns["scstate_lora"]["predict"]
    assert record["scale"] == "log1p"
    assert "target_sum" not in record


def test_requested_target_sum_gives_the_same_of_counts_and_log_values(counts):
    of_counts = _predict(counts.copy(), target_sum=1000)
    of_logs = _predict(_logged(counts, 1e6, 2), target_sum=1000)
    assert of_counts.uns["scstate_lora"]["predict"]["scale"] == "log1p_cp1000"
    np.testing.assert_allclose(of_logs.X, of_counts.X, atol=0.01)


def test_drawn_counts_are_normalised_as_the_model_works(counts):
    adata = counts.copy()
    ssl.STTransition.setup_anndata(adata, **KEYS, target_sum=200)
    st = ssl.STTransition(adata, model=SMALL_ST)
    st.train(1, **QUICK)
    mean, drawn = st.predict(target="drug"), st.predict(target="drug", output="counts")
    for predicted in (mean, drawn):
        table = _score(predicted, adata).set_index(["model", "context", "metric"])["value"]
        assert table["model", "all", "mae"] < 0.5  # normalised to 10,000, drawn counts would be off by about 3
    by_hand = np.log1p(200 * drawn.X.toarray() / drawn.obs["library_size"].to_numpy()[:, None])
    np.testing.assert_allclose(by_hand.mean(axis=0), mean.X.mean(axis=0), atol=0.1)


def test_scores_across_scales_raises(counts, of_counts):
    cpm = _logged(counts, 1e6)
    ssl.STTransition.setup_anndata(cpm, **KEYS)
    with pytest.raises(
        ValueError, match="pred is log1p of counts per 10,000, but real is log1p of counts per 1,000,000"
    ):
        _score(of_counts, cpm)
    both = of_counts.copy()
    with pytest.raises(ValueError, match="but train is log1p of counts per 1,000,000"):
        ssl.tl.evaluate_perturbation(both, counts, counts, context_key="kind", train=cpm)
    ssl.STTransition.setup_anndata(cpm, **KEYS, target_sum=1e4)
    assert _score(of_counts, cpm)["value"].notna().any()


def test_scores_on_an_unknown_scale_warns(counts, of_counts):
    part = _logged(counts)[:, :30].copy()
    ssl.STTransition.setup_anndata(part, **KEYS)
    with pytest.warns(UserWarning, match="the scale of real and control is unknown"):
        _score(of_counts[:, :30].copy(), part)
