from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.data import log_expression
from tests.builders import wound

TYPES = ["fibroblast", "macrophage"]


@pytest.fixture
def cells():
    adata = wound(700, seed=3)
    keys = {"covariate_keys": ["condition"], "pert_key": "condition", "control": "sham"}
    ssl.STTransition.setup_anndata(adata, cell_type_key="cell_type", **keys)
    return adata


def _x(adata, cell_type, condition):
    return log_expression(adata)[
        ((adata.obs["cell_type"] == cell_type) & (adata.obs["condition"] == condition)).to_numpy()
    ]


@pytest.fixture
def pred(cells):
    """Predicted are control cells in which every gene moved by as much as its position in units of 0.01."""
    own = ((cells.obs["condition"] == "sham") & cells.obs["cell_type"].isin(TYPES)).to_numpy()
    controls = cells[own]
    x = log_expression(cells)[own].toarray() + 0.01 * np.arange(cells.n_vars, dtype=np.float32)
    made = ad.AnnData(x, obs=controls.obs.copy(), var=cells.var[[]])
    made.obs["control_cell"] = controls.obs_names
    made.obs["condition"] = "burn"
    record = {"scale": "log1p_cp10k", "pert_key": "condition", "control": "sham", "target": "burn"}
    made.uns["scstate_lora"] = {"predict": record}
    return made


def test_changes_intervals_and_fdr_are_those_of_scipy(cells, pred):
    table = tl.responses(pred, cells, cells, context_key="cell_type")
    assert table["context"].unique().tolist() == TYPES
    assert len(table) == 2 * cells.n_vars
    for cell_type in TYPES:
        own = table[table["context"] == cell_type].set_index("gene").loc[cells.var_names]
        burn, sham = (_x(cells, cell_type, c).toarray().astype(np.float64) for c in ("burn", "sham"))
        test = stats.ttest_ind(burn, sham, equal_var=False)
        low, high = test.confidence_interval(0.95)
        varies = burn.std(axis=0) + sham.std(axis=0) > 0
        np.testing.assert_allclose(own["measured"], burn.mean(axis=0) - sham.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(own["measured_low"][varies], low[varies], atol=1e-6)
        np.testing.assert_allclose(own["measured_high"][varies], high[varies], atol=1e-6)
        np.testing.assert_allclose(own["measured_low"][~varies], own["measured"][~varies])
        p = np.where(varies, test.pvalue, 1.0)
        np.testing.assert_allclose(own["fdr"], stats.false_discovery_control(p), atol=1e-6)
        np.testing.assert_allclose(own["predicted"], 0.01 * np.arange(cells.n_vars), atol=1e-5)
        np.testing.assert_allclose(own["control"], sham.mean(axis=0), atol=1e-6)
        assert (own[["n_control", "n_predicted", "n_measured"]] == [len(sham), len(sham), len(burn)]).all(axis=None)


def test_the_largest_measured_changes_of_each_context_come_first(cells, pred):
    table = tl.responses(pred, cells, cells, context_key="cell_type")
    for _, part in table.groupby("context"):
        assert part["measured"].abs().is_monotonic_decreasing


def test_a_choice_of_genes_keeps_their_numbers(cells, pred):
    whole = tl.responses(pred, cells, cells, context_key="cell_type")
    genes = [str(cells.var_names[i]) for i in (7, 3)]
    chosen = tl.responses(pred, cells, cells, context_key="cell_type", genes=genes)
    pd.testing.assert_frame_equal(chosen, whole[whole["gene"].isin(genes)].reset_index(drop=True))
    one = tl.responses(pred, cells, cells, context_key="cell_type", genes=genes[0])
    assert one["gene"].tolist() == [genes[0]] * 2


def test_a_few_measured_cells_have_a_change_but_no_interval(cells, pred):
    """In three cells many genes are not seen: no variance, and a test that would be certain of their fall."""
    burned = np.flatnonzero((cells.obs["condition"] == "burn") & (cells.obs["cell_type"] == "macrophage"))
    tested = ["measured_low", "measured_high", "fdr"]
    for n in (1, 3, 9):
        table = tl.responses(pred, cells[burned[:n]].copy(), cells, context_key="cell_type")
        assert table["context"].unique().tolist() == ["macrophage"]
        assert table["measured"].notna().all()
        assert table[tested].isna().all(axis=None)
    assert tl.responses(pred, cells[burned[:10]].copy(), cells, context_key="cell_type")[tested].notna().all(axis=None)
    few = tl.responses(pred, cells[burned[:3]].copy(), cells, context_key="cell_type", min_cells=2)
    assert few[tested].notna().all(axis=None)
    with pytest.raises(ValueError, match="min_cells=1 must be 2 or more"):
        tl.responses(pred, cells, cells, context_key="cell_type", min_cells=1)


def test_genes_that_were_not_predicted_raises(cells, pred):
    with pytest.raises(KeyError, match="not among the 200 genes of pred"):
        tl.responses(pred, cells, cells, context_key="cell_type", genes=["nothing"])
    pred.uns["scstate_lora"]["predict"]["genes_left_out"] = ["Ifit1"]
    with pytest.raises(KeyError, match=r"'Ifit1' was left out of the prediction.*genes=\['Ifit1'\]"):
        tl.responses(pred, cells, cells, context_key="cell_type", genes=["Ifit1"])
    with pytest.raises(ValueError, match="level=95 must be between 0 and 1"):
        tl.responses(pred, cells, cells, context_key="cell_type", level=95)
