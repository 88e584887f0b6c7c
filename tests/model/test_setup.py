from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora._compat import mudata_without_pull
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.register import register
from scstate_lora.model.st.groups import split_groups
from tests.builders import QUICK

WOUND = {"datasets": {"wound": "wound.h5ad"}, "training": {"wound": "train"}}
ZEROSHOT = {
    **WOUND,
    "zeroshot": {"wound.macrophage": "test", "wound.T cell": "val"},
    "fewshot": {"wound.fibroblast": {"test": ["burn"]}},
}


def _untouched(adata, wound):
    assert list(adata.obs.columns) == list(wound.obs.columns)
    assert dict(adata.uns) == {}
    assert len(adata.obsm) == 0


def test_gives_both_models_and_writes_registry_and_split(adata, setup):
    models = ssl.setup_anndata(adata, **setup)
    se, st = models
    assert models.se is se
    assert models.st is st
    assert isinstance(se, ssl.LoRACovariateSE)
    assert isinstance(st, ssl.STTransition)
    registry = Registry.from_adata(adata)
    assert registry == se.registry == st.registry
    assert registry.scale == "counts"
    assert [c.name for c in registry.covariates] == ["condition", "timepoint"]
    assert set(adata.obs["scstate_split"].cat.categories) == {"train", "val", "test"}
    assert adata.obs["scstate_split"].value_counts()["test"] == pytest.approx(140, abs=12)
    assert not se.is_trained
    assert not st.is_trained


def test_without_perturbation_there_is_no_transition_model(adata):
    models = ssl.setup_anndata(adata, covariate_keys="timepoint")
    assert models.st is None
    assert [c.name for c in models.se.registry.covariates] == ["timepoint"]


def test_says_what_was_found_and_decided(adata, setup, caplog, monkeypatch):
    logger = ssl._logging.logger
    logger.setLevel("INFO")
    monkeypatch.setattr(logger, "propagate", True)
    ssl.setup_anndata(adata, **setup)
    assert "adata.X is treated as counts" in caplog.text
    assert "condition (categorical), timepoint (categorical)" in caplog.text
    assert "keratinocyte" in caplog.text  # the split table


def test_two_steps_give_what_one_call_gives(wound, setup, make_se, make_st):
    one, two = wound.copy(), wound.copy()
    models = ssl.setup_anndata(one, **setup)
    assert ssl.STTransition.setup_anndata(two, **setup) is None
    first, second = one.uns["scstate_lora"], two.uns["scstate_lora"]
    assert set(first) == set(second) == {"registry", "split"}
    assert first["registry"] == second["registry"]
    pd.testing.assert_frame_equal(first["split"].pop("table"), second["split"].pop("table"))
    assert first["split"] == second["split"]
    assert (one.obs["scstate_split"] == two.obs["scstate_split"]).all()
    se, st = ssl.LoRACovariateSE(two), ssl.STTransition(two)
    assert (se.lora, se.compact, se.objective) == (models.se.lora, models.se.compact, models.se.objective)
    assert st.design.to_dict() == models.st.design.to_dict()
    embeddings = []
    for adata in (one, two):
        model = make_se(adata)
        model.train(max_epochs=1, **QUICK)
        embeddings.append(model.get_latent_representation())
    np.testing.assert_array_equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"covariate_keys": ["conditon"]},
            KeyError,
            r"adata\.obs\['conditon'\] does not exist. Did you mean 'condition'",
        ),
        ({"covariate_keys": []}, ValueError, "at least one covariate"),
        ({"control": "shan"}, ValueError, r"control='shan' is not in adata\.obs\['condition'\].*'sham'"),
        ({"base": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
        ({"base": 3}, TypeError, "base must be a path, a hub id or an SEBase"),
        ({"modality": "rna"}, ValueError, "modality='rna' is for MuData"),
        ({"holdout": {"condition": "burn"}}, ValueError, r"No training cell has adata\.obs\['condition'\] = 'burn'"),
        ({"holdout": {"timepoint": "day14"}}, ValueError, r"No training cell has adata\.obs\['timepoint'\] = 'day14'"),
        ({"split": "no/such.toml"}, FileNotFoundError, r"The split file no/such\.toml does not exist"),
        ({"split": "a.toml", "holdout": {"timepoint": "day14"}}, ValueError, "holdout= and split= both say"),
        ({"split": {**WOUND, "zeroshot": {"wound.macrophages": "test"}}}, ValueError, "Did you mean 'macrophage'"),
        (
            {"split": ZEROSHOT, "covariate_keys": ["cell_type", "condition"]},
            ValueError,
            r"No training cell has adata\.obs\['cell_type'\] = 'T cell', 'macrophage'.*or this column out",
        ),
        ({"holdout": {"condition": "sham"}}, ValueError, r"No training cell has adata\.obs\['condition'\] = 'sham'"),
        ({"test_size": 0.97}, ValueError, r"No context \(cell_type\) has 5 control and 5 perturbed training cells"),
    ],
)
def test_wrong_arguments_write_nothing_raises(adata, wound, setup, change, error, message):
    with pytest.raises(error, match=message):
        ssl.setup_anndata(adata, **{**setup, **change})
    _untouched(adata, wound)


