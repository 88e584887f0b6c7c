from __future__ import annotations

import json
import re

import anndata as ad
import html5lib
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.reporting import experiment, pictures
from scstate_lora.reporting.annotation import sections
from scstate_lora.reporting.annotation.labelled import LabelledCells
from scstate_lora.reporting.annotation.markers import compare_markers

TYPES = ("B", "CD4 T", "CD8 T", "NK")
TREE = {"T": {"CD4 T": None, "CD8 T": None}, "B": None, "NK": None}


def make_cells(n: int, *, seed: int, types: tuple[str, ...] = TYPES) -> ad.AnnData:
    """Types with five marker genes each; those of both T cells are the same, and one more tells them apart a little."""
    rng = np.random.default_rng(seed)
    kind = np.array(types, dtype=object)[np.arange(n) % len(types)]
    rate = np.full((n, 40), 1.0)
    for first, marked in ((0, ("B",)), (5, ("CD4 T", "CD8 T")), (10, ("NK",)), (15, ("Mono",))):
        rate[:, first : first + 5][np.isin(kind, marked)] = 9
    rate[:, 20][kind == "CD8 T"] = 3
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(kind),
            "donor": pd.Categorical([f"d{i // 2 % 3}" for i in range(n)]),
            "age": rate[:, 20],
        },
        index=[f"s{seed}c{i}" for i in range(n)],
    )
    obs["age"] += rng.normal(size=n)
    counts = rng.poisson(rate).astype(np.float32)
    a = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(40)]))
    a.obsm["X_in"] = np.log1p(counts[:, :21])
    return a


def make_model(reference: ad.AnnData, **setup: object) -> ssl.CellTypeClassifier:
    keys = {"labels_key": "kind", "batch_key": "donor", "embed_key": "X_in", **setup}
    ssl.CellTypeClassifier.setup_anndata(reference, **keys)
    model = ssl.CellTypeClassifier(reference, head={"n_members": 1, "n_steps": 20})
    model.train(progress_bar=False, check_unknown=model.registry.batch_key is not None)
    return model


@pytest.fixture(scope="module")
def trained() -> ssl.CellTypeClassifier:
    return make_model(make_cells(240, seed=0), label_tree=TREE)


@pytest.fixture(scope="module")
def labelled(trained) -> ad.AnnData:
    """Half of these cells are of a type that the reference lacks."""
    cells = make_cells(120, seed=1, types=("B", "CD4 T", "CD8 T", "Mono", "Mono", "Mono"))
    del cells.obs["kind"]
    trained.predict(cells, max_error=0.05, reject_unknown=0.05)
    return cells


@pytest.fixture(scope="module")
def html(trained, labelled, tmp_path_factory) -> str:
    """The whole page, pictures included."""
    return ssl.report(labelled, trained, tmp_path_factory.mktemp("page") / "r.html").read_text("utf-8")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    blank = "data:image/png;base64,"
    monkeypatch.setattr(
        sections, "picture", lambda draw, caption, *, alt: pictures.Picture(caption, alt, blank, blank, 1, 1)
    )


def _plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r'href="data:[^"]*"', "", html)).split())


def _cards(page) -> dict[str, object]:
    return {card.title: card for card in page.overview.cards}


def test_cells_that_were_labelled_have_a_page_without_being_set_up(html, labelled):
    assert "registry" not in labelled.uns["scstate_lora"]
    html5lib.HTMLParser(strict=True).parse(html)
    assert html.count("<picture>") == 3  # confusion, calibration, losses: these cells bring no layout
    anchors = re.findall(r' id="([^"]+)"', html)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(anchors)


def test_first_screen_says_what_can_be_believed(html):
    screen = _plain(html[html.index("<body") : html.index("<nav")])
    assert "What are these cells (kind), and which labels can be believed?" in screen
    assert re.search(r"On left-out batches , [78]\d\.\d% of the cells get the right label", screen)
    assert "Safe: B, NK." in screen
    assert "Confused: CD4 T with CD8 T." in screen
    assert re.search(r"The others: (\d+ uncertain, )?[56]\d unlike all known types\.", screen)
    assert "CD4 T / CD8 T" in screen


def test_a_type_is_safe_by_what_left_out_cells_show(trained, labelled):
    cells = LabelledCells.of(trained, labelled)[0]
    table = cells.types.set_index("type")
    obs = cells.true_and_predicted.obs
    is_cd4, called = obs["label"] == "CD4 T", obs["predicted"] == "CD4 T"
    assert table.loc["CD4 T", "recognised"] == pytest.approx((is_cd4 & called).sum() / is_cd4.sum())
    assert table.loc["CD4 T", "labels that are right"] == pytest.approx((is_cd4 & called).sum() / called.sum())
    assert table["verdict"].to_dict() == {"B": "safe", "CD4 T": "confused", "CD8 T": "confused", "NK": "safe"}
    first = cells.pairs.iloc[0]
    assert {first["first"], first["second"]} == {"CD4 T", "CD8 T"}
    assert first["n"] == ((is_cd4 & (obs["predicted"] == "CD8 T")) | ((obs["label"] == "CD8 T") & called)).sum()


