from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry

COLUMNS = ["embedding", "metric", "key", "value", "baseline", "direction", "lowest", "highest", "n_cells", "reason"]


def _adata(*, n=120, n_genes=40, seed=0, register=True):
    """Counts in which the cell type, the condition and the day each move genes of their own."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B", "T", "NK"], n)),
            "condition": pd.Categorical(rng.choice(["sham", "burn"], n)),
            "day": rng.uniform(0, 10, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    log_rate = rng.normal(1.5, 0.3, n_genes) + np.zeros((n, n_genes))
    for i, cell_type in enumerate(["B", "T", "NK"]):
        log_rate[:, 6 * i : 6 * i + 6] += 1.2 * (obs["cell_type"] == cell_type).to_numpy()[:, None]
    log_rate[:, 20:26] += 1.0 * (obs["condition"] == "burn").to_numpy()[:, None]
    log_rate[:, 26:32] += 0.2 * obs["day"].to_numpy()[:, None]
    counts = sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    if register:
        registry = Registry.create(
            adata,
            DataConfig(
                covariate_keys=["condition", "day"], pert_key="condition", control="sham", cell_type_key="cell_type"
            ),
        )
        registry.write(adata)
    return adata


def _value(table, **where):
    row = table[np.logical_and.reduce([table[key] == value for key, value in where.items()])]
    assert len(row) == 1
    return row.iloc[0]


def test_evaluate_scores_every_embedding_beside_the_pca_and_stores_the_table():
    adata = _adata()
    rng = np.random.default_rng(1)
    adata.obsm["X_state"] = rng.normal(size=(adata.n_obs, 5)).astype(np.float32)
    adata.obsm["X_scstate_lora"] = pd.get_dummies(adata.obs["cell_type"]).to_numpy(dtype=np.float32)
    adata.obsm["X_other"] = np.zeros((adata.n_obs, 2))
    before = set(adata.obsm.keys()), set(adata.varm.keys()), set(adata.uns.keys())
    table = tl.evaluate(adata)
    assert list(table.columns) == COLUMNS
    assert list(table["embedding"].unique()) == ["X_state", "X_scstate_lora", "PCA"]
    assert len(table) == 9
    assert _value(table, embedding="X_scstate_lora", metric="knn_accuracy")["value"] == 1.0
    assert _value(table, embedding="PCA", metric="knn_accuracy")["value"] > 0.9
    assert _value(table, embedding="X_state", metric="knn_accuracy")["value"] < 0.6
    assert _value(table, embedding="PCA", metric="probe_accuracy", key="condition")["value"] > 0.9
    assert _value(table, embedding="PCA", metric="probe_r2", key="day")["value"] > 0.7
    majority = adata.obs["condition"].value_counts(normalize=True).max()
    assert (table.loc[table["key"] == "condition", "baseline"] == majority).all()
    assert (table.loc[table["key"] == "day", "baseline"] == 0).all()
    assert (table["reason"] == "").all()
    assert (table["value"].between(table["lowest"], table["highest"])).all()
    pd.testing.assert_frame_equal(adata.uns["scstate_lora"]["evaluate"], table)
    assert (set(adata.obsm.keys()), set(adata.varm.keys()), set(adata.uns.keys())) == before
    assert "registry" in adata.uns["scstate_lora"]


def test_evaluate_table_survives_the_file(tmp_path):
    adata = _adata()
    table = tl.evaluate(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(read.uns["scstate_lora"]["evaluate"].reset_index(drop=True), table)
    pd.testing.assert_frame_equal(tl.evaluate(read), table)


def test_evaluate_keys_given_by_the_user():
    adata = _adata()
    adata.obs["noise"] = np.random.default_rng(0).normal(size=adata.n_obs)
    adata.obsm["X_mine"] = sparse.csr_matrix(np.eye(adata.n_obs, 3))
    table = tl.evaluate(adata, "X_mine", label_key="condition", covariate_keys=["cell_type", "noise"], n_pcs=5)
    assert list(table["embedding"].unique()) == ["X_mine", "PCA"]
    assert list(zip(table["metric"], table["key"], strict=True))[:3] == [
        ("knn_accuracy", "condition"),
        ("probe_accuracy", "cell_type"),
        ("probe_r2", "noise"),
    ]
    assert _value(table, embedding="PCA", key="noise")["value"] < 0.1


def test_evaluate_failed_metric_says_why_and_leaves_the_others_alone():
    adata = _adata()
    adata.obsm["X_state"] = np.full((adata.n_obs, 3), np.nan)
    adata.obs["lonely"] = "same"
    table = tl.evaluate(adata, covariate_keys=["lonely", "day"])
    assert table.loc[table["embedding"] == "X_state", "value"].isna().all()
    assert table.loc[table["embedding"] == "X_state", "reason"].str.contains("NaN").iloc[0]
    assert "two classes" in _value(table, embedding="PCA", key="lonely")["reason"]
    assert _value(table, embedding="PCA", key="day")["value"] > 0.5


def test_evaluate_names_the_cells_left_out():
    adata = _adata()
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    labels[:3] = "Mast"
    adata.obs["cell_type"] = labels
    row = _value(tl.evaluate(adata), embedding="PCA", metric="knn_accuracy")
    assert row["reason"] == "left out, fewer than 5 cells: Mast (3)"
    assert row["value"] > 0.8


def test_evaluate_leaves_out_cells_whose_covariate_may_be_missing():
    adata = _adata()
    keys = {"condition": {"allow_missing": True}, "day": {"allow_missing": True}}
    adata.obs["day"] = adata.obs["day"].where(np.arange(adata.n_obs) >= 20)
    adata.obs["condition"] = adata.obs["condition"].where(np.arange(adata.n_obs) >= 7)
    Registry.create(adata, DataConfig(covariate_keys=keys)).write(adata)
    table = tl.evaluate(adata)
    day, condition = (_value(table, embedding="PCA", key=key) for key in ("day", "condition"))
    assert (day["reason"], condition["reason"]) == (
        "left out: 20 cells without a value",
        "left out: 7 cells without a value",
    )
    assert day["value"] > 0.5
    assert condition["value"] > 0.7
    none = tl.evaluate(adata, cells=np.arange(adata.n_obs) < 7)
    assert none["value"].isna().all()
    assert (none["reason"] != "").all()


def test_evaluate_few_cells_still_gives_a_pca():
    adata = _adata(n=24)
    table = tl.evaluate(adata, covariate_keys="condition", n_neighbors=3)
    assert np.isfinite(table["value"]).all()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"embeddings": "X_stat"}, r"adata\.obsm\['X_stat'\].*X_state"),
        ({"label_key": "celltype"}, r"adata\.obs\['celltype'\].*cell_type"),
        ({"covariate_keys": ["conditon"]}, r"adata\.obs\['conditon'\].*condition"),
    ],
)
def test_evaluate_unknown_key_raises(kwargs, said):
    adata = _adata()
    adata.obsm["X_state"] = np.zeros((adata.n_obs, 2))
    with pytest.raises(KeyError, match=said):
        tl.evaluate(adata, **kwargs)
    assert "evaluate" not in adata.uns["scstate_lora"]


def test_evaluate_not_set_up_raises():
    with pytest.raises(KeyError, match="not set up"):
        tl.evaluate(_adata(register=False))


def test_evaluate_nothing_to_score_raises():
    adata = _adata(register=False)
    Registry.create(adata, DataConfig()).write(adata)
    with pytest.raises(ValueError, match="Nothing can be scored"):
        tl.evaluate(adata)


def test_cells_are_scored_alone_but_the_pca_is_of_all():
    adata = _adata()
    adata.obsm["X_state"] = np.random.default_rng(1).normal(size=(adata.n_obs, 5)).astype(np.float32)
    mask = np.arange(adata.n_obs) % 2 == 0
    table = tl.evaluate(adata, cells=mask)
    assert (table["n_cells"] == mask.sum()).all()
    alone = tl.evaluate(adata[mask].copy())
    plain = table["embedding"] == "X_state"
    pd.testing.assert_frame_equal(table[plain], alone[plain])
    assert not np.allclose(table.loc[~plain, "value"], alone.loc[~plain, "value"])


@pytest.mark.parametrize("cells", [np.arange(5), np.ones(3, dtype=bool)])
def test_cells_that_are_no_mask_raises(cells):
    with pytest.raises(ValueError, match=r"cells must be 120 bools"):
        tl.evaluate(_adata(), cells=cells)
