"""Labels in a tree, in all of its forms: levels that agree, coarse labels, and cells that get no label."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from tests.builders import LABEL_TREE, QUICK, labelled_cells

LEAVES = ["CD4", "CD8", "B", "monocyte"]


def _obo(path):
    terms = {
        "CL:0000000": ("cell", None),
        "CL:0000542": ("lymphocyte", "CL:0000000"),
        "CL:0000084": ("T cell", "CL:0000542"),
        "CL:0000236": ("B", "CL:0000542"),
        "CL:0000624": ("CD4", "CL:0000084"),
        "CL:0000625": ("CD8", "CL:0000084"),
        "CL:0000576": ("monocyte", "CL:0000000"),
    }
    lines = ["format-version: 1.2", ""]
    for term, (name, parent) in terms.items():
        lines += ["[Term]", f"id: {term}", f"name: {name}", *([f"is_a: {parent}"] if parent else []), ""]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def by_form(classify, tmp_path_factory):
    """A classifier for each form of a tree: nested, columns, and an ontology."""
    obo = _obo(tmp_path_factory.mktemp("ontology") / "cl.obo")
    setups = {
        "nested": {"label_tree": LABEL_TREE},
        "columns": {"label_tree": ["lineage"]},
        "ontology": {"label_tree": obo, "ontology_terms": ["T cell", "lymphocyte"]},
    }
    return {form: classify(labelled_cells(160), **setup) for form, setup in setups.items()}


@pytest.mark.parametrize("form", ["nested", "columns", "ontology"])
def test_parents_are_exactly_the_sum_of_their_children(by_form, form, query):
    model = by_form[form]
    tree = model.targets["cell_type"].tree
    proba = model.predict_proba(query, all_levels=True)
    assert list(proba) == list(tree.names[1:])
    assert (
        proba["T cell"] == proba[[tree.names[c] for c in tree.children[tree.names.index("T cell")]]].sum(axis=1)
    ).all()
    for i, below in enumerate(tree.children):
        if below and i:
            assert (proba[tree.names[i]] == proba[[tree.names[c] for c in below]].to_numpy().sum(axis=1)).all()
    leaves = model.predict_proba(query)
    assert sorted(leaves) == sorted(LEAVES) == sorted(model.labels)
    np.testing.assert_allclose(leaves.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(leaves, proba[list(leaves)])


def test_all_forms_learn_the_same(by_form, new_cells):
    probas = [model.predict_proba(new_cells)[LEAVES] for model in by_form.values()]
    for other in probas[1:]:
        pd.testing.assert_frame_equal(other, probas[0], atol=0.02)


def test_levels_and_ids_of_an_ontology(by_form, query):
    table = by_form["ontology"].predict(query, reject_below=0.9)
    ids = {"CD4": "CL:0000624", "CD8": "CL:0000625", "B": "CL:0000236", "monocyte": "CL:0000576"}
    ids |= {"T cell": "CL:0000084", "lymphocyte": "CL:0000542", "Unknown": ""}
    levels = {"CD4": 3, "CD8": 3, "B": 2, "monocyte": 1, "T cell": 2, "lymphocyte": 1, "Unknown": 0}
    assert table["scstate_celltype_id"].tolist() == [ids[label] for label in table["scstate_celltype"]]
    assert table["scstate_celltype_level"].tolist() == [levels[label] for label in table["scstate_celltype"]]
    assert {"CD4", "T cell"} <= set(table["scstate_celltype"])
    assert "scstate_celltype_id" not in by_form["nested"].predict(query)


def test_ids_may_be_given_for_names(by_form, query):
    model = by_form["ontology"]
    by_name, by_id = (model.predict_proba(query, block=[one]) for one in ("B", "CL:0000236"))
    assert (by_name["B"] == 0).all()
    pd.testing.assert_frame_equal(by_id, by_name)


def test_every_cell_has_its_likeliest_leaf_by_default(by_form, query):
    model = by_form["nested"]
    table, proba = model.predict(query), model.predict_proba(query)
    assert table["scstate_celltype"].tolist() == proba.idxmax(axis=1).tolist()
    np.testing.assert_array_equal(table["scstate_celltype_confidence"], proba.max(axis=1))
    assert (table["scstate_celltype_rejected"] == "").all()
    assert (table["scstate_celltype"] == query.obs["cell_type"]).mean() > 0.9


def test_an_uncertain_cell_gets_the_deepest_label_that_is_certain_enough(by_form, query):
    model = by_form["nested"]
    nodes = model.predict_proba(query, all_levels=True)
    table = model.predict(query, reject_below=0.95)
    for cell, row in table.iterrows():
        label, p = row["scstate_celltype"], nodes.loc[cell]
        top = p[["T cell", "B", "monocyte"]].idxmax()
        best = p[["CD4", "CD8"]].idxmax() if top == "T cell" else top
        expected = best if p[best] >= 0.95 else top if p[top] >= 0.95 else "Unknown"
        assert label == expected
        assert row["scstate_celltype_confidence"] == (p[label] if label != "Unknown" else p[LEAVES].max())
        assert row["scstate_celltype_rejected"] == ("uncertain" if label == "Unknown" else "")
    assert {"CD4", "CD8", "T cell"} <= set(table["scstate_celltype"])


def test_the_promise_of_few_errors_gives_coarser_labels(by_form, query):
    model = by_form["nested"]
    table = model.predict(query, max_error=0.05)
    facts = json.loads(query.uns["scstate_lora"]["annotate"]["scstate_celltype"])
    assert 0.05 <= facts["threshold"] <= 0.99
    assert facts["left_out"] == "left-out batches"
    assert set(table["scstate_celltype"]) <= {*LEAVES, "T cell", "Unknown"}
    truth = query.obs[["cell_type", "lineage"]].to_numpy()
    right = [label in cell for label, cell in zip(table["scstate_celltype"], truth, strict=True)]
    given = (table["scstate_celltype"] != "Unknown").to_numpy()
    assert given.mean() > 0.7
    assert np.mean(np.array(right)[given]) >= 0.93


def test_a_promise_that_cannot_be_kept_labels_nothing(by_form, query):
    table = by_form["nested"].predict(query, max_error=1e-4)
    facts = json.loads(query.uns["scstate_lora"]["annotate"]["scstate_celltype"])
    if facts["threshold"] == float("inf"):
        assert (table["scstate_celltype"] == "Unknown").all()
    assert (table["scstate_celltype"] == "Unknown").mean() > 0.3
    assert (table.loc[table["scstate_celltype"] == "Unknown", "scstate_celltype_rejected"] == "uncertain").all()


def test_of_two_thresholds_the_higher_counts(by_form, query):
    model = by_form["nested"]
    strict = model.predict(query, reject_below=0.98, max_error=0.2)
    pd.testing.assert_frame_equal(strict, model.predict(query, reject_below=0.98))


@pytest.mark.parametrize(
    ("lists", "left"),
    [
        ({"allow": ["T cell"]}, {"CD4", "CD8"}),
        ({"allow": ["T cell", "B"]}, {"CD4", "CD8", "B"}),
        ({"block": ["T cell"]}, {"B", "monocyte"}),
        ({"allow": ["T cell"], "block": ["CD8"]}, {"CD4"}),
        ({"block": ["monocyte", "B"]}, {"CD4", "CD8"}),
    ],
)
def test_lists_of_labels_of_any_level(by_form, query, lists, left):
    model = by_form["nested"]
    table = model.predict(query, sets=True, **lists)
    assert set(table["scstate_celltype"]) <= left
    assert {label for one in table["scstate_celltype_set"] for label in one.split("|")} <= left
    proba = model.predict_proba(query, **lists)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (proba[[label for label in LEAVES if label not in left]] == 0).all(axis=None)
    whole = model.predict_proba(query)[sorted(left)]
    np.testing.assert_allclose(proba[sorted(left)], whole.div(whole.sum(axis=1), axis=0), atol=1e-9)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"allow": ["T cells"]}, "'T cells' is not in the tree of labels.*'T cell'"),
        ({"block": ["T cell", "B", "monocyte"]}, "leave no leaf of the tree"),
    ],
)
def test_lists_that_make_no_sense_raises(by_form, query, lists, message):
    for predict in (by_form["nested"].predict, by_form["nested"].predict_proba):
        with pytest.raises(ValueError, match=message):
            predict(query, **lists)
    assert "scstate_celltype" not in query.obs


def test_coarse_labels_are_used(classify, query):
    """Where hardly a T cell has its own label, those called T cell still say what no T cell is."""
    adata = labelled_cells(160)
    labels = adata.obs["cell_type"].to_numpy(dtype=object)
    fine = np.flatnonzero(np.isin(labels, ["CD4", "CD8"]))
    labels[fine[6:]] = "T cell"
    adata.obs["cell_type"] = labels
    model = classify(adata, label_tree=LABEL_TREE)
    assert sorted(model.labels) == sorted(LEAVES)
    assert model.targets["cell_type"].n_labelled[model.labels.index("CD4")] <= 6
    nodes = model.predict_proba(query, all_levels=True)
    is_t = query.obs["lineage"].to_numpy() == "T cell"
    assert ((nodes["T cell"] > 0.5).to_numpy() == is_t).mean() > 0.95
    dropped = adata[np.setdiff1d(np.arange(160), fine[6:])].copy()
    without = classify(dropped, label_tree=LABEL_TREE).predict_proba(query, all_levels=True)
    assert np.log(nodes["T cell"][is_t]).mean() > 0.8 * np.log(without["T cell"][is_t]).mean()  # both below 0


def test_a_finer_column_may_miss_values(classify, query):
    adata = labelled_cells(160)
    adata.obs.loc[adata.obs_names[::3], "cell_type"] = np.nan
    model = classify(adata, label_tree=["lineage"])
    assert sum(model.targets["cell_type"].n_labelled) < 160
    assert (model.predict(query)["scstate_celltype"] == query.obs["cell_type"]).mean() > 0.85


def test_labels_of_a_tree_that_no_cell_has_are_not_predicted(classify, query):
    adata = labelled_cells(120)
    adata.obs["split"] = np.where(adata.obs["cell_type"] == "monocyte", "test", "train")
    model = classify(adata, label_tree=LABEL_TREE, split_key="split")
    assert sorted(model.labels) == ["B", "CD4", "CD8"]
    with pytest.raises(ValueError, match="'monocyte' is not in the tree"):
        model.predict(query, allow=["monocyte"])


def test_labels_without_training_cells_are_named(classify, caplog):
    adata = labelled_cells(120)
    adata.obs["split"] = np.where(adata.obs["cell_type"] == "monocyte", "test", "train")
    with caplog.at_level("WARNING", logger="scstate_lora"):
        classify(adata, split_key="split")
    assert "No training cell is 'monocyte'" in caplog.text
    adata.obs["split"] = np.where(adata.obs["cell_type"] == "B", "train", "test")
    ssl.CellTypeClassifier.setup_anndata(adata, labels_key="cell_type", split_key="split")
    with pytest.raises(ValueError, match=r"have 1 label of adata\.obs\['cell_type'\], 'B'; two are needed"):
        ssl.CellTypeClassifier(adata, compact={"n_steps": 2}).train(**QUICK)
