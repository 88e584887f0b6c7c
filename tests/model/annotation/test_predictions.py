"""What a prediction writes, of labels and of numbers, and what it promises."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from tests.builders import QUICK, labelled_cells

NAME = "scstate_celltype"
COLUMNS = ["", "_level", "_confidence", "_unknown_score", "_set_size", "_rejected"]


def _facts(adata, key=NAME):
    return json.loads(adata.uns["scstate_lora"]["annotate"][key])


def test_what_is_written(frozen, query):
    before = query.copy()
    table = frozen.predict(query)
    assert list(table) == [NAME + end for end in COLUMNS]
    assert query.obs[list(before.obs)].equals(before.obs)
    assert (query.X != before.X).nnz == 0
    for column in table:
        written = query.obs[column]
        assert written.astype(table[column].dtype).tolist() == table[column].tolist()
        assert isinstance(written.dtype, pd.CategoricalDtype) == (table[column].dtype == object)
    proba = query.obsm[f"{NAME}_probability"]
    assert proba.index.equals(query.obs_names)
    np.testing.assert_allclose(proba, frozen.predict_proba(query), atol=1e-6)
    facts = _facts(query)
    assert facts["labels_key"] == "cell_type"
    assert facts["temperature"] > 0
    assert facts["shift"].keys() == {"d0", "d1", "d2"}


def test_what_is_written_survives_a_file(frozen, query, tmp_path):
    table = frozen.predict(query, sets=True, max_error=0.1, clusters="lineage")
    query.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    for column in table:
        assert again.obs[column].tolist() == table[column].tolist()
    assert _facts(again) == _facts(query)


def test_nothing_is_written_if_not_asked(frozen, query):
    table = frozen.predict(query, key_added=None)
    frozen.predict_proba(query)
    frozen.get_latent_representation(query, key_added=None)
    assert not [c for c in query.obs if c.startswith("scstate")]
    assert not query.obsm.keys()
    assert not query.uns.keys()
    assert next(iter(table)) == NAME


def test_another_name(frozen, query):
    frozen.predict(query, key_added="mine")
    assert "mine_confidence" in query.obs
    assert "mine_probability" in query.obsm
    assert _facts(query, "mine")
    assert NAME not in query.obs


def test_the_embedding_is_written(frozen, query):
    embedding = frozen.get_latent_representation(query)
    np.testing.assert_array_equal(query.obsm["X_scstate_celltype"], embedding)
    assert embedding.dtype == np.float32
    assert embedding.shape == (90, frozen.base.dim)


def test_the_models_own_cells_by_default(frozen, reference):
    table = frozen.predict(key_added=None)
    assert table.index.equals(reference.obs_names)
    assert (table[NAME] == reference.obs["cell_type"]).mean() > 0.95


def test_sets_hold_more_labels_for_higher_coverage(frozen, query):
    at = {coverage: frozen.predict(query, sets=coverage, key_added=None) for coverage in (True, 0.8, 0.95, 0.99)}
    pd.testing.assert_frame_equal(at[True], at[0.95])
    sizes = [at[coverage][f"{NAME}_set_size"].mean() for coverage in (0.8, 0.95, 0.99)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    for table in at.values():
        sets = [set(one.split("|")) for one in table[f"{NAME}_set"]]
        assert [len(one) for one in sets] == table[f"{NAME}_set_size"].tolist()
        assert all(label in one for label, one in zip(table[NAME], sets, strict=True))
    truth = query.obs["cell_type"]
    assert np.mean([t in one.split("|") for t, one in zip(truth, at[0.99][f"{NAME}_set"], strict=True)]) > 0.95
    assert f"{NAME}_set" not in frozen.predict(query)


def test_cells_of_a_new_type_are_rejected_as_such(frozen, query):
    rng = np.random.default_rng(5)
    foreign = query[:30].copy()
    foreign.X = foreign.X[:, rng.permutation(foreign.n_vars)]
    foreign.obs_names = [f"foreign{i}" for i in range(30)]
    both = ad.concat([query, foreign])
    table = frozen.predict(both, reject_unknown=0.05)
    rejected = table[f"{NAME}_rejected"].to_numpy()
    assert (rejected[90:] == "unlike all known types").mean() > 0.6
    assert (rejected[:90] == "unlike all known types").mean() < 0.15
    new = rejected != ""
    assert (table[NAME].to_numpy()[new] == "Unknown").all()
    assert (table[f"{NAME}_level"].to_numpy()[new] == 0).all()
    score = table[f"{NAME}_unknown_score"].to_numpy()
    np.testing.assert_array_equal(new, score > _facts(both)["novelty_threshold"])
    assert np.median(score[90:]) > np.median(score[:90]) + 1
    assert (frozen.predict(both)[f"{NAME}_rejected"] == "").all()  # only if asked


def test_more_known_cells_may_be_rejected_for_more_new_ones(frozen, query):
    shares = [(frozen.predict(query, reject_unknown=share)[NAME] == "Unknown").mean() for share in (0.01, 0.1, 0.5)]
    assert shares == sorted(shares)
    assert shares[2] > 0.2


def test_the_unknown_score_is_taken_before_any_shift(frozen, query):
    one, other = (frozen.predict(query, adapt=adapt, key_added=None) for adapt in (True, False))
    np.testing.assert_array_equal(one[f"{NAME}_unknown_score"], other[f"{NAME}_unknown_score"])
    assert (one[f"{NAME}_confidence"] != other[f"{NAME}_confidence"]).any()
    frozen.predict(query, adapt=False)
    assert _facts(query)["shift"] == {}


def test_each_batch_has_its_shift(frozen, query):
    together = frozen.predict_proba(query)
    for donor in ("d0", "d1", "d2"):
        rows = query.obs["donor"] == donor
        pd.testing.assert_frame_equal(frozen.predict_proba(query[rows.to_numpy()].copy()), together[rows], atol=1e-6)
    frozen.predict(query)
    assert all(note.startswith(("on", "reduced", "off")) for note in _facts(query)["shift"].values())
    del query.obs["donor"]
    frozen.predict(query)
    assert _facts(query)["shift"].keys() == {"all"}


def test_cells_of_a_missing_batch_are_one(frozen, query):
    query.obs.loc[query.obs_names[:20], "donor"] = np.nan
    frozen.predict(query)
    assert _facts(query)["shift"].keys() == {"d0", "d1", "d2", "(missing)"}


def test_clusters_are_labelled_by_their_cells(frozen, query):
    query.obs["cluster"] = pd.Categorical(query.obs["cell_type"].map({"CD4": 0, "CD8": 0, "B": 1, "monocyte": 2}))
    query.obs.loc[query.obs_names[:3], "cluster"] = np.nan
    table = frozen.predict(query, clusters="cluster")
    rows = (query.obs["cluster"] == 1).to_numpy()
    assert (table[f"{NAME}_cluster_label"][rows] == "B").all()
    np.testing.assert_allclose(table[f"{NAME}_cluster_share"][rows], (table[NAME][rows] == "B").mean())
    proba = frozen.predict_proba(query)
    of_t = (query.obs["cluster"] == 0).to_numpy()
    assert table[f"{NAME}_cluster_label"][of_t].unique().tolist() == [proba[of_t].mean().idxmax()]
    assert (table[f"{NAME}_cluster_label"][:3] == "Unknown").all()
    assert table[f"{NAME}_cluster_share"][:3].isna().all()


def test_a_single_cell_and_none(frozen, query):
    whole = frozen.predict_proba(query, adapt=False)
    one = query[4].copy()
    table = frozen.predict(one, sets=True, max_error=0.1)
    assert len(table) == 1
    assert "off: 1 cells" in next(iter(_facts(one)["shift"].values()))
    pd.testing.assert_frame_equal(frozen.predict_proba(one), whole.iloc[[4]], atol=1e-6)


@pytest.fixture(scope="module")
def several(classify):
    """A classifier of the type, in a tree, of the donor, and of the day."""
    adata = labelled_cells(200)
    adata.obs.loc[adata.obs_names[:20], "day"] = np.nan
    tree = {"T cell": ["CD4", "CD8"], "B": None, "monocyte": None}
    return classify(adata, labels_key=["cell_type", "donor", "day"], label_tree=tree, batch_key=None)


def test_several_targets_by_one_encoder(several, query):
    table = several.predict(query, reject_below=0.9, sets=True)
    assert {NAME, "scstate_donor", "scstate_day", "scstate_donor_confidence", "scstate_day_low"} <= set(table)
    assert (table["scstate_donor"] == query.obs["donor"]).mean() > 0.6
    assert (table["scstate_donor"] != "Unknown").all()  # thresholds are of the first
    assert {"scstate_celltype_probability", "scstate_donor_probability"} == set(query.obsm)
    assert set(query.uns["scstate_lora"]["annotate"]) == {NAME, "scstate_donor", "scstate_day"}
    assert several.scores["target"].unique().tolist() == ["cell_type", "donor", "day"]
    assert list(several.predict_proba(query, target="donor")) == ["d0", "d1", "d2"]
    with pytest.raises(KeyError, match="day"):
        several.predict_proba(query, target="day")
    with pytest.raises(KeyError, match="'donor'"):
        several.predict_proba(query, target="donors")


def test_lists_of_labels_are_of_the_target_that_is_asked_for(several, query):
    proba = several.predict_proba(query, target="donor", block=["d0"])
    assert (proba["d0"] == 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_numbers_come_with_intervals(several, query):
    table = several.predict(query, sets=0.9)
    value, low, high = (table[f"scstate_day{end}"].to_numpy() for end in ("", "_low", "_high"))
    truth = query.obs["day"].to_numpy()
    assert np.corrcoef(value, truth)[0, 1] > 0.6
    np.testing.assert_allclose(high - value, value - low)
    assert 0.8 <= np.mean((low <= truth) & (truth <= high)) <= 0.98
    narrow = several.predict(query, sets=0.5)
    assert (narrow["scstate_day_high"] < high).all()
    facts = _facts(query, "scstate_day")
    assert facts["coverage"] == 0.5
    scores = several.scores[several.scores["target"] == "day"].set_index("method")
    assert scores.loc["CellTypeClassifier", "r2"] > 0.3
    assert scores.loc["mean", "r2"] == pytest.approx(0, abs=0.02)
    assert scores.loc["CellTypeClassifier", "n_cells"] == 180


def test_a_number_alone(classify, query, tmp_path):
    model = classify(labelled_cells(150), labels_key="day")
    table = model.predict(query)
    assert list(table) == [NAME, f"{NAME}_low", f"{NAME}_high"]
    with pytest.raises(KeyError, match="labels of this model"):
        model.predict_proba(query)
    model.save(tmp_path / "m")
    pd.testing.assert_frame_equal(ssl.CellTypeClassifier.load(tmp_path / "m").predict(query), table, atol=1e-5)


@pytest.mark.parametrize("missing", ["not labelled", np.nan])
def test_cells_without_a_label_do_not_train(classify, new_cells, missing):
    adata = labelled_cells(200)
    adata.obs.loc[adata.obs_names[120:], "cell_type"] = missing
    model = classify(adata, unlabeled_category="not labelled" if isinstance(missing, str) else None)
    assert sum(model.targets["cell_type"].n_labelled) == 120
    assert sorted(model.labels) == ["B", "CD4", "CD8", "monocyte"]
    alone = classify(adata[:120].copy())
    pd.testing.assert_frame_equal(model.predict_proba(new_cells), alone.predict_proba(new_cells), atol=1e-6)
    table = model.predict(key_added=None)  # its own cells, those without a label too
    assert len(table) == 200


@pytest.mark.parametrize("form", ["numbers", "bools", "categories"])
def test_labels_of_any_kind(classify, query, form):
    adata = labelled_cells(150)
    codes = adata.obs["lineage"].map({"T cell": 1, "B": 2, "monocyte": 10})
    values = {
        "numbers": codes.astype(float),
        "bools": codes == 1,
        "categories": pd.Categorical(adata.obs["cell_type"], categories=[*"xyz", "B", "CD4", "CD8", "monocyte"]),
    }
    adata.obs["what"] = values[form]
    model = classify(adata, labels_key="what")
    expected = {"numbers": {"1", "2", "10"}, "bools": {"False", "True"}, "categories": {"B", "CD4", "CD8", "monocyte"}}
    assert set(model.labels) == expected[form]
    table = model.predict(query)
    assert set(table[NAME]) == expected[form]


def test_scores_are_those_of_left_out_cells(frozen):
    scores = frozen.scores.set_index("method")
    assert scores["target"].unique().tolist() == ["cell_type"]
    assert {"CellTypeClassifier", "linear start", "majority", "logistic regression"} <= set(scores.index)
    assert (scores["n_cells"] == 240).all()
    assert scores.loc["majority", "accuracy"] < 0.4
    assert 0.9 < scores.loc["CellTypeClassifier", "accuracy"] < 1
    assert 0 <= scores.loc["CellTypeClassifier", "calibration_error"] < 0.1


def test_the_check_of_unknown_types(frozen, reference):
    check = frozen.unknown_check
    assert set(check["type"]) == {"CD4", "CD8", "B", "monocyte"}
    assert check["auroc"].between(0, 1).all()
    assert check.set_index("type").loc["monocyte", "auroc"] > 0.7
    largest = reference.obs["donor"].value_counts().max()
    assert check["n_cells"].sum() == largest


def test_without_a_linear_start(classify, query, tmp_path):
    model = classify(labelled_cells(150), model={"linear_start": False, "head": {"n_steps": 200, "dropout": 0.0}})
    table = model.predict(query)
    assert table[f"{NAME}_unknown_score"].isna().all()
    assert (table[NAME] == query.obs["cell_type"]).mean() > 0.4
    model.save(tmp_path / "m")
    again = ssl.CellTypeClassifier.load(tmp_path / "m").predict(query)
    pd.testing.assert_frame_equal(again, table, atol=1e-6)
    assert "no linear start" in model.summary().set_index("part").loc["cell_type", "note"]
    with pytest.raises(ValueError, match="linear_start=False"):
        model.predict(query, reject_unknown=0.05)
    model.train("frozen", **QUICK)
    assert model.unknown_check.empty
