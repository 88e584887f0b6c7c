from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from scstate_lora.io.pickle.reader import UnsafePickleError
from scstate_lora.io.published import se_checkpoint
from scstate_lora.io.published.contents import find_se_file
from scstate_lora.io.published.proteins import stack_proteins
from scstate_lora.io.published.se_checkpoint import (
    UNKNOWN_LICENCE,
    files_to_fetch,
    licence_beside,
    name_of,
)
from scstate_lora.io.save_load import save_directory
from scstate_lora.model.se.pretrained import se_tensors
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

read_se_checkpoint = partial(se_checkpoint.read_se_checkpoint, expected_tensors=se_tensors)
TRUE = Path(__file__).parents[2] / "data" / "arc"
"""Small models that arc-state wrote."""
SIZES = {
    "token_dim": 6,
    "d_model": 8,
    "n_layers": 2,
    "n_heads": 4,
    "d_hid": 12,
    "output_dim": 5,
    "n_tokens": 9,
    "dropout": 0.0,
    "counts": True,
    "rda": True,
    "dataset_correction": True,
    "cls_gene": 3,
}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("scstate_lora"), "propagate", True)
    caplog.set_level(logging.INFO, logger="scstate_lora")
    return caplog


def _check(read: Any, made: Any) -> None:
    """The whole of it, and it goes into a network."""
    assert read.state.keys() == made.ours.keys()
    assert all(torch.equal(read.state[name], made.ours[name]) for name in made.ours)
    assert all(tensor.dtype == torch.float32 for tensor in read.state.values())
    assert read.genes == list(made.proteins)
    assert torch.equal(read.gene_tokens, torch.stack(list(made.proteins.values())))
    SEEncoder(SEConfig(**read.sizes), read.gene_tokens).load_state_dict(read.state)


def test_folder(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    folder = made.write_folder(tmp_path / "SE-600M")
    read = read_se_checkpoint(folder)
    _check(read, made)
    assert read.sizes == SIZES
    assert read.path == folder / "se600m_epoch16.ckpt"
    assert read.name == "SE-600M (se600m_epoch16.ckpt)"
    assert read.licence == UNKNOWN_LICENCE


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("folder", {}),
        ("ckpt_embedded", {"d_model": 32, "n_layers": 2, "d_hid": 48, "n_heads": 4, "output_dim": 16}),
        ("ckpt_bare", {}),
        ("ckpt_trained", {}),
        ("safetensors", {"d_hid": 40}),
        ("compiled", {}),
        ("no_dataset", {"dataset_correction": False}),
        ("no_rda", {"rda": False}),
        ("no_counts", {"counts": False}),
    ],
)
def test_true_files(form: str, changed: dict[str, Any]) -> None:
    read = read_se_checkpoint(TRUE / form)
    tiny = {"token_dim": 24, "d_model": 16, "n_layers": 1, "d_hid": 16, "output_dim": 8, "n_heads": 2, "n_tokens": 20}
    assert read.sizes == {**SIZES, **tiny, **changed}
    assert read.genes[:3] == ["TP53", "ACTB", "GAPDH"]
    assert read.gene_tokens.shape == (60, 24)
    SEEncoder(SEConfig(**read.sizes), read.gene_tokens).load_state_dict(read.state)


