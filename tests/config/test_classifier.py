from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from scstate_lora.config import ClassifierTrainOptions, HeadConfig, LabelledDataConfig, LinearStartConfig
from scstate_lora.config.classifier import ClassifierTrainArguments


def test_keywords_of_train_are_the_options():
    # Lightning's strategy cannot be given: the first argument of train() has its name.
    assert set(ClassifierTrainArguments.__annotations__) == set(ClassifierTrainOptions.model_fields) - {"strategy"}


def test_keys_of_labels_may_be_one_several_or_with_kinds():
    assert LabelledDataConfig(labels_key="a").label_kinds == {"a": None}
    assert LabelledDataConfig(labels_key=["a", "b"]).label_kinds == {"a": None, "b": None}
    kinds = {"a": "categorical", "b": "continuous", "c": None}
    assert LabelledDataConfig(labels_key=kinds).label_kinds == kinds


def test_all_cells_train_by_default():
    config = LabelledDataConfig(labels_key="a")
    assert (config.test_size, config.val_size) == (0, 0)


def test_the_file_of_an_ontology_may_be_a_path():
    assert LabelledDataConfig(labels_key="a", label_tree=Path("x") / "cl.obo").label_tree == str(Path("x") / "cl.obo")


@pytest.mark.parametrize("tree", [None, {"T": ["CD4"]}, ["lineage"]])
def test_terms_without_an_ontology_raises(tree):
    with pytest.raises(ValueError, match=r"whose file label_tree names\. Give the file"):
        LabelledDataConfig(labels_key="a", label_tree=tree, ontology_terms=["T cell"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the option .labels_key. is missing"),
        ({"labels_key": []}, "labels_key"),
        ({"labels_key": {"a": "number"}}, "'number'"),
        ({"labels_key": "a", "label_key": "b"}, "labels_key and .*label_key are two names of one option"),
        ({"labels_key": "a", "unlabeled": "b"}, "unlabeled_category"),
    ],
)
def test_options_of_labels_that_make_no_sense_raises(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LabelledDataConfig.parse(options, name="setup_anndata()")


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (HeadConfig, {"hidden_dim": 0}, "hidden_dim"),
        (HeadConfig, {"dropout": 1}, "dropout"),
        (HeadConfig, {"n_members": 0}, "n_members"),
        (HeadConfig, {"hidden": 64}, "hidden_dim"),
        (LinearStartConfig, {"penalty": 0}, "penalty"),
        (LinearStartConfig, {"n_genes": 100}, "n_top_genes"),
    ],
)
def test_options_of_a_part_that_make_no_sense_raises(config, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config.parse(options, name="part")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, r"train\(\): max_epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"backbone_lr": 0}, "backbone_lr=0"),
        ({"class_weight": "sqrt"}, "class_weight='sqrt'.*'balanced'.*'root'.*'none'"),
        ({"unfreeze_epoch": -1}, "unfreeze_epoch=-1"),
        ({"unfreeze_epochs": 2}, "unfreeze_epochs.*unfreeze_epoch"),
        ({"lr": 1e-3}, "'lr'"),
    ],
)
def test_options_of_training_that_make_no_sense_raises(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ClassifierTrainOptions.of_call(options, function="train()")


def test_strategies_are_named_once():
    from scstate_lora.config.classifier import Strategy
    from scstate_lora.model.annotation.celltype_classifier import _STRATEGIES

    assert get_args(Strategy) == _STRATEGIES