@pytest.fixture
def split_file(tmp_path):
    """Two cell types held out, and the burn of a third."""
    path = tmp_path / "split.toml"
    path.write_text(
        """
        datasets.wound = "wound.h5ad"
        training.wound = "train"
        [zeroshot]
        "wound.macrophage" = "test"
        "wound.T cell" = "val"
        [fewshot."wound.fibroblast"]
        test = ["burn"]
        """
    )
    return path


def test_a_split_file_is_applied_printed_and_stored(adata, setup, split_file, tmp_path, caplog, monkeypatch):
    logger = ssl._logging.logger
    logger.setLevel("INFO")
    monkeypatch.setattr(logger, "propagate", True)
    ssl.setup_anndata(adata, **setup, split=split_file)
    obs = adata.obs
    burned = obs["condition"] == "burn"
    expected = obs["cell_type"].astype(str).map({"macrophage": "test", "T cell": "val"}).fillna("train")
    expected[burned & (obs["cell_type"] == "fibroblast")] = "test"
    assert (obs["scstate_split"] == expected).all()
    assert f"Cells by split in adata.obs['scstate_split'] ({split_file})" in caplog.text
    adata.write_h5ad(tmp_path / "cells.h5ad")
    record = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scstate_lora"]["split"]
    assert record["source"] == str(split_file)
    assert json.loads(record["rules"])["fewshot"] == {"fibroblast": {"val": [], "test": ["burn"]}}
    table = record["table"].set_index(["context", "condition"])
    assert table.loc[("macrophage", "sham")].tolist() == [0, 0, ((obs["cell_type"] == "macrophage") & ~burned).sum()]
    assert table.loc[("fibroblast", "sham"), "test"] == 0
    assert table[["train", "val", "test"]].sum().tolist() == expected.value_counts()[["train", "val", "test"]].tolist()


def test_a_split_file_of_several_datasets_asks_which(adata, setup):
    sections = {**ZEROSHOT, "datasets": {"wound": "a", "other": "b"}, "training": {"wound": "train", "other": "train"}}
    with pytest.raises(ValueError, match=r"splits 2 datasets \('wound', 'other'\).*split_dataset='wound'"):
        register(adata, DataConfig(**setup, split=sections))
    register(adata, DataConfig(**setup, split=sections, split_dataset="other", val_size=0))
    assert (adata.obs["scstate_split"] == "train").all()
    register(adata, DataConfig(**setup, split=sections, split_dataset="wound"))
    assert (adata.obs["scstate_split"] == "test").any()


def test_a_configuration_names_a_split_file(adata, setup, split_file, monkeypatch):
    monkeypatch.chdir(split_file.parent)
    config = DataConfig.parse({**setup, "split": "split.toml", "zeroshot_controls": "train"}, name="run.yaml")
    register(adata, config)
    split, control = adata.obs["scstate_split"], adata.obs["condition"] == "sham"
    assert (split[control] == "train").all()
    assert (split[~control & (adata.obs["cell_type"] == "macrophage")] == "test").all()


