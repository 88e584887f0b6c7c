from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from scstate_lora import metrics
from scstate_lora.data.label_levels import finest_labels, tree_from_columns
from scstate_lora.data.label_tree import LabelTree

NESTED = {"lymphocyte": {"T": ["CD4", "CD8"], "B": None, "NK": {}}, "myeloid": ["mono", "DC"]}


@pytest.fixture
def tree():
    return LabelTree.from_nested(NESTED)


def _leaf_names(tree):
    return [tree.names[i] for i in tree.leaves]


def _cells(tree, n=500, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(len(tree.leaves), 0.3), n).astype(np.float32)


def test_nested_dict(tree):
    assert tree.names[0] == "cell"
    assert sorted(_leaf_names(tree)) == ["B", "CD4", "CD8", "DC", "NK", "mono"]
    assert dict(zip(tree.names, tree.depths.tolist(), strict=True))["CD8"] == 3
    below = {_leaf_names(tree)[i] for i in np.flatnonzero(tree.allowed(["lymphocyte"])[0])}
    assert below == {"CD4", "CD8", "B", "NK"}
    assert LabelTree.from_json(json.loads(json.dumps(tree.to_json()))) == tree


def test_parents_are_exactly_the_sum_of_their_children(tree):
    nodes = tree.probabilities(_cells(tree))
    for i, below in enumerate(tree.children):
        if below:
            np.testing.assert_array_equal(nodes[:, i], nodes[:, list(below)].sum(axis=1))
    np.testing.assert_array_equal(nodes[:, tree.leaves], _cells(tree).astype(np.float64))
    np.testing.assert_allclose(nodes[:, 0], 1, atol=1e-6)


def test_deepest_certain_node_with_the_root_as_last_resort(tree):
    by_name = {"CD4": 0.5, "CD8": 0.35, "B": 0.1, "NK": 0.0, "mono": 0.05, "DC": 0.0}
    nodes = tree.probabilities(np.array([[by_name[name] for name in _leaf_names(tree)]]))
    given = [tree.names[tree.deepest(nodes, threshold)[0]] for threshold in (0.5, 0.51, 0.86, 0.96)]
    assert given == ["CD4", "T", "lymphocyte", "cell"]
    for threshold in (0.05, 0.3, 0.6, 0.9):  # whatever is given has the probability that was asked for
        cells = tree.probabilities(_cells(tree))
        found = tree.deepest(cells, threshold)
        assert (cells[np.arange(500), found] >= threshold).all()


