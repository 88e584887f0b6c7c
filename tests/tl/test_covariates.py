from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import tl
from tests.builders import QUICK

COLUMNS = [
    "embedding",
    "covariate",
    "conditioned_on",
    "metric",
    "value",
    "low",
    "high",
    "baseline",
    "direction",
    "lowest",
]
COLUMNS += ["highest", "n_train", "n_test", "reason", "verdict"]
SMALL = {"embed_dim": 8}


def make_cells(n=400, n_genes=40, seed=0):
    """Counts that follow the cell type, the condition and the day, but neither the shuffled columns."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B", "T", "NK"], n, p=[0.5, 0.3, 0.2])),
            "condition": pd.Categorical(rng.choice(["sham", "burn"], n, p=[0.7, 0.3])),
            "day": rng.uniform(10, 20, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    obs["plate"] = rng.permutation(obs["condition"].to_numpy())
    obs["noise"] = rng.permutation(obs["day"].to_numpy())
    obs["mouse"] = obs["plate"].astype(str) + rng.choice(["_1", "_2"], n)
    log_rate = rng.normal(1.5, 0.3, n_genes) + np.zeros((n, n_genes))
    for i, cell_type in enumerate(["B", "T", "NK"]):
        log_rate[:, 6 * i : 6 * i + 6] += 1.2 * (obs["cell_type"] == cell_type).to_numpy()[:, None]
    log_rate[:, 20:26] += 0.8 * (obs["condition"] == "burn").to_numpy()[:, None]
    log_rate[:, 26:32] += 0.15 * (obs["day"].to_numpy()[:, None] - 10)
    counts = sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    logged = np.log1p(counts.toarray())
    adata.obsm["X_own"] = (logged - logged.mean(0))[:, 0:32:2]
    return adata


def make_model(adata, covariates=("condition", "plate", "day", "noise"), **setup):
    """A model on an embedding that is there, so that seconds are enough."""
    given = {"cell_type_key": "cell_type", "embed_key": "X_own", "test_size": 0.3, "val_size": 0.0, **setup}
    keys = dict.fromkeys(covariates, SMALL)
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=keys, **given)
    objective = {"covariates": 3.0, "counterfactual": 0.0, "batch": 0.0}  # a strong condition
    conditioning = {"hidden_dims": (32, 16), "n_steps": 200}
    return ssl.LoRACovariateSE(adata, conditioning=conditioning, objective=objective, lora=False)


@pytest.fixture(scope="module")
def trained():
    """A trained model, its cells and their table. Not to be changed."""
    adata = make_cells()
    se = make_model(adata)
    se.train(lr=1e-2, **QUICK)
    before = (set(adata.obsm), set(adata.obs), set(adata.uns))
    table = tl.covariate_information(se)
    assert (set(adata.obsm), set(adata.obs), set(adata.uns)) == before
    return se, adata, table


def one(table, covariate, embedding, conditioned_on):
    row = table[
        (table["covariate"] == covariate)
        & (table["embedding"] == embedding)
        & (table["conditioned_on"] == conditioned_on)
    ]
    assert len(row) == 1
    return row.iloc[0]


def verdict(table, covariate):
    (found,) = table.loc[table["covariate"] == covariate, "verdict"].unique()
    return found


def test_the_table_has_every_embedding_of_every_covariate_and_is_stored(trained):
    _, adata, table = trained
    assert list(table.columns) == COLUMNS
    for covariate in ("condition", "plate", "day", "noise"):
        part = table[table["covariate"] == covariate]
        pairs = [("PCA", "nothing"), ("base", "nothing"), ("model", "nothing"), ("model", "others"), ("model", "all")]
        assert list(zip(part["embedding"], part["conditioned_on"], strict=True)) == pairs
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table["value"].between(table["lowest"], table["highest"]).all()
    assert (table["direction"] == "higher").all()
    assert (table["reason"] == "").all()
    split = adata.obs["scstate_split"].value_counts()
    assert (table["n_train"] == split["train"]).all()
    assert (table["n_test"] == split["test"]).all()
    pd.testing.assert_frame_equal(adata.uns["scstate_lora"]["covariate_information"], table)
    assert "registry" in adata.uns["scstate_lora"]


def test_what_the_expression_predicts_is_shown_without_conditioning(trained):
    _, _, table = trained
    for covariate in ("condition", "day"):
        for embedding in ("PCA", "base", "model"):
            row = one(table, covariate, embedding, "nothing")
            assert row["low"] > row["baseline"], (covariate, embedding)
        assert verdict(table, covariate).startswith("expression predicts it, and the embedding shows it without")
    assert one(table, "condition", "PCA", "nothing")["value"] > 0.8
    assert one(table, "day", "PCA", "nothing")["value"] > 0.5


def test_a_shuffled_covariate_is_shown_only_by_conditioning(trained):
    _, _, table = trained
    for covariate in ("plate", "noise"):
        for key in (("PCA", "nothing"), ("base", "nothing"), ("model", "nothing"), ("model", "others")):
            row = one(table, covariate, *key)
            assert row["low"] <= row["baseline"], (covariate, *key)
        assert one(table, covariate, "model", "all")["low"] > one(table, covariate, "model", "all")["baseline"]
        assert verdict(table, covariate).startswith("no linear probe finds it in the expression")
        assert verdict(table, covariate).endswith("the embedding shows it only by conditioning")
    assert one(table, "plate", "model", "all")["value"] > 0.95
    # 70 to 30 cells: a majority guesser is right in 70 %, but names one class of two.
    assert (table.loc[table["covariate"] == "plate", "baseline"] == 0.5).all()
    assert (table.loc[table["covariate"] == "noise", "baseline"] == 0.0).all()


def test_the_cell_type_is_scored_beside_the_commonest_type(trained):
    _, adata, table = trained
    part = table[table["metric"] == "knn_accuracy"]
    pairs = [("PCA", "nothing"), ("base", "nothing"), ("model", "nothing"), ("model", "all")]
    assert list(zip(part["embedding"], part["conditioned_on"], strict=True)) == pairs
    test = adata.obs["scstate_split"] == "test"
    assert part["baseline"].tolist() == pytest.approx([(adata.obs.loc[test, "cell_type"] == "B").mean()] * 4)
    assert part.iloc[0]["value"] > 0.9
    assert "cell types are separated" in verdict(table, "cell_type")


def test_a_batch_that_gives_a_covariate_away_is_named():
    adata = make_cells()
    se = make_model(adata, ("plate",), batch_key="mouse")
    se.train(lr=1e-2, **QUICK)
    table = tl.covariate_information(se)
    others = one(table, "plate", "model", "others")
    nothing = one(table, "plate", "model", "nothing")
    assert nothing["low"] <= 0.5 < others["low"]
    assert "the other covariates reveal it" in verdict(table, "plate")


def test_with_one_covariate_and_no_batch_nothing_and_the_others_are_the_same():
    adata = make_cells(n=200)
    se = make_model(adata, ("condition",))
    se.train(1, **QUICK)
    table = tl.covariate_information(se)
    assert "others" not in set(table["conditioned_on"])
    untold = se.get_latent_representation(covariates={"condition": None}, key_added=None)
    split = adata.obs["scstate_split"].to_numpy()
    again = ssl.tl.covariates.held_out_categorical_probe(
        untold[split == "train"],
        adata.obs["condition"][split == "train"],
        untold[split == "test"],
        adata.obs["condition"][split == "test"],
    )
    assert one(table, "condition", "model", "nothing")["value"] == pytest.approx(again.value)


def test_the_table_survives_the_file_and_repeats(trained, tmp_path):
    se, adata, table = trained
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    stored = read.uns["scstate_lora"]["covariate_information"].reset_index(drop=True)
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    pd.testing.assert_frame_equal(tl.covariate_information(se, read), table)


def test_cells_choose_who_takes_part(trained):
    se, adata, _ = trained
    b_cells = (adata.obs["cell_type"] == "B").to_numpy()
    table = tl.covariate_information(se, adata.copy(), cells=b_cells)
    split = adata.obs["scstate_split"]
    assert (table["n_test"] == (b_cells & (split == "test")).sum()).all()
    assert (table["n_train"] == (b_cells & (split == "train")).sum()).all()
    with pytest.raises(ValueError, match="cells must be 400 bools"):
        tl.covariate_information(se, cells=np.arange(10))


def test_a_score_that_fails_says_why_and_leaves_the_others(trained):
    se, adata, _ = trained
    cells = adata.copy()
    cells.obs.loc[cells.obs["scstate_split"] == "test", "condition"] = "sham"
    table = tl.covariate_information(se, cells)
    failed = table[table["covariate"] == "condition"]
    assert failed["value"].isna().all()
    assert failed["reason"].str.contains("two classes with 5 held-out cells").all()
    assert verdict(table, "condition").startswith("not decided: two classes")
    assert table.loc[table["covariate"] != "condition", "value"].notna().all()


def test_missing_values_that_are_allowed_are_left_out():
    adata = make_cells()
    adata.obs.loc[adata.obs_names[:40], "condition"] = np.nan
    keys = {"condition": {**SMALL, "allow_missing": True}, "day": SMALL}
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=keys, embed_key="X_own", test_size=0.3)
    se = ssl.LoRACovariateSE(adata, conditioning={"hidden_dims": (16,), "n_steps": 5}, lora=False)
    se.train(1, **QUICK)
    table = tl.covariate_information(se)
    split = adata.obs["scstate_split"]
    known = adata.obs["condition"].notna()
    assert one(table, "condition", "PCA", "nothing")["n_train"] == (known & (split == "train")).sum()
    assert one(table, "day", "PCA", "nothing")["n_train"] == (split == "train").sum()


def test_an_untrained_model_raises():
    adata = make_cells(n=100)
    with pytest.raises(ValueError, match=r"not trained: call \.train\(\)"):
        tl.covariate_information(make_model(adata))


def test_another_object_raises():
    with pytest.raises(TypeError, match="needs a LoRACovariateSE, found AnnData"):
        tl.covariate_information(make_cells(n=10))


def test_no_or_few_held_out_cells_raise(trained):
    se, adata, _ = trained
    cells = adata.copy()
    cells.obs_names = [f"new-{name}" for name in cells.obs_names]  # of those it knows, the model keeps the split
    cells.obs["scstate_split"] = "train"
    with pytest.raises(ValueError, match=r"No cell is held out.*test_size=0\.2"):
        tl.covariate_information(se, cells)
    cells.obs.loc[cells.obs_names[:19], "scstate_split"] = "test"
    with pytest.raises(ValueError, match="19 cells are held out"):
        tl.covariate_information(se, cells)
    del cells.obs["scstate_split"]
    with pytest.raises(KeyError, match="does not exist"):
        tl.covariate_information(se, cells)


def test_a_class_without_training_cells_raises(trained):
    se, adata, _ = trained
    cells = adata.copy()
    cells.obs_names = [f"new-{name}" for name in cells.obs_names]
    cells.obs["scstate_split"] = np.where(cells.obs["condition"] == "burn", "test", "train")
    with pytest.raises(ValueError, match=r"'burn' of adata\.obs\['condition'\].*training cells, which have 'sham'"):
        tl.covariate_information(se, cells)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_out_of_range_raises(trained, level):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        tl.covariate_information(trained[0], level=level)
