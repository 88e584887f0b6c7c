from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.metrics.integration import BATCH, BIO, INTEGRATION, TOTAL
from scstate_lora.metrics.registry import METRICS
from tests.builders import expression

QUICK = ["knn_accuracy", "probe_accuracy"]
# Not kBET, for which umap compiles itself.
FAST = [name for name in INTEGRATION if name != "kbet"]


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    adata = expression(240, seed=0)
    types, batches = rng.choice(3, 240), rng.choice(2, 240)
    adata.obs["cell_type"] = pd.Categorical(np.array(["B", "NK", "T"])[types])
    adata.obs["lane"] = pd.Categorical(np.array(["l0", "l1"])[batches])
    centers, offsets = rng.normal(size=(3, 8)), rng.normal(size=(2, 8)) * 0.3
    adata.obsm["X_of_others"] = centers[types] + offsets[batches] + rng.normal(size=(240, 8)) * 0.7
    config = DataConfig(covariate_keys=["lane"], cell_type_key="cell_type", batch_key="lane")
    Registry.create(adata, config).write(adata)
    return adata


def _values(table, embedding="X_of_others"):
    return table[table["embedding"] == embedding].set_index("metric")["value"].to_dict()


def test_the_module_of_the_metrics_does_not_load_jax():
    code = "import sys, scstate_lora.metrics.integration; assert not {'jax', 'scib_metrics'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scib_metrics_of_any_embedding_beside_the_quick_ones(adata):
    table = tl.evaluate(adata, "X_of_others", metrics=["knn_accuracy", *FAST])
    assert list(table["embedding"].unique()) == ["X_of_others", "PCA"]
    values = _values(table)
    assert sorted(values) == sorted(["knn_accuracy", *FAST])
    assert table["value"].between(table["lowest"], table["highest"]).all()
    assert (table["reason"] == "").all()
    assert _values(table, "PCA")["pcr_comparison"] == 0
    keys = table.set_index("metric")["key"].to_dict()
    assert (keys["clisi"], keys["ilisi"]) == ("cell_type", "lane")
    pd.testing.assert_frame_equal(adata.uns["scstate_lora"]["evaluate"], table)
    alone = _values(tl.evaluate(adata, "X_of_others", metrics="knn_accuracy"))
    assert values["knn_accuracy"] == alone["knn_accuracy"]  # by the neighbours of the others, the same


def test_scib_metrics_of_some_cells_are_those_of_these_cells_alone(adata):
    mask = np.arange(adata.n_obs) % 2 == 0
    table = tl.evaluate(adata, "X_of_others", metrics=["clisi", "silhouette_label", "bras"], cells=mask)
    alone = tl.evaluate(adata[mask].copy(), "X_of_others", metrics=["clisi", "silhouette_label", "bras"])
    assert _values(table) == pytest.approx(_values(alone), abs=1e-12)


@pytest.mark.slow  # umap compiles itself
def test_all_metrics_with_their_totals_are_drawn(adata):
    table = tl.evaluate(adata, "X_of_others", metrics="all")
    values = _values(table)
    assert list(values) == [*QUICK, *INTEGRATION, BIO, BATCH, TOTAL]
    for part in (BIO, BATCH):
        assert values[part] == pytest.approx(np.mean([values[n] for n, m in INTEGRATION.items() if m.part_of == part]))
    assert values[TOTAL] == pytest.approx(0.6 * values[BIO] + 0.4 * values[BATCH])
    assert _values(tl.evaluate(adata, "X_of_others", metrics=TOTAL)) == {TOTAL: pytest.approx(values[TOTAL])}
    for metric in table["metric"].unique():
        axes = pl.metrics(table, metric=metric)
        assert axes[0].get_title() == METRICS[metric].label


def test_cells_without_a_type_or_batch_are_left_out_and_counted(adata):
    partial = adata.copy()
    partial.obs["cell_type"] = partial.obs["cell_type"].where(np.arange(240) >= 10)
    partial.obs["lane"] = partial.obs["lane"].where(np.arange(240) < 235)
    names = ["knn_accuracy", "clisi", "isolated_labels"]
    table = tl.evaluate(partial, "X_of_others", metrics=names)
    known = np.arange(240)[10:235]
    expected = tl.evaluate(adata[known].copy(), "X_of_others", metrics=names)
    values = _values(table)
    assert values["clisi"] == pytest.approx(_values(expected)["clisi"], abs=1e-12)
    reasons = table[table["embedding"] == "X_of_others"].set_index("metric")["reason"]
    assert reasons["clisi"] == "left out: 15 cells without a value"
    assert reasons["knn_accuracy"] == "left out: 10 cells without a value"


def test_one_batch_leaves_the_metrics_of_types_and_says_why_there_is_no_total(adata):
    adata.obs["lane"] = "only"
    table = tl.evaluate(adata, "X_of_others", metrics=["silhouette_label", "bras", BIO, BATCH])
    rows = table[table["embedding"] == "X_of_others"].set_index("metric")
    assert rows.loc[[BIO, "silhouette_label"], "value"].notna().all()
    assert rows.loc[["bras", BATCH], "value"].isna().all()
    assert "two batches are needed; all 240 cells are 'only'" in rows.loc["bras", "reason"]
    assert rows.loc[BATCH, "reason"] == "no value of bras, ilisi, kbet, pcr_comparison"


def test_without_a_batch_column_a_group_leaves_mixing_out_and_a_name_raises(adata):
    Registry.create(adata, DataConfig(cell_type_key="cell_type")).write(adata)
    values = _values(tl.evaluate(adata, "X_of_others", metrics="scib"))
    assert list(values) == [*(name for name, metric in INTEGRATION.items() if metric.part_of == BIO), BIO]
    assert np.isfinite(list(values.values())).all()
    with pytest.raises(ValueError, match=r"'ilisi' needs batch_key="):
        tl.evaluate(adata, "X_of_others", metrics="ilisi")
    assert _values(tl.evaluate(adata, "X_of_others", metrics="ilisi", batch_key="lane"))["ilisi"] > 0


def test_an_unusable_embedding_leaves_the_others_alone(adata):
    adata.obsm["X_broken"] = np.full((240, 2), np.nan)
    table = tl.evaluate(adata, ["X_broken", "X_of_others"], metrics=["clisi", "bras"])
    broken = table[table["embedding"] == "X_broken"]
    assert broken["value"].isna().all()
    assert broken["reason"].str.contains("NaN or infinite numbers in 240").all()
    assert np.isfinite(list(_values(table).values())).all()


def test_unknown_metric_raises(adata):
    with pytest.raises(ValueError, match=r"metrics='ilisy' is not known.*ilisi"):
        tl.evaluate(adata, metrics=["ilisy"])
