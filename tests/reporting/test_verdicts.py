from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scstate_lora.reporting.verdicts import (
    Judgement,
    Result,
    compare_over_targets,
    compare_with_baseline,
    judge,
    results_table,
)
from tests.reporting.tables import perturbation_table, with_baseline


def _compare(table: pd.DataFrame, metric: str = "pearson_delta") -> Result:
    return compare_with_baseline(table, "model", metric)


def _judge(table: pd.DataFrame) -> Judgement:
    results = [_compare(table, metric) for metric in dict.fromkeys(table["metric"])]
    return judge(results, model="model", target="stim")


@pytest.mark.parametrize(
    ("model", "relation", "mark", "words"),
    [
        (0.9, "better", "good", "Believe it: model predicts stim better than the simple baseline mean shift in 1 of 1"),
        (0.6, "worse", "bad", "Do not believe it: the simple baseline mean shift predicts stim better than model in 1"),
        (0.805, "not decided", "even", "than the simple baseline mean shift: the interval of the difference holds 0"),
        (0.8, "equal", "even", "No better: model predicts stim as the simple baseline mean shift does"),
        (np.nan, "not compared", "even", "model was not compared with a baseline: The predicted delta is the same"),
    ],
)
def test_verdict(model, relation, mark, words):
    table = perturbation_table(model=model)
    assert _compare(table).relation == relation
    judgement = _judge(table)
    assert judgement.mark == mark
    assert words in judgement.sentences[0]


def test_numbers_of_a_comparison():
    result = _compare(perturbation_table(model=0.9))
    assert (result.baseline, result.value, result.baseline_value, result.replicate) == ("mean shift", 0.9, 0.8, 0.95)
    low, high = result.interval
    assert 0 < low < 0.1 < high
    row = results_table([result], model="model").iloc[0]
    assert (row["which"], row["better in"], row["verdict"]) == ("mean shift", "4 of 4 contexts", "better")


def test_lower_is_better_and_nearest_to_one():
    table = perturbation_table(model=0.75, mean_shift=0.65)  # all under 1
    assert _compare(table.assign(direction="lower")).relation == "worse"
    assert _compare(table.assign(direction="one")).relation == "better"


def test_without_a_baseline_nothing_is_claimed():
    for table in (
        perturbation_table(model=0.9, mean_shift=np.nan),
        perturbation_table(model=0.9).query("model != 'mean shift'"),
    ):
        assert _judge(table).mark == "even"
        assert "no baseline has a score" in _judge(table).sentences[0]


@pytest.mark.parametrize("kept", [["all"], ["B"], ["B", "T"]])
def test_too_few_contexts_for_an_interval_decide_nothing(kept):
    table = perturbation_table(model=0.9)
    table = table[table["context"].isin(kept)]
    assert _compare(table).relation == "not decided"
    assert _judge(table).answer == "not decided"
    assert _judge(table).sentences[0].endswith("no interval can be made.")


def test_the_best_baseline_of_each_score_counts():
    good, bad = (
        perturbation_table(model=0.9),
        perturbation_table(model=0.9).assign(metric="e_distance", direction="lower"),
    )
    table = pd.concat([with_baseline(good, "linear", 0.95), with_baseline(bad, "linear", 0.97)], ignore_index=True)
    pearson, distance = _compare(table), _compare(table, "e_distance")
    assert (pearson.baseline, pearson.relation) == ("linear", "worse")
    assert (distance.baseline, distance.relation) == ("mean shift", "worse")
    assert "its simple baselines (linear, mean shift) predict" in _judge(table).sentences[0]
    assert _judge(table).mark == "bad"


def test_what_training_cells_chose_is_not_called_the_best():
    table = with_baseline(perturbation_table(model=0.9), "linear", 0.95).assign(yardstick="mean shift")
    result = _compare(table)
    assert (result.baseline, result.best, result.relation) == ("mean shift", "linear", "better")
    assert result.beaten_by_another()
    verdict, warning = _judge(table).sentences
    assert "better than the simple baseline mean shift" in verdict
    assert warning == "On these cells another baseline is better than the model: linear in Pearson of delta (0.95)."


