from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora import tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.metrics import (
    categorical_probe,
    held_out_categorical_probe,
    held_out_knn_accuracy,
    knn_accuracy,
)
from scstate_lora.metrics.probed_labels import ProbedLabels
from tests.builders import expression


@pytest.fixture
def adata():
    """Condition "burn" has more B cells. X_type shows the type alone, X_both the condition as well."""
    rng = np.random.default_rng(0)
    adata = expression(400, seed=0)
    is_burn = rng.random(400) < 0.5
    is_b = rng.random(400) < np.where(is_burn, 0.85, 0.15)
    adata.obs["condition"] = pd.Categorical(np.where(is_burn, "burn", "sham"))
    adata.obs["cell_type"] = pd.Categorical(np.where(is_b, "B", "T"))
    adata.obs["dose"] = is_b + rng.normal(size=400) * 0.3
    noise = rng.normal(size=(400, 4)) * 0.3
    adata.obsm["X_type"] = noise + is_b[:, None]
    adata.obsm["X_both"] = np.column_stack([noise + is_b[:, None], is_burn + rng.normal(size=400) * 0.2])
    config = DataConfig(covariate_keys=["condition", "dose"], cell_type_key="cell_type")
    Registry.create(adata, config).write(adata)
    return adata


def _value(table, **where):
    row = table[np.logical_and.reduce([table[key] == value for key, value in where.items()])]
    assert len(row) == 1
    return row["value"].iloc[0]


def test_disentanglement_tells_the_condition_from_the_composition(adata, tmp_path):
    table = tl.disentanglement(adata, ["X_type", "X_both"])
    assert len(table) == 3 * 2 * 4  # embeddings, covariates, metrics
    for name, low, high in (("X_type", 0.0, 0.2), ("X_both", 0.9, 1.0)):
        assert low <= _value(table, embedding=name, key="condition", metric="disentanglement") <= high
    composed = _value(table, embedding="X_type", key="condition", metric="covariate_information_of_cell_type")
    assert composed > 0.5
    assert _value(table, embedding="X_type", key="condition", metric="covariate_information") > 0.4
    assert _value(table, embedding="X_type", key="dose", metric="disentanglement") < 0.1
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad").uns["scstate_lora"]["disentanglement"]
    pd.testing.assert_frame_equal(stored.reset_index(drop=True), table)


def test_disentanglement_of_nothing_shown_is_undefined(adata):
    adata.obsm["X_noise"] = np.random.default_rng(1).normal(size=(400, 3))
    adata.obsm["X_nan"] = np.full((400, 3), np.nan)
    table = tl.disentanglement(adata, ["X_noise", "X_nan"], covariate_keys="condition")
    rows = table[(table["metric"] == "disentanglement")].set_index("embedding")
    assert np.isnan(rows.loc["X_noise", "value"])
    assert rows.loc["X_noise", "reason"] == "the embedding shows nothing of it"
    assert "NaN" in rows.loc["X_nan", "reason"]


def test_disentanglement_without_type_or_covariate_raises(adata):
    with pytest.raises(ValueError, match="covariate_keys="):
        tl.disentanglement(adata, covariate_keys="cell_type")
    Registry.create(adata, DataConfig(covariate_keys=["condition"])).write(adata)
    with pytest.raises(ValueError, match="label_key="):
        tl.disentanglement(adata)


def test_linear_probe_is_cross_validated_as_in_evaluate(adata):
    table = tl.linear_probe(adata, "X_both", key="condition")
    expected = categorical_probe(adata.obsm["X_both"], adata.obs["condition"].to_numpy(dtype=object))
    assert _value(table, embedding="X_both") == expected.value
    assert list(table["metric"].unique()) == ["probe_accuracy"]
    assert table["low"].isna().all()
    assert (table["n_cells"] == 400).all()
    assert list(tl.linear_probe(adata, "X_both", key="dose")["metric"].unique()) == ["probe_r2"]


def test_linear_probe_of_held_out_cells_has_an_interval(adata):
    held_out = np.arange(400) >= 300
    row = tl.linear_probe(adata, "X_both", key="cell_type", held_out=held_out).iloc[0]
    x, y = adata.obsm["X_both"], adata.obs["cell_type"].to_numpy(dtype=object)
    expected = held_out_categorical_probe(x[:300], y[:300], x[300:], y[300:], level=0.95)
    assert (row["value"], row["low"], row["high"], row["baseline"]) == expected
    assert row["metric"] == "probe_balanced_accuracy"
    assert row["n_cells"] == 100
    some = tl.linear_probe(adata, "X_both", key="cell_type", held_out=held_out, cells=np.arange(400) < 360)
    assert (some["n_cells"] == 60).all()


def test_linear_probe_of_labels_has_scores_of_a_classifier_beside_neighbours(adata):
    x, y = adata.obsm["X_both"], adata.obs["cell_type"].to_numpy(dtype=object)
    held_out = np.arange(400) >= 300
    row = tl.linear_probe(adata, "X_both", key="cell_type", held_out=held_out).set_index("embedding").loc["X_both"]
    neighbours = held_out_knn_accuracy(x[:300], y[:300], x[300:], y[300:])
    assert (row["knn"], row["majority"]) == (neighbours.value, neighbours.baseline)
    folds = tl.linear_probe(adata, "X_both", key="condition").set_index("embedding").loc["X_both"]
    assert folds["accuracy"] == folds["value"]
    assert folds["majority"] == folds["baseline"]
    assert folds["knn"] == knn_accuracy(x, adata.obs["condition"].to_numpy(dtype=object))
    assert "knn" not in tl.linear_probe(adata, "X_both", key="dose")


def test_scores_of_probed_labels_by_hand():
    true = np.array(["a"] * 6 + ["b"] * 6 + ["c"])
    found = ProbedLabels(true, np.array(["a"] * 9 + ["b"] * 3 + ["a"]), np.full(13, 0.8))
    assert found.accuracy == pytest.approx(9 / 13)
    assert found.macro_f1 == pytest.approx((2 * 6 / (6 + 10) + 2 * 3 / (6 + 3)) / 2)  # "c" has too few cells
    assert found.calibration_error == pytest.approx(0.8 - 9 / 13)


def test_linear_probe_that_fails_says_why(adata):
    adata.obsm["X_nan"] = np.full((400, 3), np.nan)
    table = tl.linear_probe(adata, ["X_nan", "X_both"], key="condition").set_index("embedding")
    assert "NaN" in table.loc["X_nan", "reason"]
    assert table.loc["X_both", "value"] > 0.9
    with pytest.raises(KeyError, match=r"adata\.obs\['conditon'\].*condition"):
        tl.linear_probe(adata, key="conditon")
