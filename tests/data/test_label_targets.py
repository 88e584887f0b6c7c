from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora.config import LabelledDataConfig
from scstate_lora.data.label_targets import LabelTarget, fit_label_targets

N = 12
TYPES = ["CD4", "CD8", "B"] * 4


def _adata(**columns):
    obs = pd.DataFrame({"type": TYPES, **columns}, index=[f"c{i}" for i in range(N)])
    return ad.AnnData(np.zeros((N, 2), dtype=np.float32), obs=obs)


def _fit(adata, labels_key="type", **options):
    return fit_label_targets(adata, LabelledDataConfig(labels_key=labels_key, **options))


def _one(adata, **options):
    (target,) = _fit(adata, **options)
    return target


def _labels(target, adata):
    return [label if label is None else str(label) for label in target.labels(adata)]


def test_labels_without_a_tree_are_below_the_root():
    target = _one(_adata())
    assert target.kind == "categorical"
    assert target.tree.names == ("cell", "B", "CD4", "CD8")
    assert target.tree.parents == (-1, 0, 0, 0)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2, 3] * 4, ("1", "2", "3")),
        ([1.0, 2.0, 2.5] * 4, ("1", "2", "2.5")),
        ([True, False] * 6, ("False", "True")),
        (pd.Categorical(["a", "b"] * 6, categories=["a", "b", "unused"]), ("a", "b")),
        (pd.Categorical([1, 2] * 6), ("1", "2")),
    ],
)
def test_numbers_bools_and_categories_are_labels(values, names):
    target = _one(_adata(type=values))
    assert target.tree.names[1:] == names
    assert set(_labels(target, _adata(type=values))) == set(names)


@pytest.mark.parametrize("missing", [np.nan, None, "not known"])
def test_missing_and_unlabeled_are_no_labels(missing):
    values = [*TYPES[:9], *[missing] * 3]
    options = {"unlabeled_category": "not known"} if missing == "not known" else {}
    adata = _adata(type=values)
    target = _one(adata, **options)
    assert _labels(target, adata) == [*TYPES[:9], None, None, None]
    assert "not known" not in target.tree.names


@pytest.mark.parametrize("category", [-1, -1.0, "-1"])
def test_the_unlabeled_category_may_be_a_number(category):
    adata = _adata(type=[1, 2, -1] * 4)
    assert _labels(_one(adata, unlabeled_category=category), adata) == ["1", "2", None] * 4


def test_a_nested_tree_is_pruned_to_the_labels_that_occur():
    nested = {"lymphocyte": {"T cell": ["CD4", "CD8"], "B": None}, "myeloid": ["monocyte"]}
    target = _one(_adata(), label_tree=nested)
    assert target.tree.names == ("cell", "lymphocyte", "T cell", "CD4", "CD8", "B")


def test_a_coarse_label_keeps_its_place_above():
    adata = _adata(type=[*TYPES[:9], *["T cell"] * 3])
    target = _one(adata, label_tree={"T cell": ["CD4", "CD8"], "B": None})
    allowed = target.tree.allowed(target.labels(adata)[9:])
    names = [target.tree.names[leaf] for leaf in target.tree.leaves]
    assert all({names[i] for i in np.flatnonzero(row)} == {"CD4", "CD8"} for row in allowed)


def test_columns_of_levels_are_a_tree_and_fill_missing_labels():
    coarse = ["T cell", "T cell", "B cell"] * 4
    adata = _adata(type=[*TYPES[:9], np.nan, np.nan, np.nan], lineage=[*coarse[:11], np.nan])
    target = _one(adata, label_tree=["lineage"])
    assert target.levels == ("lineage",)
    assert dict(zip(target.tree.names, target.tree.parents, strict=True))["CD4"] == target.tree.names.index("T cell")
    assert _labels(target, adata)[9:] == ["T cell", "T cell", None]


def test_terms_of_an_ontology_keep_their_ids(tmp_path):
    terms = {"CL:0000000": ("cell", None), "CL:0000084": ("T cell", "CL:0000000"), "CL:0000236": ("B", "CL:0000000")}
    terms |= {"CL:0000624": ("CD4", "CL:0000084"), "CL:0000625": ("CD8", "CL:0000084")}
    text = ["format-version: 1.2", ""]
    for term, (name, parent) in terms.items():
        text += ["[Term]", f"id: {term}", f"name: {name}", *([f"is_a: {parent}"] if parent else []), ""]
    (tmp_path / "cl.obo").write_text("\n".join(text))
    tree = _one(_adata(), label_tree=tmp_path / "cl.obo", ontology_terms=["T cell"]).tree
    assert dict(zip(tree.names, tree.ids, strict=True))["CD8"] == "CL:0000625"
    assert tree.names[tree.parents[tree.names.index("CD8")]] == "T cell"
    flat = _one(_adata(), label_tree=tmp_path / "cl.obo").tree
    assert "T cell" not in flat.names
    with pytest.raises(FileNotFoundError, match=r"none\.obo"):
        _one(_adata(), label_tree=tmp_path / "none.obo")
    with pytest.raises(ValueError, match=r"'NK'.*cl\.obo"):
        _one(_adata(type=["CD4", "CD8", "NK"] * 4), label_tree=tmp_path / "cl.obo")


