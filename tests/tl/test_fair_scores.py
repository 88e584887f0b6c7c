"""Model, baselines and ceiling are scored on equal terms: the same controls, no shared noise, contexts that count."""

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

CHANGES = ["pearson_delta", "pearson_delta_top20", "pearson_delta_top50"]


def _screen(sizes: dict[str, dict[str, int]], *, n_genes: int = 200, effect: float = 0.0, seed: int = 0) -> ad.AnnData:
    """Cells by context and perturbation, whose genes change by log-normal factors of their own; by none at 0."""
    rng = np.random.default_rng(seed)
    rows = [(where, what) for where, by_name in sizes.items() for what, n in by_name.items() for _ in range(n)]
    obs = pd.DataFrame(rows, columns=["tissue", "guide"], index=[f"cell{i}" for i in range(len(rows))])
    base = {where: rng.normal(0, 1, n_genes) for where in sizes}
    names = sorted({what for _, what in rows} - {"none"})
    effects = {"none": np.zeros(n_genes), **{name: rng.normal(0, effect, n_genes) for name in names}}
    log_rate = np.array([base[where] + effects[what] for where, what in rows])
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32)), obs=obs)
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    Registry.create(adata, DataConfig(pert_key="guide", control="none", cell_type_key="tissue")).write(adata)
    return adata


def _prediction(cells: ad.AnnData, targets: list[str], shift: float = 0.3) -> ad.AnnData:
    """What `STTransition.predict` gives of all control cells: more of every third gene."""
    controls = cells[(cells.obs["guide"] == "none").to_numpy()].copy()
    x = log_expression(controls).toarray()
    x[:, ::3] += shift
    parts = []
    for target in targets:
        obs = controls.obs.assign(control_cell=controls.obs_names, guide=target)
        obs.index = [f"{name}|{target}" for name in obs.index]
        parts.append(ad.AnnData(x, obs=obs, var=controls.var[[]]))
    predicted = ad.concat(parts)
    write_result(predicted, PREDICT, Prediction("log1p_cp10k", "guide", "none", targets, "genes").record())
    return predicted


def _part(cells: ad.AnnData, mask: object) -> ad.AnnData:
    return cells[np.asarray(mask)].copy()


