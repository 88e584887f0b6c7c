from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.split_column import read_split, write_split
from scstate_lora.data.splits import SplitRules, make_split, split_table, write_split_table


@pytest.fixture
def registry(adata):
    return Registry.create(adata, DataConfig(pert_key="condition", control="sham", cell_type_key="cell_type"))


def _rules(*, seed=0, **options):
    return SplitRules.of(DataConfig.parse(options, name="options"), seed=seed)


def _split(adata, registry, **rules):
    return make_split(BoundData(registry, adata), _rules(**rules))


def _large(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "cell_type": rng.choice(["B", "T", "rare"], n, p=[0.5, 0.495, 0.005]),
            "condition": rng.choice(["sham", "burn"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    adata = ad.AnnData(rng.poisson(1.0, (n, 3)).astype(np.float32), obs=obs)
    return adata, Registry.create(adata, DataConfig(pert_key="condition", control="sham", cell_type_key="cell_type"))


def test_random_split_is_stratified():
    adata, registry = _large()
    split = _split(adata, registry, seed=1)
    assert set(split) == {"train", "val", "test"}
    assert (split == "test").mean() == pytest.approx(0.2, abs=0.005)
    assert (split == "val").mean() == pytest.approx(0.08, abs=0.005)
    for _, rows in adata.obs.reset_index().groupby(["cell_type", "condition"]).indices.items():
        assert abs((split[rows] == "test").sum() - 0.2 * len(rows)) < 1
        assert (split[rows] == "train").any()


def test_split_is_the_same_for_a_seed():
    adata, registry = _large()
    split = _split(adata, registry, seed=1)
    assert (split == _split(adata, registry, seed=1)).all()
    assert (split != _split(adata, registry, seed=2)).any()


@pytest.mark.parametrize("size", [0.5, 0.99])
def test_every_stratum_keeps_a_training_cell(adata, registry, size):
    strata = BoundData(registry, adata).contexts + BoundData(registry, adata).labels("condition")
    for seed in range(5):
        split = _split(adata, registry, test_size=size, val_size=size, seed=seed)
        assert set(strata[split == "train"]) == set(strata)


def test_no_shares_leave_everything_to_training(adata, registry):
    assert (_split(adata, registry, test_size=0, val_size=0) == "train").all()


def test_without_perturbation_or_contexts(adata):
    split = _split(adata, Registry.create(adata, DataConfig()), test_size=0.25, val_size=0)
    assert (split == "test").sum() == 12


def test_holdout_of_one_condition(adata, registry):
    held = (adata.obs["cell_type"] == "B") & (adata.obs["condition"] == "burn")
    split = _split(adata, registry, holdout={"cell_type": "B", "condition": "burn"})
    assert ((split == "test") == held).all()
    assert (split == "val").any()


def test_holdout_of_several_conditions_numbers_and_lists(adata, registry):
    split = _split(adata, registry, holdout=[{"day": 10.0, "cell_type": "T"}, {"day": "19", "condition": "burn"}])
    day, obs = adata.obs["day"], adata.obs
    expected = ((day == 10) & (obs["cell_type"] == "T")) | ((day == 19) & (obs["condition"] == "burn"))
    assert ((split == "test") == expected).all()
    split = _split(adata, registry, holdout={"day": [10, 14]})
    assert ((split == "test") == day.isin([10, 14])).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"holdout": {"cell_type": "NK"}},
            ValueError,
            r"holdout names 'NK', which is not in adata\.obs\['cell_type'\]",
        ),
        ({"holdout": {"day": [10, 11]}}, ValueError, "holdout names '11'"),
        (
            {"holdout": {"celltype": "B"}},
            KeyError,
            r"adata\.obs\['celltype'\] does not exist. Did you mean 'cell_type'",
        ),
        ({"holdout": {}}, ValueError, r"holdout: must be mappings from a column to a value"),
        ({"holdout": ["B"]}, ValueError, r"holdout: must be mappings .* found \['B'\]"),
        ({"holdout": "B"}, ValueError, r"holdout: must be mappings .* found 'B'"),
        (
            {"holdout": [{"condition": "sham"}, {"condition": "burn"}]},
            ValueError,
            "holdout= leaves no cell for training",
        ),
        ({"holdout": {"day": 10}, "split_key": "s"}, ValueError, "Give one of them"),
        ({"test_size": 1}, ValueError, "test_size=1 is not allowed: Input should be less than 1"),
        ({"val_size": -0.1}, ValueError, r"val_size=-0\.1 is not allowed"),
        ({"val_size": np.nan}, ValueError, "val_size=nan is not allowed"),
        ({"holdout": {"day": 10}, "split": {}}, ValueError, "holdout= and split= both say which cells are held out"),
        ({"split_key": "s", "split": "no.toml"}, ValueError, "split_key= and split= both say"),
        ({"split": "no.toml"}, FileNotFoundError, r"The split file no\.toml does not exist"),
        ({"split_dataset": "mine"}, ValueError, r"split_dataset='mine' .* Give the file: split="),
        (
            {"holdout": {"day": 10}, "zeroshot_controls": "trian"},
            ValueError,
            "zeroshot_controls='trian' is not allowed. Did you mean 'train'",
        ),
        ({"zeroshot_controls": "train"}, ValueError, "held out as a whole, by holdout= or split=. Neither is given"),
        ({"split_key": "s", "zeroshot_controls": "train"}, ValueError, "Neither is given: leave it out"),
        ({"split_key": "nope"}, KeyError, r"adata\.obs\['nope'\] does not exist"),
        (
            {"split_key": "cell_type"},
            ValueError,
            r"adata\.obs\['cell_type'\] holds 'B', 'T'; allowed are 'train'",
        ),
    ],
)
def test_unusable_argument_raises(adata, registry, arguments, error, message):
    with pytest.raises(error, match=message):
        _split(adata, registry, **arguments)


