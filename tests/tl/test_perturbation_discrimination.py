from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora import metrics, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.datasets import perturbation_screen

COLUMNS = [
    "model", "context", "perturbation", "metric", "value", "split_sd", "skill", "ci_low", "ci_high", "direction",
    "lowest", "highest", "n_control", "n_measured", "weight", "reason", "skill_reason",
]  # fmt: skip
MODELS = ["model", "no change", "mean effect", "mean shift", "linear", "ceiling"]


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    """25 perturbations in two cell types, of which every fifth is held out."""
    adata = perturbation_screen(25, n_cells=2200, n_control=200, n_genes=200, n_cell_types=2, seed=3)
    Registry.create(
        adata,
        DataConfig(
            covariate_keys=["perturbation"], pert_key="perturbation", control="control", cell_type_key="cell_type"
        ),
    ).write(adata)
    return adata


def _held_out(adata):
    return list(adata.uns["perturbation_features"].index[::5])


def _split(adata):
    test = adata.obs["perturbation"].isin(_held_out(adata))
    return adata[~test].copy(), adata[test].copy(), adata[adata.obs["perturbation"] == "control"].copy()


def _prediction(adata, targets, effect_of):
    """What `STTransition.predict` returns: the control cells plus an effect for every target."""
    controls = adata[adata.obs["perturbation"] == "control"]
    x = log_expression(adata)[np.flatnonzero(adata.obs["perturbation"] == "control")].toarray()
    types = controls.obs["cell_type"].astype(str).to_numpy()
    parts, obs = [], []
    for target in targets:
        effects = {kind: effect_of(target, kind) for kind in sorted(set(types))}
        parts.append(np.maximum(x + np.array([effects[kind] for kind in types], dtype=np.float32), 0))
        table = controls.obs.copy()
        table["perturbation"], table["control_cell"] = target, controls.obs_names
        table.index = [f"{name}|{target}" for name in controls.obs_names]
        obs.append(table)
    pred = ad.AnnData(np.concatenate(parts), obs=pd.concat(obs), var=adata.var[[]])
    pred.uns["scstate_lora"] = {
        "predict": {
            "scale": "log1p_cp10k", "pert_key": "perturbation", "control": "control", "target": ", ".join(targets)
        }
    }  # fmt: skip
    return pred


def _mean(adata, perturbation, kind):
    rows = (adata.obs["perturbation"] == perturbation) & (adata.obs["cell_type"] == kind)
    return log_expression(adata[rows].copy()).mean(axis=0).A1


def _effect(adata, perturbation, kind):
    return _mean(adata, perturbation, kind) - _mean(adata, "control", kind)


def _value(table, *, model="model", context="all", perturbation="all", column="value"):
    row = table[(table["model"] == model) & (table["context"] == context) & (table["perturbation"] == perturbation)]
    assert len(row) == 1
    return row.iloc[0][column]


