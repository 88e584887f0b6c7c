"""Perturbations that are written in several ways, from the set-up to the scores of both models."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.config import DataConfig
from scstate_lora.data.register import register
from tests.builders import QUICK, SMALL_ST

KEYS = {"pert_key": "arm", "control": "none", "cell_type_key": "kind"}


def _cells(arms, *, n_each=24, n_genes=30, seed=0) -> ad.AnnData:
    """Counts of two kinds of cells; A doubles the first genes, B the next ones, and combinations both."""
    rng = np.random.default_rng(seed)
    arm = np.repeat(arms, n_each)
    rates = np.full((len(arm), n_genes), 3.0)
    rates[["A" in name for name in arm], :5] *= 3
    rates[["B" in name for name in arm], 5:10] *= 3
    obs = pd.DataFrame(
        {"arm": arm, "kind": np.tile(["T", "B"], len(arm) // 2)}, index=[f"c{i}" for i in range(len(arm))]
    )
    return ad.AnnData(
        rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    )


def _rewritten(adata, names) -> ad.AnnData:
    """The same cells, every second one of some perturbations under another name."""
    other = adata.copy()
    every_second = np.arange(other.n_obs) // 2 % 2 == 0
    other.obs["arm"] = np.where(every_second, other.obs["arm"].map(names).fillna(other.obs["arm"]), other.obs["arm"])
    return other


ARMS = ["none", "A", "B", "A+B"]
NAMES = {"none": "none + none", "A": "A+none", "B": "none+B ", "A+B": "B + A"}


@pytest.mark.parametrize("as_category", [False, True])
def test_cells_under_several_spellings_are_one_perturbation(as_category):
    plain, written = _cells(ARMS), _rewritten(_cells(ARMS), NAMES)
    if as_category:
        written.obs["arm"] = written.obs["arm"].astype("category")
    expected = register(plain, DataConfig(**KEYS, covariate_keys=["arm"]))
    with pytest.warns(UserWarning, match=r"are read as one level.*adata\.obs\['arm'\].*'A\+B' \('B \+ A', 'A\+B'\)"):
        cells = register(written, DataConfig(**KEYS, covariate_keys=["arm"]))
    assert cells.registry.perturbations == ["A", "A+B", "B", "none"]
    assert (cells.perturbations == expected.perturbations).all()
    assert (cells.is_control == expected.is_control).all()
    assert (cells.split == expected.split).all()
    np.testing.assert_array_equal(cells.encode()["arm"], expected.encode()["arm"])
    under = cells.under({"arm": "none+B+A"}).encode()["arm"]
    assert (under == cells.registry.covariate("arm").categories.index("A+B")).all()


def test_held_out_combinations_are_found_in_any_spelling():
    held = {"kind": "T", "arm": "B+A"}
    sections = {
        "datasets": {"mine": "x"}, "training": {"mine": "train"}, "fewshot": {"mine.T": {"test": ["B +A", "A+none"]}}
    }  # fmt: skip
    adata = _cells(ARMS)
    cells = register(adata, DataConfig(**KEYS, holdout=held))
    is_held = (adata.obs["kind"] == "T") & (adata.obs["arm"] == "A+B")
    assert ((cells.split == "test") == is_held).all()
    cells = register(adata, DataConfig(**KEYS, split=sections))
    assert ((cells.split == "test") == (is_held | ((adata.obs["kind"] == "T") & (adata.obs["arm"] == "A")))).all()


@pytest.fixture(scope="module")
def trained():
    adata = _cells(ARMS)
    ssl.STTransition.setup_anndata(adata, **KEYS, test_size=0.3, val_size=0)
    st = ssl.STTransition(adata, model=SMALL_ST)
    st.train(1, **QUICK)
    return st


def test_targets_are_found_in_any_spelling_and_predicted_once(trained):
    known = trained.predict(target=["A+B", "A"])
    for target in (["B+A", "none + A", "A"], ["A+B+none", "A+A"]):
        found = trained.predict(target=target)
        assert found.obs["arm"].unique().tolist() == ["A+B", "A"]
        assert found.uns["scstate_lora"]["predict"]["target"] == ["A+B", "A"]
        np.testing.assert_array_equal(found.X, known.X)
    with pytest.raises(ValueError, match="is the control"):
        trained.predict(target="none+none")


def test_cells_under_another_spelling_are_represented_alike(trained):
    other = _rewritten(trained.adata, NAMES)
    other.obs["arm"] = other.obs["arm"].to_numpy()
    np.testing.assert_array_equal(
        trained.get_latent_representation(other, key_added=None), trained.get_latent_representation(key_added=None)
    )
    np.testing.assert_array_equal(trained.predict(other, target="A").X, trained.predict(target="A").X)


def test_scores_do_not_depend_on_spelling(trained, tmp_path):
    adata = trained.adata
    is_test = (adata.obs["scstate_split"] == "test").to_numpy()
    predicted = trained.predict(target="B+A")
    expected = ssl.tl.evaluate_perturbation(
        predicted.copy(), adata[is_test], adata[is_test], context_key="kind", train=adata[~is_test], n_boot=5
    )
    other = _rewritten(adata, {"A+B": "B+none+A", "none": "none+none", "A": "none+A"})
    both = trained.predict(target=["A", "B+A"])
    effects = ssl.tl.discrimination(both, adata[is_test], adata, train=adata[~is_test], n_boot=5)
    for control in ("none", "none+none"):
        with pytest.warns(UserWarning, match="read as one level"):
            ssl.STTransition.setup_anndata(other, **{**KEYS, "control": control}, test_size=0.3, val_size=0)
        real, train = other[is_test], other[~is_test]
        found = ssl.tl.evaluate_perturbation(predicted, real, real, context_key="kind", train=train, n_boot=5)
        pd.testing.assert_frame_equal(found, expected)
        found = ssl.tl.discrimination(both.copy(), real, other, train=train, n_boot=5)
        pd.testing.assert_frame_equal(found, effects)


def test_names_with_the_control_need_no_features_of_it():
    features = pd.DataFrame(np.eye(2), index=["A", "B"])
    plain, written = _cells(ARMS), _cells(ARMS)
    written.obs["arm"] = written.obs["arm"].map({"A": "A+none", "B": "none+B"}).fillna(written.obs["arm"])
    predictions = []
    for adata in (plain, written):
        ssl.STTransition.setup_anndata(adata, **KEYS, test_size=0, val_size=0)
        st = ssl.STTransition(adata, model=SMALL_ST, pert_features=features)
        st.train(1, **QUICK)
        predictions.append(st.predict(target=["A", "B+A"]))
    assert predictions[1].obs["arm"].unique().tolist() == ["A+none", "A+B"]
    np.testing.assert_allclose(
        predictions[1].X, predictions[0].X, atol=0.05
    )  # other sets are drawn, as names sort otherwise


def test_a_registry_of_version_0_1_knows_the_control_of_its_covariate():
    registry = register(_cells(ARMS), DataConfig(**KEYS, covariate_keys=["arm"])).registry
    stored = json.loads(registry.to_json())
    for covariate in stored["covariates"]:
        del covariate["control"]
    assert type(registry).from_json(json.dumps(stored)) == registry