@pytest.mark.parametrize("holdout", [{"cell_type": "B"}, {"cell_type": "B", "day": [10, 14]}])
def test_controls_of_a_held_out_context_train_if_requested(adata, registry, holdout):
    held = (adata.obs["cell_type"] == "B") & adata.obs["day"].isin(holdout.get("day", [10, 14, 19]))
    control = adata.obs["condition"] == "sham"
    assert ((_split(adata, registry, holdout=holdout) == "test") == held).all()
    split = _split(adata, registry, holdout=holdout, zeroshot_controls="train")
    assert ((split == "test") == (held & ~control)).all()
    split = _split(adata, registry, holdout=holdout, zeroshot_controls="train", val_size=0)
    assert set(split[held & control]) == {"train"}


@pytest.mark.parametrize("condition", ["sham", "burn"])
def test_a_condition_that_names_the_perturbation_holds_out_exactly_it(adata, registry, condition):
    held = (adata.obs["cell_type"] == "B") & (adata.obs["condition"] == condition)
    for controls in ("held_out", "train"):
        holdout = {"cell_type": "B", "condition": condition}
        split = _split(adata, registry, holdout=holdout, zeroshot_controls=controls)
        assert ((split == "test") == held).all()


def test_controls_that_train_without_a_perturbation_raises(adata):
    registry = Registry.create(adata, DataConfig(cell_type_key="cell_type"))
    with pytest.raises(ValueError, match=r"needs control cells\. Define them: pert_key= and control="):
        _split(adata, registry, holdout={"cell_type": "B"}, zeroshot_controls="train")


def test_holdout_of_values_that_never_occur_together_raises(adata, registry):
    adata.obs["day"] = np.where(adata.obs["cell_type"] == "B", 10, 14)
    with pytest.raises(ValueError, match="matches no cell: its values never occur together"):
        _split(adata, registry, holdout={"cell_type": "B", "day": 14})


def test_split_of_a_column_is_used_as_it_is(adata, registry):
    adata.obs["s"] = pd.Categorical(np.resize(["train", "test", "train", "val"], 48))
    assert (_split(adata, registry, split_key="s") == adata.obs["s"]).all()
    adata.obs["s"] = "test"
    with pytest.raises(ValueError, match=r"adata\.obs\['s'\] leaves no cell for training"):
        _split(adata, registry, split_key="s")


def test_split_survives_the_file(adata, registry, tmp_path):
    split = _split(adata, registry)
    write_split(adata, split)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (read_split(read) == split).all()
    assert list(read.obs["scstate_split"].cat.categories) == ["train", "val", "test"]


def test_read_split_of_data_without_one_raises(adata):
    with pytest.raises(KeyError, match=r"adata\.obs\['scstate_split'\] does not exist"):
        read_split(adata)


def test_split_table_counts_every_cell_once(adata):
    # T has no burn cells: no row is made up for them.
    some = adata[~((adata.obs["cell_type"] == "T") & (adata.obs["condition"] == "burn"))].copy()
    registry = Registry.create(some, DataConfig(pert_key="condition", control="sham", cell_type_key="cell_type"))
    split = _split(some, registry, holdout={"cell_type": "B", "condition": "burn"}, val_size=0)
    write_split(some, split)
    table = split_table(BoundData(registry, some))
    assert table.columns.tolist() == ["context", "condition", "train", "val", "test"]
    assert table.to_numpy().tolist() == [["B", "burn", 0, 0, 12], ["B", "sham", 12, 0, 0], ["T", "sham", 12, 0, 0]]