def test_checkpoint_with_everything_inside(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    torch.save(made.inside(), tmp_path / "a.ckpt")
    read = read_se_checkpoint(str(tmp_path / "a.ckpt"))
    _check(read, made)
    assert read.sizes == SIZES


def test_config_in_hyper_parameters(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.hyper_parameters["cfg"] = made.config
    torch.save(made.checkpoint(protein_embeds_dict=made.proteins), tmp_path / "a.ckpt")
    assert read_se_checkpoint(tmp_path / "a.ckpt").sizes == SIZES
    made.hyper_parameters |= {"cfg": None, "cfg_yaml": yaml.safe_dump(made.config)}
    torch.save(made.checkpoint(protein_embeds_dict=made.proteins), tmp_path / "b.ckpt")
    assert read_se_checkpoint(tmp_path / "b.ckpt").sizes == SIZES


def test_what_is_given_goes_before_what_is_inside_and_that_before_what_lies_beside(
    make_se: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_se()
    torch.save(made.inside(), tmp_path / "a.ckpt")
    other = {**made.config, "dataset": {"pad_length": 20, "cls_token_idx": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(other))
    torch.save({"OTHER": torch.ones(6)}, tmp_path / "protein_embeddings.pt")
    inside = read_se_checkpoint(tmp_path / "a.ckpt")
    assert (inside.sizes["n_tokens"], inside.genes[0]) == (9, "GENE0")
    given = read_se_checkpoint(
        tmp_path / "a.ckpt",
        config=tmp_path / "config.yaml",
        protein_embeddings=tmp_path / "protein_embeddings.pt",
    )
    assert (given.sizes["n_tokens"], given.sizes["cls_gene"], given.genes) == (20, 1, ["OTHER"])
    as_dicts = read_se_checkpoint(tmp_path / "a.ckpt", config=other, protein_embeddings={"G": torch.ones(6)})
    assert (as_dicts.sizes["n_tokens"], as_dicts.genes) == (20, ["G"])


@pytest.mark.parametrize("lacking", ["counts", "rda", "dataset_correction"])
def test_optional_parts(make_se: Callable[..., Any], tmp_path: Path, lacking: str) -> None:
    made = make_se(**{lacking: False})
    read = read_se_checkpoint(made.write_folder(tmp_path / "m"))
    _check(read, made)
    assert read.sizes == {**SIZES, lacking: False}


def test_compiled_names(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    compiled = ("transformer_encoder.", "decoder.", "binary_decoder.", "gene_embedding_layer.")
    made.state = {
        next((f"{c}_orig_mod.{name.removeprefix(c)}" for c in compiled if name.startswith(c)), name): tensor
        for name, tensor in made.state.items()
    }
    assert sum("_orig_mod." in name for name in made.state) > 30
    _check(read_se_checkpoint(made.write_folder(tmp_path / "m")), made)


@pytest.mark.parametrize("kept", ["encoder.", "gene_embedding_layer.", None])
def test_safetensors_of_tied_weights(make_se: Callable[..., Any], tmp_path: Path, kept: str | None) -> None:
    made = make_se()
    folder = made.write_folder(tmp_path / "m")
    (folder / "se600m_epoch16.ckpt").unlink()
    names = ("encoder.", "gene_embedding_layer.")
    dropped = {name for name in made.state if kept and name.startswith(names) and not name.startswith(kept)}
    state = {name: tensor.clone() for name, tensor in made.state.items() if name not in dropped}
    assert len(state) == len(made.state) - (4 if kept else 0)
    save_file(state, folder / "model.safetensors")
    _check(read_se_checkpoint(folder), made)
    _check(read_se_checkpoint(folder / "model.safetensors"), made)


def test_two_names_of_the_token_encoder_that_differ_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.state["gene_embedding_layer.0.bias"] = made.state["encoder.0.bias"] + 1
    with pytest.raises(ValueError, match=r"values: gene_embedding_layer\.0\.bias differs from encoder\.0\.bias"):
        read_se_checkpoint(made.write_folder(tmp_path / "m"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast(make_se: Callable[..., Any], tmp_path: Path, dtype: torch.dtype) -> None:
    made = make_se()
    made.state = {name: tensor.to(dtype) for name, tensor in made.state.items()}
    made.proteins = {name: tensor.to(dtype) for name, tensor in made.proteins.items()}
    made.ours = {name: tensor.to(dtype).float() for name, tensor in made.ours.items()}
    read = read_se_checkpoint(made.write_folder(tmp_path / "m"))
    made.proteins = {name: tensor.float() for name, tensor in made.proteins.items()}
    _check(read, made)
    assert read.gene_tokens.dtype == torch.float32


def test_weights_are_views_of_the_file(make_se: Callable[..., Any], tmp_path: Path) -> None:
    read = read_se_checkpoint(make_se().write_folder(tmp_path / "m"))
    q, k = (read.state[f"transformer_encoder.layers.0.self_attn.{p}_proj.weight"] for p in "qk")
    assert k.data_ptr() - q.data_ptr() == q.numel() * 4


def test_latest_epoch_is_taken(make_se: Callable[..., Any], tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    made = make_se()
    made.write_folder(tmp_path, "se600m_epoch4.ckpt")
    made.write_folder(tmp_path, "se600m_epoch16.ckpt")
    made.write_folder(tmp_path, "last.ckpt")
    assert read_se_checkpoint(tmp_path).path.name == "se600m_epoch16.ckpt"
    assert "se600m_epoch16.ckpt" in logged.text
    assert "protein_embeddings.pt" in logged.text
    (tmp_path / "x-epoch=100-step=7.ckpt").touch()
    assert find_se_file(tmp_path).name == "x-epoch=100-step=7.ckpt"


@pytest.mark.parametrize("names", [("a.ckpt", "b.ckpt"), ("epoch=3-step=1.ckpt", "epoch=3-step=2.ckpt")])
def test_checkpoints_that_cannot_be_told_apart_raises(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"several checkpoints.*{names[0]}, {names[1]}. Give the file itself"):
        find_se_file(tmp_path)


def test_nothing_there_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*SE-1B"):
        read_se_checkpoint(tmp_path / "SE-1B")
    with pytest.raises(FileNotFoundError, match=r"neither a \.ckpt nor a model\.safetensors; it holds: nothing"):
        read_se_checkpoint(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds: notes\.txt"):
        read_se_checkpoint(tmp_path)


def test_every_misfit_is_listed_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    del made.state["decoder.1.bias"]
    made.state["lora.weight"] = torch.zeros(2, 3)
    made.state["transformer_encoder.layers.1.norm1.weight"] = torch.zeros(9)
    made.state["dataset_encoder.4.weight"] = torch.zeros(4, 8)
    made.state["pe_embedding.weight"] = torch.zeros(4, 7)
    made.state["gene_embedding_layer.1.bias"] = torch.zeros(9)
    made.state["bin_encoder.weight"] = torch.zeros(10, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        read_se_checkpoint(made.write_folder(tmp_path / "m"))
    for line in (
        "missing: decoder.1.bias (5,)",
        "unexpected: lora.weight (2, 3)",
        "shape: transformer_encoder.layers.1.norm1.weight is (9,), expected (8,)",
        "shape: dataset_encoder.4.weight is (4, 8), expected (3, 8)",
        "shape: pe_embedding.weight is (4, 7), expected (4, 6)",
        "shape: gene_embedding_layer.1.bias is (9,), expected (8,)",
        "type: bin_encoder.weight is torch.int64",
        "se600m_epoch16.ckpt",
    ):
        assert line in str(error.value)


def test_table_of_protein_embeddings_is_left_out(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.state["pe_embedding.weight"] = torch.zeros(99, 6)
    _check(read_se_checkpoint(made.write_folder(tmp_path / "m")), made)


def test_a_layer_missing_in_the_middle_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.state = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in made.state.items()}
    with pytest.raises(ValueError, match=r"missing: transformer_encoder\.layers\.1\.qkv_proj\.weight \(24, 8\)"):
        read_se_checkpoint(made.write_folder(tmp_path / "m"))


def test_no_layers_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.state = {name: tensor for name, tensor in made.state.items() if "layers." not in name}
    with pytest.raises(ValueError, match=r"m/se600m_epoch16\.ckpt lacks transformer_encoder\.layers\.0\.linear1\.bias"):
        read_se_checkpoint(made.write_folder(tmp_path / "m"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("d_model", 16, "d_model is 8 by the tensors, d_model is 16 in hyper_parameters"),
        ("nlayers", 3, "n_layers is 2 by the tensors, nlayers is 3 in hyper_parameters"),
        ("d_hid", 1, "d_hid is 12 by the tensors, d_hid is 1 "),
        ("output_dim", 1, "output_dim is 5 by the tensors"),
        ("token_dim", 1, "token_dim is 6 by the tensors"),
        ("nhead", 3, "does not divide into 3 heads"),
        ("nhead", 2, "nhead is 2 in hyper_parameters .*, model.nhead is 4 in .*config.yaml"),
        ("nhead", "many", "nhead is 'many' in hyper_parameters"),
    ],
)
def test_hyper_parameters_that_contradict_raises(
    make_se: Callable[..., Any], tmp_path: Path, key: str, value: Any, message: str
) -> None:
    made = make_se()
    made.hyper_parameters[key] = value
    with pytest.raises(ValueError, match=message):
        read_se_checkpoint(made.write_folder(tmp_path / "m"))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "emsize", 16, r"d_model is 8 by the tensors, model\.emsize is 16 in .*config\.yaml"),
        ("model", "nlayers", 3, r"model\.nlayers is 3"),
        ("model", "rda", False, r"rda is True by the tensors, model\.rda is False"),
        ("model", "counts", False, r"model\.counts is False"),
        ("model", "dataset_correction", False, r"model\.dataset_correction is False"),
        ("embeddings", "toy", {"size": 7}, r"token_dim is 6 by the tensors, embeddings\.toy\.size is 7"),
        ("dataset", "pad_length", None, r"dataset\.pad_length is missing in .*config\.yaml"),
        ("dataset", "pad_length", 1, r"dataset\.pad_length is 1 in .*at least 2"),
        (
            "dataset",
            "pad_length",
            "${x.y}",
            r"dataset\.pad_length is '\$\{x\.y\}' in .*a reference that is not followed",
        ),
        ("dataset", "cls_token_idx", None, r"dataset\.cls_token_idx is missing"),
        ("dataset", "cls_token_idx", True, r"dataset\.cls_token_idx is True"),
    ],
)
def test_configuration_that_contradicts_or_lacks_raises(
    make_se: Callable[..., Any], tmp_path: Path, section: str, key: str, value: Any, message: str
) -> None:
    made = make_se()
    made.config[section][key] = value
    with pytest.raises(ValueError, match=message):
        read_se_checkpoint(made.write_folder(tmp_path / "m"))


def test_interpolations_that_are_not_needed_are_no_matter(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.config["model"] |= {"emsize": "${a.b}", "nhead": "${a.c}"}
    assert read_se_checkpoint(made.write_folder(tmp_path / "m")).sizes == SIZES
    del made.hyper_parameters["nhead"]
    with pytest.raises(ValueError, match=r"model\.nhead is '\$\{a\.c\}'"):
        read_se_checkpoint(made.write_folder(tmp_path / "m"))


def test_no_or_broken_configuration_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    file = make_se().write_folder(tmp_path) / "config.yaml"
    file.write_text("model: [")
    with pytest.raises(ValueError, match=r"config\.yaml is not valid YAML"):
        read_se_checkpoint(tmp_path)
    file.write_text("- 1")
    with pytest.raises(ValueError, match=r"config\.yaml holds list, expected sections"):
        read_se_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"no configuration inside, and there is no .*config\.yaml.*config='path"):
        read_se_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no configuration .*elsewhere"):
        read_se_checkpoint(tmp_path, config=tmp_path / "elsewhere.yaml")


def test_no_or_several_protein_embeddings_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    folder = made.write_folder(tmp_path / "m")
    file = folder / "protein_embeddings.pt"
    file.rename(folder / "protein_embeddings_human.pt")
    assert len(read_se_checkpoint(folder).genes) == 7  # the only one
    save_file(made.proteins, folder / "protein_embeddings_mouse.safetensors")
    with pytest.raises(
        ValueError, match=r"several lie beside it: protein_embeddings_human\.pt, protein_embeddings_mouse"
    ):
        read_se_checkpoint(folder)
    given = read_se_checkpoint(folder, protein_embeddings=folder / "protein_embeddings_mouse.safetensors")
    assert sorted(given.genes) == sorted(made.proteins)
    for present in folder.glob("protein_embeddings*"):
        present.unlink()
    with pytest.raises(
        ValueError, match=r"none lie beside it. Put .* into .*m, or give .*or take .*protein_embeds_dict"
    ):
        read_se_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match="There are no protein embeddings at"):
        read_se_checkpoint(folder, protein_embeddings=file)
    torch.save(torch.ones(3, 6), file)
    with pytest.raises(ValueError, match=r"protein_embeddings\.pt holds one Tensor, not a dict"):
        read_se_checkpoint(folder)


def test_vectors_in_one_storage_are_not_copied() -> None:
    table = torch.randn(5, 6)
    genes, tokens = stack_proteins(dict(zip("ABCDE", table, strict=True)), 6, source="x")
    assert tokens.data_ptr() == table.data_ptr()
    assert (genes, tokens.shape) == (list("ABCDE"), (5, 6))
    assert torch.equal(tokens, table)
    every_other = stack_proteins(dict(zip("ABC", table[::2], strict=True)), 6, source="x")[1]
    assert torch.equal(every_other, table[::2])
    assert every_other.data_ptr() == table.data_ptr()


def test_vectors_out_of_order_are_copied() -> None:
    table = torch.randn(5, 6)
    for order in ([4, 3, 2, 1, 0], [0, 2, 1, 3, 4], [0, 1, 2, 4, 3], [0, 0, 0, 0, 0]):
        tokens = stack_proteins(dict(zip("ABCDE", table[order].unbind(), strict=True)), 6, source="x")[1]
        assert torch.equal(tokens, table[order])
        views = {name: table[i] for name, i in zip("ABCDE", order, strict=True)}
        assert torch.equal(stack_proteins(views, 6, source="x")[1], table[order])
    columns = dict(zip("ABCDEF", table.T, strict=True))
    assert torch.equal(stack_proteins(columns, 5, source="x")[1], table.T)


def test_numpy_names_and_vectors() -> None:
    proteins = {np.str_("A"): np.ones(3), np.str_("B"): np.zeros(3, np.float32)}
    genes, tokens = stack_proteins(proteins, 3, source="x")
    assert [type(gene) for gene in genes] == [str, str]
    assert tokens.dtype == torch.float32
    assert tokens.tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("proteins", "message"),
    [
        ({}, "hold nothing"),
        ({3: torch.ones(2)}, r"hold 3 \(int\)"),
        ({"A": torch.ones(2), "B": torch.ones(3)}, r"1 of 2 protein embeddings of x are not vectors of 2.*B is \(3,\)"),
        ({"A": torch.ones(1, 2)}, r"A is \(1, 2\)"),
        ({"A": [1.0, 2.0]}, "A is list"),
        ({"A": torch.ones(2, dtype=torch.int64)}, "not vectors of 2 numbers"),
        ({"A": torch.ones(2), "B": torch.tensor([1.0, torch.nan])}, "1 of 2 .* hold NaN or infinity: B. "),
        ({"A": torch.tensor([-torch.inf, 0.0])}, "hold NaN or infinity: A"),
    ],
)
def test_unusable_protein_embeddings_raises(proteins: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack_proteins(proteins, 2, source="x")


def test_something_else_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    st = tmp_path / "ST-Tahoe"
    (st / "checkpoints").mkdir(parents=True)
    file = st / "checkpoints" / "final.ckpt"
    torch.save({"state_dict": {"pert_encoder.0.weight": torch.ones(2), "project_out.0.bias": torch.ones(1)}}, file)
    for path in (st, file):
        with pytest.raises(ValueError, match=r"is an ST \(state transition\) model.*ssl\.STTransition"):
            read_se_checkpoint(path)
    torch.save(made.proteins, tmp_path / "pe.pt")
    with pytest.raises(ValueError, match=r"protein embeddings of 7 genes, not a model.*protein_embeddings='.*pe\.pt'"):
        read_se_checkpoint(tmp_path / "pe.pt")
    torch.save({"state_dict": {"conv.weight": torch.ones(2, 2)}}, tmp_path / "cnn.ckpt")
    with pytest.raises(ValueError, match=r"cnn\.ckpt is not an SE .*holds conv\.weight"):
        read_se_checkpoint(tmp_path / "cnn.ckpt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt is not an SE .*no tensors by name"):
        read_se_checkpoint(tmp_path / "list.pt")
    (tmp_path / "cells.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"cells\.h5ad is an HDF5 file \(cells\), not a model"):
        read_se_checkpoint(tmp_path / "cells.h5ad")
    (tmp_path / "cells.zarr").mkdir()
    with pytest.raises(ValueError, match=r"cells\.zarr holds cells \(zarr\)"):
        read_se_checkpoint(tmp_path / "cells.zarr")
    (tmp_path / "notes.txt").write_text("What we did")
    with pytest.raises(ValueError, match=r"notes\.txt is not a file of tensors"):
        read_se_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="pointer of git LFS"):
        read_se_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        read_se_checkpoint(tmp_path / "model.safetensors")


def test_our_own_save_raises(tmp_path: Path) -> None:
    save_directory(tmp_path / "se", metadata={"model": "LoRACovariateSE"}, tensors={"base": {"a": torch.ones(2)}})
    for path in (tmp_path / "se", tmp_path / "se" / "base.safetensors"):
        with pytest.raises(ValueError, match=r"model saved by scstate_lora.*ssl\.LoRACovariateSE\.load"):
            read_se_checkpoint(path)


def test_truncated_checkpoint_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    file = make_se().write_folder(tmp_path) / "se600m_epoch16.ckpt"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"se600m_epoch16\.ckpt"):
        read_se_checkpoint(file)


def test_code_inside_raises(make_se: Callable[..., Any], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (print, ("run",))

    torch.save(make_se().checkpoint(callbacks=Evil()), tmp_path / "a.ckpt")
    with pytest.raises(UnsafePickleError, match="print"):
        read_se_checkpoint(tmp_path / "a.ckpt")


def test_licence_beside(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    assert licence_beside(file) == UNKNOWN_LICENCE
    (tmp_path / "README.md").write_text("# A model\n")
    assert licence_beside(file) == UNKNOWN_LICENCE
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: arc-non-commercial\n---\n# A model\n")
    assert licence_beside(file) == "arc-non-commercial (README.md)"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_beside(file) == "mit (README.md)"
    (tmp_path / "LICENSE.md").write_text("\n# The Licence of This\n\nText.")
    assert licence_beside(file) == "The Licence of This (LICENSE.md)"


def test_name(tmp_path: Path) -> None:
    assert name_of(tmp_path / "SE-600M" / "a.ckpt") == "SE-600M (a.ckpt)"
    assert name_of(tmp_path / "ST-Tahoe" / "checkpoints" / "final.ckpt") == "ST-Tahoe (final.ckpt)"
    snapshot = tmp_path / "models--arcinstitute--SE-600M" / "snapshots" / "0123abc"
    assert name_of(snapshot / "a.ckpt") == "arcinstitute/SE-600M (a.ckpt)"


def test_of_a_published_model_one_file_of_weights_is_fetched() -> None:
    names = ["README.md", "MODEL_LICENSE.md", "config.yaml", "protein_embeddings.pt", "model.safetensors", "other.bin"]
    beside = ["README.md", "MODEL_LICENSE.md", "config.yaml", "protein_embeddings.pt"]
    assert files_to_fetch(names) == ["model.safetensors", *beside]
    epochs = ["se600m_epoch4.ckpt", "se600m_epoch16.ckpt", "old/se600m_epoch99.ckpt"]
    assert files_to_fetch([*epochs, *names]) == ["se600m_epoch16.ckpt", *beside]
    assert files_to_fetch(beside) == []


def test_licence_of_the_weights_comes_before_that_of_the_code(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    (tmp_path / "LICENSE.md").write_text("# Code licence")
    assert licence_beside(file) == "Code licence (LICENSE.md)"
    (tmp_path / "MODEL_LICENSE.md").write_text("# Model licence")
    assert licence_beside(file) == "Model licence (MODEL_LICENSE.md)"


def test_of_a_folder_the_proteins_beside_the_weights_are_taken_and_of_a_file_those_inside(tmp_path: Path) -> None:
    shutil.copy(TRUE / "ckpt_embedded" / "model.ckpt", tmp_path)
    inside = read_se_checkpoint(tmp_path / "model.ckpt").gene_tokens
    assert torch.equal(read_se_checkpoint(tmp_path).gene_tokens, inside)
    torch.save(
        {"A": torch.ones(inside.shape[1]), "B": torch.zeros(inside.shape[1])}, tmp_path / "protein_embeddings.pt"
    )
    assert torch.equal(read_se_checkpoint(tmp_path / "model.ckpt").gene_tokens, inside)
    assert read_se_checkpoint(tmp_path).genes == ["A", "B"]