def test_a_cell_type_that_is_a_covariate_needs_its_controls_in_training(adata, setup):
    covariates = ["cell_type", "condition"]
    register(adata, DataConfig(**{**setup, "covariate_keys": covariates}, split=ZEROSHOT, zeroshot_controls="train"))
    assert Registry.from_adata(adata).covariate("cell_type").kind == "categorical"


def test_a_perturbation_that_is_held_out_everywhere_is_registered_unless_a_covariate(adata):
    adata.obs["drug"] = np.where(adata.obs["condition"] == "sham", "none", np.resize(["a", "b", "c"], 700))
    keys = {"pert_key": "drug", "control": "none", "cell_type_key": "cell_type", "holdout": {"drug": "c"}}
    register(adata, DataConfig(**keys))
    assert Registry.from_adata(adata).targets == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"No training cell has adata\.obs\['drug'\] = 'c'"):
        register(adata, DataConfig(**keys, covariate_keys=["drug"]))
    with pytest.raises(ValueError, match=r"No training cell has adata\.obs\['drug'\] = 'none'"):
        register(adata, DataConfig(**{**keys, "holdout": {"drug": "none"}}))


RULES = [
    {},
    {"split": ZEROSHOT},
    {"split": ZEROSHOT, "zeroshot_controls": "train"},
    {"split": {**WOUND, "fewshot": {"wound.fibroblast": {"val": ["burn"]}, "wound.monocyte": {"test": ["burn"]}}}},
    {"holdout": {"cell_type": ["macrophage", "T cell"]}},
    {"holdout": {"cell_type": "macrophage"}, "zeroshot_controls": "train"},
    {"holdout": {"cell_type": "macrophage", "condition": "burn"}, "val_size": 0.3},
]


@pytest.mark.parametrize("rules", RULES)
def test_no_test_cell_can_be_drawn_into_a_set(adata, setup, make_st, rules):
    ssl.STTransition.setup_anndata(adata, **setup, **rules)
    split = adata.obs["scstate_split"].to_numpy()
    control = (adata.obs["condition"] == "sham").to_numpy()
    assert (split == "test").any()
    cells = BoundData(make_st(adata).registry, adata)
    for by in (None, ["cell_type"]):
        groups = split_groups(cells, "train", min_cells=2, by=by)
        assert groups
        for group in groups:
            assert set(split[group.control]) == set(split[group.perturbed]) == {"train"}
            assert control[group.control].all()
            assert not control[group.perturbed].any()
    groups = split_groups(cells, "val", min_cells=2)
    assert groups
    for group in groups:
        assert set(split[group.control]) <= {"train", "val"}
        assert set(split[group.perturbed]) == {"val"}
        assert control[group.control].all()
        assert adata.obs["cell_type"].iloc[[*group.control, *group.perturbed]].nunique() == 1


def _scrambled(adata, cells):
    """Copy of the data whose given cells hold their counts in other genes."""
    changed = adata.copy()
    values = changed.X.toarray()
    values[cells] = values[cells][:, np.random.default_rng(7).permutation(values.shape[1])]
    changed.X = sparse.csr_matrix(values)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("controls", ["held_out", "train"])
def test_what_test_cells_hold_changes_nothing_of_a_training(wound, setup, make_st, make_se, controls, same_training):
    keys = {**setup, "split": ZEROSHOT, "zeroshot_controls": controls}
    plain = wound[:350].copy()
    ssl.STTransition.setup_anndata(plain, **keys)
    test = (plain.obs["scstate_split"] == "test").to_numpy()
    zeroshot_controls = ((plain.obs["cell_type"] == "macrophage") & (plain.obs["condition"] == "sham")).to_numpy()
    assert test[zeroshot_controls].all() == (controls == "held_out")

    def train(adata):
        ssl.STTransition.setup_anndata(adata, **keys)
        models = make_st(adata), make_se(adata)
        for model in models:
            model.train(max_epochs=1, **QUICK)
        return [(model.network, model.history) for model in models]

    trained = train(plain)
    for one, other in zip(trained, train(_scrambled(plain, test)), strict=True):
        same_training(one, other, tolerance=0)
    if controls == "train":  # the same change of these cells is seen, or the comparison above would say nothing
        _, other = train(_scrambled(plain, zeroshot_controls))
        with pytest.raises(AssertionError):
            same_training(trained[1], other)