@pytest.fixture(scope="module")
def scored(screen) -> tuple[ad.AnnData, pd.DataFrame]:
    """A blurred prediction of the held-out perturbations, and its table."""
    train, test, controls = _split(screen)
    rng = np.random.default_rng(0)
    pred = _prediction(
        screen, _held_out(screen), lambda target, kind: _effect(screen, target, kind) + rng.normal(0, 0.05, 200)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = tl.discrimination(
            pred,
            test,
            controls,
            context_key="cell_type",
            train=train,
            pert_features=screen.uns["perturbation_features"],
        )
    return pred, table


def test_table_holds_every_perturbation_and_the_averages_and_is_stored(screen, scored):
    pred, table = scored
    assert list(table.columns) == COLUMNS
    assert list(table["model"].unique()) == MODELS
    assert not table.duplicated(["model", "context", "perturbation"]).any()
    assert len(table) == 6 * 3 * 6
    assert set(table["perturbation"]) == {*_held_out(screen), "all"}
    pd.testing.assert_frame_equal(pred.uns["scstate_lora"]["discrimination"], table)
    assert "predict" in pred.uns["scstate_lora"]
    finite = table.dropna(subset="value")
    assert finite["value"].between(0, 1).all()
    assert (finite["reason"] == "").all()
    assert (table.loc[table["value"].isna(), "reason"] != "").all()


def test_values_are_those_of_the_metric_without_the_named_gene(screen, scored):
    pred, table = scored
    names = _held_out(screen)
    labels, kinds = pred.obs["perturbation"].to_numpy(), pred.obs["cell_type"].astype(str).to_numpy()
    hidden = [[screen.var_names.get_loc(name)] for name in names]
    for kind in ("type1", "type2"):
        before = _mean(screen, "control", kind)
        guess = np.array([pred.X[(labels == name) & (kinds == kind)].mean(0, dtype=float) - before for name in names])
        real = np.array([_effect(screen, name, kind) for name in names])
        expected = metrics.discrimination_score(guess, real, excluded=hidden)
        found = [_value(table, context=kind, perturbation=name) for name in names]
        np.testing.assert_allclose(found, expected)
        assert _value(table, context=kind) == pytest.approx(expected.mean())
    each = [_value(table, perturbation=name) for name in names]
    assert _value(table) == pytest.approx(np.mean(each))
    assert _value(table, column="ci_low") <= _value(table) <= _value(table, column="ci_high")


def test_baselines_are_placed_between_chance_and_the_ceiling(scored):
    _, table = scored
    assert _value(table, model="mean effect") == pytest.approx(0.5, abs=0.1)
    assert _value(table, model="linear") > 0.7  # by features: training lacks them all
    assert _value(table, model="ceiling") > 0.9
    assert _value(table, model="ceiling", column="skill") == pytest.approx(1)
    assert _value(table, model="model", column="skill") > 0.8
    assert np.isnan(_value(table, model="no change"))
    assert "no direction" in _value(table, model="no change", column="reason")
    assert np.isnan(_value(table, model="mean shift"))
    assert "train has no cell" in _value(table, model="mean shift", column="reason")
    assert table.loc[table["perturbation"] != "all", ["skill", "ci_low", "ci_high"]].isna().all(axis=None)


def test_mean_effect_scores_half_where_no_gene_is_left_out(screen):
    train, test, controls = _split(screen)
    renamed = {name: f"guide-{name}" for name in screen.obs["perturbation"].cat.categories if name != "control"}
    for adata in (train, test, controls):
        adata.obs["guide"] = adata.obs["perturbation"].astype(str).replace(renamed)
    pred = _prediction(screen, _held_out(screen), lambda target, kind: _effect(screen, target, kind))
    pred.obs["perturbation"] = pred.obs["perturbation"].astype(str).replace(renamed)
    table = tl.discrimination(pred, test, controls, context_key="cell_type", train=train, pert_key="guide")
    assert _value(table, model="mean effect") == pytest.approx(0.5)
    assert _value(table, model="model") == 1.0
    assert _value(table, model="linear", column="reason").count("Give pert_features=") >= 1


def test_held_out_cell_type_of_known_perturbations(screen):
    other = (screen.obs["cell_type"] == "type2") & (screen.obs["perturbation"] != "control")
    train, test = screen[~other].copy(), screen[other].copy()
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    names = list(screen.uns["perturbation_features"].index)
    pred = _prediction(screen, names, lambda target, _: _effect(screen, target, "type1"))
    table = tl.discrimination(pred, test, controls, context_key="cell_type", train=train)
    assert set(table["context"]) == {"type2", "all"}
    assert _value(table, model="mean shift") > 0.8
    assert _value(table, model="mean shift") == pytest.approx(_value(table, model="model"), abs=0.05)
    assert _value(table, model="linear") == pytest.approx(_value(table, model="mean shift"))  # one context, no slope
    assert _value(table, model="mean effect") == pytest.approx(0.5, abs=0.05)


def test_without_train_and_context(screen):
    _, test, controls = _split(screen)
    pred = _prediction(screen, _held_out(screen), lambda target, kind: _effect(screen, target, kind))
    table = tl.discrimination(pred, test, controls)
    assert set(table["context"]) == {"all"}
    assert len(table) == 6 * 6
    assert _value(table) == 1.0
    for model in ("mean effect", "mean shift", "linear"):
        assert "train=" in _value(table, model=model, column="reason")


def test_perturbations_without_a_prediction_or_a_measurement_are_left_out(screen):
    names = list(screen.uns["perturbation_features"].index)
    test = screen[screen.obs["perturbation"].isin(names[:4])].copy()
    first = (test.obs["perturbation"] == names[0]).to_numpy()
    test = test[~first | (np.cumsum(first) == 1)].copy()  # a single cell
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    pred = _prediction(screen, names[:6], lambda target, kind: _effect(screen, target, kind))
    table = tl.discrimination(pred, test, controls)
    assert set(table["perturbation"]) == {*names[:4], "all"}
    assert "at least two measured cells" in _value(table, model="ceiling", perturbation=names[0], column="reason")
    assert _value(table, model="ceiling", column="reason").startswith("without 1 of 4 perturbations: ")


def test_table_survives_the_file(scored, tmp_path):
    pred, table = scored
    pred.write_h5ad(tmp_path / "pred.h5ad")
    stored = ad.read_h5ad(tmp_path / "pred.h5ad").uns["scstate_lora"]["discrimination"]
    pd.testing.assert_frame_equal(stored.reset_index(drop=True), table)


def test_training_on_the_measured_cells_warns(screen):
    train, _, controls = _split(screen)
    names = [name for name in screen.uns["perturbation_features"].index if name not in _held_out(screen)][:3]
    pred = _prediction(screen, names, lambda target, kind: _effect(screen, target, kind))
    with pytest.warns(UserWarning, match="240 perturbed cells are in both real and train"):
        tl.discrimination(pred, train, controls, train=train)


def test_one_target_raises(screen):
    _, test, controls = _split(screen)
    pred = _prediction(screen, _held_out(screen)[:1], lambda target, kind: _effect(screen, target, kind))
    with pytest.raises(ValueError, match=r"two or more in a context.*the most is 1"):
        tl.discrimination(pred, test, controls)


def test_wrong_arguments_raises(screen, scored):
    pred, _ = scored
    _, test, controls = _split(screen)
    with pytest.raises(ValueError, match="name of a baseline"):
        tl.discrimination(pred, test, controls, name="mean effect")
    with pytest.raises(ValueError, match="real holds predicted cells"):
        tl.discrimination(pred, pred, controls)
    with pytest.raises(ValueError, match="must come from STTransition"):
        tl.discrimination(test, test, controls)
    with pytest.raises(ValueError, match=r"control\.obs\['perturbation'\] has no cell 'control'"):
        tl.discrimination(pred, test, test)
    with pytest.raises(KeyError, match=r"pred\.obs\['cell_typ'\].*'cell_type'"):
        tl.discrimination(pred, test, controls, context_key="cell_typ")
    with pytest.raises(TypeError, match="must be a DataFrame"):
        tl.discrimination(pred, test, controls, train=controls, pert_features=[1, 2])
