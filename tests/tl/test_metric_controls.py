"""Controls of the metrics: what is right scores as a replicate, what is wrong is caught, and nothing is nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scstate_lora import metrics, tl

_FILE = Path(__file__).parents[2] / "benchmarks" / "metric_controls.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("metric_controls", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells(bench):
    """A screen with effects; not to be changed."""
    return bench.screen(effect=0.5, seed=0)


def test_real_cells_against_themselves_score_the_replicate_or_better(bench, cells):
    _, test, _ = bench.split(cells)
    itself = test[(test.obs["guide"] != "none").to_numpy()].copy()
    table = tl.evaluate_perturbation(itself, test, test, context_key=[], pert_key="guide", n_boot=10)
    rows = table[table["perturbation"] == "all"].set_index(["model", "metric"])
    for metric, row in rows.loc["model"].iterrows():
        pair = [row["value"], rows.loc[("ceiling", metric), "value"]]
        own, replicate = metrics.goodness(pair, direction=row["direction"])
        if np.isnan(replicate):  # halves of too few cells, and all perturbations are hits
            assert metric in ("cell_cov_corr", "hit_recall_budget", "hit_recall_fdr10")
            continue
        slack = 0.02 if np.isfinite(row["split_sd"]) or metric == "nearest_distance_relative" else 1e-9
        if metric == "nearest_distance_relative":  # 0, as they are copies: the one metric that punishes this
            assert row["value"] == pytest.approx(0, abs=1e-3)
        else:
            assert own >= replicate - slack, metric


def test_every_wrong_prediction_is_caught(bench, cells):
    right = bench.score("right", cells, n_boot=10)
    expected = {
        "collapsed": {"e_distance", "mmd", "sd_r2", "detection_r2", "expr_mse_unbiased_capped_norm"},
        "shuffled": {
            *("pearson_delta", "mae", "de_overlap50", "de_direction50", "pds_cosine", "centroid_accuracy"),
            *("pearson_delta_centroid", "sig_jaccard", "direction_fidelity_yield", "direction_reach", "lfc_nmae"),
        },
        "twice the effect": {"mse", "mae", "expr_mse_unbiased_capped_norm", "lfc_nmae"},
        "scaled by two": {"mse", "e_distance", "lfc_nmae"},
        "on another scale": {"mse", "e_distance"},
    }
    assert bench.caught(right, right) == []
    for kind, by in expected.items():
        assert by <= set(bench.caught(bench.score(kind, cells, n_boot=10), right)), kind
    train, test, again = bench.split(cells)
    for kind, check in (("scaled by two", "scale"), ("on another scale", "scale"), ("leaked", "copied cells")):
        found = tl.audit(train, test, pred=bench.predict(train, test, again, kind), pert_key="guide", control="none")
        assert check in set(found.loc[found["severity"] == "error", "check"]), kind
    found = tl.audit(train, test, pred=bench.predict(train, test, again, "right"), pert_key="guide", control="none")
    assert not (found["severity"] == "error").any()


def test_hits_are_found_by_the_right_prediction_alone(bench):
    cells = bench.screen_with_hits(0)
    right, shuffled = (bench.score(kind, cells, n_boot=10) for kind in ("right", "shuffled"))
    for metric in bench.HITS:
        assert right.loc[("model", metric), ["value", "skill"]].tolist() == [1, 1], metric
        assert right.loc[("ceiling", metric), "value"] == 1, metric
        assert shuffled.loc[("model", metric), "value"] == 0, metric
        assert 0 < right.loc[(right.loc[("model", metric), "yardstick"], metric), "value"] <= 0.25, metric
    assert set(bench.HITS) <= set(bench.caught(shuffled, right))


def test_nothing_is_better_than_its_baseline_where_nothing_happens(bench):
    table = bench.gains_without_effect(3)
    assert isinstance(table, pd.DataFrame)
    assert len(table) > 10
    assert not table["above its baseline"].any(), table[table["above its baseline"]]
