from __future__ import annotations

import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scstate_lora.io.pickle.reader import UnsafePickleError
from scstate_lora.io.published import scmodelforge
from scstate_lora.io.published.scmodelforge import UNKNOWN_LICENCE, is_rank_checkpoint, rank_files_to_fetch
from scstate_lora.model.annotation.rank_base import rank_tensors
from scstate_lora.nn.rank_encoder import RankConfig, RankEncoder
from tests.scmodelforge_files import GENES, Parts, torch_encoder

read_rank_checkpoint = partial(scmodelforge.read_rank_checkpoint, expected_tensors=rank_tensors)
SIZES = {
    "n_ids": 24,
    "n_positions": 14,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 4,
    "d_hid": 24,
    "pooling": "cls",
    "activation": "gelu",
    "values": True,
    "dropout": 0.1,
}
TOKENS = {"n_tokens": 12, "cls_id": 3, "target_sum": 1e4, "log": True}


@pytest.fixture
def parts() -> Parts:
    return Parts.of(torch_encoder())


def _same(one: Any, two: Any) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_folder(parts: Parts, tmp_path: Path) -> None:
    read = read_rank_checkpoint(parts.write_folder(tmp_path / "blood"))
    assert read.sizes == SIZES
    assert read.tokens == TOKENS
    assert read.genes == GENES
    assert read.name == "blood (model.safetensors)"
    assert read.licence == UNKNOWN_LICENCE
    RankEncoder(RankConfig(**read.sizes)).load_state_dict(read.state)
    stacked = parts.state["encoder.layers.1.self_attn.in_proj_weight"]
    assert torch.equal(read.state["transformer_encoder.layers.1.self_attn.k_proj.weight"], stacked[16:32])


def test_both_forms_are_the_same(parts: Parts, tmp_path: Path) -> None:
    folder = read_rank_checkpoint(parts.write_folder(tmp_path / "a"))
    file = read_rank_checkpoint(parts.write_checkpoint(tmp_path / "b"))
    in_folder = read_rank_checkpoint(tmp_path / "b")
    assert _same(folder.state, file.state)
    assert _same(folder.state, in_folder.state)
    assert (folder.sizes, folder.tokens, folder.genes) == (file.sizes, file.tokens, file.genes)


@pytest.mark.parametrize("prefix", ["", "model._orig_mod.", "model.backbone."])
def test_prefixes_of_trainings(prefix: str, parts: Parts, tmp_path: Path) -> None:
    plain = read_rank_checkpoint(parts.write_folder(tmp_path / "a"))
    assert _same(plain.state, read_rank_checkpoint(parts.write_checkpoint(tmp_path / "b", prefix=prefix)).state)


def test_the_head_of_a_fine_tuning_is_left_out(parts: Parts, tmp_path: Path) -> None:
    plain = read_rank_checkpoint(parts.write_folder(tmp_path / "a"))
    parts.state = {f"backbone.{name}": tensor for name, tensor in parts.state.items()}
    parts.state["head.net.0.weight"] = torch.randn(5, 16)
    assert _same(plain.state, read_rank_checkpoint(parts.write_checkpoint(tmp_path / "b")).state)


def test_torch_weights_in_a_folder(parts: Parts, tmp_path: Path) -> None:
    folder = parts.write_folder(tmp_path / "a")
    plain = read_rank_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    torch.save(parts.state, folder / "model.pt")
    assert _same(plain.state, read_rank_checkpoint(folder).state)


@pytest.mark.parametrize("architecture", ["autoregressive_transformer", "masked_autoencoder"])
def test_the_other_architectures_have_the_same_encoder(architecture: str, parts: Parts, tmp_path: Path) -> None:
    plain = read_rank_checkpoint(parts.write_folder(tmp_path / "a"))
    heads = {"autoregressive_transformer": ["gene_head.dense.weight", "expression_head.dense.weight"]}
    heads["masked_autoencoder"] = ["enc_to_dec.weight", "mask_token", "decoder.layers.0.linear1.weight"]
    parts.state = {name: t for name, t in parts.state.items() if not name.startswith("head.")}
    parts.state |= {name: torch.randn(3, 3) for name in heads[architecture]}
    parts.model["architecture"] = architecture
    assert _same(plain.state, read_rank_checkpoint(parts.write_folder(tmp_path / "b")).state)


