from __future__ import annotations

import pytest
import yaml

from scstate_lora.config import RunConfig, to_yaml, with_overrides


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
