"""Options of a classifier from files and command lines, ours and those that have the names of scModelForge."""

from __future__ import annotations

import pytest
import yaml

import scstate_lora as ssl
from scstate_lora.config import (
    AnnotateConfig,
    ClassifierTrainConfig,
    ClassifierTrainOptions,
    CompactBaseConfig,
    HeadConfig,
    LabelledDataConfig,
    LinearStartConfig,
    SELoraConfig,
    load_annotate,
    to_yaml,
)
from scstate_lora.config.classifier import ClassifierTrainArguments
from scstate_lora.config.load import shipped
from tests.builders import wound

RECIPE = """
finetune:
  label_key: cell_type
  checkpoint_path: blood-encoder
  freeze_backbone_epochs: 5
  backbone_lr: 2.0e-5
  head_lr: 3.0e-3
  head: {hidden_dim: 64, dropout: 0.2}
  lora: {rank: 8, alpha: 24, dropout: 0.05}
training:
  batch_size: 32
  max_epochs: 20
  seed: 42
  gradient_clip: 0.5
  gradient_accumulation: 2
  val_split: 0.1
  optimizer: {weight_decay: 0.02}
  scheduler: {warmup_steps: 500}
"""
"""Options as a recipe of scModelForge writes them."""

SECTIONS = {
    "linear_start": LinearStartConfig,
    "head": HeadConfig,
    "lora": SELoraConfig,
    "compact": CompactBaseConfig,
}


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", ["annotate_gradual", "annotate_lora"])
def test_shipped_file_holds_defaults_and_columns_that_exist(name):
    config = load_annotate(str(shipped()[name]))
    assert config.strategy == name.removeprefix("annotate_")
    default = AnnotateConfig(data={"labels_key": "cell_type", "batch_key": "mouse_id"}, strategy=config.strategy)
    written = {key: value for key, value in config.train.model_dump().items() if value is not None}
    assert written == ClassifierTrainOptions().model_dump(include=set(written))
    assert config.model_copy(update={"train": default.train}) == default
    adata = wound(200)
    ssl.CellTypeClassifier.setup_anndata(adata, **config.data.model_dump(exclude_defaults=True))


def test_gradual_file_writes_every_option_out():
    written = yaml.safe_load(shipped()["annotate_gradual"].read_text(encoding="utf-8"))
    assert set(written) == set(AnnotateConfig.model_fields) - {"file"}
    for section, kind in SECTIONS.items():
        assert set(written[section]) == set(kind.model_fields)
    assert set(written["train"]) == set(ClassifierTrainConfig.model_fields) - {"run_folder", "resume_from"}
    own = set(LabelledDataConfig.model_fields) - set(LabelledDataConfig.__base__.model_fields)
    assert own <= set(written["data"])


@pytest.mark.parametrize("name", ["annotate_gradual", "annotate_lora"])
def test_what_is_commented_out_is_an_option_too(name):
    text = shipped()[name].read_text(encoding="utf-8")
    held_out = [line.strip().removeprefix("# ") for line in text.splitlines() if "# holdout: [" in line]
    options = yaml.safe_load("\n".join(held_out))
    assert load_annotate(str(shipped()[name]), overrides=[f"data.holdout={options['holdout']}"]).data.holdout


def test_options_of_a_file_are_those_of_train():
    only_in_python = {"logger", "callbacks", "progress_bar"}
    assert set(ClassifierTrainArguments.__annotations__) - only_in_python == set(ClassifierTrainConfig.model_fields)
    assert all(field.get_default() is None for field in ClassifierTrainConfig.model_fields.values())


def test_command_line_takes_precedence_and_yaml_reads_back_the_same(file):
    path = file("data: {labels_key: a, batch_key: b}\nhead: {n_members: 2, dropout: 0.2}\nseed: 4\n")
    given = {"data.labels_key": {"a": None, "age": "continuous"}, "base": "SE"}
    config = load_annotate(path, arguments=given, overrides=["head.n_members=1", "linear_start=false"])
    assert config.data.label_kinds == {"a": None, "age": "continuous"}
    assert (config.data.batch_key, config.base, config.seed) == ("b", "SE", 4)
    assert (config.head.n_members, config.head.dropout, config.linear_start) == (1, 0.2, False)
    assert AnnotateConfig.parse(yaml.safe_load(to_yaml(config)), name="again") == config


