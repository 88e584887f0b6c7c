"""Predictions of any model are scored: by columns that they share with the measured cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.results import PREDICT, Prediction, write_result

GIVEN = {"context_key": "type", "n_boot": 10}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """60 control and 60 cells of either drug in each of two types; not to be changed."""
    rng = np.random.default_rng(0)
    rows = [(t, arm) for t in "AB" for arm in ("none", "drug", "dye") for _ in range(60)]
    obs = pd.DataFrame(rows, columns=["type", "arm"], index=[f"cell{i}" for i in range(len(rows))])
    rate = np.full((len(obs), 80), 4.0)
    rate[(obs["arm"] == "drug").to_numpy(), :12] += 6
    rate[(obs["arm"] == "dye").to_numpy(), 12:24] += 6
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(80)]
    Registry.create(adata, DataConfig(pert_key="arm", control="none", cell_type_key="type")).write(adata)
    return adata


def _plain(cells: ad.AnnData) -> ad.AnnData:
    """What another model might hand back: the controls, with more of some genes for each drug, and nothing in uns."""
    controls = cells[(cells.obs["arm"] == "none").to_numpy()].copy()
    parts = []
    for target, genes in (("drug", slice(0, 12)), ("dye", slice(12, 24))):
        x = log_expression(controls).toarray()
        x[:, genes] += 0.8
        obs = controls.obs[["type"]].assign(arm=target, control_cell=controls.obs_names)
        obs.index = [f"{name}|{target}" for name in obs.index]
        parts.append(ad.AnnData(x, obs=obs, var=controls.var[[]]))
    return ad.concat(parts)


def test_a_plain_prediction_scores_as_one_of_ours(cells):
    plain, ours = _plain(cells), _plain(cells)
    write_result(ours, PREDICT, Prediction("log1p_cp10k", "arm", "none", ["drug", "dye"], "genes", 1e4).record())
    expected = tl.evaluate_perturbation(ours, cells, cells, **GIVEN)
    table = tl.evaluate_perturbation(plain, cells, cells, pert_key="arm", **GIVEN)
    pd.testing.assert_frame_equal(table, expected)
    with pytest.raises(ValueError, match="pert_key="):
        tl.evaluate_perturbation(_plain(cells), cells, cells, **GIVEN)


def test_without_control_cells_all_controls_are_used(cells, caplog):
    plain = _plain(cells)
    known = tl.evaluate_perturbation(_plain(cells), cells, cells, pert_key="arm", **GIVEN)
    del plain.obs["control_cell"]
    with caplog.at_level("WARNING", logger="scstate_lora"):
        table = tl.evaluate_perturbation(plain, cells, cells, pert_key="arm", **GIVEN)
    assert "which control cells were predicted from is unknown" in caplog.text
    rows = [t[(t["model"] == "model") & (t["context"] == "all") & (t["perturbation"] == "all")] for t in (table, known)]
    values = [part.set_index("metric")["value"] for part in rows]
    np.testing.assert_allclose(values[0]["mae"], values[1]["mae"])
    assert values[0]["pearson_delta"] == pytest.approx(values[1]["pearson_delta"], abs=0.03)
    assert set(table["n_control"]) == set(known["n_control"])
    effects = tl.discrimination(plain, cells, cells, pert_key="arm", n_boot=10)
    model = effects[(effects["model"] == "model") & (effects["perturbation"] == "all")]
    assert model["value"].to_numpy() == pytest.approx(1.0)


def test_counts_and_own_controls_are_understood(cells):
    whole = cells.copy()  # the measured cells as a prediction, controls and all
    del whole.uns["scstate_lora"]
    table = tl.evaluate_perturbation(whole, cells, cells, pert_key="arm", **GIVEN)
    assert set(table["perturbation"]) == {"drug", "dye", "all"}
    perfect = table[(table["model"] == "model") & table["metric"].isin(["mae", "mse", "e_distance"])]
    np.testing.assert_allclose(perfect["value"], 0, atol=1e-5)
    part = whole[:, :40].copy()
    with pytest.raises(KeyError, match="library_size"):
        tl.evaluate_perturbation(part, cells, cells, pert_key="arm", **GIVEN)
    part.obs["library_size"] = np.asarray(whole.X.sum(axis=1)).ravel()
    table = tl.evaluate_perturbation(part, cells, cells, pert_key="arm", **GIVEN)
    np.testing.assert_allclose(table[(table["model"] == "model") & (table["metric"] == "mae")]["value"], 0, atol=1e-5)