def test_half_precision_becomes_float32(parts: Parts, tmp_path: Path) -> None:
    parts.state = {name: tensor.half() for name, tensor in parts.state.items()}
    state = read_rank_checkpoint(parts.write_folder(tmp_path / "a")).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("field", "stated", "by_tensors"),
    [
        ("hidden_dim", 32, 16),
        ("num_layers", 3, 2),
        ("ffn_dim", 64, 24),
        ("max_seq_len", 2048, 14),
        ("vocab_size", 30, 24),
        ("use_expression_values", False, True),
    ],
)
def test_a_size_that_contradicts_the_tensors_raises(
    field: str, stated: Any, by_tensors: Any, parts: Parts, tmp_path: Path
) -> None:
    parts.model[field] = stated
    folder = parts.write_folder(tmp_path / "a")
    with pytest.raises(ValueError, match=f"{field} is {by_tensors} by the tensors, {stated} in {folder}") as caught:
        read_rank_checkpoint(folder)
    assert "Correct the configuration, or give that of its training: config=" in str(caught.value)
    assert str(caught.value).count(" by the tensors") == 1
    parts.model[field] = by_tensors
    assert read_rank_checkpoint(folder, config=parts.exported()).sizes == SIZES


def test_every_contradiction_is_named(parts: Parts, tmp_path: Path) -> None:
    parts.model |= {"hidden_dim": 20, "num_heads": 5, "ffn_dim": None, "architecture": "masked_autoencoder"}
    with pytest.raises(ValueError, match="contradict each other") as caught:
        read_rank_checkpoint(parts.write_checkpoint(tmp_path / "a"))
    message = str(caught.value)
    assert "hidden_dim is 16 by the tensors, 20 in" in message
    assert "hidden_dim is 16 by the tensors, which does not divide into num_heads, 5 in" in message
    assert "ffn_dim is 24 by the tensors, 80 in" in message  # null means 4 x hidden_dim
    assert "architecture is transformer_encoder by the tensors, masked_autoencoder in" in message


@pytest.mark.parametrize(
    ("section", "field", "value", "match"),
    [
        ("model", "pooling", "max", "pooling is 'max' in .*; read here: 'cls', 'mean'"),
        ("model", "activation", "silu", "activation is 'silu' in .*; read here: 'gelu', 'relu'"),
        ("model", "architecture", "mamba", "architecture is 'mamba' in .*; read here: 'transformer_encoder'"),
        ("model", "num_heads", "four", "num_heads is 'four' in .*; a whole number of at least 1"),
        ("model", "dropout", 1.5, "dropout is 1.5 in .*; a number of at least 0 and below 1"),
        (
            "tokenizer",
            "strategy",
            "binned_expression",
            "strategy is 'binned_expression' in .*; read here: 'rank",
        ),
        ("tokenizer", "max_genes", 1, "max_genes is 1 in .*; a whole number of at least 2"),
        ("preprocessing", "normalize", "median", "normalize is 'median' in .*; read here: 'library_size', None"),
        ("preprocessing", "target_sum", -1, "target_sum is -1 in .*; a number of at least 1"),
    ],
)
def test_a_field_that_is_not_read_raises(
    section: str, field: str, value: Any, match: str, parts: Parts, tmp_path: Path
) -> None:
    getattr(parts, section)[field] = value
    with pytest.raises(ValueError, match=match):
        read_rank_checkpoint(parts.write_checkpoint(tmp_path / "a"))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"encoder.layers.1.norm1.weight": None}, r"missing: encoder\.layers\.1\.norm1\.weight \(16,\)"),
        ({"encoder.layers.0.self_attn.in_proj_bias": None}, r"missing: encoder\.layers\.0\.self_attn\.in_proj_bias"),
        ({"encoder.norm.weight": torch.ones(16)}, r"unexpected: encoder\.norm\.weight \(16,\)"),
        ({"embedding.layer_norm.bias": torch.ones(7)}, r"shape: .*layer_norm\.bias is \(7,\), expected \(16,\)"),
        ({"embedding.layer_norm.bias": torch.ones(16, dtype=torch.int64)}, r"type: .*layer_norm\.bias is torch\.int64"),
        ({"embedding.position_embedding.weight": None}, r"lacks embedding\.position_embedding\.weight"),
        ({"embedding.gene_embedding.weight": None}, "is not an encoder of scModelForge: it holds embedding"),
        ({"encoder.layers.0.linear1.lora_A.default.weight": torch.ones(2)}, "fine-tuned by scModelForge with LoRA"),
    ],
)
@pytest.mark.parametrize("form", ["write_folder", "write_checkpoint"])
def test_tensors_that_do_not_fit_raise(
    form: str, changed: dict[str, torch.Tensor | None], match: str, parts: Parts, tmp_path: Path
) -> None:
    parts.state = {name: t for name, t in {**parts.state, **changed}.items() if t is not None}
    with pytest.raises(ValueError, match=match):
        read_rank_checkpoint(getattr(parts, form)(tmp_path / "a"))


