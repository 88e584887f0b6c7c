from __future__ import annotations

import datetime

import pytest
import yaml

from scstate_lora.config import ContinuousEncoderConfig, CovariateConfig, DataConfig, to_yaml
from scstate_lora.config.data import declared_covariates


def _read(text):
    return DataConfig.parse(yaml.safe_load(text), name="run.yaml")


@pytest.mark.parametrize("keys", ["day", ["day", "dose"], {"day": None, "dose": "continuous"}])
def test_short_forms_stay_as_they_are(keys):
    assert DataConfig.parse({"covariate_keys": keys}, name="run").covariate_keys == keys


COVARIATES = """
covariates:
  - name: condition
    type: categorical
    num_categories: 3
    embed_dim: 64
  - name: time_days
    type: continuous
    allow_missing: true
    continuous_encoder: {hidden_dim: 32, output_dim: 16, activation: tanh}
  - batch
"""


def test_covariates_are_declared_in_yaml():
    condition, time, batch = _read(COVARIATES).covariate_keys
    assert condition == CovariateConfig(name="condition", type="categorical", num_categories=3, embed_dim=64)
    encoder = ContinuousEncoderConfig(hidden_dim=32, output_dim=16, activation="tanh")
    assert time == CovariateConfig(name="time_days", type="continuous", allow_missing=True, continuous_encoder=encoder)
    assert batch == CovariateConfig(name="batch")
    assert (condition.width, time.width, batch.width) == (64, 16, 256)


@pytest.mark.parametrize(
    "text", [COVARIATES, "covariate_keys: {day: {embed_dim: 4}, dose: continuous}", "covariates: a"]
)
def test_the_resolved_configuration_reads_back(text):
    config = _read(text)
    assert _read(to_yaml(config)) == config


def test_levels_may_be_numbers_and_bools():
    config = _read("{control: 0, holdout: [{day: 9}, {dose: [0.5, '1'], treated: true}], context_keys: day}")
    assert (config.control, type(config.control)) == (0, int)
    assert config.holdout == [{"day": 9}, {"dose": [0.5, "1"], "treated": True}]
    assert config.context_keys == ["day"]
    assert _read("holdout: {day: 9}").holdout == [{"day": 9}]
    assert _read("control: true").control is True


def test_a_split_file_is_named_with_its_dataset():
    config = _read("{split: splits.toml, split_dataset: mine, zeroshot_controls: train}")
    assert (config.split, config.split_dataset, config.zeroshot_controls) == ("splits.toml", "mine", "train")
    assert _read(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zeroshot_controls": "test"}, "zeroshot_controls='test' is not allowed.*'train'"),
        ({"covariates": ["a"], "covariate_keys": ["b"]}, "covariates and covariate_keys are two names of one option"),
        ({"covariates": [{"name": "a", "embed_dmi": 3}]}, r"no option 'embed_dmi'\. Did you mean 'embed_dim'"),
        (
            {"covariates": [{"name": "a", "continuous_encoder": {"hiden_dim": 3}}]},
            r"no option 'continuous_encoder\.hiden_dim'\. Did you mean 'hidden_dim'",
        ),
        ({"covariates": [{"type": "continuous"}]}, "the option 'name' is missing"),
        ({"covariates": [{"name": "a", "num_categories": 1}]}, "num_categories=1 is not allowed"),
        (
            {"covariates": [{"name": "a", "continuous_encoder": {"activation": "elu"}}]},
            "activation='elu' is not allowed. .*'relu'",
        ),
        ({"covariate_keys": {"a": "categoric"}}, "is unknown. Did you mean 'categorical'"),
        ({"covariate_keys": [3]}, r"covariate_keys holds 3 \(int\)"),
        ({"covariate_keys": ["a", {"name": "a"}]}, "names 'a' more than once"),
        ({"covariate_keys": {"a": {"name": "b"}}}, r"covariate_keys\['a'\] has the name 'b'"),
        ({"covariate_keys": {"a": 3}}, r"covariate_keys\['a'\] must be 'categorical', 'continuous', None or options"),
        ({"control": datetime.date(2024, 1, 1)}, r"control: must be text, a number.*quotes"),
        ({"holdout": [{"day": [None]}]}, "holdout: day names a missing value"),
        ({"holdout": ["day"]}, "holdout: must be mappings from a column to a value"),
        ({"holdout": [{}]}, "holdout: must be mappings from a column to a value"),
        ({"contol": 3}, "no option 'contol'. Did you mean 'control'"),
    ],
)
def test_unusable_options_raises(options, message):
    with pytest.raises(ValueError, match=f"^run.yaml: .*{message}"):
        DataConfig.parse(options, name="run.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "categorical", "continuous_encoder": {}}, "'x' is declared categorical and has a continuous_encoder"),
        ({"type": "continuous", "num_categories": 2}, "'x' is declared continuous and has num_categories"),
        (
            {"embed_dim": 4, "continuous_encoder": {"output_dim": 5}},
            r"'x' has embed_dim=4 and continuous_encoder\.output_dim=5, which mean the same",
        ),
    ],
)
def test_options_that_contradict_each_other_raises(options, message):
    with pytest.raises(ValueError, match=message):
        declared_covariates({"x": options})
    with pytest.raises(ValueError, match=message):
        declared_covariates([{"name": "x", **options}])


def test_embed_dim_and_output_dim_may_say_the_same():
    (x,) = declared_covariates([{"name": "x", "embed_dim": 4, "continuous_encoder": {"output_dim": 4}}]).values()
    assert x.width == 4
