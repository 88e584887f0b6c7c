from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.split_files import FewShot, SplitFile
from scstate_lora.data.splits import SplitRules, make_split

PUBLISHED = """
# As cell-load's documentation writes it.
[datasets]
replogle = "/path/to/replogle/"
jurkat = "/path/to/jurkat/"

[training]
replogle = "train"
jurkat = "train"

[zeroshot]
"replogle.jurkat" = "test"
"jurkat.rpe1" = "val"

[fewshot]

[fewshot."replogle.rpe1"]
val = ["AARS"]
test = ["AARS", "NUP107"]

[fewshot."jurkat.k562"]
val = ["A", "B"]
test = ["C"]
"""
ONE = """
[datasets]
mine = "mine.h5ad"
[training]
mine = "train"
"""


@pytest.fixture
def adata():
    """Three cell types x control and four perturbations, 10 cells each; "C" has no cells of drug "d4"."""
    obs = pd.MultiIndex.from_product([["A", "B.1", "C"], ["dmso", "d1", "d2", "d3", "4"]], names=["type", "drug"])
    obs = obs.repeat(10).to_frame(index=False)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["drug"] = pd.Categorical(obs["drug"])
    cells = ad.AnnData(np.random.default_rng(0).poisson(2.0, (150, 6)).astype(np.float32), obs=obs)
    return cells[~((cells.obs["type"] == "C") & (cells.obs["drug"] == "4"))].copy()


@pytest.fixture
def registry(adata):
    return Registry.create(adata, DataConfig(pert_key="drug", control="dmso", cell_type_key="type"))


