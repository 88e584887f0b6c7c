"""Every option is written down once, in its class; Python, YAML and the command line have the same ones."""

from __future__ import annotations

import inspect
import re

import pytest
from typer.testing import CliRunner

import scstate_lora as ssl
from scstate_lora.cli import app
from scstate_lora.cli.annotate import FLAGS
from scstate_lora.config import (
    ClassifierTrainConfig,
    CompactBaseConfig,
    DataConfig,
    EmbedOptions,
    HeadConfig,
    LabelledDataConfig,
    LinearStartConfig,
    RunConfig,
    SELoraConfig,
    TrainConfig,
    TrainerOptions,
    TrainOptions,
)
from scstate_lora.config.evaluate import EvaluateEmbeddingsOptions, EvaluateOptions
from scstate_lora.config.training import SharedTraining, TrainArguments, TrainerArguments

ONLY_IN_PYTHON = {"logger", "callbacks", "progress_bar"}


def _keywords(function, *, but):
    """Keywords of a function with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in but}


def _defaults(options):
    return {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}


def _help(*command):
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 0
    return result.output


def _flags(text):
    return set(re.findall(r"--([a-z-]+)", text))


def test_options_of_training_are_those_of_train():
    assert set(TrainerArguments.__annotations__) == set(TrainerOptions.model_fields)
    assert {*TrainArguments.__annotations__, "max_epochs"} == set(TrainOptions.model_fields)


def test_options_of_training_are_those_of_a_file():
    assert set(TrainConfig.model_fields) == set(TrainOptions.model_fields) - ONLY_IN_PYTHON
    assert set(SharedTraining.model_fields) <= set(RunConfig.model_fields)
    assert all(value is None for value in _defaults(TrainConfig).values())
    for name, field in TrainConfig.model_fields.items():
        assert field.description == TrainOptions.model_fields[name].description


@pytest.mark.parametrize("command", ["run", "train"])
def test_help_lists_the_options_of_training(command):
    text = _help(command)
    for name, field in TrainConfig.model_fields.items():
        assert f"{name}: {' '.join(field.description.split())}"[:100] in text


def test_arguments_of_the_set_up_are_the_options_of_the_data():
    found = _keywords(ssl.setup_anndata, but=("adata", "base", "seed"))
    assert found == {**_defaults(DataConfig), "covariate_keys": ()}
    documented = re.findall(r"^(\w+(?:, \w+)*)$", inspect.getdoc(ssl.setup_anndata), flags=re.MULTILINE)
    assert set(found) <= {name for line in documented for name in line.split(", ")}


def test_help_lists_the_options_of_the_data():
    flags = {name.replace("_", "-") for name in DataConfig.model_fields} - {"covariate-keys"} | {"covariates"}
    assert flags <= _flags(_help("run"))
    text = _help("train")
    assert all(f"{name}: " in text for name in DataConfig.model_fields)


@pytest.mark.parametrize(
    ("function", "others"),
    [
        (ssl.tl.embed, {"adata", "base", "key_added", "resume", "progress_bar"}),
        (ssl.tl.embed_file, {"path", "base", "out", "key_added", "progress_bar"}),
    ],
)
def test_arguments_of_embed_are_its_options(function, others):
    assert _keywords(function, but=others) == _defaults(EmbedOptions)


@pytest.mark.parametrize(
    ("function", "options", "others"),
    [
        (ssl.tl.evaluate_perturbation, EvaluateOptions, {"context_key", "pert_key", "pert_features", "control"}),
        (ssl.tl.evaluate, EvaluateEmbeddingsOptions, {"label_key", "batch_key", "metrics"}),
    ],
)
def test_options_of_evaluate_have_the_defaults_of_the_functions(function, options, others):
    arguments, own = _keywords(function, but=others), _defaults(options)
    shared = set(arguments) & set(own)
    assert {"seed"} < shared
    assert {name: own[name] for name in shared} == {name: arguments[name] for name in shared}


@pytest.mark.parametrize(
    ("command", "options"), [("evaluate", EvaluateOptions), ("evaluate-embeddings", EvaluateEmbeddingsOptions)]
)
def test_help_lists_the_options_of_evaluate(command, options):
    assert {name.replace("_", "-") for name in options.model_fields} <= _flags(_help(command))


def test_options_of_annotate_are_those_of_predict_and_of_the_data():
    keywords = _keywords(ssl.CellTypeClassifier.predict, but={"self", "adata"})
    assert {name.replace("_", "-") for name in keywords} <= _flags(_help("annotate", "predict"))
    text = _help("annotate", "train")
    assert {name.replace("_", "-") for name in FLAGS} <= _flags(text)
    kinds = (LabelledDataConfig, ClassifierTrainConfig, HeadConfig, LinearStartConfig, SELoraConfig, CompactBaseConfig)
    for name, field in [item for kind in kinds for item in kind.model_fields.items()]:
        assert f"{name}: {' '.join(field.description.split())}"[:100] in text


def test_help_lists_the_options_of_embed():
    assert {name.replace("_", "-") for name in EmbedOptions.model_fields} <= _flags(_help("embed"))
