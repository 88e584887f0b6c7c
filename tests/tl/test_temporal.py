from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora import tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from tests.builders import expression


@pytest.fixture
def adata():
    """Two types at four days; X_line follows the days, X_steps holds them apart without order."""
    rng = np.random.default_rng(0)
    adata = expression(320, seed=0)
    days = np.tile([1.0, 2.0, 4.0, 8.0], 80)
    adata.obs["day"] = days
    adata.obs["cell_type"] = pd.Categorical(np.where(np.arange(320) < 160, "B", "T"))
    noise = rng.normal(size=(320, 3)) * 0.3
    adata.obsm["X_line"] = noise + days[:, None]
    adata.obsm["X_steps"] = noise[:, :1] + np.array([3.0, 0.0, 4.5, 1.0])[np.searchsorted([1, 2, 4, 8], days)][:, None]
    Registry.create(adata, DataConfig(cell_type_key="cell_type")).write(adata)
    return adata


def _row(table, embedding, metric, cell_type="all"):
    chosen = (table["embedding"] == embedding) & (table["metric"] == metric) & (table["cell_type"] == cell_type)
    return table[chosen].iloc[0]


def test_an_embedding_that_follows_time_beats_its_permuted_times(adata, tmp_path):
    table = tl.temporal_coherence(adata, ["X_line", "X_steps"], time_key="day")
    assert len(table) == 3 * 3 * 3  # embeddings, metrics, both types and all
    for metric in ("gap_correlation", "monotonicity", "smoothness"):
        row = _row(table, "X_line", metric)
        assert row["value"] > 0.95
        assert row["baseline"] < 0.7
        assert row["p_value"] <= 2 / 24 + 1e-9
        assert row["value"] == pytest.approx(np.mean([_row(table, "X_line", metric, t)["value"] for t in "BT"]))
        assert _row(table, "X_steps", metric)["p_value"] > 0.2
        assert _row(table, "X_steps", metric)["value"] < row["value"]
    assert (table["reason"] == "").all()
    assert table["value"].between(table["lowest"], table["highest"]).all()
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad").uns["scstate_lora"]["temporal_coherence"]
    pd.testing.assert_frame_equal(stored.reset_index(drop=True), table)


def test_times_may_be_text_or_ordered_categories(adata):
    expected = tl.temporal_coherence(adata, "X_line", time_key="day")
    adata.obs["text"] = pd.Categorical(adata.obs["day"].astype(int).astype(str))
    assert tl.temporal_coherence(adata, "X_line", time_key="text")["value"].equals(expected["value"])
    names = ["early", "mid", "late", "end"]
    adata.obs["phase"] = pd.Categorical.from_codes(np.tile([0, 1, 2, 3], 80), names, ordered=True)
    assert _row(tl.temporal_coherence(adata, "X_line", time_key="phase"), "X_line", "monotonicity")["value"] == 1.0
    adata.obs["phase"] = adata.obs["phase"].astype(str)
    with pytest.raises(ValueError, match=r"adata\.obs\['phase'\] must hold times as numbers; found 'early'"):
        tl.temporal_coherence(adata, "X_line", time_key="phase")


def test_a_type_of_few_cells_says_so_and_counts_in_no_average(adata):
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    labels[:8] = "rare"
    adata.obs["cell_type"] = labels
    adata.obs["day"] = adata.obs["day"].where(np.arange(320) != 300)
    table = tl.temporal_coherence(adata, "X_line", time_key="day")
    rare = _row(table, "X_line", "smoothness", "rare")
    assert np.isnan(rare["value"])
    assert rare["reason"] == "an order needs three times with enough cells: 0 have 10 cells"
    assert _row(table, "X_line", "smoothness")["value"] > 0.95
    assert _row(table, "X_line", "smoothness")["reason"] == "left out: 1 cells without a value"


def test_a_broken_embedding_leaves_the_others_alone(adata):
    adata.obsm["X_nan"] = np.full((320, 2), np.nan)
    table = tl.temporal_coherence(adata, ["X_nan", "X_line"], time_key="day")
    assert "NaN" in _row(table, "X_nan", "smoothness")["reason"]
    assert _row(table, "X_line", "smoothness")["value"] > 0.95


def test_fewer_than_three_times_or_no_type_raises(adata):
    adata.obs["two"] = np.tile([0, 1], 160)
    with pytest.raises(ValueError, match="has 2 times among the scored cells"):
        tl.temporal_coherence(adata, "X_line", time_key="two")
    Registry.create(adata, DataConfig(covariate_keys=["day"])).write(adata)
    with pytest.raises(ValueError, match="label_key="):
        tl.temporal_coherence(adata, "X_line", time_key="day")
