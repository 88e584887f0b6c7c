from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from scstate_lora import pl
from tests.pl.conftest import LONG, assert_well_made, make_responses


def test_measured_and_predicted_share_genes_contexts_and_a_scale_around_zero(style):
    table = make_responses()
    ax = pl.responders(table, n_genes=8)
    measured, predicted = ax.images
    genes = [label.get_text() for label in ax.get_yticklabels()]
    assert len(genes) == 8
    for image, column in ((measured, "measured"), (predicted, "predicted")):
        wanted = table.pivot(index="gene", columns="context", values=column).loc[genes, ["B cells", "T cells"]]
        np.testing.assert_allclose(image.get_array(), wanted)
        low, high = image.get_clim()
        assert low == -high
        assert image.get_clim() == measured.get_clim()
    middle = measured.cmap(0.5)[:3]
    np.testing.assert_allclose(middle, plt.matplotlib.colors.to_rgb(ax.get_facecolor()), atol=0.02)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["B cells", "T cells"] * 2
    assert {"measured", "predicted"} <= {text.get_text() for text in ax.texts}
    means = table.groupby("gene")["measured"].mean().loc[genes]
    assert (np.diff(means) <= 0).all()  # from up to down
    assert_well_made(ax)


def test_the_strongest_of_every_context_in_turn():
    table = make_responses()
    weak = table["context"] == "T cells"
    table.loc[weak, ["measured", "predicted"]] *= 0.1
    table.loc[weak & (table["gene"] == "GENE30"), ["measured", "fdr"]] = [0.9, 0.001]
    genes = [label.get_text() for label in pl.responders(table, n_genes=2).get_yticklabels()]
    assert genes == ["GENE30", "GENE9"] or genes == ["GENE0", "GENE30"]


def test_dots_mark_responses_and_only_in_the_measured_block():
    table = make_responses()
    ax = pl.responders(table, genes=["GENE0", "GENE20"])
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.get_lines()]
    row = [label.get_text() for label in ax.get_yticklabels()].index("GENE0")
    assert dots == [(0, row), (1, row)]


def test_unknown_changes_are_grey_and_without_tests_there_are_no_dots(style):
    table = make_responses().drop(columns="fdr")
    table.loc[(table["gene"] == "GENE0") & (table["context"] == "B cells"), "predicted"] = np.nan
    ax = pl.responders(table, genes=["GENE0"])
    assert ax.images[1].get_array().mask.tolist() == [[True, False]]
    assert not ax.get_lines()
    assert_well_made(ax)
    table[["predicted", "measured"]] = np.nan
    assert_well_made(pl.responders(table, n_genes=3))


def test_one_context_and_one_gene(style):
    ax = pl.responders(make_responses(("B cells",)).iloc[:1])
    assert [image.get_array().shape for image in ax.images] == [(1, 1), (1, 1)]
    assert_well_made(ax)


def test_30_contexts_with_long_names(style):
    ax = pl.responders(make_responses([f"{LONG}{i}" for i in range(30)], n_genes=20), n_genes=15)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert len(labels) == 60
    assert len(set(labels)) == 30
    assert all(len(label) <= 18 for label in labels)
    assert_well_made(ax)


def test_ax_and_settings_are_left_alone():
    before = plt.rcParams.copy()
    _, ax = plt.subplots()
    assert pl.responders(make_responses(perturbations=("IFNB1", "TNF")), perturbation="TNF", ax=ax) is ax
    assert plt.rcParams == before


def test_too_much_or_nothing_raises():
    with pytest.raises(ValueError, match=r"41 contexts .*Name `perturbation` or `context`"):
        pl.responders(make_responses(range(41), n_genes=12))
    with pytest.raises(ValueError, match="0 genes cannot be drawn"):
        pl.responders(make_responses(), n_genes=0)
    with pytest.raises(ValueError, match="no rows"):
        pl.responders(make_responses().iloc[:0])
    with pytest.raises(KeyError, match="no genes 'gene1'"):
        pl.responders(make_responses(), genes=["gene1"])
