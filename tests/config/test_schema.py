from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from scstate_lora.config import (
    CompactBaseConfig,
    ConditioningConfig,
    RunConfig,
    SELoraConfig,
    SEObjectiveConfig,
    STModelConfig,
    TrainConfig,
)


def test_parse_takes_a_mapping_options_or_nothing():
    assert SELoraConfig.parse({"r": 4, "targets": ["q", "out"]}, name="lora").targets == ("q", "out")
    given = SELoraConfig(alpha=8)
    assert SELoraConfig.parse(given, name="lora") is given
    assert SELoraConfig.parse(None, name="lora") == SELoraConfig()


def test_defaults_are_those_of_the_paper_and_the_documentation():
    lora = SELoraConfig()
    assert (lora.r, lora.alpha, lora.dropout, lora.targets) == (16, 32, 0.1, ("q", "v"))
    assert (lora.layers, lora.use_rslora, lora.use_dora) == (None, False, False)


def test_options_are_frozen_raises():
    with pytest.raises(ValidationError, match="frozen"):
        SELoraConfig().r = 3


def test_unknown_key_suggests_the_right_one_raises():
    with pytest.raises(ValueError, match=r"lora: there is no option 'rnak'.*'r'.*'alpha'"):
        SELoraConfig.parse({"rnak": 4}, name="lora")
    with pytest.raises(ValueError, match=r"compact: there is no option 'n_layer'.*'n_layers'"):
        CompactBaseConfig.parse({"n_layer": 4}, name="compact")
    with pytest.raises(ValueError, match="Keys should be strings"):
        CompactBaseConfig.parse({3: 4}, name="compact")


def test_unknown_key_of_a_section_names_the_section_raises():
    options = {"data": {"covariate_keys": ["a"]}, "st": {"train": {"max_epoch": 3}}}
    with pytest.raises(ValueError, match=r"'st\.train\.max_epoch'.*'max_epochs'"):
        RunConfig.parse(options, name="run.yaml")


def test_missing_option_raises():
    with pytest.raises(ValueError, match="'data' is missing"):
        RunConfig.parse({}, name="run.yaml")


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SELoraConfig, {"r": 0}, "r=0"),
        (SELoraConfig, {"dropout": 1.0}, "dropout=1.0"),
        (SELoraConfig, {"targets": []}, "targets"),
        (SELoraConfig, {"targets": ["qq"]}, "'qq'"),
        (CompactBaseConfig, {"lr": float("nan")}, "lr=nan"),
        (CompactBaseConfig, {"lr": float("inf")}, "lr=inf"),
        (CompactBaseConfig, {"n_steps": "many"}, "n_steps='many'"),
        (STModelConfig, {"cell_set_len": 1}, "cell_set_len=1"),
        (TrainConfig, {"max_epochs": 0}, "max_epochs=0"),
        (ConditioningConfig, {"withheld": 1.0}, "withheld=1.0"),
        (ConditioningConfig, {"combine": "multiply"}, "combine='multiply'"),
        (ConditioningConfig, {"n_steps": -1}, "n_steps=-1"),
        (SEObjectiveConfig, {"counterfactual": -1}, "counterfactual=-1"),
        (SEObjectiveConfig, {"contrastive_loss": "simclr"}, "contrastive_loss='simclr'"),
        (SEObjectiveConfig, {"contrastive_on": "batch"}, "contrastive_on='batch'"),
        (SEObjectiveConfig, {"temperature": 0}, "temperature=0"),
    ],
)
def test_value_out_of_range_names_the_option_raises(config, options, message):
    with pytest.raises(ValueError, match=f"options: .*{message}.* is not allowed"):
        config.parse(options, name="options")


def test_width_that_the_heads_do_not_divide_raises():
    with pytest.raises(ValueError, match="model: hidden=20 is not divisible by n_heads=3"):
        STModelConfig.parse({"hidden": 20, "n_heads": 3}, name="model")
    with pytest.raises(ValueError, match="compact: d_model=20 is not divisible by n_heads=3"):
        CompactBaseConfig.parse({"d_model": 20, "n_heads": 3}, name="compact")
    with pytest.raises(ValueError, match=r"se\.compact: d_model=20 is not divisible"):
        RunConfig.parse({"data": {"covariate_keys": []}, "se": {"compact": {"d_model": 20, "n_heads": 3}}}, name="run")


@pytest.mark.parametrize("layers", [None, [8, 12], (-4, None), (-4, -1), (2, -1)])
def test_layers_survive_a_dump(layers):
    lora = SELoraConfig.parse({"layers": layers}, name="lora")
    assert lora.layers == (None if layers is None else tuple(layers))
    assert SELoraConfig.parse(json.loads(lora.model_dump_json()), name="lora") == lora


@pytest.mark.parametrize("layers", [(4, 4), (-1, -4)])
def test_empty_range_of_layers_raises(layers):
    with pytest.raises(ValueError, match=r"lora: layers: \(.*\) is an empty range\. Give the first layer and the one"):
        SELoraConfig.parse({"layers": layers}, name="lora")


def test_objective_without_any_term_raises():
    with pytest.raises(ValueError, match="nothing is left to train on"):
        SEObjectiveConfig.parse(dict.fromkeys(SEObjectiveConfig().weights, 0), name="objective")
    for name in SEObjectiveConfig().weights:
        only = {**dict.fromkeys(SEObjectiveConfig().weights, 0), name: 0.5}
        assert SEObjectiveConfig.parse(only, name="objective").weights == only


def test_hidden_widths_of_nothing_raises():
    with pytest.raises(ValueError, match=r"conditioning: hidden_dims=\(16, 0\) must be at least 1 each"):
        ConditioningConfig.parse({"hidden_dims": [16, 0]}, name="conditioning")
    assert ConditioningConfig.parse({"hidden_dims": []}, name="conditioning").hidden_dims == ()


def test_options_of_another_type_raises():
    with pytest.raises(TypeError, match="lora must be a dict or SELoraConfig, found int"):
        SELoraConfig.parse(3, name="lora")
