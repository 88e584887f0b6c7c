from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl

PAIRS = [("PCA", "nothing"), ("base", "nothing"), ("model", "nothing"), ("model", "others"), ("model", "all")]


def make_table(covariates=("condition", "time_days")):
    rows = []
    for covariate in covariates:
        for i, (embedding, condition) in enumerate(PAIRS):
            value = 0.5 + 0.08 * i
            rows.append(
                {
                    "embedding": embedding, "covariate": covariate, "conditioned_on": condition,
                    "metric": "probe_balanced_accuracy", "value": value, "low": value - 0.05, "high": value + 0.05,
                    "baseline": 0.5, "direction": "higher", "lowest": 0.0, "highest": 1.0, "n_train": 80, "n_test": 20,
                    "reason": "",
                    "verdict": "no linear probe finds it in the expression of 20 held-out cells; the embedding shows "
                    "it only by conditioning",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def dots(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "o"]


def test_draws_the_numbers_of_the_table():
    table = make_table()
    axes = pl.covariate_effects(table)
    assert [ax.get_title() for ax in axes] == ["condition", "time_days"]
    part = table[table["covariate"] == "condition"]
    np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots(axes[0])], part["value"])
    assert [dot.get_ydata()[0] for dot in dots(axes[0])] == [0, 1, 2, 3, 4]
    intervals = [
        line.get_xdata() for line in axes[0].get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]
    np.testing.assert_allclose(intervals, part[["low", "high"]])
    (baseline,) = [line for line in axes[0].get_lines() if line.get_linestyle() == "--"]
    assert baseline.get_xdata()[0] == 0.5
    assert axes[0].get_yticklabels()[0].get_text() == "PCA of expression"
    assert "only by conditioning" in axes[0].get_xlabel().replace("\n", " ")


def test_conditioned_embeddings_are_hollow():
    hollow = [dot.get_markerfacecolor() == "#ffffff" for dot in dots(pl.covariate_effects(make_table())[0])]
    assert hollow == [False, False, False, True, True]


def test_ax_one_covariate_and_adata():
    _, ax = plt.subplots()
    adata = ad.AnnData(np.zeros((1, 1)), uns={"scstate_lora": {"covariate_information": make_table()}})
    assert pl.covariate_effects(adata, covariate="time_days", ax=ax) is ax
    assert ax.get_title() == "time_days"
    assert len(pl.covariate_effects(adata, covariate="condition")) == 1
    with pytest.raises(ValueError, match="One `ax` holds one covariate"):
        pl.covariate_effects(adata, ax=ax)


def test_a_score_that_failed_is_said():
    table = make_table(["condition"])
    table.loc[0, ["value", "low", "high", "baseline"]] = np.nan
    ax = pl.covariate_effects(table)[0]
    assert [text.get_text() for text in ax.texts] == ["not scored"]
    assert len(dots(ax)) == 4
    table[["value", "low", "high", "baseline"]] = np.nan
    assert len(pl.covariate_effects(table)[0].texts) == 5


def test_nothing_is_clipped_or_hidden():
    axes = pl.covariate_effects(make_table(["condition", "time_days", "a_rather_long_name_of_a_covariate", "plate"]))
    figure = axes[0].figure
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [ax.get_tightbbox() for ax in axes]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for i, first in enumerate(boxes):
        assert not any(first.overlaps(second) for second in boxes[i + 1 :])


def test_missing_tables_columns_and_covariates_raise():
    with pytest.raises(KeyError, match="covariate_information"):
        pl.covariate_effects(ad.AnnData(np.zeros((1, 1))))
    with pytest.raises(KeyError, match="Did you mean 'condition'"):
        pl.covariate_effects(make_table(), covariate="conditon")
    with pytest.raises(ValueError, match=r"lacks the columns \['conditioned_on'\]"):
        pl.covariate_effects(make_table().drop(columns="conditioned_on"))
    with pytest.raises(ValueError, match="no rows"):
        pl.covariate_effects(make_table().iloc[:0])
