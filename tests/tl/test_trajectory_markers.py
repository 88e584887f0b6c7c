from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora import tl

MARKERS = {"up": ["rises", "flat"], "down": {"falls": -1, "rises": -1}}


def _cells(*, days=(1, 3, 7), slopes=(0.1, -0.2, 0.0), n=4, labels=None, seed=0) -> ad.AnnData:
    """Cells whose three genes move along a line; log1p values."""
    rng = np.random.default_rng(seed)
    day = np.repeat(days, n)
    x = 3 + np.outer(day, slopes) + 0.001 * rng.normal(size=(len(day), 3))
    obs = pd.DataFrame(
        {"day": day if labels is None else np.repeat(labels, n)}, index=[f"c{i}" for i in range(len(day))]
    )
    adata = ad.AnnData(x.astype(np.float32), obs=obs)
    adata.var_names = ["rises", "falls", "flat"]
    return adata


def _row(table: pd.DataFrame, programme: str, gene: str) -> pd.Series:
    return table[(table["programme"] == programme) & (table["gene"] == gene)].iloc[0]


def test_slopes_are_those_of_the_lines_and_agree_by_their_sign():
    measured = _cells(slopes=(0.2, 0.2, 0.1), n=9)
    table = tl.trajectory_markers(_cells(), measured, time_key="day", markers=MARKERS)
    assert _row(table, "up", "rises")["predicted_slope"] == pytest.approx(0.1, abs=1e-3)
    falls = _row(table, "down", "falls")
    assert falls["predicted_slope"] == pytest.approx(-0.2, abs=1e-3)
    assert (falls["expected"], falls["predicted_agrees"], falls["measured_agrees"]) == (-1, 1.0, 0.0)
    assert falls["agreement"] == 0.0
    assert (falls["n_predicted"], falls["n_measured"]) == (12, 27)
    average = _row(table, "down", "all")
    assert average["predicted_agrees"] == 0.5
    assert average["predicted_slope"] == pytest.approx((0.2 - 0.1) / 2, abs=1e-3)


def test_labels_hold_days_and_measured_cells_may_lack():
    pred = _cells(labels=["day1", "day3", "day7"])
    table = tl.trajectory_markers(pred, time_key="day", markers={"up": ["rises"]})
    assert _row(table, "up", "rises")["predicted_slope"] == pytest.approx(0.1, abs=1e-3)
    assert table["measured_slope"].isna().all()
    assert table["agreement"].isna().all()


def test_slopes_within_types_do_not_see_a_change_of_composition():
    one, two = _cells(slopes=(0, 0, 0), n=4), _cells(slopes=(0, 0, 0), n=8, seed=1)
    two.X = two.X + 2
    two.obs_names = [f"d{i}" for i in range(two.n_obs)]
    both = ad.concat([one[:10], two[6:]], label="type", keys=["a", "b"])
    within = tl.trajectory_markers(both, time_key="day", markers={"m": ["rises"]}, cell_type_key="type")
    across = tl.trajectory_markers(both, time_key="day", markers={"m": ["rises"]})
    assert abs(_row(within, "m", "rises")["predicted_slope"]) < 0.01
    assert abs(_row(across, "m", "rises")["predicted_slope"]) > 0.02


def test_the_built_in_programmes_are_those_of_the_simulator():
    wound = ssl.datasets.wound_healing(1500, n_genes=300, seed=0)
    sham = wound[(wound.obs["condition"] == "sham").to_numpy()].copy()
    table = tl.trajectory_markers(sham, time_key="time_days", cell_type_key="cell_type")
    averages = table[table["gene"] == "all"].set_index("programme")
    assert set(averages.index) == {"inflammation", "stress", "proliferation", "remodelling", "M1", "M2"}
    strong = ["inflammation", "proliferation", "remodelling"]
    assert (averages.loc[strong, "predicted_slope"] > 0).all()
    assert (averages.loc[strong, "predicted_agrees"] > 0.7).all()
    backwards = sham.copy()
    backwards.obs["time_days"] = -backwards.obs["time_days"]
    found = tl.trajectory_markers(backwards, sham, time_key="time_days", cell_type_key="cell_type")
    assert (found[found["gene"] == "all"].set_index("programme").loc[strong, "agreement"] < 0.1).all()


def test_what_cannot_be_used_raises():
    cells = _cells()
    with pytest.warns(UserWarning, match="1 of the 2 markers are not among the genes of pred: Gone"):
        table = tl.trajectory_markers(cells, time_key="day", markers={"m": ["rises", "Gone"]})
    assert "not among the genes of pred" in _row(table, "m", "Gone")["reason"]
    with pytest.raises(KeyError, match=r"None of the 1 markers.*'rise'.*'rises'"):
        tl.trajectory_markers(cells, time_key="day", markers={"m": ["rise"]})
    with pytest.raises(KeyError, match=r"pred\.obs\['time'\] does not exist"):
        tl.trajectory_markers(cells, time_key="time", markers=MARKERS)
    with pytest.raises(ValueError, match=r"needs two times; pred\.obs\['day'\] holds 1"):
        tl.trajectory_markers(_cells(days=(3,)), time_key="day", markers=MARKERS)
    with pytest.raises(ValueError, match=r"direction 1 .* found .'rises', 2."):
        tl.trajectory_markers(cells, time_key="day", markers={"m": {"rises": 2}})
    with pytest.raises(ValueError, match="found 'late'"):
        tl.trajectory_markers(_cells(labels=["day1", "day3", "late"]), time_key="day", markers=MARKERS)
