"""Leaks, shared controls, mixed scales and confounded batches are found, and clean data give no complaint."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import tl

GIVEN = {"pert_key": "arm", "control": "none", "context_key": "type", "batch_key": "donor"}


def _cells(*, donors=("d1", "d2"), n=40, seed=0) -> ad.AnnData:
    """Control and drug cells of two types from some donors; plain, never set up."""
    rng = np.random.default_rng(seed)
    rows = [(t, arm, d) for t in "AB" for arm in ("none", "drug") for d in donors for _ in range(n)]
    obs = pd.DataFrame(rows, columns=["type", "arm", "donor"], index=[f"{r[2]}_{seed}_{i}" for i, r in enumerate(rows)])
    counts = rng.poisson(3.0, size=(len(rows), 50)).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs)
    adata.var_names = [f"g{i}" for i in range(50)]
    return adata


@pytest.fixture
def split() -> tuple[ad.AnnData, ad.AnnData]:
    return _cells(donors=("d1", "d2"), seed=1), _cells(donors=("d3",), seed=2)


def _logged(cells: ad.AnnData) -> np.ndarray:
    counts = cells.X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def _prediction(cells: ad.AnnData, noise: float = 0.1) -> ad.AnnData:
    """A prediction of any model, from the control cells."""
    controls = cells[(cells.obs["arm"] == "none").to_numpy()].copy()
    x = np.maximum(_logged(controls) + np.random.default_rng(3).normal(0, noise, controls.shape), 0)
    pred = ad.AnnData(x.astype(np.float32), obs=controls.obs.assign(arm="drug", control_cell=controls.obs_names))
    pred.obs_names = [f"{name}|drug" for name in controls.obs_names]
    pred.var_names = controls.var_names
    return pred


def _found(table: pd.DataFrame, check: str) -> pd.DataFrame:
    return table[table["check"] == check]


def test_clean_cells_are_said_to_be_clean(split):
    train, test = split
    table = tl.audit(train, test, pred=_prediction(test), **GIVEN)
    assert list(table.columns) == ["check", "severity", "finding", "cells", "fix"]
    assert set(table["severity"]) == {"info"}
    (seen,) = _found(table, "seen")["finding"]
    assert seen == "perturbation and context of 80 of 80 perturbed test cells are both in training, together"


def test_cells_in_both_splits_are_found_by_name_and_by_expression(split):
    train, test = split
    drug = test[test.obs["arm"] == "drug"][:30].copy()
    named = tl.audit(ad.concat([train, drug]), test, **GIVEN)
    (row,) = _found(named, "same cells").to_dict("records")
    assert (row["severity"], row["cells"]) == ("error", 30)
    drug.obs_names = [f"renamed{i}" for i in range(30)]
    renamed = tl.audit(ad.concat([train, drug]), test, **GIVEN)
    (row,) = _found(renamed, "same cells").to_dict("records")
    assert (row["severity"], row["cells"]) == ("error", 30)
    assert "exactly the expression" in row["finding"]
    assert set(_found(renamed, "same batch")["cells"]) == {80}
    assert renamed["severity"].iloc[0] == "error"


def test_what_is_new_in_the_test_is_said(split):
    train, test = split
    part = train[~((train.obs["type"] == "B") & (train.obs["arm"] == "drug")).to_numpy()].copy()
    words = " ".join(_found(tl.audit(part, test, **GIVEN), "seen")["finding"])
    assert "40 of 80 perturbed test cells are both in training, together" in words
    assert "40 of 80 perturbed test cells are new by the context" in words
    other = test.copy()
    other.obs["arm"] = other.obs["arm"].astype(str).replace("drug", "dye")
    words = " ".join(_found(tl.audit(train, other, **GIVEN), "seen")["finding"])
    assert "80 of 80 perturbed test cells are new by the perturbation" in words


def test_a_leaked_prediction_and_shared_controls_are_found(split):
    train, test = split
    drug = test[test.obs["arm"] == "drug"].copy()
    leaked = ad.AnnData(_logged(drug).astype(np.float32), obs=drug.obs.assign(control_cell="d3_2_0"))
    leaked.var_names = test.var_names
    (row,) = _found(tl.audit(train, test, pred=leaked, **GIVEN), "copied cells").to_dict("records")
    assert (row["severity"], row["cells"]) == ("error", 80)
    controls = test[test.obs["arm"] == "none"].copy()
    both = ad.concat([train, controls])
    (row,) = _found(tl.audit(both, test, pred=_prediction(test), **GIVEN), "shared controls").to_dict("records")
    assert (row["severity"], row["cells"]) == ("warning", 80)
    unknown = _prediction(test)
    del unknown.obs["control_cell"]
    (row,) = _found(tl.audit(train, test, pred=unknown, **GIVEN), "shared controls").to_dict("records")
    assert row["severity"] == "info"


@pytest.mark.parametrize("change", [lambda x: 2 * x, np.expm1, lambda x: x / np.log(10)])
def test_another_scale_is_found(split, change):
    train, test = split
    pred = _prediction(test)
    pred.X = change(pred.X)
    (row,) = _found(tl.audit(train, test, pred=pred, **GIVEN), "scale").to_dict("records")
    assert row["severity"] == "error"
    assert "of pred is" in row["finding"]
    assert _found(tl.audit(train, test, pred=_prediction(test), **GIVEN), "scale").empty


def test_batches_that_confound_are_found(split):
    train, test = split
    lone = test[~((test.obs["donor"] == "d3") & (test.obs["arm"] == "none")).to_numpy()].copy()
    table = tl.audit(None, lone, **GIVEN)
    (row,) = _found(table, "confounded").to_dict("records")
    assert (row["severity"], row["cells"]) == ("error", 80)
    assert "'drug' is of donor d3" in row["finding"]
    assert len(_found(table, "no controls")) == 2
    nested = _cells(donors=("d1", "d2", "d3", "d4"), seed=6)
    is_treated = nested.obs["donor"].isin(["d3", "d4"]).to_numpy()
    nested = nested[(nested.obs["arm"] == "drug").to_numpy() == is_treated].copy()
    (row,) = _found(tl.audit(None, nested, **GIVEN), "confounded").to_dict("records")
    assert row["severity"] == "warning"
    assert "2 batches stand against 2 of the controls" in row["finding"]
    shared = tl.audit(train, _cells(donors=("d2",), seed=5), **GIVEN)
    (row,) = _found(shared, "same batch").to_dict("records")
    assert (row["severity"], row["cells"]) == ("warning", 80)


def test_unknown_roles_raises(split):
    train, test = split
    with pytest.raises(ValueError, match=r"audit\(train, test, pert_key=\.\.\., control=\.\.\.\)"):
        tl.audit(train, test)
    with pytest.raises(KeyError, match=r"test\.obs\['arn'\] does not exist.*'arm'"):
        tl.audit(train, test, pert_key="arn", control="none")