def test_recipe_of_scmodelforge_is_understood_and_said(file, caplog):
    config = load_annotate(file(RECIPE))
    assert (config.data.labels_key, config.data.val_size, config.base, config.seed) == (
        ["cell_type"],
        0.1,
        "blood-encoder",
        42,
    )
    train = {
        "unfreeze_epoch": 5,
        "backbone_lr": 2e-5,
        "head_lr": 3e-3,
        "batch_size": 32,
        "max_epochs": 20,
        "gradient_clip_val": 0.5,
        "accumulate_grad_batches": 2,
        "weight_decay": 0.02,
        "warmup_steps": 500,
    }
    assert config.train.model_dump(exclude_none=True) == train
    assert (config.head.hidden_dim, config.head.dropout) == (64, 0.2)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (8, 24, 0.05)
    assert "finetune.freeze_backbone_epochs is train.unfreeze_epoch" in caplog.text
    assert "finetune.lora.rank is lora.r" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "r"),
    [
        (["lora.rank=3"], 3),
        (["finetune.lora.rank=3"], 3),
        (["lora.r=3"], 3),
        (["lora={rank: 3}"], 3),
        (["finetune.lora={rank: 3}"], 3),
        (["finetune={lora: {rank: 3}}"], 3),
        (["lora.rank=9", "lora.r=3"], 3),
    ],
)
def test_the_later_name_wins_on_the_command_line(file, overrides, r):
    assert load_annotate(file(RECIPE), overrides=overrides).lora.r == r


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: {freeze_backbone: true}", r"mine\.yaml: there is no option 'finetune\.freeze_backbone'.*'frozen'"),
        ("finetune: {lora: {enabled: true}}", "strategy 'lora'"),
        ("finetune: {lora: {target_modules: [out_proj]}}", "named by targets: of q, k, v, out, linear1, linear2"),
        ("finetune: {lora: {bias: all}}", "leave biases as they are"),
        ("finetune: {head: {task: regression}}", r"labels_key=\{'age': 'continuous'\}"),
        ("finetune: {head: {n_classes: 4}}", "those of the column in labels_key"),
        ("training: {optimizer: {lr: 5.0e-5}}", "backbone_lr, adapter_lr and head_lr"),
        ("training: {log_dir: logs}", "'training.log_dir'. This option of scModelForge has no counterpart here"),
        ("tokenizer: {strategy: rank_value}", "read from the files of the encoder, which base names"),
        ("data: {paths: [a.h5ad]}", "one file: file, or the first argument of the command"),
        ("finetune: {label_key: b}\ndata: {labels_key: a}", "are two names of one option. Give one of them"),
        ("data: {labels_key: a}\nlora: {rnk: 3}", "no option 'lora.rnk'"),
        ("data: {batch_key: a}", "the column of the labels is missing: data.labels_key"),
    ],
)
def test_what_is_called_or_done_otherwise_is_answered_with_ours_raises(file, text, message):
    with pytest.raises(ValueError, match=message):
        load_annotate(file(text))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("finetune.freeze_backbone=true", "On the command line, there is no option 'finetune.freeze_backbone'"),
        ("head.n_member=2", "On the command line, there is no option 'head.n_member'. Did you mean 'n_members'"),
        ("head.n_classes=2", "those of the column in labels_key"),
    ],
)
def test_faults_of_the_command_line_are_told_from_those_of_the_file_raises(file, assignment, message):
    with pytest.raises(ValueError, match=message):
        load_annotate(file(RECIPE), overrides=[assignment])


def test_python_understands_the_names_too(caplog):
    options = ClassifierTrainOptions.of_call({"freeze_backbone_epochs": 2, "num_gpus": 2}, function="train()")
    assert (options.unfreeze_epoch, options.devices) == (2, 2)
    assert "train.freeze_backbone_epochs is train.unfreeze_epoch" in caplog.text
    assert SELoraConfig.parse({"rank": 4}, name="lora").r == 4
    adata = wound(200)
    ssl.CellTypeClassifier.setup_anndata(adata, label_key="cell_type")
    assert ssl.CellTypeClassifier(adata, lora={"rank": 4, "alpha": 8}).lora.r == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freeze_backbone": True}, r"train\(\) has no argument 'freeze_backbone'.*'frozen'"),
        ({"lr": 1e-3}, "backbone_lr, adapter_lr and head_lr"),
        ({"freeze_backbone_epochs": 2, "unfreeze_epoch": 2}, "two names of one option"),
        ({"freeze_epochs": 2}, r"train\(\) has no argument 'freeze_epochs'"),
    ],
)
def test_python_answers_what_it_does_not_take_raises(arguments, message):
    with pytest.raises(TypeError, match=message):
        ClassifierTrainOptions.of_call(arguments, function="train()")


def test_set_up_and_head_answer_too_raises():
    adata = wound(200)
    with pytest.raises(TypeError, match="two names of one option"):
        ssl.CellTypeClassifier.setup_anndata(adata, label_key="cell_type", labels_key="cell_type")
    with pytest.raises(ValueError, match="those of the column in labels_key"):
        HeadConfig.parse({"n_classes": 3}, name="head")
    assert "scstate_lora" not in adata.uns
