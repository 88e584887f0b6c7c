from __future__ import annotations

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from scstate_lora import pl
from tests.pl.conftest import LONG, assert_well_made, make_responses


def names_in(ax) -> list[Annotation]:
    return [child for child in ax.texts if isinstance(child, Annotation)]


def points(ax) -> np.ndarray:
    return np.vstack([np.asarray(c.get_offsets()) for c in ax.collections])


def test_every_gene_is_drawn_where_it_is_and_the_largest_are_named(style):
    table = make_responses()
    axes = pl.gene_response(table, n_genes=5)
    assert len(axes) == 2
    for ax, (context, part) in zip(axes, table.groupby("context", sort=False), strict=True):
        drawn = points(ax)
        expected = part[["measured", "predicted"]].to_numpy()
        np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
        largest = part.loc[part[["measured", "predicted"]].abs().max(axis=1).nlargest(5).index, "gene"]
        assert {note.get_text() for note in names_in(ax)} == set(largest)
        r = np.corrcoef(part["measured"], part["predicted"])[0, 1]
        assert ax.get_title() == f"{context}\nr = {r:.2f}, 60 genes"
    assert_well_made(axes)


def test_responding_genes_are_told_from_those_predicted_the_other_way():
    ax = pl.gene_response(make_responses(("B cells",)))[0]
    sizes = {tuple(np.round(c.get_facecolor()[0][:3], 2)): len(c.get_offsets()) for c in ax.collections}
    assert sorted(sizes.values()) == [1, 9, 50]
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert legend == ["no measured response", "responds, predicted the same way", "responds, predicted the other way"]
    ax = pl.gene_response(make_responses(("B cells",)).drop(columns="fdr"))[0]
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["gene (responses were not tested)"]


def test_named_genes_are_written_without_covering_each_other_or_a_named_point():
    table = make_responses(("B cells",), n_genes=400)
    crowded = table.assign(predicted=table["predicted"] * 0.02, measured=table["measured"] * 0.02)
    crowded.loc[0, ["predicted", "measured"]] = 2.0
    genes = [f"GENE{i}" for i in range(25)]
    _, ax = plt.subplots(figsize=(5, 5))
    pl.gene_response(crowded, genes=genes, ax=ax)
    ax.figure.canvas.draw()
    notes = names_in(ax)
    assert {note.get_text() for note in notes} == set(genes)
    boxes = [note.get_bbox_patch() or note for note in notes]
    texts = [plt.Text.get_window_extent(note) for note in boxes]
    assert all(not a.overlaps(b) for a, b in combinations(texts, 2))
    named = crowded.iloc[:25][["measured", "predicted"]].to_numpy()
    for box in texts:
        assert not any(box.contains(*xy) for xy in ax.transData.transform(named))
        assert ax.get_window_extent().contains(*box.min)
        assert ax.get_window_extent().contains(*box.max)


def test_intervals_of_the_named_genes_are_lines():
    table = make_responses(("B cells",))
    ax = pl.gene_response(table, genes="GENE3")[0]
    gene = table[table["gene"] == "GENE3"].iloc[0]
    ends = [tuple(line.get_xdata()) for line in ax.get_lines()]
    assert (pytest.approx(gene["measured_low"]), pytest.approx(gene["measured_high"])) in ends


def test_30_contexts_with_long_names(style):
    contexts = [f"{LONG}{i}" for i in range(30)]
    axes = pl.gene_response(make_responses(contexts, n_genes=12), n_genes=1)
    assert len(axes) == 30
    assert len({ax.get_title().split("\n")[0] for ax in axes}) == 30  # shortened, and still told apart
    assert all("…" in ax.get_title() for ax in axes)
    with pytest.raises(ValueError, match="31 panels are too many"):
        pl.gene_response(make_responses(range(31), n_genes=12))


def test_contexts_and_perturbations_by_choice():
    table = make_responses(perturbations=("IFNB1", "TNF"))
    assert [ax.get_title().split("\n")[0] for ax in pl.gene_response(table, n_genes=0)] == [
        "IFNB1, B cells", "IFNB1, T cells", "TNF, B cells", "TNF, T cells",
    ]  # fmt: skip
    _, ax = plt.subplots()
    assert pl.gene_response(table, perturbation="TNF", context="B cells", ax=ax) is ax
    assert len(pl.gene_response(table, perturbation="TNF")) == 2


def test_one_gene_and_unknown_changes(style):
    table = make_responses(("B cells",), n_genes=12)
    one = pl.gene_response(table.iloc[:1])
    assert one[0].get_title() == "B cells\n1 gene"
    assert_well_made(one)
    table["predicted"] = np.nan
    axes = pl.gene_response(table)
    assert "no change is known" in [text.get_text() for text in axes[0].texts]
    assert_well_made(axes)


def test_nothing_to_draw_raises():
    table = make_responses()
    with pytest.raises(ValueError, match="no rows"):
        pl.gene_response(table.iloc[:0])
    both = pd.concat([table[table["context"] == "B cells"], make_responses(("T cells",), ("TNF",))])
    with pytest.raises(ValueError, match="does not hold them together"):
        pl.gene_response(both, perturbation="TNF", context="B cells")
    with pytest.raises(ValueError, match=r"lacks the columns \['context', 'gene'"):
        pl.gene_response(table[["perturbation", "predicted"]])
    with pytest.raises(KeyError, match=r"no genes 'GENE-3'.*GENE3"):
        pl.gene_response(table, genes=["GENE-3"])
    with pytest.raises(ValueError, match="`genes` names nothing"):
        pl.gene_response(table, genes=[])
    with pytest.raises(KeyError, match=r"no context 'Bcells'.*'B cells'"):
        pl.gene_response(table, context="Bcells")
    with pytest.raises(ValueError, match="One `ax` holds one panel"):
        pl.gene_response(table, ax=plt.subplots()[1])
