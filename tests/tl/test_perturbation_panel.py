"""Many perturbations in one call, the baseline chosen on training cells, and whether a metric is usable."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import metrics, pl, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.metrics import set_spread
from scstate_lora.metrics.baselines import BASELINES
from scstate_lora.metrics.changes import Moments
from scstate_lora.metrics.registry import METRICS
from scstate_lora.metrics.set_pairs import (
    CellSet,
    SetPair,
    e_distance_of,
    mmd_of,
    relative_nearest_of,
    variance_ratio_of,
)

GUIDES = ["A", "B", "C", "D", "E", "F"]
TISSUES = ["gut", "lung"]


def _screen(*, tissues=TISSUES, n=40, n_control=60, n_genes=120, effect=0.5, shared=0.5, seed=0) -> ad.AnnData:
    """Cells of six guides and controls; all guides share a part of their effect."""
    rng = np.random.default_rng(seed)
    sizes = {"none": n_control, **dict.fromkeys(GUIDES, n)}
    rows = [(where, what) for where in tissues for what, k in sizes.items() for _ in range(k)]
    obs = pd.DataFrame(rows, columns=["tissue", "guide"], index=[f"cell{i}" for i in range(len(rows))])
    base = {where: rng.normal(0.5, 1, n_genes) for where in tissues}
    common = rng.normal(0, shared, n_genes)
    effects = {"none": np.zeros(n_genes), **{name: common + rng.normal(0, effect, n_genes) for name in GUIDES}}
    rate = np.exp([base[where] + effects[what] for where, what in rows])
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    Registry.create(adata, DataConfig(pert_key="guide", control="none", cell_type_key="tissue")).write(adata)
    return adata


def _part(cells: ad.AnnData, mask: object) -> ad.AnnData:
    return cells[np.asarray(mask)].copy()


def _predict(cells: ad.AnnData, targets: list[str], *, effects: ad.AnnData | None = None) -> ad.AnnData:
    """All control cells plus the mean change of each target, measured in `effects`; without it, unchanged."""
    controls = _part(cells, cells.obs["guide"] == "none")
    logged = log_expression(controls).toarray()
    parts = []
    for target in targets:
        x = logged.copy()
        if effects is not None:
            for where in TISSUES:
                here = (effects.obs["tissue"] == where).to_numpy()
                means = [
                    log_expression(_part(effects, here & (effects.obs["guide"] == name).to_numpy())).mean(0).A1
                    for name in (target, "none")
                ]
                x[(controls.obs["tissue"] == where).to_numpy()] += means[0] - means[1]
        obs = controls.obs.assign(control_cell=controls.obs_names, guide=target)
        obs.index = [f"{name}|{target}" for name in obs.index]
        parts.append(ad.AnnData(np.maximum(x, 0).astype(np.float32), obs=obs, var=controls.var[[]]))
    predicted = ad.concat(parts)
    write_result(predicted, PREDICT, Prediction("log1p_cp10k", "guide", "none", targets, "genes").record())
    return predicted


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    """Two tissues; not to be changed."""
    return _screen()


@pytest.fixture(scope="module")
def replicate() -> ad.AnnData:
    """The same experiment once more; not to be changed."""
    other = _screen()
    other.X = sparse.csr_matrix(np.random.default_rng(9).poisson(other.X.toarray() * 0.9 + 0.05).astype(np.float32))
    other.obs_names = [f"other_{name}" for name in other.obs_names]
    return other


@pytest.fixture(scope="module")
def table(screen, replicate) -> pd.DataFrame:
    """Scores of a good model of A, B and C, with D, E and F in training. Not to be changed."""
    train = _part(screen, ~screen.obs["guide"].isin(["A", "B", "C"]))
    predicted = _predict(screen, ["A", "B", "C"], effects=replicate)
    return tl.evaluate_perturbation(predicted, screen, screen, context_key="tissue", train=train, n_boot=50)


def _value(table: pd.DataFrame, *, column: str = "value", **which: str) -> object:
    which = {"model": "model", "context": "all", "perturbation": "all", **which}
    rows = table[np.logical_and.reduce([table[key] == value for key, value in which.items()])]
    assert len(rows) == 1, which
    return rows.iloc[0][column]


# --- Many perturbations -----------------------------------------------------------------------------------------


def test_each_perturbation_scores_as_it_does_alone(screen, replicate, table):
    train = _part(screen, ~screen.obs["guide"].isin(["A", "B", "C"]))
    alone = tl.evaluate_perturbation(
        _predict(screen, ["B"], effects=replicate), screen, screen, context_key="tissue", train=train, n_boot=50
    )
    keys = ["model", "context", "perturbation", "metric"]
    of_one = [name for name, metric in METRICS.items() if metric.panel is None]  # the others compare perturbations
    together, alone = (part[part["metric"].isin(of_one)] for part in (table, alone))
    together = together[together["perturbation"] == "B"].set_index(keys)
    pd.testing.assert_frame_equal(together, alone.set_index(keys).loc[together.index], check_exact=True)
    assert set(alone["perturbation"]) == {"B"}


def test_averages_are_over_contexts_then_perturbations(table):
    assert not table.duplicated(["model", "context", "perturbation", "metric"]).any()
    assert set(table["perturbation"]) == {"A", "B", "C", "all"}
    for metric in ("pearson_delta", "e_distance"):
        single = [[_value(table, metric=metric, context=c, perturbation=p) for c in TISSUES] for p in "ABC"]
        by_target = [_value(table, metric=metric, perturbation=p) for p in "ABC"]
        np.testing.assert_allclose(by_target, np.mean(single, axis=1))
        in_gut = _value(table, metric=metric, context="gut")
        assert in_gut == pytest.approx(np.mean([row[0] for row in single]))
        whole = _value(table, metric=metric)
        assert whole == pytest.approx(np.mean(single))
        low, high = (_value(table, metric=metric, column=name) for name in ("ci_low", "ci_high"))
        assert min(by_target) <= low <= whole <= high <= max(by_target)
    assert _value(table, metric="mae", column="n_measured") == 240
    assert _value(table, metric="mae", column="weight") == 3


def test_a_perturbation_without_prediction_in_a_context_has_no_row_there(screen):
    predicted = _predict(screen, ["A", "B"])
    predicted = _part(predicted, ~((predicted.obs["guide"] == "B") & (predicted.obs["tissue"] == "gut")))
    found = tl.evaluate_perturbation(predicted, screen, screen, context_key="tissue", n_boot=10)
    assert not ((found["perturbation"] == "B") & (found["context"] == "gut")).any()
    assert _value(found, metric="mae", perturbation="B") == _value(
        found, metric="mae", perturbation="B", context="lung"
    )
    assert _value(found, metric="mae", column="n_measured") == 120


def test_small_groups_count_in_no_average(screen):
    keep = np.ones(screen.n_obs, dtype=bool)
    keep[np.flatnonzero((screen.obs["guide"] == "C") & (screen.obs["tissue"] == "gut"))[3:]] = False
    predicted = _predict(screen, ["A", "B", "C"])
    found = tl.evaluate_perturbation(predicted, _part(screen, keep), screen, context_key="tissue", n_boot=10)
    in_gut = [_value(found, metric="mae", context="gut", perturbation=p) for p in "AB"]
    assert _value(found, metric="mae", context="gut") == pytest.approx(np.mean(in_gut))
    reason = _value(found, metric="mae", context="gut", column="reason")
    assert reason == "without 1 of 3 perturbations: 3 measured cells, under min_cells=10"


def test_a_table_of_many_is_drawn_as_averages(table):
    axes = pl.metrics(table, metric="mae")
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["all", *TISSUES]


# --- The baseline that is to be beaten --------------------------------------------------------------------------


def test_the_chosen_baseline_has_no_skill_and_the_replicate_one(table):
    averages = table[(table["context"] == "all") & (table["perturbation"] == "all")]
    chosen = averages[averages["model"] == averages["yardstick"]].dropna(subset="skill")
    assert len(chosen) >= 5
    np.testing.assert_allclose(chosen["skill"], 0, atol=1e-12)
    np.testing.assert_allclose(averages[averages["model"] == "ceiling"]["skill"].dropna(), 1)
    assert set(averages["yardstick"]) - {""} <= set(BASELINES)
    assert set(averages.loc[averages["yardstick"] == "", "metric"]) == {
        "cell_cov_corr",  # of too few cells
        "hit_recall_budget",  # all are hits
        "hit_recall_fdr10",
    }


def test_the_choice_does_not_see_the_test_cells(screen):
    train = _part(screen, ~screen.obs["guide"].isin(["A"]))
    real = _part(screen, screen.obs["guide"].isin(["A", "none"]))
    null = real.copy()  # in which A does nothing, so that no change is the best baseline
    is_a = (null.obs["guide"] == "A").to_numpy()
    for where in TISSUES:
        here = (null.obs["tissue"] == where).to_numpy()
        dense = null.X.toarray()
        dense[is_a & here] = dense[np.random.default_rng(0).choice(np.flatnonzero(~is_a & here), 40)]
        null.X = sparse.csr_matrix(dense)
    undefined = ["pearson_delta", "de_overlap50", "de_precision50", "de_direction50", "direction_reach", "lfc_nmae"]
    chosen = {}
    for name, test in (("real", real), ("null", null)):
        found = tl.evaluate_perturbation(_predict(screen, ["A"]), test, screen, context_key="tissue", train=train)
        rows = found[(found["model"] == "model") & (found["context"] == "all")].set_index("metric")
        chosen[name] = rows["yardstick"].drop(undefined)
        best = found[(found["metric"] == "mse") & (found["context"] == "all")].set_index("model")["value"]
        if name == "null":
            assert best[list(BASELINES.keys() & set(best.index))].idxmin() == "no change"
    pd.testing.assert_series_equal(chosen["real"], chosen["null"])
    assert chosen["null"]["mse"] != "no change"


def test_contexts_perturbations_or_cells_are_left_out_as_the_task_asks(screen):
    from scstate_lora.tl.scoring.cells import Cells
    from scstate_lora.tl.scoring.training import Training
    from scstate_lora.tl.scoring.yardstick import Yardsticks

    def training(cells: ad.AnnData) -> Training:
        columns = (cells.obs["tissue"].to_numpy(dtype=object), cells.obs["guide"].to_numpy(dtype=object))
        names = np.array(cells.obs_names, dtype=object)
        return Training(Cells(log_expression(cells), *columns, names), control="none")

    whole = Yardsticks(training(screen))
    assert whole.of([("A", "gut")]).left_out == "cells"
    assert whole.of([("A", "skin")]).left_out == "contexts"
    assert whole.of([("Z", "gut"), ("Y", "gut"), ("A", "gut")]).left_out == "perturbations"
    one = Yardsticks(training(_part(screen, screen.obs["guide"].isin(["A", "none"]) & (screen.obs["tissue"] == "gut"))))
    assert one.of([("Z", "gut")]).left_out == "cells"
    assert whole.of([("A", "skin")]).ranking["mae"][0] in ("mean shift", "linear")  # the tissues differ more
    assert "no change" in whole.of([("A", "skin")]).ranking["pearson_delta"][-2:]


def test_without_anything_to_leave_out_the_order_is_fixed():
    from scstate_lora.tl.scoring.training import Training
    from scstate_lora.tl.scoring.yardstick import Yardsticks

    yardstick = Yardsticks(Training(None, control="none")).of([("A", "gut")])
    assert yardstick.left_out is None
    assert yardstick.ranking["mae"][0] == "mean shift"


# --- Is the metric usable? --------------------------------------------------------------------------------------


def test_a_metric_that_can_tell_has_a_range_and_one_that_is_saturated_has_none():
    own, common = ({"effect": 0.8, "shared": 0.0}, {"effect": 0.02, "shared": 0.8})
    found = {}
    for name, how in (("own", own), ("common", common)):
        cells = _screen(tissues=["gut"], n=80, n_control=100, **how)
        train = _part(cells, ~cells.obs["guide"].isin(["A", "B"]))
        table = tl.evaluate_perturbation(
            _predict(cells, ["A", "B"]), cells, cells, context_key="tissue", train=train, n_boot=10
        )
        found[name] = {
            column: _value(table, metric="pearson_delta", column=column)
            for column in ("dynamic_range", "baseline_saturation")
        }
    assert found["own"]["dynamic_range"] > 0.8
    assert found["common"]["dynamic_range"] < found["own"]["dynamic_range"] - 0.3
    assert found["own"]["baseline_saturation"] < 0.3
    assert found["common"]["baseline_saturation"] > 0.9


# --- Distances that metrics share -------------------------------------------------------------------------------


def test_shared_distances_give_the_scores_of_the_functions():
    rng = np.random.default_rng(0)
    x, y = (rng.gamma(2.0, size=(n, 30)).astype(np.float32) + 5 for n in (50, 60))
    origin = y.mean(0)
    pair = SetPair(*(CellSet(cells, Moments.of(cells), origin=origin) for cells in (x, y)))
    assert e_distance_of(pair) == pytest.approx(metrics.energy_distance(x, y), rel=1e-4)
    assert mmd_of(pair) == pytest.approx(metrics.mmd(x, y), rel=1e-4)
    assert relative_nearest_of(pair) == pytest.approx(metrics.relative_nearest_distance(x, y), rel=1e-5)
    assert variance_ratio_of(pair) == pytest.approx(metrics.variance_ratio(x, y), rel=1e-6)
    mask = np.arange(60) % 2 == 0
    sets = [pair.measured.half(part, Moments.of(y[part])) for part in (mask, ~mask)]
    halves = SetPair.of_halves(pair.measured, mask, (sets[0], sets[1]))
    assert e_distance_of(halves) == pytest.approx(metrics.energy_distance(y[mask], y[~mask]), rel=1e-4)
    moved = sets[0].moved(np.ones(30), Moments.of(y[mask] + 1))
    assert e_distance_of(SetPair(moved, sets[1])) == pytest.approx(
        metrics.energy_distance(y[mask] + 1, y[~mask]), rel=1e-4
    )


def test_spread_of_a_pair_is_that_of_the_functions():
    rng = np.random.default_rng(0)
    x, y = (np.maximum(rng.normal(0.3, 1, size=(n, 30)), 0).astype(np.float32) for n in (50, 60))
    y *= np.linspace(0.3, 1.5, 30, dtype=np.float32)
    pair = SetPair(*(CellSet(cells, Moments.of(cells), origin=y.mean(0)) for cells in (x, y)))
    for of_pair, score in (
        (set_spread.sd_ratio_of, metrics.sd_ratio),
        (set_spread.sd_r2_of, metrics.sd_r2),
        (set_spread.detection_r2_of, metrics.detection_r2),
        (set_spread.detection_mae_of, metrics.detection_mae),
        (set_spread.centered_e_distance_of, metrics.centered_energy_distance),
    ):
        assert of_pair(pair) == pytest.approx(score(x, y), rel=1e-4)
    assert set_spread.cell_cov_corr_of(x, y, y) == pytest.approx(metrics.cell_cov_corr(x, y, y))


def test_one_profile_for_all_cells_is_scored_as_equal_cells():
    rng = np.random.default_rng(0)
    y, profile = rng.gamma(2.0, size=(40, 30)).astype(np.float32), rng.gamma(2.0, size=30).astype(np.float32)
    same = np.tile(profile, (40, 1))
    sets = [CellSet(cells, Moments.of(same), origin=y.mean(0)) for cells in (np.broadcast_to(profile, (40, 30)), same)]
    measured = CellSet(y, Moments.of(y), origin=y.mean(0))
    for score in (e_distance_of, mmd_of, relative_nearest_of):
        one, all_ = (score(SetPair(part, measured)) for part in sets)
        assert one == pytest.approx(all_, rel=1e-4)


def test_distances_are_between_a_thousand_cells_of_a_large_set():
    cells = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32)
    whole = CellSet(cells, Moments.of(cells), origin=np.zeros(5, dtype=np.float32))
    assert whole.squared.shape == (1000, 1000)
    mask = np.arange(3000) < 1500
    half = whole.half(mask, Moments.of(cells[mask]))
    np.testing.assert_allclose(
        half.squared, CellSet(half.cells[half.drawn], Moments.of(half.cells), origin=whole.origin).squared, atol=1e-4
    )
