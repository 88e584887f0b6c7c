"""Scores of counts and of all perturbations together in the table of `tl.evaluate_perturbation`."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import metrics, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.scoring.inputs import own_genes

N_GENES = 80
STRONG, WEAK = ["gene0", "gene1", "gene2", "gene3"], ["gene4", "gene5"]
TEST = [*STRONG, *WEAK]
TRAIN = ["gene6", "gene7", "gene8"]
DE = ["direction_fidelity_yield", "direction_reach", "sig_jaccard", "lfc_nmae"]
OF_PANEL = [name for name, metric in METRICS.items() if metric.panel is not None]
RATIO = "expr_mse_unbiased_capped_norm"


def _cells(rates: dict[str, np.ndarray], sizes: dict[str, int], seed: int) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(sizes), list(sizes.values()))
    depth = rng.lognormal(0, 0.3, (len(labels), 1))
    counts = rng.poisson(depth * np.array([rates[label] for label in labels]))
    obs = pd.DataFrame({"guide": labels}, index=[f"s{seed}_cell{i}" for i in range(len(labels))])
    cells = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)
    cells.var_names = [f"gene{i}" for i in range(N_GENES)]
    return cells


@pytest.fixture(scope="module")
def rates() -> dict[str, np.ndarray]:
    """Mean counts: four strong effects, two perturbations that do nothing, three more for training."""
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(0.7, 0.8, N_GENES))
    size = dict.fromkeys(WEAK, 0.0) | dict.fromkeys([*STRONG, *TRAIN], 0.7)
    return {"none": base} | {name: base * np.exp(rng.normal(0, by, N_GENES)) for name, by in size.items()}


@pytest.fixture(scope="module")
def real(rates) -> ad.AnnData:
    """Measured test cells and controls; not to be changed."""
    cells = _cells(rates, {"none": 90, **dict.fromkeys(TEST, 50)}, seed=1)
    Registry.create(cells, DataConfig(pert_key="guide", control="none", context_keys=[])).write(cells)
    return cells


@pytest.fixture(scope="module")
def train(rates) -> ad.AnnData:
    """Training cells and controls; not to be changed."""
    cells = _cells(rates, {"none": 60, **dict.fromkeys(TRAIN, 40)}, seed=2)
    Registry.create(cells, DataConfig(pert_key="guide", control="none", context_keys=[])).write(cells)
    return cells


@pytest.fixture(scope="module")
def pred(rates) -> ad.AnnData:
    """Counts of a model that knows a half of the log fold changes; not to be changed."""
    half = {name: np.sqrt(rates["none"] * rates[name]) for name in TEST}
    return _cells(half, dict.fromkeys(TEST, 45), seed=3)


def _evaluate(pred: ad.AnnData, real: ad.AnnData, train: ad.AnnData | None = None) -> pd.DataFrame:
    return tl.evaluate_perturbation(pred.copy(), real, real, context_key=[], train=train, pert_key="guide", n_boot=50)


@pytest.fixture(scope="module")
def table(pred, real, train) -> pd.DataFrame:
    """Scores with baselines and replicate; not to be changed."""
    return _evaluate(pred, real, train)


def _of(table: pd.DataFrame, metric: str, *, model: str = "model", column: str = "value") -> pd.Series:
    rows = table[(table["metric"] == metric) & (table["model"] == model)]
    return rows.set_index("perturbation")[column]


def _counts(cells: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    label = cells.obs["guide"].to_numpy().astype(str)
    kept = label != "none"
    return cells.X[kept], np.searchsorted(TEST, label[kept])


@pytest.fixture(scope="module")
def by_hand(pred, real) -> dict[str, np.ndarray]:
    """The scores of counts by the functions of `metrics`, a perturbation a row; not to be changed."""
    control = real.X[(real.obs["guide"] == "none").to_numpy()]
    targets = np.array([positions[0] for positions in own_genes(TEST, list(real.var_names)).values()])
    tables = [metrics.de_table(*_counts(cells), control) for cells in (pred, real)]
    scores = {name: getattr(metrics, name)(*tables, targets=targets) for name in DE}
    profiles = [metrics.count_profiles(*_counts(cells)) for cells in (pred, real)]
    base = metrics.count_profiles(control)
    scores["pds_cosine"] = metrics.pds_cosine(*(p.expression - base.expression for p in profiles), targets=targets)
    errors = metrics.unbiased_errors(*profiles, base, targets=targets)
    effects = metrics.unbiased_errors(profiles[0], profiles[0], base, targets=targets).effect
    hits = np.array([(np.delete(tables[1].fdr[i], t) < 0.05).sum() >= 10 for i, t in enumerate(targets)])
    budget = metrics.hit_recall_at_budget(effects, hits, n_tested=1)
    return scores | {"errors": errors, "hits": hits, "budget": budget, "effects": effects}


def test_scores_of_counts_are_those_of_the_functions(table, by_hand):
    for name in [*DE, "pds_cosine"]:
        found = _of(table, name)
        np.testing.assert_allclose(found[TEST], by_hand[name], atol=1e-6, err_msg=name)
        assert found["all"] == pytest.approx(np.nanmean(by_hand[name]))


def test_a_ratio_is_averaged_as_a_ratio_of_sums(table, by_hand):
    errors, found = by_hand["errors"], _of(table, RATIO)
    has_effect = errors.effect > 0
    np.testing.assert_allclose(found[TEST][has_effect], (errors.error / errors.effect)[has_effect], rtol=1e-5)
    assert found["all"] == pytest.approx(errors.normalized, rel=1e-5)
    assert found["all"] != pytest.approx(np.nanmean(found[TEST]), rel=1e-2)
    low, high = (_of(table, RATIO, column=column)["all"] for column in ("ci_low", "ci_high"))
    assert low < found["all"] < high


def test_without_an_effect_there_is_no_ratio_but_it_counts_in_the_sum(pred, real):
    nothing = real.copy()
    rng = np.random.default_rng(0)
    controls = np.flatnonzero(nothing.obs["guide"] == "none")
    rows = np.flatnonzero(nothing.obs["guide"].isin(WEAK))
    dense = nothing.X.toarray()
    dense[rows] = dense[rng.choice(controls, len(rows))]
    nothing.X = sparse.csr_matrix(dense)
    found = _evaluate(pred, nothing)
    single = _of(found, RATIO)
    without = single[WEAK][single[WEAK].isna()]
    assert len(without)
    assert (
        _of(found, RATIO, column="reason")[without.index] == "the measured effect is not larger than its noise"
    ).all()
    assert np.isfinite(single["all"])


def test_recall_of_hits_is_over_hits(table, by_hand):
    hits = by_hand["hits"]
    assert 0 < hits.sum() < len(hits)
    found = _of(table, "hit_recall_budget")
    np.testing.assert_array_equal(np.isfinite(found[TEST]), hits)
    assert found["all"] == pytest.approx(by_hand["budget"])
    assert _of(table, "hit_recall_budget", column="reason")[WEAK[0]].startswith("it is no hit")
    expected = metrics.hit_recall_at_fdr(by_hand["effects"], hits)
    assert _of(table, "hit_recall_fdr10")["all"] == pytest.approx(expected)


def test_changes_against_the_mean_of_the_training_perturbations(table, pred, real, train):
    def means(cells: ad.AnnData, names: list[str]) -> np.ndarray:
        logged = log_expression(cells) if "scstate_lora" in cells.uns else None
        if logged is None:
            normal = cells.X.toarray() / cells.X.sum(axis=1) * 1e4
            logged = sparse.csr_matrix(np.log1p(normal))
        return np.array([logged[(cells.obs["guide"] == name).to_numpy()].mean(axis=0).A1 for name in names])

    sides = means(pred, TEST), means(real, TEST)
    expected = metrics.pearson_delta_centroid(*sides, reference=means(train, TRAIN).mean(axis=0))
    np.testing.assert_allclose(_of(table, "pearson_delta_centroid")[TEST], expected, atol=1e-4)
    np.testing.assert_allclose(_of(table, "centroid_accuracy")[TEST], metrics.centroid_accuracy(*sides), atol=1e-6)


def test_baselines_and_replicate_have_them_as_well(table):
    rows = table[table["perturbation"] == "all"].set_index(["model", "metric"])
    assert rows.loc[("no change", "pds_cosine"), "value"] == pytest.approx(0.5)
    assert rows.loc[("no change", "sig_jaccard"), "value"] < 0.4
    assert rows.loc[("no change", RATIO), "value"] == pytest.approx(1, abs=0.2)
    assert rows.loc[("ceiling", RATIO), "value"] == pytest.approx(0, abs=0.2)
    assert rows.loc[("ceiling", "pds_cosine"), "value"] > 0.7
    for name in ("pds_cosine", RATIO, "lfc_nmae", "centroid_accuracy", "pearson_delta_centroid"):
        assert rows.loc[("ceiling", name), "skill"] == pytest.approx(1)
        assert rows.loc[(rows.loc[("model", name), "yardstick"], name), "skill"] == pytest.approx(0)
        assert np.isfinite(rows.loc[("model", name), ["split_sd", "dynamic_range", "baseline_saturation"]][1:]).all()
    assert 0.3 < rows.loc[("model", RATIO), "skill"] < 1
    assert rows.loc[("model", RATIO), "dynamic_range"] > 0.3


def test_a_mean_profile_is_the_mean_of_counts(table, real, train):
    totals = train.X.sum(axis=1).A1[:, None]
    shares = train.X.toarray() / totals
    profile = np.mean([shares[(train.obs["guide"] == name).to_numpy()].mean(axis=0) for name in TRAIN], axis=0)
    expected = metrics.CountProfiles(
        np.tile(np.log1p(5e4 * profile / profile.sum()), (len(TEST), 1)), np.zeros(len(TEST))
    )
    base = metrics.count_profiles(real.X[(real.obs["guide"] == "none").to_numpy()])
    errors = metrics.unbiased_errors(
        expected, metrics.count_profiles(*_counts(real)), base, targets=[int(name[4:]) for name in TEST]
    )
    assert _of(table, RATIO, model="perturbed mean")["all"] == pytest.approx(errors.normalized, rel=1e-3)


def test_of_a_single_perturbation_those_that_compare_are_absent(pred, real, train):
    found = _evaluate(pred[(pred.obs["guide"] == "gene0").to_numpy()], real, train)
    model = found[found["model"] == "model"].set_index("metric")
    for name in ("pds_cosine", "centroid_accuracy"):
        assert np.isnan(model.loc[name, "value"])
        assert "needs 2 or more; there is 1" in model.loc[name, "reason"]
    assert "all of the 1 have one" in model.loc["hit_recall_budget", "reason"]
    assert np.isfinite(model.loc[[*DE, RATIO, "pearson_delta", "e_distance"], "value"]).all()


def test_without_training_the_centroid_is_that_of_the_measured(pred, real):
    found = _evaluate(pred, real)
    assert np.isfinite(_of(found, "pearson_delta_centroid")["all"])
    two = pred[pred.obs["guide"].isin(TEST[:2]).to_numpy()]
    assert "needs 3 or more; there are 2" in _of(_evaluate(two, real), "pearson_delta_centroid", column="reason")["all"]


def test_log_values_have_nearly_the_scores_of_their_counts(pred, real, table):
    logged = pred.copy()
    logged.X = sparse.csr_matrix(np.log1p(pred.X.toarray() / pred.X.sum(axis=1) * 1e4))
    found = _evaluate(logged, real)
    for name in DE:
        np.testing.assert_allclose(_of(found, name)[TEST], _of(table, name)[TEST], atol=0.02, err_msg=name)
    assert _of(found, RATIO)["all"] == pytest.approx(_of(table, RATIO)["all"], abs=0.05)


def test_more_predicted_cells_than_measured_do_not_call_more_genes(rates, real):
    half = {name: np.sqrt(rates["none"] * rates[name]) for name in TEST}
    many = _evaluate(_cells(half, dict.fromkeys(TEST, 400), seed=4), real)
    same = _evaluate(_cells(half, dict.fromkeys(TEST, 50), seed=4), real)
    for name in ("sig_jaccard", "direction_fidelity_yield"):
        assert _of(many, name)["all"] == pytest.approx(_of(same, name)["all"], abs=0.15)


def test_one_that_fails_takes_no_other_down(pred, real, monkeypatch):
    def fail(*_: object) -> None:
        msg = "it cannot be computed here"
        raise ValueError(msg)

    monkeypatch.setitem(METRICS, "pds_cosine", METRICS["pds_cosine"].__class__("x", panel=fail))
    monkeypatch.setitem(METRICS, "lfc_nmae", METRICS["lfc_nmae"].__class__("x", table=fail))
    found = _evaluate(pred, real)
    for name in ("pds_cosine", "lfc_nmae"):
        assert _of(found, name).isna().all()
        assert (_of(found, name, column="reason")[TEST] == "it cannot be computed here").all()
    assert np.isfinite(_of(found, "sig_jaccard")[TEST]).all()
