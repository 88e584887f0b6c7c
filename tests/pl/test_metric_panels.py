from __future__ import annotations

from itertools import pairwise

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl


def points(ax, marker: str) -> list[float]:
    return sorted(float(line.get_xdata()[0]) for line in ax.get_lines() if line.get_marker() == marker)


def test_perturbation_table(perturbation_table):
    axes = pl.metrics(perturbation_table)
    assert [ax.get_title() for ax in axes] == ["Pearson of delta", "E-distance"]
    assert "higher is better" in axes[0].get_xlabel()
    assert axes[1].get_xlabel() == "← lower is better (range from 0)"
    assert axes[0].get_yticklabels()[0].get_text() == "all"
    (legend,) = axes[0].figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "model",
        "no change",
        "mean shift",
        "perturbed mean",
        "ceiling",
    ]


def test_draws_the_numbers_of_the_table(perturbation_table):
    ax = pl.metrics(perturbation_table, metric="mae")[0]
    mae = perturbation_table[perturbation_table["metric"] == "mae"]
    np.testing.assert_allclose(points(ax, "o"), sorted(mae.loc[mae["model"] == "model", "value"]))
    np.testing.assert_allclose(points(ax, "D"), sorted(mae.loc[mae["model"] == "mean shift", "value"]))
    np.testing.assert_allclose(points(ax, "|"), sorted(mae.loc[mae["model"] == "ceiling", "value"]))


def test_by_default_the_headline_and_everything_by_choice(perturbation_table, evaluate_table):
    mae = perturbation_table[perturbation_table["metric"] == "mae"]
    wide = pd.concat([perturbation_table, mae.assign(metric="mmd"), mae.assign(metric="my_own")])
    assert [ax.get_title() for ax in pl.metrics(wide)] == ["Pearson of delta", "E-distance"]
    assert len(pl.metrics(wide, metric="all")) == 5
    assert [ax.get_title() for ax in pl.metrics(wide, metric=["my_own", "mmd"])] == ["my own", "MMD"]
    # of a table without any headline metric all are drawn
    assert [ax.get_title() for ax in pl.metrics(wide[wide["metric"] == "my_own"])] == ["my own"]
    assert [ax.get_title() for ax in pl.metrics(evaluate_table)] == ["kNN accuracy", "probe R²"]
    with pytest.raises(ValueError, match="names no metric"):
        pl.metrics(wide, metric=[])


def test_evaluate_table_with_baseline_and_reason(evaluate_table):
    axes = pl.metrics(evaluate_table, metric=["knn_accuracy", "probe_accuracy", "probe_r2"])
    assert [ax.get_title() for ax in axes] == ["kNN accuracy", "probe accuracy", "probe R²"]
    assert [t.get_text() for t in axes[1].get_yticklabels()] == ["condition", "replicate"]
    assert points(axes[1], "|") == [0.5, 0.5]
    assert "only one value" in axes[2].texts[0].get_text()


def test_ax_and_adata(evaluate_table, perturbation_table):
    _, ax = plt.subplots()
    adata = ad.AnnData(np.zeros((1, 1)), uns={"scstate_lora": {"evaluate": evaluate_table}})
    assert pl.metrics(adata, metric="knn_accuracy", ax=ax) is ax
    assert len(ax.get_legend().get_texts()) == 4
    adata = ad.AnnData(np.zeros((1, 1)), uns={"scstate_lora": {"evaluate_perturbation": perturbation_table}})
    assert len(pl.metrics(adata)) == 2


def test_row_labels_do_not_overlap(perturbation_table):
    wide = pd.concat(
        [perturbation_table.assign(context=perturbation_table["context"] + f" of mouse {i}") for i in range(8)],
        ignore_index=True,
    )
    ax = pl.metrics(wide)[0]
    ax.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert all(not a.overlaps(b) for a, b in pairwise(boxes))


def test_unknown_metric_raises(perturbation_table):
    with pytest.raises(KeyError, match="Did you mean 'e_distance'"):
        pl.metrics(perturbation_table, metric="edistance")


def test_several_metrics_on_one_ax_raises(perturbation_table):
    with pytest.raises(ValueError, match="One `ax` holds one metric"):
        pl.metrics(perturbation_table, ax=plt.subplots()[1])


def test_missing_tables_raise(evaluate_table, perturbation_table):
    with pytest.raises(KeyError, match="has none of"):
        pl.metrics(ad.AnnData(np.zeros((1, 1))))
    both = {"evaluate": evaluate_table, "evaluate_perturbation": perturbation_table}
    with pytest.raises(ValueError, match=r"holds .*Give the one to draw"):
        pl.metrics(ad.AnnData(np.zeros((1, 1)), uns={"scstate_lora": both}))
    with pytest.raises(ValueError, match=r"lacks the columns \['metric', 'context'"):
        pl.metrics(pd.DataFrame({"model": ["a"], "value": [1.0]}))
    with pytest.raises(ValueError, match="no rows"):
        pl.metrics(evaluate_table.iloc[:0])


def test_of_discrimination_scores_the_averages_over_perturbations_are_drawn():
    averages = {"direction": "higher", "metric": "discrimination", "ci_low": 0.4, "ci_high": 1.0, "reason": ""}
    rows = [
        {"model": model, "context": context, "perturbation": pert, "value": value, **averages}
        for model, context, pert, value in [
            ("ST", "B cells", "STAT1", 0.5),
            ("ST", "B cells", "all", 0.75),
            ("ST", "all", "all", 0.7),
            ("mean effect", "all", "all", 0.5),
        ]
    ]
    (ax,) = pl.metrics(pd.DataFrame(rows))
    assert ax.get_title() == "discrimination score"
    assert points(ax, "o") == [0.7, 0.75]  # and not that of one perturbation
    assert points(ax, "s") == [0.5]


def test_temporal_coherence_has_a_row_for_each_cell_type():
    rows = [
        {"embedding": e, "metric": "temporal_monotonicity", "key": "day", "cell_type": t, "value": 0.5, "baseline": 0.0,
         "direction": "higher", "lowest": -1.0, "highest": 1.0, "reason": ""}
        for e in ("PCA", "X_scstate_lora") for t in ("all", "B", "T")
    ]  # fmt: skip
    (ax,) = pl.metrics(pd.DataFrame(rows))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["all", "B", "T"]
    assert len({round(line.get_ydata()[0], 2) for line in ax.get_lines()}) == 9  # two embeddings and the floor