def test_failure_keeps_the_earlier_set_up_raises(adata, setup):
    ssl.setup_anndata(adata, **setup)
    registry, split = adata.uns["scstate_lora"]["registry"], adata.obs["scstate_split"].copy()
    rules = adata.uns["scstate_lora"]["split"]["rules"]
    with pytest.raises(FileNotFoundError):
        ssl.setup_anndata(adata, **{**setup, "covariate_keys": ["timepoint"]}, seed=5, base="no/such/folder")
    assert adata.uns["scstate_lora"]["registry"] == registry
    assert adata.uns["scstate_lora"]["split"]["rules"] == rules
    assert (adata.obs["scstate_split"] == split).all()


def test_unknown_argument_suggests_the_right_one_raises(adata, wound):
    with pytest.raises(
        TypeError, match=r"setup_anndata\(\) has no argument 'covariate_key'. Did you mean 'covariate_keys'"
    ):
        ssl.STTransition.setup_anndata(adata, covariate_key=["condition"])
    _untouched(adata, wound)


def test_what_is_no_anndata_raises(wound, setup):
    with pytest.raises(TypeError, match="Expected an AnnData or a MuData, found ndarray"):
        ssl.setup_anndata(np.zeros((3, 3)), **setup)
    with pytest.raises(TypeError, match="Expected an AnnData, found str"):
        ssl.LoRACovariateSE("cells.h5ad")
    with pytest.raises(KeyError, match=r"not set up. Run ssl\.setup_anndata"):
        ssl.LoRACovariateSE(wound.copy())


def test_too_few_cells_without_contexts_raises(adata, setup):
    few = adata[:12].copy()
    ssl.STTransition.setup_anndata(few, pert_key="condition", control="sham")
    with pytest.raises(ValueError, match=r"There are not 5 control and 5 perturbed training cells\. Use more cells"):
        ssl.STTransition(few)


def test_one_modality_of_a_mudata(wound, setup, make_se):
    import mudata

    rna = wound.copy()
    protein = ad.AnnData(np.ones((700, 3), dtype=np.float32), obs=wound.obs[[]])
    with mudata_without_pull():
        mdata = mudata.MuData({"rna": rna, "protein": protein})
    with pytest.raises(ValueError, match=r"A MuData needs modality=, one of \['rna', 'protein'\]"):
        ssl.setup_anndata(mdata, **setup)
    with pytest.raises(KeyError, match=r"no modality 'rma'. Did you mean 'rna'"):
        ssl.setup_anndata(mdata, **setup, modality="rma")
    assert "scstate_split" not in rna.obs
    models = ssl.setup_anndata(mdata, **setup, modality="rna")
    assert models.se.adata is mdata.mod["rna"]
    assert "scstate_split" in mdata.mod["rna"].obs
    assert "scstate_lora" not in protein.uns
    with pytest.raises(TypeError, match="Expected an AnnData, found MuData"):
        make_se(mdata)


def test_a_configuration_sets_up_what_the_arguments_do(adata):
    adata.obs["dose"] = np.random.default_rng(0).normal(size=700)
    adata.obs.loc[adata.obs_names[:9], "dose"] = np.nan
    adata.obs["minutes"] = np.where(adata.obs["condition"] == "sham", 0.0, 5.0)
    adata.obsm["X_mine"] = np.random.default_rng(1).normal(size=(700, 4))
    dose = {"type": "continuous", "allow_missing": True, "continuous_encoder": {"hidden_dim": 4, "activation": "relu"}}
    config = DataConfig.parse(
        {
            "covariates": [{"name": "time_days", "type": "categorical", "num_categories": 3}, {"name": "dose", **dose}],
            "pert_key": "minutes",
            "control": 0,
            "context_keys": "cell_type",
            "embed_key": "X_mine",
            "holdout": {"time_days": [19], "cell_type": "macrophage"},
        },
        name="run.yaml",
    )
    registry = register(adata, config).registry
    assert registry.covariate("dose").hidden_dim == 4
    assert registry.covariate("time_days").categories == ("10", "14", "19")
    assert (registry.control, registry.targets, registry.embed_width) == ("0", ["5"], 4)
    held_out = (adata.obs["scstate_split"] == "test").to_numpy()
    expected = (adata.obs["time_days"] == 19) & (adata.obs["cell_type"] == "macrophage")
    assert (held_out == expected.to_numpy()).all()
    assert np.isnan(BoundData(registry, adata).encode()["dose"]).sum() == 9