def test_code_in_a_checkpoint_is_not_run_raises(parts: Parts, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    file = parts.write_checkpoint(tmp_path / "a")
    torch.save({"state_dict": parts.state, "hyper_parameters": Hostile()}, file)
    with pytest.raises(UnsafePickleError, match=r"asks for posix\.mkdir|asks for nt\.mkdir"):
        read_rank_checkpoint(file)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_configuration_raises(parts: Parts, tmp_path: Path) -> None:
    file = parts.write_checkpoint(tmp_path / "a")
    config = (tmp_path / "a" / "config.yaml").rename(tmp_path / "run.yaml")
    with pytest.raises(ValueError, match=r"stores none in a \.ckpt.*config='path/to/config\.yaml'"):
        read_rank_checkpoint(file)
    assert read_rank_checkpoint(file, config=config).sizes == SIZES
    with pytest.raises(FileNotFoundError, match="There is no configuration"):
        read_rank_checkpoint(file, config=tmp_path / "nowhere.yaml")


def test_defaults_of_a_short_yaml_file(parts: Parts, tmp_path: Path) -> None:
    file = parts.write_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("model: {hidden_dim: 16}\ndata: {preprocessing: {target_sum: 1e5}}\n")
    read = read_rank_checkpoint(file)
    assert read.sizes == {**SIZES, "n_heads": 8}
    assert read.tokens == {**TOKENS, "n_tokens": 14, "target_sum": 1e5}  # no more tokens than positions


def test_what_was_stated_reads_it_again(parts: Parts, tmp_path: Path) -> None:
    parts.preprocessing = {"normalize": None, "log1p": False}
    parts.tokenizer["prepend_cls"] = False
    file = parts.write_checkpoint(tmp_path / "a")
    first = read_rank_checkpoint(file)
    assert first.tokens == {"n_tokens": 12, "cls_id": None, "target_sum": None, "log": False}
    (tmp_path / "a" / "config.yaml").unlink()
    again = read_rank_checkpoint(file, config=json.loads(json.dumps(first.config)), genes=first.genes)
    assert (again.sizes, again.tokens, again.genes) == (first.sizes, first.tokens, first.genes)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- a list\n", "holds list, expected sections"),
        ("training: {epochs: 3}\n", r"has neither model_config \(config\.json\) nor model \(YAML\); it has training"),
        ("model: bert\n", "model in .* is 'bert', expected a section"),
        ("model: [\n", "is not valid YAML"),
    ],
)
def test_another_file_as_configuration_raises(text: str, match: str, parts: Parts, tmp_path: Path) -> None:
    file = parts.write_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        read_rank_checkpoint(file)


def test_broken_json_raises(parts: Parts, tmp_path: Path) -> None:
    folder = parts.write_folder(tmp_path / "a")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"configuration .*config\.json is not valid JSON"):
        read_rank_checkpoint(folder)


