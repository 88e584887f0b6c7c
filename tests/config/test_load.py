from __future__ import annotations

import pytest
import yaml

from scstate_lora.config import RunConfig, load_run, to_yaml, with_overrides


def test_overrides_are_read_as_yaml_and_leave_the_input_alone():
    options = {"se": {"train": {"lr": 0.1}}, "data": {"covariate_keys": ["a"]}}
    merged = with_overrides(
        options, ["se.train.lr=1e-3", "st.model.n_genes=null", "data.covariate_keys=[a, b]", "seed=2"]
    )
    assert options == {"se": {"train": {"lr": 0.1}}, "data": {"covariate_keys": ["a"]}}
    config = RunConfig.parse(merged, name="run")
    assert config.se.train.lr == 1e-3  # YAML takes 1e-3 for a string; the option's type settles it
    assert config.st.model.n_genes is None
    assert config.data.covariate_keys == ["a", "b"]
    assert config.seed == 2


def test_yaml_holds_every_option_and_reads_back_the_same():
    config = RunConfig.parse({"data": {"covariate_keys": {"day": "continuous"}, "pert_key": "größe"}}, name="run")
    text = to_yaml(config)
    assert "größe" in text
    assert RunConfig.parse(yaml.safe_load(text), name="run") == config


@pytest.mark.parametrize("assignment", ["seed", "=3"])
def test_no_assignment_raises(assignment):
    with pytest.raises(ValueError, match="is not an assignment"):
        with_overrides({}, [assignment])


def test_value_that_is_not_yaml_raises():
    with pytest.raises(ValueError, match="not valid YAML"):
        with_overrides({}, ["a=[1"])


def test_key_below_a_value_raises():
    with pytest.raises(ValueError, match="'seed' is a value, not a section"):
        with_overrides({"seed": 1}, ["seed.x=1"])


def test_sections_that_are_null_are_opened_by_a_key():
    merged = with_overrides({"st": None}, ["st.train.max_epochs=3", "st.model={hidden: 16}", "st.model.n_layers=1"])
    assert merged == {"st": {"train": {"max_epochs": 3}, "model": {"hidden": 16, "n_layers": 1}}}


@pytest.mark.parametrize("name", ["covariates", "covariate_keys"])
@pytest.mark.parametrize("other", ["covariates", "covariate_keys"])
def test_both_names_of_the_covariates_replace_each_other(name, other):
    merged = with_overrides({"data": {name: ["a"], "pert_key": "p"}}, [f"data.{other}=[{{name: b, embed_dim: 3}}]"])
    config = RunConfig.parse({"data": {**merged["data"], "control": "c"}}, name="run")
    assert [c.name for c in config.data.covariate_keys] == ["b"]
    assert config.data.pert_key == "p"


def test_options_come_from_the_file_then_arguments_then_assignments(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {covariates: [a], layer: file, gene_key: file}\nseed: 1\nse: {}\n")
    config = load_run(
        path,
        defaults={"st": None, "se": None},
        arguments={"data.layer": "argument", "data.gene_key": "argument", "file": "cells.h5ad"},
        overrides=["data.gene_key=assignment"],
    )
    assert (config.seed, config.data.layer, config.data.gene_key) == (1, "argument", "assignment")
    assert config.file == "cells.h5ad"
    assert config.se is not None
    assert config.st is None


def test_what_is_wrong_is_blamed_on_where_it_stands_raises(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {covariates: [a]}\nse: {trian: {}}\n")
    with pytest.raises(ValueError, match=r"^\S+mine\.yaml: there is no option 'se\.trian'\. Did you mean 'train'\?"):
        load_run(path, overrides=["seed=1"])
    path.write_text("se: {}\n")
    with pytest.raises(ValueError, match=r"^\S+mine\.yaml: the option 'data' is missing"):
        load_run(path, overrides=["seed=1"])
    with pytest.raises(ValueError, match=r"^On the command line, there is no option 'se\.trian'"):
        load_run(path, overrides=["data.covariates=[a]", "se.trian.lr=1"])
    with pytest.raises(ValueError, match=r"^options: seed='x' is not allowed"):
        load_run(arguments={"data.covariates": ["a"]}, overrides=["seed=x"])


def test_folder_as_configuration_raises(tmp_path):
    with pytest.raises(ValueError, match="is a folder; a configuration is a YAML file"):
        load_run(tmp_path)


def test_empty_file_holds_no_options(tmp_path):
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    assert load_run(tmp_path / "mine.yaml", arguments={"data.batch_key": "b"}).data.batch_key == "b"


def test_key_that_stands_twice_in_an_assignment_raises():
    with pytest.raises(ValueError, match="'lr' is given twice"):
        with_overrides({}, ["se.train={lr: 1, lr: 2}"])