def test_a_batch_alone_is_registered(adata):
    ssl.LoRACovariateSE.setup_anndata(adata, batch_key="mouse_id")
    registry = Registry.from_adata(adata)
    assert (registry.covariates, registry.context_keys) == ((), [])
    assert registry.batch.categories == tuple(sorted(adata.obs["mouse_id"].unique()))


def test_numbers_without_a_training_cell_raises(adata, wound):
    later = (adata.obs["timepoint"] == "day19").to_numpy()
    adata.obs["dose"] = np.where(later, np.arange(700), np.nan)
    adata.obs["mine"] = np.where(later, "test", "train")
    dose = {"name": "dose", "allow_missing": True}
    with pytest.raises(ValueError, match=r"adata\.obs\['dose'\] is missing in all training cells"):
        ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition", dose], split_key="mine")
    assert dict(adata.uns) == {}


@pytest.mark.parametrize("key", ["pert_key", "cell_type_key", "batch_key"])
def test_missing_values_that_no_declaration_allows_raises(adata, setup, key):
    adata.obs["mine"] = adata.obs[setup.get(key, "mouse_id")].astype(object).where(np.arange(700) > 3)
    keys = {**setup, key: "mine", "covariate_keys": {"timepoint": None, "mine": {"allow_missing": True}}}
    with pytest.raises(ValueError, match=r"adata\.obs\['mine'\] has 4 missing values of 700\..*notna\(\)\]\.$"):
        ssl.STTransition.setup_anndata(adata, **keys)


def test_missing_values_form_a_context(adata, setup):
    adata.obs["site"] = np.where(np.arange(700) % 3, "a", "b")
    adata.obs.loc[adata.obs_names[::2], "site"] = None
    site = {"name": "site", "allow_missing": True, "num_categories": 2}
    keys = {**setup, "covariate_keys": ["condition", site], "context_keys": "site"}
    ssl.STTransition.setup_anndata(adata, **keys)
    registry = Registry.from_adata(adata)
    assert set(BoundData(registry, adata).contexts) == {"a", "b", "(missing)"}
    assert (BoundData(registry, adata).encode()["site"][::2] == 2).all()


@pytest.fixture
def two_modalities(wound):
    """RNA without the mouse and the cell type; proteins of 690 of the cells, in another order, with the mouse."""
    import mudata

    order = np.random.default_rng(1).permutation(700)[:690]
    values = np.random.default_rng(2).normal(size=(690, 2)).astype(np.float32)
    protein = ad.AnnData(values, obs=wound.obs[["mouse_id"]].iloc[order], var=pd.DataFrame(index=["CD3", "CD4"]))
    rna = wound.copy()
    del rna.obs["mouse_id"], rna.obs["cell_type"]
    with mudata_without_pull():
        mdata = mudata.MuData({"rna": rna, "prot": protein})
    mdata.obs["cell_type"] = wound.obs["cell_type"].astype(str).reindex(mdata.obs_names)
    return mdata