def test_threshold_keeps_the_promise_and_labels_more_cells_than_leaves_do(tree):
    def draw(n, seed):
        p = _cells(tree, n, seed).astype(np.float64)
        truth = (np.random.default_rng(seed + 1).random((n, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
        return tree.probabilities(p), np.eye(len(tree.leaves), dtype=bool)[np.minimum(truth, len(tree.leaves) - 1)]

    new, open_to = draw(20_000, 10_000)
    broken, labelled = 0, []
    for seed in range(0, 80, 2):
        threshold = tree.threshold(*draw(800, seed), max_error=0.1)
        given = tree.deepest(new, threshold)
        some = given > 0
        broken += float(np.mean(~(tree.members[given] & open_to).any(axis=1)[some])) > 0.1
        labelled.append(some.mean())
    assert broken <= 7  # 4 expected at most
    leaves, right = new[:, tree.leaves], open_to[np.arange(20_000), new[:, tree.leaves].argmax(axis=1)]
    flat = metrics.error_threshold(leaves.max(axis=1), right, max_error=0.1)
    assert np.mean(labelled) > 1.5 * flat.kept
    nodes, truth = draw(10, 0)
    assert tree.threshold(nodes, truth) == np.inf
    assert (tree.deepest(nodes, np.inf) == 0).all()


def test_allow_and_block(tree):
    mask = tree.leaf_mask(allow=["lymphocyte"], block=["T"])
    assert {n for n, kept in zip(_leaf_names(tree), mask, strict=True) if kept} == {"B", "NK"}
    assert tree.leaf_mask(block=["DC"]).sum() == 5
    leaves = np.vstack([_cells(tree, 5), np.eye(6)[_leaf_names(tree).index("DC")]])
    nodes = tree.probabilities(leaves, mask=mask)
    np.testing.assert_allclose(nodes[:, 0], 1)
    kept = nodes[:, tree.leaves][:, mask]
    np.testing.assert_allclose(kept[:5, 0] / kept[:5, 1], leaves[:5, mask][:, 0] / leaves[:5, mask][:, 1], rtol=1e-4)
    np.testing.assert_allclose(kept[5], 0.5)
    with pytest.raises(ValueError, match="leave no leaf"):
        tree.leaf_mask(allow=["T"], block=["lymphocyte"])
    with pytest.raises(ValueError, match=r"'monocyte' is not in the tree of labels\. Did you mean"):
        tree.leaf_mask(block=["monocyte"])


def _obs():
    return pd.DataFrame(
        {
            "broad": pd.Categorical(["T", "T", "T", "B", "Mono", "Mono", None, "T"]),
            "fine": ["CD4", "CD8", "CD4", "B", "CD14", "CD16", None, None],
            "state": [None, "CD8 naive", None, None, None, None, None, None],
        },
        index=["a", "b", "c", "d", "e", "f", "g", "g"],  # names of cells may repeat
    )


def test_columns_from_coarse_to_fine():
    tree = tree_from_columns(_obs(), ["broad", "fine", "state"])
    path = {name: tree.names[parent] for name, parent in zip(tree.names, tree.parents, strict=True) if parent >= 0}
    assert path == {
        "T": "cell",
        "B": "cell",
        "Mono": "cell",
        "CD4": "T",
        "CD8": "T",
        "CD8 naive": "CD8",
        "CD14": "Mono",
        "CD16": "Mono",
    }
    labels = finest_labels(_obs(), ["broad", "fine", "state"])
    assert labels.tolist()[:6] == ["CD4", "CD8 naive", "CD4", "B", "CD14", "CD16"]
    assert pd.isna(labels.iloc[6])
    assert labels.iloc[7] == "T"  # a coarse label is used as one
    assert tree.allowed(labels.dropna())[-1].sum() == 2


def test_a_coarser_level_that_is_missing_in_some_cells():
    obs = _obs()
    obs.loc["c", "broad"] = None
    assert tree_from_columns(obs, ["broad", "fine", "state"]) == tree_from_columns(_obs(), ["broad", "fine", "state"])
    obs["fine"] = [None, None, "pDC", *obs["fine"][3:]]  # of this one no cell says what is above
    tree = tree_from_columns(obs, ["broad", "fine"])
    assert tree.parents[tree.names.index("pDC")] == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fine": ["CD4", "CD8", "CD4", "B", "CD4", "CD16", None, None]}, "'CD4' is below 'Mono' and below 'T'"),
        (
            {"fine": ["CD4", "T", "CD4", "B", "CD14", "CD16", None, None]},
            "has 'T' below 'T', beside 'CD4'",
        ),
        ({"state": ["B", None, None, None, None, None, None, None]}, "'B' is below 'cell' and below 'CD4'"),
    ],
)
def test_columns_that_are_not_nested_raise(changes, match):
    with pytest.raises(ValueError, match=match):
        tree_from_columns(_obs().assign(**changes), ["broad", "fine", "state"])


def test_absent_or_repeated_column_raises():
    with pytest.raises(KeyError, match=re.escape("adata.obs['braod'] does not exist. Did you mean 'broad'?")):
        tree_from_columns(_obs(), ["braod"])
    with pytest.raises(ValueError, match="different columns"):
        finest_labels(_obs(), ["broad", "broad"])


def test_a_label_in_two_places_raises():
    with pytest.raises(ValueError, match="twice, as 'cell > lymphoid > pDC' and as 'cell > myeloid > pDC'"):
        LabelTree.from_nested({"lymphoid": ["pDC"], "myeloid": {"pDC": None}})
    with pytest.raises(ValueError, match="'cell' is in the tree twice"):
        LabelTree.from_nested({"cell": ["T"]})
    with pytest.raises(ValueError, match=r"'CL:1' is in the tree twice"):
        LabelTree(("cell", "T", "B"), (-1, 0, 0), (None, "CL:1", "CL:1"))


def test_a_cycle_raises():
    below = {"T": {}}
    below["T"] = {"CD4": below}
    with pytest.raises(ValueError, match="cycle: what is below 'cell > T > CD4' contains itself"):
        LabelTree.from_nested(below)
    with pytest.raises(ValueError, match="cycle: 'A' below 'B' below 'A'"):
        LabelTree.from_parents({"A": "B", "B": "A", "T": "cell"})
    with pytest.raises(ValueError, match="'A' is below 'B', which has no place"):
        LabelTree.from_parents({"A": "B", "T": "cell"})
    with pytest.raises(ValueError, match="'cell' is the root and has no parent, but 'T' is given"):
        LabelTree.from_parents({"T": "cell", "cell": "T"})


def test_shared_dicts_are_no_cycle():
    leaf = {}
    assert len(LabelTree.from_nested({"T": leaf, "B": leaf}).leaves) == 2


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LabelTree.from_nested({"T": "CD4"}), TypeError, "Below 'cell > T' stands 'CD4'"),
        (lambda: LabelTree.from_nested({}), ValueError, "one label beside its root"),
        (lambda: LabelTree(("cell", "T"), (-1, 1)), ValueError, "after its parent"),
        (lambda: LabelTree.from_nested(NESTED).probabilities(np.ones((2, 3))), ValueError, "6 leaves"),
        (lambda: LabelTree.from_nested(NESTED).allowed(["T", "Tcell"]), ValueError, "'Tcell' is not in the tree"),
    ],
)
def test_unusable_input_raises(call, error, match):
    with pytest.raises(error, match=match):
        call()
