"""Many targets on one page: one table of all, pictures of the few with the largest measured effects."""

from __future__ import annotations

import re

import anndata as ad
import html5lib
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from tests.builders import QUICK, SMALL_ST

N = 6


@pytest.fixture(scope="module")
def experiment():
    """Cells of which the later perturbations change more genes, a model, and scored predictions."""
    rng = np.random.default_rng(0)
    pert = rng.choice(["ctrl", *(f"P{i}" for i in range(N))], 900)
    rates = np.tile(np.exp(rng.normal(0, 1, 50)), (len(pert), 1))
    for i in range(N):
        rates[pert == f"P{i}", : 4 * i] *= 5
    obs = pd.DataFrame(
        {"pert": pert, "type": rng.choice(["T", "B"], len(pert))}, index=[f"c{i}" for i in range(len(pert))]
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(50)])
    adata = ad.AnnData(rng.poisson(rates).astype("float32"), obs=obs, var=var)
    ssl.STTransition.setup_anndata(adata, pert_key="pert", control="ctrl", cell_type_key="type", test_size=0.3)
    st = ssl.STTransition(adata, model=SMALL_ST)
    st.train(1, **QUICK)
    test, train = ((adata.obs["scstate_split"] == name).to_numpy() for name in ("test", "train"))
    predictions = [st.predict(target=f"P{i}") for i in range(N)]
    for predicted in predictions:
        ssl.tl.evaluate_perturbation(predicted, adata[test], adata, context_key="type", train=adata[train], n_boot=10)
    return adata, st, predictions


@pytest.fixture(scope="module")
def page(experiment, tmp_path_factory):
    return _page(experiment, tmp_path_factory.mktemp("page"), experiment[2])


def _page(experiment, folder, predictions):
    return ssl.report(experiment[0], [experiment[1]], folder / "r.html", predictions=predictions).read_text()


def test_a_table_of_all_and_sections_of_the_largest_effects(page):
    shown = re.findall(r"<h2[^>]*>[^<]*Predicted cells: (P\d)", page)
    assert set(shown) == {"P5", "P4", "P3"}  # which change the most genes
    assert f"{N} predicted perturbations" in page
    table = page[page.index("All targets, by the size of the effect") :]
    assert all(f"P{i}" in table for i in range(N))
    assert len(page) < 5e6
    html5lib.HTMLParser(strict=True).parse(page)


def test_first_screen_judges_all_targets_and_names_genes_of_the_largest(page):
    above = re.sub(r'href="data:[^"]*"', "", page[page.index("<body") : page.index("<nav")])
    above = " ".join(re.sub(r"<[^>]+>", "", above.replace("</t", " </t")).split())
    assert f"What do {N} perturbations do to B and T, compared with ctrl?" in above
    assert re.search(r"simple baselines? (mean shift|no change|linear|context mean|perturbed mean|\()", above)
    assert re.search(r"Pearson of delta ↑ (✓ better|✗ worse|not decided|equal)", above)
    assert f"the 3 of {N} perturbations with the largest measured effects" in above
    assert re.search(r"P5 B G\d+, G\d+, G\d+", above)  # which genes, in which cells
    assert f"of {N} targets" in page


@pytest.mark.usefixtures("undrawn")
def test_more_targets_bring_no_more_pictures(experiment, page, tmp_path):
    assert _page(experiment, tmp_path, experiment[2][:4]).count("<img") == page.count("<img")


@pytest.mark.usefixtures("undrawn")
def test_predictions_without_scores_are_listed(experiment, tmp_path):
    _, st, predictions = experiment
    page = _page(experiment, tmp_path, [*predictions[:3], st.predict(target="P3")])
    assert "4 perturbations were predicted and 3 of them scored" in page