def test_covariates_of_other_modalities_are_copied_to_the_one_set_up(wound, two_modalities, trained, make_se, tmp_path):
    rna = two_modalities["rna"]
    covariates = {
        "condition": None,
        "prot:mouse_id": {"allow_missing": True},
        "prot:CD4": {"allow_missing": True, "embed_dim": 8},
    }
    keys = {"pert_key": "condition", "control": "sham", "cell_type_key": "cell_type", "context_keys": "cell_type"}
    keys["holdout"] = {"cell_type": "macrophage", "timepoint": "day10"}
    ssl.LoRACovariateSE.setup_anndata(two_modalities, covariate_keys=covariates, modality="rna", **keys)
    registry = Registry.from_adata(rna)
    assert [(c.name, c.kind, c.allow_missing) for c in registry.covariates] == [
        ("condition", "categorical", False),
        ("prot:mouse_id", "categorical", True),
        ("prot:CD4", "continuous", True),
    ]
    assert rna.obs["prot:CD4"].isna().sum() == rna.obs["prot:mouse_id"].isna().sum() == 10
    known = rna.obs["prot:mouse_id"].notna().to_numpy()
    assert (rna.obs["prot:mouse_id"][known].astype(str) == wound.obs["mouse_id"][known].astype(str)).all()
    assert (rna.obs["cell_type"].astype(str) == wound.obs["cell_type"].astype(str)).all()
    rna.write_h5ad(tmp_path / "rna.h5ad")
    read = ad.read_h5ad(tmp_path / "rna.h5ad")
    se = make_se(read, base=trained[1].base)
    se.train(max_epochs=1, **QUICK)
    embedding = se.get_latent_representation()
    assert np.isfinite(embedding).all()
    assert np.abs(se.get_latent_representation(covariates={"prot:CD4": None}, key_added=None) - embedding).max() > 0


@pytest.mark.parametrize(
    ("covariates", "error", "message"),
    [
        (["condition", "prto:mouse_id"], KeyError, r"'prto:mouse_id': the MuData has no modality 'prto'.*'prot'"),
        (["condition", "prot:mouse"], KeyError, r"mdata\['prot'\]\.obs has no column 'mouse'.*'mouse_id'"),
        (
            ["condition", "prot:CD4"],
            ValueError,
            r"adata\.obs\['prot:CD4'\] has 10 missing values of 700.*allow_missing",
        ),
        (["condition", {"name": "prot:CD4", "allow_missing": True}, "nope"], KeyError, r"adata\.obs\['nope'\]"),
    ],
)
def test_unusable_columns_of_other_modalities_write_nothing_raises(two_modalities, covariates, error, message):
    before = two_modalities["rna"].obs.copy()
    with pytest.raises(error, match=message):
        ssl.STTransition.setup_anndata(two_modalities, covariate_keys=covariates, modality="rna")
    pd.testing.assert_frame_equal(two_modalities["rna"].obs, before)
    assert dict(two_modalities["rna"].uns) == {}


def test_a_failure_after_the_set_up_takes_copied_columns_out_again_raises(two_modalities):
    before = two_modalities["rna"].obs.copy()
    covariates = ["condition", {"name": "prot:CD4", "allow_missing": True}]
    with pytest.raises(FileNotFoundError):
        ssl.setup_anndata(two_modalities, covariate_keys=covariates, modality="rna", base="no/such/folder")
    pd.testing.assert_frame_equal(two_modalities["rna"].obs, before)
    assert dict(two_modalities["rna"].uns) == {}


def test_a_colon_in_a_key_of_an_anndata(adata):
    with pytest.raises(KeyError, match=r"adata\.obs\['prot:donor'\] does not exist.*set up the MuData itself"):
        ssl.setup_anndata(adata, covariate_keys="prot:donor")
    adata.obs["prot:donor"] = np.where(np.arange(700) % 2, "a", "b")
    ssl.STTransition.setup_anndata(adata, covariate_keys="prot:donor")
    assert Registry.from_adata(adata).covariates[0].categories == ("a", "b")


@pytest.mark.parametrize("kind", ["dense", "csc", "int", "float64", "layer"])
def test_any_kind_of_matrix_is_read_alike_and_left_alone(wound, setup, make_se, trained, fingerprint, kind):
    counts = wound.X.astype(np.float32)
    stored = {
        "dense": counts.toarray(),
        "csc": sparse.csc_matrix(counts),
        "int": counts.astype(np.int32),
        "float64": counts.astype(np.float64),
        "layer": counts,
    }[kind]
    adata = wound.copy()
    if kind == "layer":
        adata.X = np.zeros(adata.shape, dtype=np.float32)
        adata.layers["counts"] = stored
    else:
        adata.X = stored
    before = fingerprint(adata.X), {name: fingerprint(layer) for name, layer in adata.layers.items()}
    ssl.setup_anndata(adata, **setup, layer="counts" if kind == "layer" else None)
    _, reference, _ = trained
    model = make_se(adata, base=reference.base)
    model.train(max_epochs=1, **QUICK)
    model.get_latent_representation()
    np.testing.assert_array_equal(
        adata.obsm["X_scstate_base"], reference.base.embed(BoundData(reference.registry, trained[0]))
    )
    assert (fingerprint(adata.X), {name: fingerprint(layer) for name, layer in adata.layers.items()}) == before


