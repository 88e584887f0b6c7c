from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.data import log_expression


def _cells():
    """60 cells x 8 genes, with a velocity of counts per 10,000 and one in a plane."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"condition": np.repeat(["sham", "burn"], 30), "cell_type": np.tile(["A", "B"], 30)},
        index=[f"cell{i}" for i in range(60)],
    )
    counts = rng.poisson(5, (60, 8)).astype(np.float32) + 1
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(8)]))
    adata.layers["velocity"] = rng.normal(0, 100, (60, 8)).astype(np.float32)
    adata.obs["velocity_confidence"] = np.linspace(0, 1, 60)
    adata.obsm["X_plane"] = rng.normal(size=(60, 2)).astype(np.float32)
    adata.obsm["velocity_X_plane"] = rng.normal(size=(60, 2)).astype(np.float32)
    ssl.STTransition.setup_anndata(
        adata, pert_key="condition", control="sham", cell_type_key="cell_type", embed_key="X_plane", test_size=0.2
    )
    return adata


def _predicted(adata, x=None, plane=None):
    """What `STTransition.predict` returns for the control cells, last cell first."""
    names = adata.obs_names[:30][::-1]
    obs = pd.DataFrame({"control_cell": names, "condition": "burn"}, index=[f"{name}|burn" for name in names])
    pred = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=adata.var_names if x is not None else []))
    if plane is not None:
        pred.obsm["X_plane"] = plane
    described = {"scale": "log1p_cp10k", "pert_key": "condition", "control": "sham", "target": "burn"}
    pred.uns["scstate_lora"] = {"predict": {**described, "space": "genes" if plane is None else "X_plane"}}
    return pred


def _of_log(adata):
    """Control expression and its velocity, in log1p, last cell first."""
    log = log_expression(adata).toarray()
    return log[:30][::-1], (adata.layers["velocity"] / np.exp(log))[:30][::-1]


def test_a_shift_along_the_velocity_of_log1p_has_cosine_one():
    adata = _cells()
    log, velocity = _of_log(adata)
    sign = np.where(np.arange(30) < 10, -1, 1)[:, None]
    predicted = _predicted(adata, (log + 0.5 * sign * velocity).astype(np.float32))
    table = tl.velocity_alignment(adata, predicted)
    assert table["control_cell"].tolist() == adata.obs_names[:30][::-1].tolist()
    assert set(table["target"]) == {"burn"}
    assert table["cell_type"].tolist() == ["B", "A"] * 15
    np.testing.assert_allclose(table["cosine"], sign.ravel(), atol=1e-4)
    np.testing.assert_allclose(table["magnitude_velocity"], np.linalg.norm(velocity, axis=1), rtol=1e-4)
    np.testing.assert_allclose(table["magnitude_shift"], 0.5 * table["magnitude_velocity"], rtol=1e-3)
    np.testing.assert_allclose(table["confidence"], np.linspace(0, 1, 60)[:30][::-1], rtol=1e-5)
    assert predicted.uns["scstate_lora"]["velocity_alignment"] is table
    assert "predict" in predicted.uns["scstate_lora"]
    assert "x" not in table


def test_genes_without_velocity_are_left_out_of_the_shift_too():
    adata = _cells()
    adata.layers["velocity"][:, 3:] = np.nan
    adata.layers["velocity"][29] = np.nan
    log, velocity = _of_log(adata)
    shift = np.where(np.isnan(velocity), 7.0, velocity)
    table = tl.velocity_alignment(adata, _predicted(adata, (log + shift).astype(np.float32)))
    assert np.isnan(table.loc[0, ["cosine", "magnitude_velocity"]].to_numpy(dtype=float)).all()
    np.testing.assert_allclose(table["cosine"][1:], 1, atol=1e-4)


def test_no_change_has_no_cosine():
    adata = _cells()
    table = tl.velocity_alignment(adata, _predicted(adata, _of_log(adata)[0]))
    assert table["cosine"].isna().all()
    np.testing.assert_allclose(table["magnitude_shift"], 0)


def test_in_a_plane_there_are_arrows():
    adata = _cells()
    control = adata.obsm["X_plane"][:30][::-1]
    velocity = adata.obsm["velocity_X_plane"][:30][::-1]
    turned = velocity[:, ::-1] * [1, -1]
    predicted = _predicted(adata, plane=(control + turned).astype(np.float32))
    table = tl.velocity_alignment(adata, predicted, velocity_key="velocity_X_plane")
    np.testing.assert_allclose(table["cosine"], 0, atol=1e-5)
    np.testing.assert_allclose(table[["x", "y"]], control, rtol=1e-6)
    np.testing.assert_allclose(table[["shift_x", "shift_y"]], turned, atol=1e-6)
    np.testing.assert_allclose(table[["velocity_x", "velocity_y"]], velocity, rtol=1e-6)
    np.testing.assert_allclose(table["magnitude_shift"], table["magnitude_velocity"], rtol=1e-5)


def test_mistake_raises():
    adata = _cells()
    predicted = _predicted(adata, _of_log(adata)[0])
    with pytest.raises(KeyError, match="Did you mean 'velocity'"):
        tl.velocity_alignment(adata, predicted, velocity_key="velocty")
    with pytest.raises(KeyError, match="29 of the 30 control cells"):
        tl.velocity_alignment(adata[29:].copy(), predicted)
    with pytest.raises(ValueError, match="must come from STTransition"):
        tl.velocity_alignment(adata, adata)