def test_aims_are_those_of_predict(trained, labelled):
    aims = LabelledCells.of(trained, labelled)[0].aims.set_index("max_error")
    facts = LabelledCells.of(trained, labelled)[0].facts
    assert aims.loc[0.05, "smallest confidence"] == pytest.approx(facts["threshold"])
    assert (aims["wrong labels"].fillna(0) <= aims.index).all()
    assert aims.loc[0.05, "to the finest level"] < aims.loc[0.05, "labelled"]  # T cells are called T


@pytest.mark.usefixtures("undrawn")
def test_rejected_cells_are_counted_by_reason_and_raise_a_warning(trained, labelled):
    page = experiment(labelled, trained)
    card = _cards(page)["These cells: labelled?"]
    assert card.mark == "care"
    assert any("a type that the reference lacks" in sentence for sentence in card.sentences)
    tables = [block for section in page.sections for block in section.blocks if block.kind == "table"]
    reasons = next(t for t in tables if t.caption.startswith("Cells without a label"))
    n_new = int((labelled.obs["scstate_celltype_rejected"] == "unlike all known types").sum())
    assert ["unlike all known types", str(n_new)] in [row[:2] for row in reasons.rows]


def test_markers_of_predicted_types_are_those_of_training_types_or_a_warning(trained):
    reference, cells = trained.adata, make_cells(120, seed=2)
    right = cells.obs["kind"].to_numpy(dtype=object)
    wrong = np.where(right == "B", "NK", np.where(right == "NK", "B", right))
    own = reference.obs["kind"].to_numpy(dtype=object)
    agreed = compare_markers(trained.registry, cells, right, reference, own).set_index("label")
    assert {f"g{i}" for i in range(5)} <= set(agreed.loc["B", "shared genes"].split(", "))
    assert agreed.loc["B", "first genes"].startswith("g")
    swapped = compare_markers(trained.registry, cells, wrong, reference, own).set_index("label")
    assert not {f"g{i}" for i in range(5)} & set(swapped.loc["NK", "shared genes"].split(", ")[:5])
    unknown = compare_markers(trained.registry, cells, np.where(right == "B", "Unknown", right), reference, own)
    assert np.isnan(unknown.set_index("label").loc["Unknown", "shared"])


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_said(trained, tmp_path):
    cells = make_cells(60, seed=3)
    page = experiment(cells, trained)
    assert _cards(page)["These cells: labelled?"].answer == "not labelled"
    trained.save(tmp_path / "m")
    loaded = ssl.CellTypeClassifier.load(tmp_path / "m")
    loaded.predict(cells)
    text = ssl.report(cells, loaded, tmp_path / "r.html").read_text("utf-8")
    assert "loaded without its labelled training cells" in text
    assert "all got their likeliest label" in text
    stored = cells.uns["scstate_lora"]["annotate"]
    facts = {**json.loads(stored["scstate_celltype"]), "threshold": None}  # as of a promise that nothing keeps
    stored["scstate_celltype"] = json.dumps(facts)
    text = ssl.report(cells, loaded, tmp_path / "r.html").read_text("utf-8")
    assert "No confidence kept the promise" in _plain(text)
    untrained = make_cells(60, seed=4)
    ssl.CellTypeClassifier.setup_anndata(untrained, labels_key="kind", embed_key="X_in")
    page = experiment(untrained, ssl.CellTypeClassifier(untrained))
    assert page.overview.cards[0].answer == "not trained"


@pytest.mark.usefixtures("undrawn")
def test_cells_at_random_in_place_of_batches_ask_for_care(labelled, tmp_path):
    reference = make_cells(160, seed=5, types=("B", "NK"))
    model = make_model(reference, labels_key={"kind": None, "age": "continuous"}, batch_key=None)
    model.predict(reference)
    page = experiment(reference, model)
    card = _cards(page)["Labels: are they right?"]
    assert (card.mark, card.answer) == ("care", "with care")
    assert _cards(page)["Something new: would it be found?"].answer == "not checked"
    assert any("name a batch_key" in sentence for sentence in card.sentences)
    assert "Numbers: age" in [section.title for section in page.sections]
    text = ssl.report(reference, model, tmp_path / "r.html").read_text("utf-8")
    html5lib.HTMLParser(strict=True).parse(text)
    assert "These cells are the training cells themselves" in text


@pytest.mark.usefixtures("undrawn")
def test_labels_join_the_page_of_another_experiment(trained, labelled):
    from scstate_lora.config import DataConfig
    from scstate_lora.data import Registry

    cells = labelled.copy()
    Registry.create(cells, DataConfig(covariate_keys=["donor"])).write(cells)
    page = experiment(cells, [trained], predictions=[])
    titles = [section.title for section in page.sections]
    assert titles.index("Which types are safe, and which are confused") < titles.index("Data")
    assert {"Data: can they answer it?", "Labels: are they right?"} <= set(_cards(page))