def test_split_table_without_perturbation(adata):
    registry = Registry.create(adata, DataConfig())
    write_split(adata, _split(adata, registry))
    table = split_table(BoundData(registry, adata))
    assert table["context"].tolist() == ["all"]
    assert table[["train", "val", "test"]].to_numpy().sum() == 48


ZEROSHOT = {"datasets": {"mine": "mine.h5ad"}, "training": {"mine": "train"}, "zeroshot": {"mine.B": "test"}}


@pytest.mark.parametrize(
    ("rules", "source", "stored"),
    [
        ({}, "random", {"test_size": 0.2, "val_size": 0.1, "seed": 0}),
        (
            {"holdout": {"cell_type": "B", "day": [np.int64(10), 14.0]}, "seed": 3},
            "holdout=",
            {
                "holdout": [{"cell_type": "B", "day": [10, 14.0]}],
                "zeroshot_controls": "held_out",
                "val_size": 0.1,
                "seed": 3,
            },
        ),
        ({"split_key": "s"}, "adata.obs['s']", {"split_key": "s"}),
        (
            {"split": ZEROSHOT, "zeroshot_controls": "train", "val_size": 0.3},
            "split",
            {
                "dataset": "mine",
                "zeroshot": {"B": "test"},
                "fewshot": {},
                "zeroshot_controls": "train",
                "val_size": 0.3,
                "seed": 0,
            },
        ),
    ],
)
def test_table_and_rules_survive_the_file(adata, registry, tmp_path, rules, source, stored):
    adata.obs["s"] = np.resize(["train", "test", "train", "val"], 48)
    rules = _rules(**rules)
    registry.write(adata)
    write_split(adata, make_split(BoundData(registry, adata), rules))
    write_split_table(BoundData(registry, adata), rules)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert Registry.from_adata(read) == registry
    record = read.uns["scstate_lora"]["split"]
    pd.testing.assert_frame_equal(record["table"].reset_index(drop=True), split_table(BoundData(registry, adata)))
    pd.testing.assert_frame_equal(record["table"], adata.uns["scstate_lora"]["split"]["table"])
    assert record["source"] == source
    assert json.loads(record["rules"]) == stored


@pytest.mark.parametrize(
    "several",
    [tuple, set, frozenset, np.array, pd.Index, pd.Series, pd.Categorical, lambda v: dict.fromkeys(v).keys(), iter],
    ids=lambda kind: getattr(kind, "__name__", str(kind)),
)
def test_holdout_takes_values_in_any_collection(adata, registry, several):
    expected = _split(adata, registry, holdout={"day": [10, 14], "condition": "burn"})
    assert (
        _split(adata, registry, holdout={"day": several([14, 10]), "condition": several(["burn"])}) == expected
    ).all()
    rules = SplitRules.of(DataConfig(holdout={"day": several([14, 10])})).to_json()
    assert sorted(json.loads(rules)["holdout"][0]["day"]) == [10, 14]


def test_holdout_by_a_column_that_may_be_missing(adata):
    adata.obs["donor"] = np.array(["d1", "d2", None], dtype=object)[np.arange(adata.n_obs) % 3]
    registry = Registry.create(adata, DataConfig(covariate_keys={"donor": {"allow_missing": True}}))
    split = _split(adata, registry, holdout={"donor": "d1", "cell_type": "B"})
    assert ((split == "test") == ((adata.obs["donor"] == "d1") & (adata.obs["cell_type"] == "B"))).all()
    with pytest.raises(ValueError, match=r"holdout names '\(missing\)', which is not in adata\.obs\['donor'\]"):
        _split(adata, registry, holdout={"donor": "(missing)"})
    with pytest.raises(ValueError, match=r"adata\.obs\['donor'\] has 16 missing values of 48"):
        _split(adata, Registry.create(adata, DataConfig()), holdout={"donor": "d1"})


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT, [10, None], np.array([10, np.nan])])
def test_holdout_of_missing_values_raises(value):
    with pytest.raises(ValueError, match=r"holdout: day names a missing value .*match nothing.*'unknown'"):
        DataConfig.parse({"holdout": {"day": value}}, name="setup_anndata()")


@pytest.mark.parametrize("key", ["train", "val", "test", "context"])
def test_a_perturbation_with_the_name_of_another_column_has_a_table(adata, key):
    adata.obs[key] = adata.obs["condition"]
    registry = Registry.create(adata, DataConfig(pert_key=key, control="sham", cell_type_key="cell_type"))
    adata.obs["scstate_split"] = "train"
    table = split_table(BoundData(registry, adata))
    assert table.columns.tolist() == ["context", "perturbation", "train", "val", "test"]
    assert table["train"].tolist() == [12] * 4