def test_a_view_is_set_up_without_touching_its_parent(wound, setup, make_se):
    parent = wound.copy()
    view = parent[:500]
    with pytest.warns(UserWarning, match="view"):
        ssl.setup_anndata(view, **setup)
    model = make_se(view)
    model.train(max_epochs=1, **QUICK)
    assert model.get_latent_representation().shape == (500, 16)
    _untouched(parent, wound)


@pytest.mark.slow  # trains
@pytest.mark.parametrize("dense", [False, True])
def test_a_backed_file_is_set_up_trained_and_embedded(wound, setup, make_se, make_st, tmp_path, dense):
    cells = wound.copy()
    if dense:
        cells.X = cells.X.toarray()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    size = (tmp_path / "cells.h5ad").read_bytes()
    backed, memory = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"), cells
    embeddings, predictions = [], []
    for adata in (backed, memory):
        ssl.setup_anndata(adata, **setup)
        se, st = make_se(adata), make_st(adata)
        se.train(max_epochs=1, **QUICK)
        st.train(max_epochs=1, **QUICK)
        embeddings.append(se.get_latent_representation())
        predictions.append(st.predict(target="burn").X)
    assert backed.isbacked
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    np.testing.assert_array_equal(predictions[0], predictions[1])
    np.testing.assert_array_equal(backed.obsm["X_scstate_lora"], embeddings[0])
    backed.file.close()
    assert (tmp_path / "cells.h5ad").read_bytes() == size


def test_log_values_are_taken_as_they_are(wound, setup, make_se, make_st):
    import scanpy as sc

    adata = wound.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    ssl.setup_anndata(adata, **setup)
    se, st = make_se(adata), make_st(adata)
    assert se.registry.scale == "log1p"
    np.testing.assert_array_equal(BoundData(se.registry, adata).logged.toarray(), adata.X.toarray())
    se.train(max_epochs=1, **QUICK)
    st.train(max_epochs=1, **QUICK)
    assert np.isfinite(se.get_latent_representation()).all()
    predicted = st.predict(target="burn")
    assert predicted.X.max() < 12
    assert predicted.X.min() >= 0


def test_all_results_survive_the_file(trained, tmp_path):
    adata, se, st = trained
    adata = adata.copy()
    se.get_latent_representation(adata)
    st.get_latent_representation(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert Registry.from_adata(read) == se.registry
    for key in ("X_scstate_lora", "X_scstate_base", "X_scstate_st"):
        np.testing.assert_array_equal(read.obsm[key], adata.obsm[key])
    table = ssl.tl.evaluate(read)
    assert {"X_scstate_lora", "X_scstate_base", "PCA"} <= set(table["embedding"])
    assert (table["reason"] == "").all()
    predicted = st.predict(target="burn")
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    again = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert again.uns["scstate_lora"]["predict"]["scale"] == "log1p_cp10k"
    np.testing.assert_array_equal(again.X, predicted.X)


def test_of_many_groups_the_log_shows_the_first_and_says_where_the_others_are(adata, setup, caplog):
    ssl.LoRACovariateSE.setup_anndata(adata, **{**setup, "context_keys": ["cell_type", "timepoint"]})
    n = len(adata.uns["scstate_lora"]["split"]["table"])
    assert n > 20
    assert f"... and {n - 20} more groups, all in adata.uns['scstate_lora']['split']['table']" in caplog.text
    ssl.LoRACovariateSE.setup_anndata(adata, **{**setup, "context_keys": []})
    assert caplog.text.count("more groups") == 1