def _score(table: pd.DataFrame, model: str, metric: str = "pearson_delta", context: str = "all") -> pd.Series:
    rows = table[(table["model"] == model) & (table["metric"] == metric) & (table["context"] == context)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def two_tissues() -> ad.AnnData:
    """60 controls and 40 cells of either guide in two tissues. Not to be changed."""
    return _screen({where: {"none": 60, "A": 40, "B": 40} for where in ("gut", "lung")}, effect=0.5)


# --- The same control cells -------------------------------------------------------------------------------------


def test_cells_predicted_from_other_controls_are_left_out(two_tissues, caplog):
    held_out = two_tissues.obs_names[::2]
    test = _part(two_tissues, two_tissues.obs_names.isin(held_out))
    train = _part(two_tissues, ~two_tissues.obs_names.isin(held_out))
    predicted = _prediction(two_tissues, ["A"])
    fair = _part(predicted, predicted.obs["control_cell"].isin(held_out))
    expected = tl.evaluate_perturbation(fair, test, test, context_key="tissue", train=train)
    with caplog.at_level("INFO", logger="scstate_lora"):
        table = tl.evaluate_perturbation(predicted, test, test, context_key="tissue", train=train)
    pd.testing.assert_frame_equal(table, expected)
    assert set(table.loc[table["context"] == "gut", "n_control"]) == {30}
    assert set(table.loc[table["context"] == "gut", "n_measured"]) == {20}
    assert "the same 60 control cells. Left out are 60 predicted cells of other controls" in caplog.text


def test_controls_that_nothing_was_predicted_from_are_not_used(two_tissues):
    controls = two_tissues.obs_names[two_tissues.obs["guide"] == "none"]
    predicted = _prediction(_part(two_tissues, ~two_tissues.obs_names.isin(controls[::3])), ["A"])
    given = {"context_key": "tissue"}
    table = tl.evaluate_perturbation(predicted, two_tissues, two_tissues, **given)
    used = _part(two_tissues, two_tissues.obs_names.isin(predicted.obs["control_cell"]))
    pd.testing.assert_frame_equal(table, tl.evaluate_perturbation(predicted, two_tissues, used, **given))
    assert _score(table, "no change", "mae")["n_control"] == 80


def test_controls_are_looked_up_in_real_and_train(two_tissues):
    is_control = (two_tissues.obs["guide"] == "none").to_numpy()
    halves = np.arange(two_tissues.n_obs) % 2 == 0
    mine, others = _part(two_tissues, is_control & halves), _part(two_tissues, is_control & ~halves)
    perturbed = _part(two_tissues, ~is_control)
    predicted = _prediction(mine, ["A"])
    expected = tl.evaluate_perturbation(predicted, perturbed, mine, context_key="tissue")
    real = _part(two_tissues, ~is_control | halves)
    found = tl.evaluate_perturbation(predicted, real, others, context_key="tissue")
    pd.testing.assert_frame_equal(found, expected)
    with_train = tl.evaluate_perturbation(predicted, perturbed, others, context_key="tissue", train=mine)
    np.testing.assert_allclose(_score(with_train, "model")["value"], _score(expected, "model")["value"])
    with pytest.raises(ValueError, match=r"the first is 'cell0'\) is a control cell of control or real\..* as control"):
        tl.evaluate_perturbation(predicted, perturbed, others, context_key="tissue")


def test_predictions_from_controls_of_another_context_raises(two_tissues):
    predicted = _prediction(two_tissues, ["A"])
    predicted.obs["tissue"] = predicted.obs["tissue"].astype(str).replace({"gut": "lung", "lung": "gut"})
    with pytest.raises(ValueError, match="control cells of other contexts"):
        tl.evaluate_perturbation(predicted, two_tissues, two_tissues, context_key="tissue")
    del predicted.obs["control_cell"]
    with pytest.raises(KeyError, match=r"'control_cell'.*names the control cell"):
        tl.evaluate_perturbation(predicted, two_tissues, two_tissues, context_key="tissue")


def test_discrimination_uses_the_same_controls(two_tissues):
    held_out = two_tissues.obs_names[::2]
    test = _part(two_tissues, two_tissues.obs_names.isin(held_out))
    predicted = _prediction(two_tissues, ["A", "B"])
    fair = _part(predicted, predicted.obs["control_cell"].isin(held_out))
    table = tl.discrimination(predicted, test, test, context_key="tissue")
    pd.testing.assert_frame_equal(table, tl.discrimination(fair, test, test, context_key="tissue"))
    assert set(table.loc[table["context"] == "gut", "n_control"]) == {30}


# --- No noise in common -----------------------------------------------------------------------------------------


def test_baselines_of_a_screen_without_any_signal_score_about_zero():
    guides = [f"guide{i}" for i in range(10)]
    found = []
    for seed in range(4):
        cells = _screen({"gut": {"none": 60, **dict.fromkeys(guides, 30)}}, n_genes=300, seed=seed)
        is_target = cells.obs["guide"] == "guide0"
        table = tl.evaluate_perturbation(
            _prediction(cells, ["guide0"]), _part(cells, is_target), cells, context_key="tissue",
            train=_part(cells, ~is_target), n_boot=10,
        )  # fmt: skip
        found.append(table[table["context"] == "gut"].pivot(index="model", columns="metric", values="value"))
    mean = pd.concat(found).groupby(level=0).mean()
    for model in ("mean shift", "perturbed mean", "context mean", "ceiling"):
        assert mean.loc[model, "pearson_delta"] == pytest.approx(0, abs=0.08), model
        assert mean.loc[model, "pearson_delta_top50"] == pytest.approx(0, abs=0.2), model


def test_model_that_was_trained_on_its_controls_is_warned_of(two_tissues, caplog):
    predicted = _prediction(two_tissues, ["A"])
    is_a = two_tissues.obs["guide"] == "A"
    for train, is_warned in ((~is_a, True), (~is_a & (two_tissues.obs["guide"] != "B"), False)):
        caplog.clear()
        tl.evaluate_perturbation(
            predicted, _part(two_tissues, is_a), two_tissues, context_key="tissue", train=_part(two_tissues, train)
        )
        assert ("trained on 120 of the control cells" in caplog.text) == is_warned


def test_ceiling_is_what_a_replicate_with_controls_of_its_own_scores():
    sizes = {"gut": {"none": 80, "A": 80}, "lung": {"none": 80, "A": 80}}
    found = {name: [] for name in ("ceiling", "replicate", "mae", "mse")}
    for seed in range(3):
        cells = _screen({where: {"none": 160, "A": 160} for where in sizes}, effect=0.15, seed=seed)
        nth = cells.obs.groupby(["tissue", "guide"], observed=True).cumcount().to_numpy()
        one, two = _part(cells, nth < 80), _part(cells, nth >= 80)
        table = tl.evaluate_perturbation(_prediction(one, ["A"]), one, one, context_key="tissue", n_boot=10)
        found["ceiling"].append(_score(table, "ceiling")["value"])
        means = {
            (i, guide): log_expression(_part(part, (part.obs["guide"] == guide) & (part.obs["tissue"] == "gut")))
            .mean(0)
            .A1
            for i, part in enumerate((one, two))
            for guide in ("none", "A")
        }
        deltas = [means[i, "A"] - means[i, "none"] for i in range(2)]
        found["replicate"].append(np.corrcoef(*deltas)[0, 1])
        error = means[0, "A"] - means[1, "A"]
        found["mae"].append(np.abs(error).mean() / _score(table, "ceiling", "mae", "gut")["value"])
        found["mse"].append(np.square(error).mean() / _score(table, "ceiling", "mse", "gut")["value"])
    assert np.mean(found["ceiling"]) == pytest.approx(np.mean(found["replicate"]), abs=0.04)
    assert np.mean(found["mae"]) == pytest.approx(1, abs=0.1)
    assert np.mean(found["mse"]) == pytest.approx(1, abs=0.15)


def test_too_few_controls_have_no_scores_of_changes():
    cells = _screen({"gut": {"none": 3, "A": 40}, "lung": {"none": 60, "A": 40}}, effect=0.5)
    table = tl.evaluate_perturbation(_prediction(cells, ["A"]), cells, cells, context_key="tissue", n_boot=10)
    for metric in (*CHANGES, "de_overlap50", "mse_de_weighted"):
        row = _score(table, "model", metric, "gut")
        assert np.isnan(row["value"])
        assert row["reason"] == "two halves of the control cells need at least 4; there are 3"
    assert np.isfinite(_score(table, "model", "mae", "gut")["value"])
    assert np.isfinite(_score(table, "model", context="lung")["value"])


def test_skill_is_absent_where_its_range_is_noise():
    cells = _screen({where: {"none": 60, "A": 30, "B": 30} for where in ("gut", "lung")})
    is_a = cells.obs["guide"] == "A"
    table = tl.evaluate_perturbation(
        _prediction(cells, ["A"]), _part(cells, is_a), cells, context_key="tissue", train=_part(cells, ~is_a), n_boot=10
    )
    row = _score(table, "model")
    assert np.isfinite(row["value"])
    assert np.isnan(row["skill"])
    assert "does not exceed the floor by twice the noise" in row["skill_reason"]
    scored = table[table["skill"].notna()]
    assert (scored["skill_reason"] == "").all()


# --- Contexts that count ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven() -> ad.AnnData:
    """Tissues with 80, 20 and 3 cells of the guide. Not to be changed."""
    sizes = {"gut": 80, "lung": 20, "skin": 3}
    return _screen({where: {"none": 40, "A": n} for where, n in sizes.items()}, effect=0.5)


def test_small_contexts_have_rows_and_do_not_count(uneven):
    predicted = _prediction(uneven, ["A"])
    table = tl.evaluate_perturbation(predicted, uneven, uneven, context_key="tissue", n_boot=10)
    assert np.isfinite(_score(table, "model", "mae", "skin")["value"])
    assert _score(table, "model", "mae", "skin")["weight"] == 0
    each = [_score(table, "model", "mae", where)["value"] for where in ("gut", "lung")]
    average = _score(table, "model", "mae")
    assert average["value"] == pytest.approx(np.mean(each))
    assert average["reason"] == "without skin: 3 measured cells, under min_cells=10"
    every = tl.evaluate_perturbation(predicted, uneven, uneven, context_key="tissue", min_cells=1, n_boot=10)
    each.append(_score(every, "model", "mae", "skin")["value"])
    assert _score(every, "model", "mae")["value"] == pytest.approx(np.mean(each))
    none = tl.evaluate_perturbation(predicted, uneven, uneven, context_key="tissue", min_cells=100, n_boot=10)
    assert np.isnan(_score(none, "model", "mae")["value"])
    assert "gut: 40 control and 80 measured cells, under min_cells=100" in _score(none, "model", "mae")["reason"]


def test_contexts_weigh_as_their_cells_by_choice(uneven):
    table = tl.evaluate_perturbation(
        _prediction(uneven, ["A"]), uneven, uneven, context_key="tissue", weights="cells", n_boot=10
    )
    each = [_score(table, "model", "mae", where)["value"] for where in ("gut", "lung")]
    assert _score(table, "model", "mae")["value"] == pytest.approx(np.average(each, weights=[80, 20]))
    assert _score(table, "model", "mae")["weight"] == 100
    for wrong, match in (({"weights": "size"}, "'equal' or 'cells'"), ({"min_cells": 0}, "must be 1 or more")):
        with pytest.raises(ValueError, match=match):
            tl.evaluate_perturbation(_prediction(uneven, ["A"]), uneven, uneven, context_key="tissue", **wrong)


def test_discrimination_counts_and_weighs_alike():
    sizes = {"gut": {"A": 60, "B": 60, "C": 60}, "lung": {"A": 20, "B": 20, "C": 2}}
    cells = _screen({where: {"none": 40, **by_name} for where, by_name in sizes.items()}, effect=0.3)
    predicted = _prediction(cells, ["A", "B", "C"])

    def value(table: pd.DataFrame, context: str, name: str) -> float:
        rows = table[(table["model"] == "ceiling") & (table["context"] == context) & (table["perturbation"] == name)]
        return float(rows.iloc[0]["value"])

    for weights, by_tissue in (("equal", [1, 1]), ("cells", [60, 20])):
        table = tl.discrimination(predicted, cells, cells, context_key="tissue", weights=weights, n_boot=10)
        each = [value(table, where, "A") for where in sizes]
        assert value(table, "all", "A") == pytest.approx(np.average(each, weights=by_tissue))
        assert value(table, "all", "C") == pytest.approx(value(table, "gut", "C"))
        assert value(table, "lung", "all") == pytest.approx(np.mean([value(table, "lung", name) for name in "AB"]))
    row = table[(table["context"] == "all") & (table["perturbation"] == "C") & (table["model"] == "ceiling")].iloc[0]
    assert row["reason"] == "without lung: 2 measured cells, under min_cells=10"


def test_a_collapsed_prediction_is_not_nearer_than_right(two_tissues):
    predicted = _prediction(two_tissues, ["A"], shift=0.0)
    real = _part(two_tissues, two_tissues.obs["guide"] == "A")
    for where in ("gut", "lung"):
        mean = log_expression(_part(real, real.obs["tissue"] == where)).mean(0).A1
        predicted.X[(predicted.obs["tissue"] == where).to_numpy()] = mean
    row = _score(tl.evaluate_perturbation(predicted, real, two_tissues, context_key="tissue", n_boot=10), "model",
                 "nearest_distance_relative")  # fmt: skip
    assert row["direction"] == "one"
    assert row["value"] < 0.9
