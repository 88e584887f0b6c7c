from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

import anndata as ad
import html5lib
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.reporting import experiment
from tests.reporting.conftest import make_cells, make_model, make_predictions
from tests.reporting.tables import evaluate_table


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in {"src", "href", "srcset"} and v]
        self.ids += [v for k, v in attrs if k == "id"]
        self.images += [dict(attrs)] if tag == "img" else []


def _first_screen(html: str) -> str:
    """Text above the contents of the page, without its tags."""
    above = html[html.index("<body") : html.index("<nav")]
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r'href="data:[^"]*"', "", above)).split())


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    """The whole page, pictures included."""
    adata, model = make_cells(), make_model()
    predictions = make_predictions(adata)
    adata.uns["scstate_lora"]["evaluate"] = evaluate_table(X_scstate_base=0.91, X_scstate_lora=0.97, PCA=0.9)
    path = tmp_path_factory.mktemp("page") / "new" / "r.html"
    assert ssl.report(adata, (model, None), path, predictions=predictions, title="Wound & heal") == path
    return path.read_text(encoding="utf-8")


def test_first_screen_names_the_question_the_baseline_and_the_genes(html):
    screen = _first_screen(html)
    assert "What does stim do to B, T, NK and Mono, compared with ctrl?" in screen
    assert "20 cells, all of T / stim" in screen
    assert (
        "Believe it: model predicts stim better than the simple baseline mean shift in 1 of 1 headline scores" in screen
    )
    assert re.search(r"Pearson of delta ↑ ✓ better 0.9 0.8 mean shift 0.95", screen)  # model, baseline, replicate
    assert "Measured: stim raises g0, g1 and lowers g2" in screen
    assert "g3, g0 ✓ g2 ✓" in screen  # predicted to rise and to fall; what g3 does is not confirmed
    assert "It helps: the adapted embedding is better than a PCA of the same cells." in screen


def test_page_is_valid_and_small(html):
    html5lib.HTMLParser(strict=True).parse(html)
    assert len(html) < 5e6
    headings = [int(tag[1]) for tag in _Page(html).tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(headings))
    assert '<html lang="en">' in html


def test_page_asks_for_nothing_from_outside(html):
    page = _Page(html)
    assert "link" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,", "data:text/csv;")) for link in page.links)
    assert not re.search(r"@import|url\(|src=.https?:|fetch\(|XMLHttpRequest", html)


def test_links_lead_somewhere_and_places_are_unique(html):
    page = _Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_picture_is_drawn_light_and_dark_and_told_in_words(html):
    page = _Page(html)
    # cells, genes, responders, headline scores; folded: scores of embeddings, losses
    assert len(page.images) == page.tags.count("source") == 6
    assert all(image["alt"] and image["width"] and image["height"] for image in page.images)
    assert page.tags.count("picture") == 6


def test_details_are_there_and_texts_are_escaped(html):
    assert "<h1>Wound &amp; heal</h1>" in html
    assert "adapters &lt;A&amp;B&gt;" in html
    for text in ("1,000,000", "60 cells train", "Held out whole, so that training saw none of their cells: T / stim."):
        assert text in html
    for package in ("torch", "anndata", "python"):
        assert f'<th scope="row">{package}</th>' in html
    assert html.count('<details class="section"') >= 5


@pytest.mark.usefixtures("undrawn")
def test_audit_of_the_split_is_shown(adata, predictions, tmp_path):
    adata.obs["scstate_split"] = adata.obs["scstate_split"].cat.add_categories("val")
    adata.X[adata.obs_names.get_loc("c41")] = adata.X[adata.obs_names.get_loc("c1")]  # a test cell is a training cell
    html = ssl.report(adata, path=tmp_path / "r.html", predictions=predictions).read_text("utf-8")
    assert "The audit found an error: 1 test cells have exactly the expression of training cells" in _first_screen(html)
    assert "remove duplicated cells before splitting" in html


@pytest.mark.usefixtures("undrawn")
def test_nothing_of_the_data_is_changed(adata, model, predictions, tmp_path):
    before = adata.copy()
    ssl.report(adata, model, tmp_path / "r.html", predictions=predictions)
    assert set(adata.uns["scstate_lora"]) == set(before.uns["scstate_lora"])
    assert (set(adata.uns), set(adata.obsm), set(adata.obs)) == (set(before.uns), set(before.obsm), set(before.obs))
    np.testing.assert_array_equal(adata.X, before.X)