@pytest.fixture
def write(tmp_path):
    """Write a split file and return its path."""

    def to_file(text, name="split.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return to_file


def _split(adata, registry, sections, *, seed=0, **rules):
    config = DataConfig(split=sections, **{"val_size": 0, **rules})
    return make_split(BoundData(registry, adata), SplitRules.of(config, seed=seed))


def test_a_published_file_is_read(write):
    file = SplitFile.read(write(PUBLISHED))
    assert file.datasets == {"replogle": "/path/to/replogle/", "jurkat": "/path/to/jurkat/"}
    assert file.training == {"replogle": "train", "jurkat": "train"}
    assert file.zeroshot == {"replogle.jurkat": "test", "jurkat.rpe1": "val"}
    assert file.fewshot["replogle.rpe1"] == FewShot(val=("AARS",), test=("AARS", "NUP107"))
    assert file.rules("jurkat") == ({"rpe1": "val"}, {"k562": FewShot(val=("A", "B"), test=("C",))})


def test_paths_split_files_and_sections_are_equivalent(write, monkeypatch):
    path = write(PUBLISHED)
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    read = SplitFile.of(path)
    assert SplitFile.of(read) is read
    for path_like in ("split.toml", Path("split.toml"), str(path), "~/split.toml"):
        assert SplitFile.of(path_like).source == str(path_like)
        assert SplitFile.of(path_like).model_dump() == read.model_dump()
    assert SplitFile.of(read.model_dump()).model_dump() == read.model_dump()
    assert SplitFile.of(read.model_dump()).source == "split"
    write("\ufeff" + PUBLISHED, "windows.toml")
    assert SplitFile.of("windows.toml").model_dump() == read.model_dump()


def test_cell_types_are_held_out_entirely_with_their_controls(adata, registry, write):
    path = write(ONE + '[zeroshot]\n"mine.B.1" = "test"\n"mine.C" = "val"')
    expected = adata.obs["type"].map({"A": "train", "B.1": "test", "C": "val"})
    assert (_split(adata, registry, path, val_size=0.5) == expected).all()


def test_controls_of_held_out_cell_types_train_if_requested(adata, registry, write):
    path = write(ONE + '[zeroshot]\n"mine.B.1" = "test"\n"mine.C" = "val"')
    expected = adata.obs["type"].map({"A": "train", "B.1": "test", "C": "val"})
    expected = expected.where(adata.obs["drug"] != "dmso", "train")
    assert (_split(adata, registry, path, zeroshot_controls="train") == expected).all()


def test_some_perturbations_of_a_cell_type_are_held_out(adata, registry, write):
    path = write(ONE + '[fewshot."mine.B.1"]\nval = ["d1"]\ntest = ["d3", 4]')
    few = adata.obs["drug"].map({"dmso": "train", "d1": "val", "d2": "train", "d3": "test", "4": "test"})
    expected = few.astype(str).where(adata.obs["type"] == "B.1", "train")
    for controls in ("held_out", "train"):
        split = _split(adata, registry, path, zeroshot_controls=controls, val_size=0.5)
        assert (split == expected).all()


def test_both_sections_at_once(adata, registry):
    split = _split(
        adata,
        registry,
        {
            "datasets": {"mine": ""},
            "training": {"mine": "train"},
            "zeroshot": {"mine.A": "test"},
            "fewshot": {"mine.C": {"test": ["d2"]}},
        },
    )
    expected = (adata.obs["type"] == "A") | ((adata.obs["type"] == "C") & (adata.obs["drug"] == "d2"))
    assert ((split == "test") == expected).all()


def test_validation_is_sampled_from_the_training_cells_if_the_file_names_none(adata, registry, write):
    path = write(ONE + '[zeroshot]\n"mine.B.1" = "test"')
    split = _split(adata, registry, path, val_size=0.2)
    assert ((split == "test") == (adata.obs["type"] == "B.1")).all()
    assert (split == "val").sum() == 18  # of 90
    assert (split == _split(adata, registry, path, val_size=0.2)).all()
    assert (split != _split(adata, registry, path, val_size=0.2, seed=1)).any()


def test_a_file_that_holds_nothing_out(adata, registry, write):
    assert (_split(adata, registry, write(ONE)) == "train").all()
    without = Registry.create(adata, DataConfig())
    assert (_split(adata, without, write(ONE)) == "train").all()


def test_a_perturbation_in_val_and_test_is_for_testing_only_and_warns(adata, registry, write):
    path = write(ONE + '[fewshot."mine.A"]\nval = ["d1", "d2"]\ntest = ["d1", "d3"]')
    with pytest.warns(UserWarning, match=r"\[fewshot\.\"mine\.A\"\]: 'd1' in both val and test; used for testing only"):
        split = _split(adata, registry, path)
    cells = adata.obs["type"] == "A"
    assert ((split == "test") == (cells & adata.obs["drug"].isin(["d1", "d3"]))).all()
    assert ((split == "val") == (cells & (adata.obs["drug"] == "d2"))).all()


def test_a_perturbation_without_cells_in_its_cell_type_warns(adata, registry, write):
    path = write(ONE + '[fewshot."mine.C"]\ntest = ["4", "d1"]')
    with pytest.warns(UserWarning, match=r"\[fewshot\.\"mine\.C\"\]: no cell of this cell type has '4'"):
        split = _split(adata, registry, path)
    assert ((split == "test") == ((adata.obs["type"] == "C") & (adata.obs["drug"] == "d1"))).all()


def test_one_of_several_datasets_must_be_named(adata, registry, write):
    path = write(
        PUBLISHED.replace("jurkat.rpe1", "jurkat.A")
        .replace('"jurkat.k562"', '"jurkat.C"')
        .replace('val = ["A", "B"]\ntest = ["C"]', 'test = ["d1"]')
    )
    with pytest.raises(
        ValueError, match=r"split\.toml splits 2 datasets \('replogle', 'jurkat'\).*split_dataset='repl"
    ):
        _split(adata, registry, path)
    with pytest.raises(
        ValueError, match=r"split_dataset='jurkatt' is not in .*split\.toml, \[datasets\]. Did you mean"
    ):
        _split(adata, registry, path, split_dataset="jurkatt")
    split = _split(adata, registry, path, split_dataset="jurkat")
    assert ((split == "val") == (adata.obs["type"] == "A")).all()
    assert ((split == "test") == ((adata.obs["type"] == "C") & (adata.obs["drug"] == "d1"))).all()


def test_a_dataset_listed_but_not_split_does_not_make_several(adata, registry, write):
    path = write(ONE.replace("[training]", 'other = "other.h5ad"\n[training]') + '[zeroshot]\n"mine.A" = "test"')
    assert ((_split(adata, registry, path) == "test") == (adata.obs["type"] == "A")).all()
    with pytest.raises(
        ValueError, match=r"\[training\], does not list 'other', so cells of 3 cell types belong to no split"
    ):
        _split(adata, registry, path, split_dataset="other")


def test_a_dataset_that_does_not_train_needs_a_rule_for_every_cell_type(adata, registry, write):
    text = ONE.replace('[training]\nmine = "train"', "") + '[zeroshot]\n"mine.A" = "test"\n"mine.C" = "val"\n'
    with pytest.raises(ValueError, match=r"does not list 'mine', so cells of 1 cell types belong to no split: 'B\.1'"):
        _split(adata, registry, write(text))
    split = _split(adata, registry, write(text + '[fewshot."mine.B.1"]\ntest = ["d1"]'))
    assert set(split[adata.obs["type"] == "B.1"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[zero_shot]\n"mine.A" = "test"',
            r"a split file has no section \[zero_shot\]. Did you mean 'zeroshot'",
        ),
        ("seed = 3", r"no section \[seed\].*'datasets', 'training', 'zeroshot', 'fewshot'"),
        ("zeroshot = 3", r"zeroshot = 3 is not a section. Write \[zeroshot\], and below it \"mine"),
        ('[zeroshot]\n"mine.A" = "tset"', r"\[zeroshot\] \"mine\.A\" = 'tset' is not allowed.*Did you mean 'test'"),
        ('[zeroshot]\n"mine.A" = "train"', "held out for val or test"),
        ('[zeroshot]\nmine.A = "test"', r"\[zeroshot\] has the key 'mine'; .* in quotes: \"mine\.A\""),
        ('[zeroshot]\nA = "test"', r"\[zeroshot\] has the key 'A'; .* in quotes: \"A\.cell type\""),
        ('[zeroshot]\n"mien.A" = "test"', r"\[zeroshot\] names the dataset 'mien', which \[datasets\].*mean 'mine'"),
        ('[fewshot.mine.A]\ntest = ["d1"]', r"\[fewshot\] has the key 'mine'; .* in quotes: \"mine\.A\""),
        ('[fewshot."mien.A"]\ntest = ["d1"]', r"\[fewshot\] names the dataset 'mien'"),
        ('[fewshot."mine.A"]\ntests = ["d1"]', r"\[fewshot\.\"mine\.A\"\] holds 'tests'.*Did you mean 'test'"),
        ('[fewshot."mine.A"]\ntest = "d1"', r"\[fewshot\.\"mine\.A\"\] test = 'd1' is not a list of perturbations"),
        ('[fewshot."mine.A"]\ntest = [["d1"]]', r"is not a list of perturbations"),
        ('[fewshot]\n"mine.A" = "test"', r"\[fewshot\.\"mine\.A\"\] must hold val = .* found 'test'"),
        (
            '[zeroshot]\n"mine.A" = "val"\n[fewshot."mine.A"]\ntest = ["d1"]',
            r"'mine\.A' is in both \[zeroshot\]",
        ),
        ('[zeroshot]\n"mine.A" = "val"\n"mine.A" = "test"', "cannot be read as TOML: Cannot overwrite a value"),
        ("[zeroshot", "cannot be read as TOML"),
        ('[zeroshot]\n"mine.D" = "test"', r"\[zeroshot\], names \"mine\.D\", but 'D' is not in adata\.obs\['type'\]"),
        ('[zeroshot]\n"mine.B1" = "test"', r"'B1' is not in adata\.obs\['type'\]. Did you mean 'B\.1'"),
        ('[fewshot."mine.B1"]\ntest = ["d1"]', r"\[fewshot\], names \"mine\.B1\".*Did you mean 'B\.1'"),
        (
            '[fewshot."mine.A"]\ntest = ["d1", "D22", "d9"]',
            r"\[fewshot\.\"mine\.A\"\], names 'D22', which is not in adata\.obs\['drug'\]. 2 of its 3 names.*'d2'",
        ),
        ('[fewshot."mine.A"]\ntest = ["dmso"]', r"\[fewshot\.\"mine\.A\"\], names the control 'dmso'.*training"),
        ('[zeroshot]\n"mine.A"="test"\n"mine.B.1"="val"\n"mine.C"="test"', "leaves no cell for training"),
    ],
)
def test_unusable_file_raises(adata, registry, write, text, message):
    path = write(ONE + text if "[" in text else text + ONE)
    with pytest.raises(ValueError, match=rf"(?s)split\.toml.*{message}"):
        _split(adata, registry, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[datasets]\nmine = 3", r"\[datasets\] mine = 3 is not a path"),
        ('[datasets]\nmine = ""\n[training]\nmine = "test"', r"\[training\] mine = 'test' is not allowed"),
        ('[datasets]\nmine = ""\n[training]\nmien = "train"', r"\[training\] names the dataset 'mien'.*mean 'mine'"),
        ('[training]\nmine = "train"', r"\[datasets\] does not list. None are available"),
        ('[datasets]\nmine = ""', "splits nothing"),
        ("", "splits nothing"),
    ],
)
def test_unusable_datasets_raises(adata, registry, write, text, message):
    with pytest.raises(ValueError, match=rf"split\.toml.*{message}"):
        _split(adata, registry, write(text))