def test_genes_are_given_where_none_are_stored(parts: Parts, tmp_path: Path) -> None:
    file = parts.write_checkpoint(tmp_path / "a")
    vocabulary = (tmp_path / "a" / "gene_vocab.json").rename(tmp_path / "genes.json")
    with pytest.raises(ValueError, match=r"stores no vocabulary in a \.ckpt.*genes=list\(training_adata\.var_names\)"):
        read_rank_checkpoint(file)
    backwards = {name: 4 + i for i, name in reversed(list(enumerate(GENES)))}
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([*GENES[:3], GENES[0], *GENES[3:]]))  # a repeated name counts once
    for given in (vocabulary, str(vocabulary), GENES, tuple(GENES), backwards, listed):
        assert read_rank_checkpoint(file, genes=given).genes == GENES
    with pytest.raises(FileNotFoundError, match="There is no vocabulary"):
        read_rank_checkpoint(file, genes=tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("genes", "match"),
    [
        (GENES[1:], r"vocab_size is 24 by the tensors .* but 23 by genes= \(19 genes, ids 4 to 22\)"),
        ([], r"but 4 by genes= \(0 genes, ids 0 to 0\)"),
        ({name: 3 + i for i, name in enumerate(GENES)}, r"ids 4 to 23\), but 24 by genes= \(20 genes, ids 3 to 22\)"),
        (dict.fromkeys(GENES, 4), "ids 4 to 4"),
        ({name: str(i) for i, name in enumerate(GENES)}, "The id of 'GENE0' in genes= is '0', not a whole number"),
        (7, "genes= holds int, not a vocabulary"),
    ],
)
def test_a_vocabulary_that_does_not_fit_raises(genes: Any, match: str, parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        read_rank_checkpoint(parts.write_folder(tmp_path / "a"), genes=genes)


def test_paths_without_weights_raise(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        read_rank_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds none of model\.safetensors, model\.pt and no \.ckpt"):
        read_rank_checkpoint(tmp_path)
    parts.write_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds several checkpoints: epoch00-val_loss5\.4272\.ckpt, last\.ckpt"):
        read_rank_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "model.json").write_text("{}")
    with pytest.raises(ValueError, match="is a model saved by scstate_lora"):
        read_rank_checkpoint(tmp_path / "a")


def test_a_truncated_checkpoint_raises(parts: Parts, tmp_path: Path) -> None:
    file = parts.write_checkpoint(tmp_path / "a")
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        read_rank_checkpoint(file)


def test_log_says_what_was_read(parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts.tokenizer["max_genes"] = 2048
    with caplog.at_level(logging.INFO, logger="scstate_lora"):
        read = read_rank_checkpoint(parts.write_folder(tmp_path / "a"))
    assert read.tokens["n_tokens"] == 14
    assert "at most 14 tokens (max_seq_len), not 2048 (max_genes in" in caplog.text
    assert "2 layer(s) of 16, up to 14 tokens per cell, cls pooling; 20 genes from" in caplog.text


def test_licence_of_the_model_card(parts: Parts, tmp_path: Path) -> None:
    folder = parts.write_folder(tmp_path / "a")
    (folder / "README.md").write_text("---\nlibrary_name: scmodelforge\n---\n")
    assert read_rank_checkpoint(folder).licence == UNKNOWN_LICENCE
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert read_rank_checkpoint(folder).licence == "cc-by-4.0 (README.md)"


def test_recognised_by_its_tensors(parts: Parts, tmp_path: Path) -> None:
    assert is_rank_checkpoint(parts.write_folder(tmp_path / "a"))
    file = parts.write_checkpoint(tmp_path / "b", prefix="model.backbone.base_model.model.")
    assert is_rank_checkpoint(file)
    assert is_rank_checkpoint(str(file.parent))
    assert not is_rank_checkpoint(file.parent / "config.yaml")
    assert not is_rank_checkpoint(tmp_path)
    assert not is_rank_checkpoint("owner/name")
    assert not is_rank_checkpoint(Path(__file__).parents[2] / "data" / "arc" / "folder")


def test_files_to_fetch_from_a_hub() -> None:
    names = ["README.md", "config.json", "gene_vocab.json", "model.pt", "model.safetensors", "events.log"]
    assert rank_files_to_fetch(names) == ["model.safetensors", "README.md", "config.json", "gene_vocab.json"]
    assert rank_files_to_fetch(["README.md", "config.json"]) == []


def test_the_yaml_of_a_training_goes_before_the_export(parts: Parts, tmp_path: Path) -> None:
    """A config.json does not say how cells were normalised; the YAML file does."""
    folder = parts.write_folder(tmp_path / "a")
    config = {"model": parts.model, "tokenizer": parts.tokenizer, "data": {"preprocessing": {"log1p": False}}}
    (tmp_path / "run.yml").write_text(yaml.safe_dump(config))
    assert read_rank_checkpoint(folder).tokens["log"]
    assert not read_rank_checkpoint(folder, config=tmp_path / "run.yml").tokens["log"]