def test_what_is_shown_equal_is_called_equal():
    assert _compare(perturbation_table(model=0.80012, spread=0.0)).relation == "equal"


def test_contexts_that_do_not_count_are_left_out():
    table = perturbation_table(model=0.9)
    weight = {"B": 1.0, "T": 1.0, "NK": 1.0, "Mono": 0.0}
    table["weight"] = table["context"].map(weight).fillna(3.0)
    table.loc[(table["context"] == "Mono") & (table["model"] == "model"), "value"] = 0.0  # 3 cells, far off
    assert results_table([_compare(table)], model="model")["better in"].tolist() == ["3 of 3 contexts"]
    table["weight"] = 1.0
    assert results_table([_compare(table)], model="model")["better in"].tolist() == ["3 of 4 contexts"]


def _result(metric: str, relation: str) -> Result:
    return Result(metric, relation, value=0.5, baseline="linear", baseline_value=0.4)


@pytest.mark.parametrize(
    ("relations", "answer"),
    [
        (["better", "better", "not decided", "equal"], "believe it"),
        (["better", "not decided", "not decided", "not decided"], "not decided"),
        (["better", "better", "worse", "not decided"], "not decided"),
        (["better", "worse", "worse", "not decided"], "do not believe it"),
        (["worse", "worse", "not decided", "equal"], "do not believe it"),
        (["equal", "equal", "equal", "equal"], "no better"),
    ],
)
def test_headline_scores_decide_together(relations, answer):
    metrics = ["pearson_delta", "variance_ratio", "e_distance", "de_overlap50"]
    results = [_result(metric, relation) for metric, relation in zip(metrics, relations, strict=True)]
    others = [_result("mae", "worse")] * 9  # no headline scores: they do not outvote these
    assert judge([*results, *others], model="model", target="stim").answer == answer


def _screen(lead: float, *, n: int = 40, weight: float = 0.0) -> pd.DataFrame:
    """Targets of very different difficulty, in each of which the model leads by about as much."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        difficulty = rng.normal(0, 0.3)
        for name, value in {"model": lead + rng.normal(0, 0.02), "mean shift": 0.0, "ceiling": 0.5}.items():
            rows += [
                {
                    "model": name, "context": context, "perturbation": f"P{i}", "metric": "pearson_delta",
                    "value": np.nan if context == "all" else difficulty + value + offset, "direction": "higher",
                    "n_measured": cells, "weight": weight, "yardstick": "mean shift", "reason": "", "skill": np.nan,
                }
                for context, offset, cells in (("B", 0.1, 3), ("T", -0.1, 6), ("all", 0.0, 9))
            ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("lead", "relation"), [(0.02, "better"), (-0.02, "worse"), (0.0, "not decided")])
def test_many_targets_get_a_verdict_from_paired_differences(lead, relation):
    result = compare_over_targets(_screen(lead), "model", "pearson_delta")
    assert result.relation == relation
    assert result.baseline == "mean shift"
    assert (result.pairs.unit, len(result.pairs.gains)) == ("targets", 40)
    assert result.value - result.baseline_value == pytest.approx(result.pairs.gains.mean())


def test_few_targets_get_none():
    result = compare_over_targets(_screen(0.1, n=4), "model", "pearson_delta")
    assert (result.relation, result.why) == ("not decided", "of 4 targets no interval can be made")


def test_contexts_of_a_target_count_by_their_cells():
    table = _screen(0.0, n=5)
    table.loc[(table["model"] == "model") & (table["context"] == "T"), "value"] += 0.3  # 6 of 9 cells
    gains = compare_over_targets(table, "model", "pearson_delta").pairs.gains
    np.testing.assert_allclose(gains, 0.2, atol=0.08)
    table["weight"] = np.where(table["context"] == "B", 1.0, 0.0)
    np.testing.assert_allclose(compare_over_targets(table, "model", "pearson_delta").pairs.gains, 0, atol=0.08)