@pytest.mark.usefixtures("undrawn")
def test_parts_that_were_not_run_say_so(adata, untrained, predictions, tmp_path):
    del adata.obsm["X_scstate_base"], adata.obsm["X_scstate_lora"], adata.obs["scstate_split"]
    del predictions.uns["scstate_lora"]["evaluate_perturbation"]
    html = ssl.report(adata, untrained, tmp_path / "r.html", predictions=[predictions]).read_text("utf-8")
    for sentence in ("No split is stored", "Not trained.", "No embedding is stored", "were not scored", "not scored"):
        assert sentence in html


@pytest.mark.usefixtures("undrawn")
def test_cells_without_a_perturbation_have_a_page(adata, tmp_path):
    from scstate_lora.config import DataConfig
    from scstate_lora.data import Registry

    Registry.create(adata, DataConfig(covariate_keys=["condition"], cell_type_key="cell_type")).write(adata)
    screen = _first_screen(ssl.report(adata, path=tmp_path / "r.html").read_text("utf-8"))
    assert (
        "How well does an embedding keep the cell types (cell_type) apart, when the model is given condition?" in screen
    )
    assert "Prediction" not in screen


@pytest.mark.usefixtures("undrawn")
def test_prediction_without_measured_cells_names_the_predicted_genes(adata, predictions, tmp_path):
    del predictions.uns["scstate_lora"]["evaluate_perturbation"]
    controls = adata[adata.obs["condition"] == "ctrl"].copy()
    controls.obs["scstate_split"] = "train"
    screen = _first_screen(ssl.report(controls, path=tmp_path / "r.html", predictions=predictions).read_text("utf-8"))
    assert "Predicted, without measured cells to compare with: stim raises g3, g0 and lowers g2 in T." in screen


@pytest.mark.usefixtures("undrawn")
def test_survives_write_and_read(adata, predictions, tmp_path):
    adata.uns["scstate_lora"]["evaluate"] = evaluate_table(X_scstate_base=0.91, PCA=np.nan)
    for name, data in (("a", adata), ("p", predictions)):
        data.write_h5ad(tmp_path / f"{name}.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad")
    path = ssl.report(stored, path=tmp_path / "r.html", predictions=ad.read_h5ad(tmp_path / "p.h5ad"))
    assert "better than the simple baseline mean shift" in _first_screen(path.read_text("utf-8"))


@pytest.mark.usefixtures("undrawn")
def test_headline_scores_that_a_single_perturbation_lacks_are_not_counted(adata, predictions):
    stored = predictions.uns["scstate_lora"]["evaluate_perturbation"]
    lacking = stored.assign(metric="pds_cosine", value=np.nan, skill=np.nan, reason="it compares perturbations")
    noisy = stored.assign(metric="mse", skill=np.nan)
    predictions.uns["scstate_lora"]["evaluate_perturbation"] = pd.concat([stored, noisy, lacking], ignore_index=True)
    data = experiment(adata, None, predictions).overview.cards[0]
    assert "1 of 2 headline scores can tell a simple baseline from a replicate." in data.sentences


@pytest.mark.usefixtures("undrawn")
def test_headings_of_several_experiments_have_their_names(adata, predictions):
    own = experiment(adata, None, predictions, name="Small wound")
    assert own.overview.question.startswith("Small wound · What does stim do")
    assert all(section.title.startswith("Small wound · ") for section in own.sections)
    assert all(section.anchor.startswith("small-wound-") for section in own.sections)


def test_bad_arguments_raise(adata, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        ssl.report(adata, path=tmp_path)
    with pytest.raises(TypeError, match="holds a int, which is not a model"):
        ssl.report(adata, [3], tmp_path / "r.html")
    del adata.uns["scstate_lora"]
    with pytest.raises(KeyError, match="setup_anndata"):
        ssl.report(adata, path=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_responses_of_a_few_cells_are_not_tested(adata, predictions, tmp_path):
    is_late = np.isin(np.arange(adata.n_obs), np.arange(47, adata.n_obs)) & (adata.obs["scstate_split"] == "test")
    few = adata[~is_late].copy()  # leaves 3 of the held-out cells
    page = ssl.report(few, path=tmp_path / "r.html", predictions=predictions).read_text("utf-8")
    assert "most, measured on the left, predicted on the right." in page  # no dots mark responses
    screen = _first_screen(page)
    assert "Which genes respond to stim cannot be tested: no group has 10 measured cells." in screen
    assert "T 3 cells, too few g3, g0 g2" in screen  # the predicted genes, none of them confirmed
