from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl
from tests.pl.conftest import LONG, assert_well_made, make_responses


def make_days(days=(3, 7, 10), **how) -> pd.DataFrame:
    tables = [make_responses(seed=day, **how).assign(day=day) for day in days]
    table = pd.concat(tables, ignore_index=True)
    table.loc[(table["gene"] == "GENE40") & (table["day"] == days[-1]), "measured"] = 9.0
    return table


def lines(ax) -> dict[tuple[str, str], np.ndarray]:
    """Drawn values by line style and colour."""
    return {
        (line.get_linestyle(), line.get_color()): line.get_xydata()
        for line in ax.get_lines()
        if line.get_marker() == "o"
    }


def test_measured_and_predicted_over_time_by_context(style):
    table = make_days()
    axes = pl.temporal(table.sample(frac=1, random_state=0), time_key="day", names=["GENE1", "GENE5"])
    assert [ax.get_title() for ax in axes] == ["GENE1", "GENE5"]
    for ax, gene in zip(axes, ["GENE1", "GENE5"], strict=True):
        drawn = list(lines(ax).items())
        assert len(drawn) == 4
        for (dash, _), xy in drawn:
            column = "measured" if dash == "-" else "predicted"
            own = table[table["gene"] == gene].pivot(index="day", columns="context", values=column)
            assert any(np.allclose(xy, np.column_stack([own.index, own[context]])) for context in own)
    legend = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert set(legend) == {"measured", "predicted", "B cells", "T cells"}
    assert_well_made(axes)


def test_predicted_dots_are_hollow_and_of_the_colour_of_their_context(style):
    ax = pl.temporal(make_days(), time_key="day", names="GENE1")[0]
    measured, predicted, *_ = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert measured.get_color() == predicted.get_color() == measured.get_markerfacecolor()
    assert predicted.get_markerfacecolor() == plt.matplotlib.colors.to_hex(ax.get_facecolor())


def test_by_default_those_that_change_most():
    axes = pl.temporal(make_days(), time_key="day", n_panels=1)
    assert [ax.get_title() for ax in axes] == ["GENE40"]
    assert len(pl.temporal(make_days(), time_key="day")) == 6


def test_one_time_and_intervals(style):
    table = make_days(days=(3,))
    axes = pl.temporal(table, time_key="day", names="GENE2")
    assert all(xy.shape == (1, 2) for xy in lines(axes[0]).values())
    ends = [segment[:, 1] for c in axes[0].collections for segment in c.get_segments()]
    own = table[table["gene"] == "GENE2"]
    np.testing.assert_allclose(np.sort(ends, axis=0), np.sort(own[["measured_low", "measured_high"]], axis=0))
    assert_well_made(axes)


def test_30_lines_with_long_names(style):
    table = make_days(contexts=[f"{LONG}{i}" for i in range(30)], n_genes=12)
    axes = pl.temporal(table, time_key="day", names="GENE1")
    assert len(axes[0].get_lines()) == 61  # and the line at 0
    assert_well_made(axes)
    with pytest.raises(ValueError, match="31 values, too many lines"):
        pl.temporal(make_days(contexts=range(31), n_genes=12), time_key="day")


def test_any_table_without_panels_or_lines(style):
    table = pd.DataFrame({"time": [1.0, 2, 3], "predicted": [0.1, 0.2, 0.4], "measured": [0.1, np.nan, 0.3]})
    _, ax = plt.subplots()
    assert pl.temporal(table, panel_key=None, line_key=None, ax=ax) is ax
    measured, predicted = lines(ax).values()
    np.testing.assert_allclose(measured, [[1, 0.1], [3, 0.3]])
    np.testing.assert_allclose(predicted, [[1, 0.1], [2, 0.2], [3, 0.4]])
    assert ax.get_ylabel() == "value"
    table[["predicted", "measured"]] = np.nan
    axes = pl.temporal(table, panel_key=None, line_key=None)
    assert "no value" in [text.get_text() for text in axes[0].texts]
    assert_well_made(axes)


def test_unusable_tables_raise():
    table = make_days()
    with pytest.raises(KeyError, match=r"no column 'time' \(time_key\)"):
        pl.temporal(table)
    with pytest.raises(KeyError, match="Give panel_key=None"):
        pl.temporal(table.drop(columns="gene"), time_key="day")
    with pytest.raises(ValueError, match=r"'day3'.*Convert it"):
        pl.temporal(table.assign(day="day3"), time_key="day")
    with pytest.raises(ValueError, match="several rows for day=3"):
        pl.temporal(make_days(perturbations=("IFNB1", "TNF")), time_key="day")
    with pytest.raises(ValueError, match="no rows"):
        pl.temporal(table.iloc[:0], time_key="day")
    with pytest.raises(ValueError, match="One `ax` holds one panel"):
        pl.temporal(table, time_key="day", ax=plt.subplots()[1])
    with pytest.raises(KeyError, match="no gene 'GEN1'"):
        pl.temporal(table, time_key="day", names="GEN1")
