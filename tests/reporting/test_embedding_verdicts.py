from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.reporting.embedding_verdicts import compare_with_pca, headline_scores, judge_embedding
from tests.reporting.tables import evaluate_table


def _by_score(table, **how):
    return {(r.embedding, r.metric): r for r in compare_with_pca(table, **how)}


def test_every_embedding_is_compared_with_the_pca():
    table = evaluate_table(PCA=0.9, X_scstate_base=0.905, X_scstate_lora=0.95, X_bad=0.7, X_failed=np.nan)
    results = _by_score(table)
    assert results["X_scstate_base", "knn_accuracy"].relation == "equal"
    assert results["X_scstate_lora", "knn_accuracy"].relation == "better"
    assert results["X_bad", "probe_accuracy"].relation == "worse"
    assert results["X_failed", "knn_accuracy"].relation == "not compared"
    assert results["X_failed", "knn_accuracy"].why == "too few"


def test_a_covariate_that_the_embedding_was_given_proves_nothing():
    results = compare_with_pca(evaluate_table(PCA=0.5, X_scstate_lora=1.0), covariates=["condition"])
    assert {r.metric: r.relation for r in results} == {"knn_accuracy": "better", "probe_accuracy": "no evidence"}
    assert "That it tells condition apart is no evidence" in judge_embedding(results).sentences[-1]


def test_a_cell_type_that_sets_were_made_by_proves_nothing_for_the_transition_model():
    table = evaluate_table(PCA=0.5, X_scstate_lora=0.9, X_scstate_st=0.99)
    results = _by_score(table, context_keys=["cell_type"])
    assert results["X_scstate_lora", "knn_accuracy"].relation == "better"
    assert results["X_scstate_st", "knn_accuracy"].relation == "no evidence"


@pytest.mark.parametrize(
    ("value", "mark", "words"),
    [
        (0.95, "good", "It helps: the adapted embedding is better than a PCA"),
        (0.7, "bad", "It does not help: the adapted embedding is worse than a PCA"),
        (0.905, "even", "No gain: the adapted embedding is as good as a PCA"),
        (np.nan, "even", "There is no score to compare the adapted embedding with a PCA by: too few."),
    ],
)
def test_judgement_is_about_the_adapted_embedding(value, mark, words):
    judgement = judge_embedding(compare_with_pca(evaluate_table(PCA=0.9, X_other=0.1, X_scstate_lora=value)))
    assert judgement.mark == mark
    assert words in judgement.sentences[0]


def test_headline_scores_have_a_column_per_embedding():
    shown = headline_scores(evaluate_table(X_scstate_lora=0.95, X_mine=0.8, PCA=0.9))
    assert shown.columns.tolist() == ["score", "PCA", "adapted", "X_mine"]
    assert shown.to_numpy().tolist() == [["kNN accuracy of cell_type ↑", 0.9, 0.95, 0.8]]
