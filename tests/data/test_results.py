"""Results in ``uns``: written beside the others, read back from files of this version and of 0.1."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora.data import results
from scstate_lora.data.results import (
    Prediction,
    as_uns,
    drop_result,
    is_predicted,
    read_prediction,
    read_result,
    require_result,
    results_restored_on_error,
    write_result,
)

PREDICTION = Prediction("log1p_cp10k", "arm", "none", ["a, b", "c"], "genes", 1e4)


@pytest.fixture
def cells() -> ad.AnnData:
    return ad.AnnData(np.zeros((4, 2), dtype=np.float32), obs=pd.DataFrame(index=[f"c{i}" for i in range(4)]))


def test_results_of_several_functions_and_keys_coexist(cells):
    write_result(cells, results.EVALUATE, 1)
    write_result(cells, results.EMBED, {"n": 1}, key="X_a")
    write_result(cells, results.EMBED, {"n": 2}, key="X_b")
    assert cells.uns == {"scstate_lora": {"evaluate": 1, "embed": {"X_a": {"n": 1}, "X_b": {"n": 2}}}}
    assert read_result(cells, results.EMBED, key="X_b") == {"n": 2}
    assert read_result(cells, results.EMBED, key="X_c") is None
    assert read_result(cells, results.COMPARE) is None
    drop_result(cells, results.EVALUATE)
    drop_result(cells, results.COMPARE)
    assert set(cells.uns["scstate_lora"]) == {"embed"}


@pytest.mark.parametrize("key", [None, "X_a"])
def test_a_view_leaves_its_parent_alone(cells, key):
    write_result(cells, results.EMBED, {"n": 1}, key=key)
    view = cells[:2]
    with pytest.warns(ad.ImplicitModificationWarning):
        write_result(view, results.EMBED, {"n": 2}, key=key)
    with pytest.warns(ad.ImplicitModificationWarning):
        drop_result(cells[2:], results.EMBED)
    assert read_result(cells, results.EMBED, key=key) == {"n": 1}
    assert read_result(view, results.EMBED, key=key) == {"n": 2}


def test_as_uns_equals_what_write_result_writes(cells):
    write_result(cells, results.EMBED, 1, key="X_a")
    assert cells.uns == as_uns(results.EMBED, 1, key="X_a")


def test_a_missing_result_names_the_call_raises(cells):
    with pytest.raises(KeyError, match=r"no 'compare'. Call `scstate_lora.tl.compare\(adata\)` first"):
        require_result(cells, results.COMPARE, call="tl.compare(adata)")


@pytest.mark.parametrize("before", [{}, {"scstate_lora": {"evaluate": 1}}])
def test_results_are_restored_on_an_error(cells, before):
    cells.uns.update(before)
    with pytest.raises(RuntimeError), results_restored_on_error(cells):  # noqa: PT012 (two steps, to be undone)
        write_result(cells, results.COMPARE, 1)
        raise RuntimeError
    assert dict(cells.uns) == before


def test_a_prediction_keeps_its_targets_in_a_file(cells, tmp_path):
    write_result(cells, results.PREDICT, PREDICTION.record(n_models=2))
    assert cells.uns["scstate_lora"]["predict"] == {
        "scale": "log1p_cp10k", "pert_key": "arm", "control": "none", "space": "genes", "target": ["a, b", "c"],
        "target_sum": 1e4, "n_models": 2,
    }  # fmt: skip
    assert read_prediction(cells) == PREDICTION
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert read_prediction(ad.read_h5ad(tmp_path / "cells.h5ad")) == PREDICTION


@pytest.mark.parametrize(
    ("stored", "label", "targets"),
    [("burn", "burn", ["burn"]), ("burn, scald", "scald", ["burn", "scald"]), ("a, b", "a, b", ["a, b"])],
)
def test_targets_of_version_0_1_were_joined_by_commas(cells, stored, label, targets):
    cells.obs["arm"] = label
    write_result(cells, results.PREDICT, {"pert_key": "arm", "control": "none", "target": stored})
    assert read_prediction(cells) == PREDICTION._replace(targets=targets)


def test_measured_cells_read_as_predicted_raises(cells):
    assert not is_predicted(cells)
    with pytest.raises(ValueError, match=r"must come from STTransition.predict"):
        read_prediction(cells)
