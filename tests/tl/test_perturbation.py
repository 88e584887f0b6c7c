from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import metrics, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.datasets import perturbation_screen

COLUMNS = [
    "model",
    "context",
    "perturbation",
    "metric",
    "value",
    "split_sd",
    "skill",
    "ci_low",
    "ci_high",
    "direction",
    "lowest",
    "highest",
    "n_control",
    "n_measured",
    "weight",
    "reason",
    "skill_reason",
    "yardstick",
    "dynamic_range",
    "baseline_saturation",
]
BASELINES = ["no change", "mean shift", "perturbed mean", "context mean", "linear"]
N_METRICS = 29
TYPES = ["B", "NK", "T"]
HELD_OUT = "T"


def _adata(*, n=30, n_genes=60, seed=0):
    """`n` sham and `n` burn cells of each of three types; burn moves some genes in all types, some in the own type."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        [(t, c) for t in TYPES for c in ("sham", "burn") for _ in range(n)], columns=["type", "condition"]
    )
    obs["mouse"] = np.tile(["m1", "m2"], len(obs) // 2)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    burn = (obs["condition"] == "burn").to_numpy()[:, None]
    log_rate = rng.normal(2.0, 0.5, n_genes) + np.zeros((len(obs), n_genes))
    log_rate[:, :12] += np.linspace(-1.5, 1.5, 12) * burn
    for i, cell_type in enumerate(TYPES):
        own = (obs["type"] == cell_type).to_numpy()[:, None]
        log_rate[:, 12 + 10 * i : 22 + 10 * i] += (0.8 + 0.7 * burn) * own
    counts = sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    registry = Registry.create(
        adata, DataConfig(covariate_keys=["condition"], pert_key="condition", control="sham", cell_type_key="type")
    )
    registry.write(adata)
    return adata


def _prediction(cells, expression):
    """What `STTransition.predict` returns for the control cells given."""
    pred = ad.AnnData(np.asarray(expression, dtype=np.float32), obs=cells.obs.copy(), var=cells.var[[]])
    pred.obs["control_cell"] = cells.obs_names
    pred.obs["condition"] = "burn"
    pred.uns["scstate_lora"] = {
        "predict": {"scale": "log1p_cp10k", "pert_key": "condition", "control": "sham", "target": "burn"}
    }
    return pred


def _no_change(adata):
    controls = adata[adata.obs["condition"] == "sham"].copy()
    return _prediction(controls, log_expression(controls).toarray())


def _dense(adata, cell_type, condition):
    rows = (adata.obs["type"] == cell_type) & (adata.obs["condition"] == condition)
    return log_expression(adata)[np.flatnonzero(rows)].toarray()


def _hold_out(adata):
    """Training cells (all but the burn cells of one type) and test cells (that type)."""
    test = adata.obs["type"] == HELD_OUT
    return adata[~(test & (adata.obs["condition"] == "burn"))].copy(), adata[test].copy()


def _value(table, *, model, metric, context="all", column="value"):
    row = table[(table["model"] == model) & (table["metric"] == metric) & (table["context"] == context)]
    assert len(row) == 1
    return row.iloc[0][column]


def test_table_holds_model_baselines_and_ceiling_and_is_stored():
    adata = _adata()
    train, test = _hold_out(adata)
    pred = _no_change(test)
    table = tl.evaluate_perturbation(pred, test, test, train=train, context_key="type", name="ST")
    assert list(table.columns) == COLUMNS
    assert list(table["model"].unique()) == ["ST", *BASELINES, "ceiling"]
    assert list(table["context"].unique()) == [HELD_OUT, "all"]
    assert set(table["perturbation"]) == {"burn"}
    assert not table.duplicated(["model", "context", "metric"]).any()
    assert len(table) == 7 * 2 * N_METRICS
    finite = table.dropna(subset="value")
    assert (finite["value"].between(finite["lowest"], finite["highest"])).all()
    assert (finite["reason"] == "").all()
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)
    assert "predict" in pred.uns["scstate_lora"]
    pd.testing.assert_frame_equal(pred.uns["scstate_lora"]["evaluate_perturbation"], table)


def test_baselines_are_what_they_say():
    adata = _adata()
    train, test = _hold_out(adata)
    table = tl.evaluate_perturbation(_no_change(test), test, test, train=train, context_key="type")
    control, real = _dense(adata, HELD_OUT, "sham"), _dense(adata, HELD_OUT, "burn")
    others = [(_dense(adata, t, "sham").mean(0), _dense(adata, t, "burn").mean(0)) for t in TYPES if t != HELD_OUT]
    shifted = np.maximum(control + np.mean([after - before for before, after in others], axis=0), 0)
    profile = np.mean([after for _, after in others], axis=0)
    expected = {
        ("no change", "e_distance"): metrics.energy_distance(control, real),
        ("no change", "mae"): np.abs(control.mean(0) - real.mean(0)).mean(),
        ("mean shift", "e_distance"): metrics.energy_distance(shifted, real),
        ("mean shift", "mse"): np.square(shifted.mean(0) - real.mean(0)).mean(),
        ("mean shift", "pearson_delta"): np.mean(
            [
                np.corrcoef((shifted - control)[half].mean(0), real.mean(0) - control[~half].mean(0))[0, 1]
                for half in metrics.split_halves(len(control))
            ]
        ),
        ("mean shift", "variance_ratio"): shifted.var(0).sum() / real.var(0).sum(),
        ("perturbed mean", "mae"): np.abs(profile - real.mean(0)).mean(),
        ("perturbed mean", "variance_ratio"): 0.0,
        ("context mean", "mae"): np.abs(control.mean(0) - real.mean(0)).mean(),  # in training it has controls only
        ("linear", "e_distance"): metrics.energy_distance(shifted, real),  # of two contexts no slope can be learnt
        ("ceiling", "e_distance"): metrics.ceiling(real, metrics.energy_distance) / 2,  # as whole sets would be
    }
    for (model, metric), value in expected.items():
        assert _value(table, model=model, metric=metric) == pytest.approx(value, rel=1e-4, abs=1e-9), (model, metric)


def test_skill_runs_from_yardstick_to_ceiling():
    adata = _adata()
    train, test = _hold_out(adata)
    real = test[test.obs["condition"] == "burn"].copy()
    controls = test[test.obs["condition"] == "sham"].copy()
    perfect = _prediction(controls, log_expression(real).toarray())
    table = tl.evaluate_perturbation(perfect, test, test, train=train, context_key="type")
    for metric in ("pearson_delta", "mae", "mse", "e_distance"):
        yardstick = _value(table, model="model", metric=metric, column="yardstick")
        assert yardstick in BASELINES
        assert _value(table, model=yardstick, metric=metric, column="skill") == pytest.approx(0)
        assert _value(table, model="ceiling", metric=metric, column="skill") == pytest.approx(1)
        assert _value(table, model="model", metric=metric, column="skill") > (0.9 if metric == "pearson_delta" else 1)
        assert _value(table, model="no change", metric=metric, column="skill") != pytest.approx(0)
    assert _value(table, model="model", metric="pearson_delta") > 0.9  # controls of its own are noise
    assert _value(table, model="model", metric="e_distance") == pytest.approx(0, abs=1e-5)


def test_average_over_contexts_with_interval():
    adata = _adata()
    with pytest.warns(UserWarning, match="90 cells 'burn' are in both real and train"):
        table = tl.evaluate_perturbation(_no_change(adata), adata, adata, train=adata, context_key="type")
    rows = table[(table["model"] == "model") & (table["metric"] == "e_distance")].set_index("context")
    each = rows.loc[TYPES, "value"]
    assert rows.loc["all", "value"] == pytest.approx(each.mean())
    low, high = rows.loc["all", ["ci_low", "ci_high"]]
    assert low < rows.loc["all", "value"] < high
    assert (low, high) == pytest.approx((each.min(), each.max()))  # of 3 contexts, 1 sample in 27 draws one thrice
    assert rows.loc[TYPES, ["ci_low", "ci_high"]].isna().all(axis=None)


def test_linear_gives_a_held_out_context_a_change_of_its_own():
    rng = np.random.default_rng(0)
    place = np.repeat(np.linspace(-1, 1, 7), 120)  # of seven types on one axis, along which the response grows
    burn = np.tile(np.repeat([0.0, 1.0], 60), 7)
    axis, response = rng.normal(size=(2, 60))
    log_rate = 2.5 + 0.5 * np.outer(place, axis) + np.outer(burn, 0.2 * axis) + np.outer(burn * place, 0.6 * response)
    obs = pd.DataFrame(
        {"type": [f"t{i // 120}" for i in range(840)], "condition": np.where(burn > 0, "burn", "sham")},
        index=[f"cell{i}" for i in range(840)],
    )
    counts = rng.poisson(np.exp(log_rate)).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(60)]))
    Registry.create(
        adata, DataConfig(covariate_keys=["condition"], pert_key="condition", control="sham", cell_type_key="type")
    ).write(adata)
    test = adata.obs["type"] == "t5"
    train = adata[~(test & (adata.obs["condition"] == "burn"))].copy()
    held_out = adata[test].copy()
    table = tl.evaluate_perturbation(_no_change(held_out), held_out, held_out, train=train, context_key="type")
    for metric in ("pearson_delta", "mse", "e_distance"):
        assert _value(table, model="linear", metric=metric, column="yardstick") == "linear"  # as on other contexts
        scores = [_value(table, model=name, metric=metric) for name in ("linear", "mean shift")]
        assert (scores[0] > scores[1]) == (metric == "pearson_delta")


def test_context_without_training_cells_has_no_context_mean():
    adata = _adata()
    test = adata.obs["type"] == HELD_OUT
    held_out = adata[test].copy()
    table = tl.evaluate_perturbation(
        _no_change(held_out), held_out, held_out, train=adata[~test].copy(), context_key="type"
    )
    row = {"model": "context mean", "metric": "mae", "context": HELD_OUT}
    assert np.isnan(_value(table, **row))
    assert _value(table, **row, column="reason") == "train has no cell of T"
    assert np.isfinite(_value(table, model="linear", metric="mae"))


def test_target_that_training_lacks_is_predicted_from_the_other_perturbations():
    screen = perturbation_screen(25, n_cells=1500, n_control=250, n_genes=150, n_cell_types=1, seed=1)
    Registry.create(
        screen,
        DataConfig(
            covariate_keys=["perturbation"], pert_key="perturbation", control="control", cell_type_key="cell_type"
        ),
    ).write(screen)
    features = screen.uns["perturbation_features"]
    target = features.index[3]
    is_target = screen.obs["perturbation"] == target
    test, train = screen[is_target].copy(), screen[~is_target].copy()
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    pred = ad.AnnData(log_expression(controls).toarray(), obs=controls.obs.copy(), var=controls.var[[]])
    pred.obs["perturbation"], pred.obs["control_cell"] = target, controls.obs_names
    pred.uns["scstate_lora"] = {
        "predict": {"scale": "log1p_cp10k", "pert_key": "perturbation", "control": "control", "target": target}
    }
    given = {"train": train, "context_key": "cell_type"}
    named = tl.evaluate_perturbation(pred, test, controls, **given)
    assert "not among the training cells" in _value(named, model="linear", metric="mae", column="reason")
    described = tl.evaluate_perturbation(pred, test, controls, **given, pert_features=features)
    assert _value(described, model="linear", metric="pearson_delta", column="yardstick") == "linear"
    assert _value(described, model="mean shift", metric="pearson_delta", column="skill") < -0.1
    assert _value(named, model="linear", metric="pearson_delta", column="yardstick") == "mean shift"
    others = log_expression(train)
    by_name = train.obs["perturbation"].astype(str).to_numpy()
    means = [others[np.flatnonzero(by_name == n)].mean(0).A1 for n in features.index if n != target]
    real = log_expression(test).mean(0).A1
    expected = np.abs(np.mean(means, axis=0) - real).mean()
    assert _value(described, model="perturbed mean", metric="mae") == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="have no row in pert_features"):
        tl.evaluate_perturbation(pred, test, controls, **given, pert_features=features.iloc[:10])


def test_missing_values_that_are_allowed_are_a_context():
    adata = _adata()
    adata.obs["site"] = pd.Categorical(np.array([None, "back", "chest"], dtype=object)[np.arange(adata.n_obs) % 3])
    registry = Registry.create(
        adata,
        DataConfig(
            covariate_keys={"condition": "categorical", "site": {"type": "categorical", "allow_missing": True}},
            pert_key="condition",
            control="sham",
            cell_type_key="type",
        ),
    )
    registry.write(adata)
    table = tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="site")
    assert set(table["context"]) == {"back", "chest", "(missing)", "all"}
    assert np.isfinite(_value(table, model="no change", metric="mae", context="(missing)"))
    adata.obs["type"] = adata.obs["type"].where(adata.obs["type"] != "B")
    with pytest.raises(ValueError, match=r"adata\.obs\['type'\]"):
        tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="type")


def test_several_context_keys_are_joined():
    adata = _adata()
    table = tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key=["type", "mouse"])
    assert sorted(set(table["context"])) == sorted([f"{t} | {m}" for t in TYPES for m in ("m1", "m2")] + ["all"])


def test_no_context_key_makes_one_context():
    adata = _adata()
    table = tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key=[])
    assert set(table["context"]) == {"all"}
    assert len(table) == 7 * N_METRICS


def test_without_train_the_baselines_that_need_it_say_so():
    adata = _adata()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="type")
    learned = table[table["model"].isin(["mean shift", "perturbed mean", "context mean", "linear"])]
    assert learned["value"].isna().all()
    assert learned["reason"].str.contains("train=").all()
    assert table["skill"].isna().all()
    assert np.isfinite(_value(table, model="ceiling", metric="e_distance"))


def test_failed_metric_says_why_and_leaves_the_others_alone():
    adata = _adata()
    drop = ((adata.obs["type"] == "B") & (adata.obs["condition"] == "burn")).to_numpy(copy=True)
    drop[np.flatnonzero(drop)[0]] = False
    adata = adata[~drop].copy()
    pred = _no_change(adata)
    table = tl.evaluate_perturbation(pred, adata, adata, context_key="type")
    assert "same in all 60 genes" in _value(table, model="model", metric="pearson_delta", column="reason")
    assert "real has 1" in _value(table, model="model", metric="variance_ratio", context="B", column="reason")
    assert "there is 1" in _value(table, model="ceiling", metric="mae", context="B", column="reason")
    assert np.isfinite(_value(table, model="model", metric="mae", context="B"))
    average = table[(table["model"] == "ceiling") & (table["context"] == "all") & (table["metric"] == "mae")].iloc[0]
    assert average["reason"].startswith("without B: ")
    both = [_value(table, model="ceiling", metric="mae", context=t) for t in ("NK", "T")]
    assert average["value"] == pytest.approx(np.mean(both))


def test_genes_are_matched_by_name():
    adata = _adata()
    pred = _no_change(adata)
    rng = np.random.default_rng(0)
    shuffled = pred[:, rng.permutation(pred.n_vars)].copy()
    kwargs = {"context_key": "type"}
    expected = tl.evaluate_perturbation(pred, adata, adata, **kwargs)
    table = tl.evaluate_perturbation(shuffled, adata, adata, **kwargs)
    np.testing.assert_allclose(table["value"], expected["value"], rtol=1e-5)


def test_table_survives_the_file(tmp_path):
    adata = _adata()
    pred = _no_change(adata)
    table = tl.evaluate_perturbation(pred, adata, adata, context_key="type")
    pred.write_h5ad(tmp_path / "pred.h5ad")
    read = ad.read_h5ad(tmp_path / "pred.h5ad")
    stored = read.uns["scstate_lora"]["evaluate_perturbation"].reset_index(drop=True)
    pd.testing.assert_frame_equal(stored, table)
    pd.testing.assert_frame_equal(tl.evaluate_perturbation(read, adata, adata, context_key="type"), table)


def test_predicted_cells_as_measured_ones_raises():
    adata = _adata()
    pred = _no_change(adata)
    stripped = pred.copy()
    del stripped.uns["scstate_lora"]
    for argument, cells in (("control", pred), ("control", stripped), ("real", pred), ("train", pred)):
        given = {"real": adata, "control": adata, "train": None} | {argument: cells}
        with pytest.raises(ValueError, match=f"{argument} holds predicted cells"):
            tl.evaluate_perturbation(pred, given["real"], given["control"], train=given["train"], context_key="type")


def test_not_a_prediction_raises():
    adata = _adata()
    with pytest.raises(ValueError, match="must come from STTransition"):
        tl.evaluate_perturbation(adata, adata, adata, context_key="type")


def test_missing_gene_raises():
    adata = _adata()
    pred = _no_change(adata)
    pred.var_names = ["G0x", *pred.var_names[1:]]
    with pytest.raises(KeyError, match=r"1 of the 60 genes of pred are not in real.*'G0x'.*Did you mean"):
        tl.evaluate_perturbation(pred, adata, adata, context_key="type")


def test_unknown_column_raises():
    adata = _adata()
    with pytest.raises(KeyError, match=r"pred\.obs\['typ'\].*'type'"):
        tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="typ")
    with pytest.raises(KeyError, match=r"real\.obs\['conditions'\].*'condition'"):
        tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="type", pert_key="conditions")


def test_no_measured_target_raises():
    adata = _adata()
    sham = adata[adata.obs["condition"] == "sham"].copy()
    with pytest.raises(ValueError, match=r"real\.obs\['condition'\] has no cell 'burn'; it holds 'sham'"):
        tl.evaluate_perturbation(_no_change(adata), sham, adata, context_key="type")


def test_no_common_context_raises():
    adata = _adata()
    pred = _no_change(adata[adata.obs["type"] == "B"].copy())
    real = adata[adata.obs["type"] == "T"].copy()
    with pytest.raises(ValueError, match="No context has both"):
        tl.evaluate_perturbation(pred, real, adata, context_key="type")


def test_context_without_controls_is_left_out(caplog):
    adata = _adata()
    control = adata[adata.obs["type"] != "T"].copy()
    real = adata[(adata.obs["condition"] == "burn").to_numpy()].copy()
    with caplog.at_level("WARNING", logger="scstate_lora"):
        table = tl.evaluate_perturbation(_no_change(adata), real, control, context_key="type")
    assert set(table["context"]) == {"B", "NK", "all"}
    assert "Not scored: T." in caplog.text


def test_name_of_a_baseline_raises():
    adata = _adata()
    with pytest.raises(ValueError, match="name of a baseline"):
        tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="type", name="mean shift")


def test_context_called_all_raises():
    adata = _adata()
    adata.obs["type"] = adata.obs["type"].astype(str).replace("B", "all")
    with pytest.raises(ValueError, match="called 'all'"):
        tl.evaluate_perturbation(_no_change(adata), adata, adata, context_key="type")