def test_several_columns_and_their_kinds():
    adata = _adata(day=np.linspace(0, 5, N), dose=[0, 1, 2] * 4)
    kinds = [(t.key, t.kind) for t in _fit(adata, ["type", "day", "dose"])]
    assert kinds == [("type", "categorical"), ("day", "continuous"), ("dose", "categorical")]
    (target,) = _fit(adata, {"dose": "continuous"})
    np.testing.assert_array_equal(target.labels(adata), [0, 1, 2] * 4)
    assert target.tree is None
    assert [t.kind for t in _fit(adata, {"day": "categorical", "type": None})] == ["categorical", "categorical"]


def test_a_tree_is_of_the_first_column():
    first, second = _fit(
        _adata(other=["x", "y"] * 6), ["type", "other"], label_tree={"T cell": ["CD4", "CD8"], "B": []}
    )
    assert "T cell" in first.tree.names
    assert second.tree.names == ("cell", "x", "y")


def test_missing_numbers_are_missing():
    values = np.linspace(0, 5, N)
    values[3] = np.nan
    adata = _adata(day=values)
    np.testing.assert_array_equal(_fit(adata, "day")[0].labels(adata), values)


@pytest.mark.parametrize(
    "options", [{"label_tree": {"T cell": ["CD4", "CD8"], "B": None}}, {"unlabeled_category": "B"}]
)
def test_the_same_after_json(options):
    adata = _adata(day=np.linspace(0, 5, N))
    for target in _fit(adata, ["type", "day"], **options):
        assert LabelTarget.from_json(json.loads(json.dumps(target.to_json()))) == target


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({}, {"labels_key": "typ"}, KeyError, r"adata\.obs\['typ'\] does not exist.*'type'"),
        ({"type": ["B"] * N}, {}, ValueError, r"adata\.obs\['type'\] has the single label 'B'.* at least two"),
        ({"type": [np.nan] * N}, {}, ValueError, r"adata\.obs\['type'\] has no label; .* at least two"),
        ({"type": ["B", "T"] * 6}, {"unlabeled_category": "T"}, ValueError, "the single label 'B'"),
        ({"type": ["B", "T", "Unknown"] * 4}, {}, ValueError, "unlabeled_category='Unknown'; otherwise rename it"),
        ({}, {"unlabeled_category": "cd4"}, ValueError, r"'cd4' is not in adata\.obs\['type'\].*'CD4'"),
        ({}, {"label_tree": {"T cell": ["CD4"]}}, ValueError, "label_tree does not hold 'B', 'CD8' of .*'type'"),
        ({}, {"label_tree": ["type"]}, ValueError, "holds labels_key='type' itself. Name the coarser columns only"),
        ({}, {"label_tree": ["lineage"]}, KeyError, r"adata\.obs\['lineage'\] does not exist"),
        ({"lineage": ["a", "a", "b"] * 3 + ["b", "a", "b"]}, {"label_tree": ["lineage"]}, ValueError, "is not nested"),
        ({}, {"labels_key": {"type": "continuous"}}, ValueError, "declared continuous.*other values than numbers"),
        ({"day": [1.0] * N}, {"labels_key": {"day": "continuous"}}, ValueError, "at least two different ones"),
        ({"day": [np.inf, *range(N - 1)]}, {"labels_key": "day"}, ValueError, "must hold finite numbers"),
    ],
)
def test_columns_that_cannot_be_learned_raises(columns, options, error, message):
    with pytest.raises(error, match=message):
        _fit(_adata(**columns), **options)


def test_a_label_of_each_cell_raises():
    names = [f"c{i}" for i in range(120)]
    adata = ad.AnnData(np.zeros((120, 2), dtype=np.float32), obs=pd.DataFrame({"name": names}, index=names))
    with pytest.raises(ValueError, match=r"has 120 labels for 120 labelled cells, as a name of each cell would"):
        _fit(adata, "name")


def test_unknown_may_mean_not_labelled():
    adata = _adata(type=["B", "T", "Unknown"] * 4)
    assert _labels(_one(adata, unlabeled_category="Unknown"), adata) == ["B", "T", None] * 4
