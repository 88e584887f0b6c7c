"""`tl.compare`: variants on one split, beside the baselines."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.tl.comparison.criteria import day_order, in_order_of_time
from tests.builders import SMALL_ST

QUICK = {"max_epochs": 1, "accelerator": "cpu", "progress_bar": False}  # and the logger writes
BASELINES = ["no change", "mean shift", "perturbed mean", "context mean", "linear", "ceiling"]
USUAL = ["zero-shot", "ST", "ST-LoRA", "ST-LoRA-mHC"]
MARKERS = {"g1": ["G0", "G1", "not there"], "g2": ["G5", "G6"]}


@pytest.fixture(scope="module")
def screen():
    """240 cells x 30 genes, two guides that each raise five genes, two cell types, two days. Not to be changed."""
    rng = np.random.default_rng(0)
    n = 240
    obs = pd.DataFrame(
        {
            "guide": rng.choice(["none", "g1", "g2"], n),
            "cell_type": rng.choice(["A", "B"], n),
            "day": rng.choice(["day3", "day10"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    log_rate = rng.normal(1.5, 0.5, 30) + np.zeros((n, 30))
    for i, guide in enumerate(["g1", "g2"]):
        log_rate[np.ix_((obs["guide"] == guide).to_numpy(), range(5 * i, 5 * i + 5))] += 1.5
    log_rate[np.ix_((obs["day"] == "day10").to_numpy(), range(20, 30))] += 1.0
    counts = sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    ssl.STTransition.setup_anndata(
        adata, pert_key="guide", control="none", cell_type_key="cell_type", context_keys=["cell_type"]
    )
    return adata


@pytest.fixture(scope="module")
def compared(screen, tmp_path_factory):
    """Comparison with two seeds and a variant that cannot be made, its cells and folder. Not to be changed."""
    adata, folder = screen.copy(), tmp_path_factory.mktemp("compare") / "out"
    result = tl.compare(
        adata,
        seeds=(0, 1),
        model=SMALL_ST,
        train_kwargs=QUICK,
        variants={"few genes": {"model": {"n_genes": 20}}, "broken": {"model": {"space": "embedding"}}},
        time_key="day",
        markers=MARKERS,
        path=folder,
        min_cells=2,
        n_boot=50,
    )
    return result, adata, folder


def test_every_model_has_a_row_for_every_context_target_and_metric(compared):
    result, _, _ = compared
    models = [*BASELINES, *USUAL, "few genes", "broken"]
    assert list(dict.fromkeys(result.scores["model"])) == models
    keys = ["model", "target", "context", "metric"]
    assert not result.scores.duplicated(keys).any()
    n_metrics = result.scores["metric"].nunique()
    assert len(result.scores) == len(models) * 3 * 3 * n_metrics  # both targets and contexts, and their averages
    assert set(result.scores["target"]) == {"g1", "g2", "all"}
    assert set(result.scores["context"]) == {"A", "B", "all"}


def test_untrained_random_start_is_no_change(compared):
    table = compared[0].scores.set_index(["model", "target", "context", "metric"])["value"]
    no_change, untrained = table["no change"], table["zero-shot"]
    pd.testing.assert_series_equal(untrained, no_change.reindex(untrained.index), check_names=False, rtol=1e-5)


def test_targets_are_scored_together(compared):
    scores = compared[0].scores
    main = scores[(scores["target"] == "all") & (scores["context"] == "all")]
    values = main.pivot(index="model", columns="metric", values="value")
    together = ["centroid_accuracy", "pearson_delta_centroid", "expr_mse_unbiased_capped_norm"]
    assert values.loc["ST", together].notna().all()
    assert values.loc["no change", "expr_mse_unbiased_capped_norm"] == pytest.approx(1, abs=0.2)


def test_trained_variants_find_the_change(compared):
    result, _, _ = compared
    main = result.scores[(result.scores["target"] == "all") & (result.scores["context"] == "all")]
    pearson = main[main["metric"] == "pearson_delta"].set_index("model")["value"]
    assert (pearson[["ST", "ST-LoRA", "ST-LoRA-mHC", "few genes"]] > 0.6).all()


def test_mean_over_seeds_has_an_interval_and_a_skill(compared):
    result, _, _ = compared
    st = result.scores[result.scores["model"] == "ST"].iloc[0]
    own = result.by_seed[
        (result.by_seed[["model", "target", "context", "metric"]] == st[["model", "target", "context", "metric"]]).all(
            axis=1
        )
    ]
    values = own["value"].to_numpy()
    assert own["seed"].tolist() == [0, 1]
    assert (st["n_seeds"], st["interval"]) == (2, "seeds")
    assert st["value"] == pytest.approx(values.mean())
    half = 12.7062 * values.std(ddof=1) / np.sqrt(2)  # t with one degree of freedom
    assert st["ci_low"] == pytest.approx(max(st["lowest"], values.mean() - half), abs=1e-4)
    assert st["ci_high"] == pytest.approx(min(st["highest"], values.mean() + half), abs=1e-4)
    skill = result.scores.set_index(["model", "target", "context", "metric"])["skill"]
    np.testing.assert_allclose(skill["mean shift"].dropna(), 0)
    np.testing.assert_allclose(skill["ceiling"].dropna(), 1)


def test_all_are_scored_over_the_genes_that_all_predict(compared, screen):
    result, _, _ = compared
    few = ssl.STTransition(screen, model={**SMALL_ST, "n_genes": 20}).genes
    alone = tl.compare(
        screen.copy(), variants=["zero-shot"], model={**SMALL_ST, "n_genes": 20}, train_kwargs=QUICK, min_cells=2,
        n_boot=10,
    )  # fmt: skip
    assert len(few) == 20
    for one in (result, alone):
        part = one.scores[(one.scores["model"] == "no change") & (one.scores["metric"] == "e_distance")]
        np.testing.assert_allclose(part["value"], _no_change_distance(screen, few, part))


def _no_change_distance(adata, genes, part):
    from scstate_lora import metrics
    from scstate_lora.data import log_expression

    x = log_expression(adata).toarray()[:, adata.var_names.get_indexer([g for g in adata.var_names if g in genes])]
    obs = adata.obs
    values = {}
    for target in ("g1", "g2"):
        for context in ("A", "B"):
            of_type = (obs["cell_type"] == context).to_numpy()
            test = ((obs["guide"] == target) & (obs["scstate_split"] == "test")).to_numpy() & of_type
            control = (obs["guide"] == "none").to_numpy() & of_type
            values[target, context] = metrics.energy_distance(x[control], x[test])
        values[target, "all"] = np.mean([values[target, "A"], values[target, "B"]])
    for context in ("A", "B", "all"):
        values["all", context] = np.mean([values["g1", context], values["g2", context]])
    return [values[t, c] for t, c in zip(part["target"], part["context"], strict=True)]


def test_a_variant_that_fails_says_why_and_the_others_are_scored(compared):
    result, _, _ = compared
    scores = result.scores[result.scores["model"] == "broken"]
    assert scores["value"].isna().all()
    assert scores["reason"].str.contains("embed_key").all()
    assert result.training.loc[result.training["model"] == "broken", "reason"].str.contains("embed_key").all()
    criteria = result.criteria[result.criteria["model"] == "broken"]
    assert (criteria["met"] == "not measured").all()
    assert criteria["reason"].str.contains("embed_key").all()


def test_a_variant_that_breaks_in_training_says_why(screen, monkeypatch):
    train = ssl.STTransition.train

    def out_of_memory(self, *args, **kwargs):
        if self.finetune == "lora":
            raise RuntimeError("CUDA out of memory")
        train(self, *args, **kwargs)

    monkeypatch.setattr(ssl.STTransition, "train", out_of_memory)
    result = tl.compare(screen.copy(), variants=["ST-LoRA", "ST"], model=SMALL_ST, train_kwargs=QUICK, n_boot=10)
    reasons = result.training.set_index("model")["reason"]
    assert reasons["ST-LoRA"] == "RuntimeError: CUDA out of memory"
    assert "memory" not in reasons["ST"]
    assert result.scores.loc[result.scores["model"] == "ST", "value"].notna().any()


def test_training_table_tells_what_was_trained(compared):
    result, _, _ = compared
    training = result.training[result.training["seed"] == 0].set_index("model")
    assert training.loc["ST", "share"] == 1
    assert training.loc["zero-shot", ["trained", "share"]].tolist() == [0, 0]
    assert training.loc["ST-LoRA", "trained"] < training.loc["ST-LoRA-mHC", "trained"] < training.loc["ST", "trained"]
    trained = training.loc[["ST", "ST-LoRA", "ST-LoRA-mHC", "few genes"]]
    assert (trained["epochs"] == 1).all()
    measured = ["loss_variance", "gradient_spikes", "seconds_per_epoch", "peak_memory_mb"]
    assert trained[measured].notna().all(axis=None)
    without = trained["validation_improvement"].isna()  # of an unbiased distance, which may start below 0
    assert (trained["reason"].str.contains("a share needs one above 0") == without).all()
    assert set(result.histories["model"]) == set(trained.index)
    assert result.histories.groupby(["model", "seed"]).ngroups == 8


def test_criteria_of_a_variant(compared):
    result, _, _ = compared
    own = result.criteria[result.criteria["model"] == "ST"].set_index("criterion")
    assert list(own.index) == [
        *("validation_improvement", "loss_variance", "gradient_spikes", "pearson_delta", "cell_type_score"),
        *("nearest_distance", "day_order", "markers_up"),
    ]
    assert set(own["met"].drop("validation_improvement")) <= {"yes", "no"}
    scores = result.scores.set_index(["model", "target", "context", "metric"])["value"]
    assert own.loc["pearson_delta", "value"] == scores["ST", "all", "all", "pearson_delta"]
    assert own.loc["cell_type_score", "value"] == min(scores["ST", "all", c, "pearson_delta"] for c in "AB")
    assert own.loc["day_order", "value"] == 1  # days differ in controls too, and the model keeps cells apart
    assert own.loc["markers_up", "met"] == "yes"
    assert "1 more are not scored" in own.loc["markers_up", "reason"]
    untrained = result.criteria[result.criteria["model"] == "zero-shot"].set_index("criterion")
    assert untrained.loc["markers_up", ["value", "met"]].tolist() == [0, "no"]


def test_tables_survive_the_file(compared, tmp_path):
    result, adata, folder = compared
    adata.write_h5ad(tmp_path / "cells.h5ad")
    kept = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scstate_lora"]["compare"]
    for name, table in result.tables().items():
        assert list(kept[name].columns) == list(table.columns), name
        assert len(kept[name]) == len(pd.read_csv(folder / f"{name}.csv")) == len(table)
        json.dumps(json.loads(table.to_json(orient="records")))
    assert (folder / "logs" / "ST-LoRA-mHC" / "seed1" / "metrics.csv").exists()
    assert len(pd.read_csv(folder / "summary.csv")) == len(result.summary()) == 12
    assert "ST-LoRA-mHC" in repr(result)
    own = result.summary().set_index("model").loc["ST"]
    assert own["pearson_delta_low"] < own["pearson_delta"] < own["pearson_delta_high"]


def test_what_was_not_given_is_not_measured_and_says_why(screen):
    result = tl.compare(screen.copy(), variants=["zero-shot"], target="g1", model=SMALL_ST, context_key=[], n_boot=10)
    criteria = result.criteria.set_index("criterion")
    assert (criteria.loc[["day_order", "markers_up", "cell_type_score"], "met"] == "not measured").all()
    assert "time_key=" in criteria.loc["day_order", "reason"]
    assert "markers=" in criteria.loc["markers_up", "reason"]
    assert "context_key=" in criteria.loc["cell_type_score", "reason"]
    assert "not trained" in criteria.loc["loss_variance", "reason"]
    assert set(result.scores["target"]) == {"g1"}
    assert result.histories.empty


def test_thresholds_decide(screen):
    tables = [
        tl.compare(
            screen.copy(), variants=["zero-shot"], model=SMALL_ST, thresholds=given, min_cells=2, n_boot=10
        ).criteria
        for given in (None, {"nearest_distance": 9.0, "nearest_distance_strong": 8.0})
    ]
    rows = [table.set_index("criterion").loc["nearest_distance"] for table in tables]
    assert rows[0]["value"] == rows[1]["value"]
    assert [row["met"] for row in rows] == ["no", "yes"]
    assert [row["level"] for row in rows] == ["", "strong"]


def test_one_of_the_usual_is_replaced_or_left_out(screen):
    variants = {"ST": {"model": {"hidden": 32}}, "ST-LoRA": None, "ST-LoRA-mHC": None}
    result = tl.compare(screen.copy(), variants=variants, model=SMALL_ST, train_kwargs=QUICK, min_cells=2, n_boot=10)
    training = result.training.set_index("model")
    assert list(training.index) == ["zero-shot", "ST"]
    assert training.loc["ST", "parameters"] > training.loc["zero-shot", "parameters"]
    intervals = result.scores[result.scores["model"] == "ST"].groupby("target")["interval"].agg(set)
    assert intervals["all"] == {"targets", ""}
    assert intervals["g1"] == {"contexts", ""}


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"variants": {"mine": {"modle": {}}}}, ValueError, "model"),
        ({"variants": {"mine": {"model": {"hiden": 3}}}}, ValueError, "hidden"),
        ({"variants": {"mine": {"train": {"max_epoch": 3}}}}, TypeError, "max_epochs"),
        ({"variants": {"mine": {"lora": {"r": 2}}}}, ValueError, "finetune='full' has none"),
        ({"variants": {"mine": {"train": False, "mhc": True}}}, ValueError, "Leave one of them out"),
        ({"variants": {"mine": {"reuse": "backbone"}}}, ValueError, "there is none"),
        ({"variants": ["ST-Lora"]}, ValueError, "Did you mean 'ST-LoRA'"),
        ({"variants": {"mean shift": {}}}, ValueError, "name of a baseline"),
        ({"variants": {"a b": {}, "a/b": {}}}, ValueError, "name of a folder"),
        ({"variants": dict.fromkeys(USUAL)}, ValueError, "nothing to compare"),
        ({"train_kwargs": {"mhc": True}}, ValueError, "option of the variant"),
        ({"train_kwargs": {"run_folder": "x"}}, ValueError, "path="),
        ({"seeds": ()}, ValueError, "seeds"),
        ({"seeds": (1, 1)}, ValueError, "twice"),
        ({"target": "g3"}, ValueError, "'g1'"),
        ({"target": "none"}, ValueError, "no perturbation"),
        ({"context_key": "celltype"}, KeyError, "cell_type"),
        ({"time_key": "days"}, KeyError, "day"),
        ({"markers": {"g9": ["G1"]}}, ValueError, "not scored"),
        ({"markers": "G1"}, TypeError, "list of genes"),
        ({"thresholds": {"pearson": 0.5}}, ValueError, "pearson_delta"),
    ],
)
def test_mistake_raises_before_any_training(screen, monkeypatch, given, error, match):
    monkeypatch.setattr(ssl.STTransition, "train", None)
    adata = screen.copy()
    with pytest.raises(error, match=match):
        tl.compare(adata, **{"model": SMALL_ST, **given})
    assert "compare" not in adata.uns["scstate_lora"]


def test_without_test_cells_raises(screen):
    adata = screen.copy()
    adata.obs["scstate_split"] = "train"
    with pytest.raises(ValueError, match="test split"):
        tl.compare(adata)


def test_folder_with_other_logs_raises(screen, tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(FileExistsError, match="not of a comparison"):
        tl.compare(screen.copy(), path=tmp_path)


def test_days_are_ordered_by_their_numbers():
    days = pd.Series(["day3", "day10", "day3"], name="day")
    assert in_order_of_time(days) == ["day3", "day10"]
    assert in_order_of_time(pd.Series([10.0, 3.0, np.nan])) == ["3.0", "10.0"]
    ordered = pd.Series(pd.Categorical(["late", "early"], categories=["early", "late"], ordered=True))
    assert in_order_of_time(ordered) == ["early", "late"]
    with pytest.raises(ValueError, match="does not hold one number"):
        in_order_of_time(pd.Series(["early", "late"], name="when"))
    with pytest.raises(ValueError, match="needs two"):
        in_order_of_time(days[:1])


def test_pairs_of_days_are_counted_along_the_way_of_the_measured_cells():
    measured = {"1": np.array([0.0, 0]), "2": np.array([1.0, 5]), "3": np.array([4.0, 0])}
    predicted = {"1": np.array([1.0, 0]), "2": np.array([0.0, 9]), "3": np.array([2.0, 0])}
    assert day_order(predicted, measured, ["1", "2", "3"]) == (2, 3)
    assert day_order(measured, measured, ["1", "2", "3", "4"]) == (3, 3)
    assert day_order({"1": np.zeros(2)}, measured, ["1", "2", "3"]) == (0, 0)


@pytest.mark.parametrize("targets", [("TP53", "IFNG"), ("own1", "own2")])
def test_pretrained_model_is_scored_as_it_is_and_trained_further(targets):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"gene": rng.choice(["non-targeting", *targets], 160), "cell_type": rng.choice(["A", "B"], 160)})
    counts = rng.poisson(2, (160, 30)).astype(np.float32)
    counts[:, 3] += 5 * (obs["gene"] == targets[0])
    obs["batch"] = rng.choice(["batch0", "batch1", "batch2"], 160)
    obs.index = [f"cell{i}" for i in range(160)]
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(30)]))
    ssl.STTransition.setup_anndata(
        adata, pert_key="gene", control="non-targeting", cell_type_key="cell_type", batch_key="batch"
    )
    result = tl.compare(
        adata,
        pretrained=Path(__file__).parents[2] / "data" / "arc_st" / "gpt2",
        target=targets[0],
        variants={"ST": None, "ST-LoRA-mHC": None, "from scratch": {"pretrained": False, "model": SMALL_ST}},
        context_key=[],
        train_kwargs=QUICK,
        n_boot=10,
    )
    training = result.training.set_index("model")
    known = targets[0] == "TP53"
    assert ("does not know these perturbations" in training.loc["zero-shot", "reason"]) != known
    mae = result.scores[(result.scores["metric"] == "mae") & (result.scores["context"] == "all")]
    mae = mae.set_index("model")["value"]
    assert np.isfinite(mae["zero-shot"]) == known
    assert mae[["ST-LoRA", "from scratch"]].notna().all()
    if known:
        assert abs(mae["zero-shot"] - mae["no change"]) > 0.01
        assert training.loc["ST-LoRA", "parameters"] > training.loc["zero-shot", "parameters"]  # adapters
        assert training.loc["ST-LoRA", "share"] < 1 == training.loc["from scratch", "share"]
