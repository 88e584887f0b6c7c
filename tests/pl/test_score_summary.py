from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl
from scstate_lora.tl.scoring.table import NO_RANGE
from tests.pl.conftest import LONG, assert_well_made

METRICS = {
    "pearson_delta": ("higher", 0.5, 0.9),
    "e_distance": ("lower", 2.0, 0.5),
    "variance_ratio": ("one", 0.5, 1.0),
}


def make_table(models=(("ST", 0.75),), *, metrics=METRICS, context="all") -> pd.DataFrame:
    """Models by their skill; the value of skill 0 is that of the mean shift, of 1 that of the replicate."""
    rows = []
    for metric, (direction, floor, ceiling) in metrics.items():
        for model, skill in (*models, ("no change", -3.0), ("mean shift", 0.0), ("linear", 0.2), ("ceiling", 1.0)):
            value = floor + skill * (ceiling - floor)
            rows.append(
                {
                    "model": model, "context": context, "metric": metric, "value": value, "skill": skill,
                    "ci_low": value - 0.04, "ci_high": value + 0.04, "direction": direction, "reason": "",
                    "skill_reason": "",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def dots(ax, marker="o") -> list[tuple[float, float]]:
    return [(d.get_xdata()[0], round(d.get_ydata()[0], 3)) for d in ax.get_lines() if d.get_marker() == marker]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_a_row_is_a_metric_from_baseline_to_replicate(style):
    ax = pl.scores(make_table())
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "Pearson of delta ↑", "E-distance ↓", "variance ratio →1",
    ]  # fmt: skip
    assert dots(ax) == [(0.75, 0), (0.75, 1), (0.75, 2)]
    # of the baselines only those within the axis, and not the one at 0
    assert dots(ax, "|") == [(0.2, 0), (0.2, 1), (0.2, 2)]
    lines = [tuple(line.get_xdata()) for line in ax.get_lines() if len(line.get_xdata()) == 2]
    assert (0.0, 0.0) in [(float(np.ravel(x)[0]), float(np.ravel(x)[1])) for x in lines]  # the baseline's line
    half = 0.04 / (0.9 - 0.5)
    assert (pytest.approx(0.75 - half), pytest.approx(0.75 + half)) in lines
    assert_well_made(ax)


def test_values_stand_beside_the_rows(style):
    ax = pl.scores(make_table(), metric="pearson_delta")
    assert {"0.8", "0.5", "0.9", "ST", "mean\nshift", "replicate"} <= set(texts(ax))
    assert_well_made(ax)


def test_all_is_within_the_figure_at_the_first_drawing():
    ax = pl.scores(make_table((("STTransition", 0.75),)))
    ax.figure.canvas.draw()
    edge = ax.figure.bbox.width + 1
    assert all(text.get_window_extent().x1 <= edge for text in ax.texts)
    assert "STTransition" in texts(ax)  # in one line


def test_the_value_of_the_yardstick_stands_even_where_there_is_no_skill():
    table = make_table(metrics={"pearson_delta": METRICS["pearson_delta"]}).assign(yardstick="linear")
    table.loc[table["model"] == "ST", ["skill", "skill_reason"]] = [np.nan, NO_RANGE]
    said = texts(pl.scores(table))
    assert "linear" in said
    assert "0.58" in said  # of the linear baseline
    assert "0.5" not in said


def test_interval_of_a_score_where_lower_is_better_is_in_order():
    ax = pl.scores(make_table(), metric="e_distance")
    lines = [tuple(line.get_xdata()) for line in ax.get_lines() if line.get_linewidth() == 1.6]
    half = 0.04 / 1.5
    np.testing.assert_allclose(lines, [(0.75 - half, 0.75 + half)])


def test_skills_beyond_the_axis_are_arrows_at_its_edge(style):
    ax = pl.scores(make_table((("bad", -8.0), ("good", 4.0))))
    assert [x for x, _ in dots(ax, "<")] == [-1.0] * 3
    assert [x for x, _ in dots(ax, ">")] == [1.5] * 3
    assert_well_made(ax)


def test_scores_without_skill_are_named_with_their_reason(style):
    table = make_table()
    own = (table["model"] == "ST") & (table["metric"] == "pearson_delta")
    table.loc[own, ["skill", "skill_reason"]] = [np.nan, NO_RANGE]
    own = (table["model"] == "ST") & (table["metric"] == "e_distance")
    table.loc[own, ["value", "skill", "reason"]] = [np.nan, np.nan, "2 cells are too few"]
    ax = pl.scores(table)
    said = " ".join(texts(ax)).replace("\n", " ")
    assert f"no skill: {NO_RANGE}" in said
    assert "no skill: 2 cells are too few" in said
    assert dots(ax) == [(0.75, 2)]
    assert "–" in texts(ax)
    assert_well_made(ax)


def test_a_headline_metric_without_any_value_is_left_out_unless_asked_for():
    table = make_table(metrics={**METRICS, "pds_cosine": ("higher", 0.5, 0.9)})
    assert len(pl.scores(table).get_yticks()) == 4
    is_empty = table["metric"] == "pds_cosine"
    table.loc[is_empty, ["value", "skill", "reason"]] = [np.nan, np.nan, "it compares perturbations"]
    assert len(pl.scores(table).get_yticks()) == 3
    for asked in ("all", ["e_distance", "pds_cosine"]):
        assert "no skill: it compares perturbations" in texts(pl.scores(table, metric=asked))
    nothing = table.assign(value=np.nan, skill=np.nan, reason="there are no cells")
    assert len(pl.scores(nothing).get_yticks()) == 4


def test_several_models_with_long_names_have_a_legend(style):
    ax = pl.scores(make_table([(f"{LONG}{i}", 0.1 * i) for i in range(10)]))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(set(legend)) == 10
    assert len({y for _, y in dots(ax)}) == 30  # no model hides another
    assert not any("…" in text for text in texts(ax))  # of so many models no values are written
    assert_well_made(ax)
    with pytest.raises(ValueError, match="has 11 models"):
        pl.scores(make_table([(str(i), 0.1) for i in range(11)]))


def test_context_and_metrics_by_choice():
    extra = {**METRICS, "mmd": ("lower", 1.0, 0.1)}
    table = pd.concat([make_table(metrics=extra), make_table((("ST", 0.25),), metrics=extra, context="B cells")])
    ax = pl.scores(table, context="B cells")
    assert dots(ax) == [(0.25, 0), (0.25, 1), (0.25, 2)]
    assert ax.get_xlabel() == "skill, B cells"
    assert len(pl.scores(table, metric="all").get_yticks()) == 4
    _, given = plt.subplots()
    adata = ad.AnnData(np.zeros((1, 1)), uns={"scstate_lora": {"evaluate_perturbation": table}})
    assert pl.scores(adata, metric=["mmd"], ax=given) is given
    assert len(given.get_yticks()) == 1


def test_unusable_tables_raise(evaluate_table):
    with pytest.raises(ValueError, match=r"lacks the columns .*pl\.metrics"):
        pl.scores(evaluate_table)
    with pytest.raises(KeyError, match="no 'evaluate_perturbation'"):
        pl.scores(ad.AnnData(np.zeros((1, 1))))
    with pytest.raises(KeyError, match="no context 'all '"):
        pl.scores(make_table(), context="all ")
    with pytest.raises(ValueError, match="0 models"):
        pl.scores(make_table(()))
    with pytest.raises(KeyError, match="no metric 'mae'"):
        pl.scores(make_table(), metric="mae")