def test_columns_that_the_file_needs_raises(adata, write):
    zeroshot = write(ONE + '[zeroshot]\n"mine.A" = "test"')
    fewshot = write(ONE + '[fewshot."mine.A"]\ntest = ["d1"]', "few.toml")
    with pytest.raises(
        ValueError, match=r"split\.toml holds out cell types. Name their column of adata\.obs: cell_type_"
    ):
        _split(adata, Registry.create(adata, DataConfig(pert_key="drug", control="dmso")), zeroshot)
    without = Registry.create(adata, DataConfig(cell_type_key="type"))
    with pytest.raises(
        ValueError, match=r"few\.toml, \[fewshot\], holds out perturbations. Name their column.*pert_key="
    ):
        _split(adata, without, fewshot)
    assert ((_split(adata, without, zeroshot) == "test") == (adata.obs["type"] == "A")).all()


def test_unreadable_file_raises(write):
    path = write(ONE, "zeroshot.toml")
    with pytest.raises(
        FileNotFoundError, match=r"The split file .*zeroshto\.toml does not exist. Did you mean 'zeroshot\.toml'"
    ):
        SplitFile.of(path.parent / "zeroshto.toml")
    with pytest.raises(ValueError, match="is a folder; a split file is a TOML file"):
        SplitFile.of(path.parent)
    with pytest.raises(TypeError, match=r"split must be the path to a TOML file, .* found 3"):
        SplitFile.of(3)
    (path.parent / "cells.h5ad").write_bytes(b"\x89HDF\r\n\xff")
    with pytest.raises(ValueError, match=r"cells\.h5ad cannot be read as TOML"):
        SplitFile.of(path.parent / "cells.h5ad")
