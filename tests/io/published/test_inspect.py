from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from scstate_lora.io.published import inspect
from scstate_lora.io.published.inspect import Report
from scstate_lora.io.save_load import save_directory
from scstate_lora.model.annotation.rank_base import rank_tensors
from scstate_lora.model.se.pretrained import se_tensors
from scstate_lora.model.st.published import st_tensors
from tests.scmodelforge_files import MODEL, Parts, torch_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

inspect_path = partial(inspect.inspect_path, se_tensors=se_tensors, st_tensors=st_tensors, rank_tensors=rank_tensors)
TRUE = Path(__file__).parents[2] / "data" / "arc"
TRUE_ST = TRUE.with_name("arc_st")
"""Small models that arc-state wrote."""


def test_se_folder(make_se: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_se().write_folder(tmp_path / "SE-600M")
    (folder / "se600m_epoch4.ckpt").touch()
    (folder / "LICENSE").write_text("Non-Commercial Licence\n")
    report = inspect_path(folder)
    rows = dict(report.rows)
    assert report.kind == "se"
    assert report.title == "SE-600M (se600m_epoch16.ckpt): an SE (state embedding) checkpoint"
    assert report.problems == []
    assert rows["file"].startswith(f"{folder / 'se600m_epoch16.ckpt'} (Lightning checkpoint, ")
    assert rows["beside it"] == "se600m_epoch4.ckpt"
    assert rows["embedding length"] == "15 (5 for the cell, 10 for the data set)"
    sizes = ("width (d_model)", "layers", "heads", "feed-forward (d_hid)", "protein embedding width", "tokens per cell")
    assert [rows[label] for label in sizes] == ["8", "2", "4", "12", "6", "9"]
    assert [rows[label] for label in ("dataset correction", "read depth (rda)", "count encoder")] == ["yes"] * 3
    assert rows["configuration"] == str(folder / "config.yaml")
    assert rows["genes"] == "7: GENE0, GENE1, GENE2, … (symbols)"
    assert rows["licence"] == "Non-Commercial Licence (LICENSE)"
    assert f"ssl.LoRACovariateSE(adata, base='{folder}')" in "\n".join(report.uses)


def test_parameters_are_those_of_the_network(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    rows = dict(inspect_path(made.write_folder(tmp_path)).rows)
    n = sum(tensor.numel() for tensor in made.ours.values())
    assert rows["parameters"] == f"{n / 1e6:.2f} M, float32"


@pytest.mark.parametrize("form", ["folder", "ckpt_embedded", "ckpt_bare", "safetensors", "compiled"])
def test_true_files(form: str) -> None:
    report = inspect_path(TRUE / form)
    rows = dict(report.rows)
    assert (report.kind, report.problems, len(report.uses)) == ("se", [], 3)
    assert rows["tokens per cell"] == "20"
    assert rows["genes"] == "60: TP53, ACTB, GAPDH, … (symbols)"


def test_what_is_switched_off(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se(counts=False, rda=False, dataset_correction=False)
    made.state = {name: tensor.half() for name, tensor in made.state.items()}
    rows = dict(inspect_path(made.write_folder(tmp_path)).rows)
    assert [rows[label] for label in ("dataset correction", "read depth (rda)", "count encoder")] == ["no"] * 3
    assert rows["embedding length"] == "5"
    assert rows["parameters"].endswith("float16")


def test_what_an_incomplete_se_lacks_is_a_problem(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    save_file({name: tensor.clone() for name, tensor in made.state.items()}, tmp_path / "model.safetensors")
    report = inspect_path(tmp_path)
    assert report.uses == []
    assert dict(report.rows)["layers"] == "2"
    assert "tensors only" in dict(report.rows)["file"]
    assert [("no configuration" in p, "no protein embeddings" in p) for p in report.problems] == [(1, 0), (0, 1)]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made.config))
    torch.save({"A": torch.ones(3)}, tmp_path / "protein_embeddings.pt")
    assert inspect_path(tmp_path).problems == ["The protein embeddings have width 3, the network reads 6."]


def test_se_with_a_strange_tensor_is_a_problem(make_se: Callable[..., Any], tmp_path: Path) -> None:
    made = make_se()
    made.state["lora.weight"] = torch.zeros(2)
    report = inspect_path(made.write_folder(tmp_path))
    assert "unexpected: lora.weight (2,)" in report.problems[0]
    assert "  unexpected: lora.weight (2,)" in report.text()
    assert report.uses == []


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["ACTB", "HLA-A", "ENSG00000000003"], "symbols"),
        (["Actb", "H2-K1", "Gapdh", "Cd4", "0610005C13Rik"], "symbols, written as in mouse"),
        (["ENSG00000000003", "ENSG00000000005.6", "ACTB"], "Ensembl ids, human"),
        (["ENSMUSG00000000001"], "Ensembl ids, mouse"),
        (["ENSDARG00000000001"], "Ensembl ids, another species"),
    ],
)
def test_protein_embeddings(tmp_path: Path, names: list[str], kind: str) -> None:
    file = tmp_path / "protein_embeddings.pt"
    torch.save({name: torch.ones(4) for name in names}, file)
    for path in (file, tmp_path):  # alone in its folder
        report = inspect_path(path)
        assert report.kind == "proteins"
        assert dict(report.rows)["genes"].endswith(f"({kind})")
        assert dict(report.rows)["width"] == "4"
        assert f"protein_embeddings='{file}'" in report.uses[0]
    torch.save({"A": torch.ones(4), "B": torch.ones(5)}, file)
    assert "not all of one width" in inspect_path(file).problems[0]


@pytest.fixture
def st_folder(tmp_path: Path) -> Path:
    """A small ST model that arc-state wrote, to be changed."""
    return Path(shutil.copytree(TRUE_ST / "trained", tmp_path / "ST-Tahoe"))


def test_st(st_folder: Path) -> None:
    (st_folder / "checkpoints" / "step=900.ckpt").touch()
    (st_folder / "LICENSE").write_text("Non-Commercial Licence\n")
    report = inspect_path(st_folder)
    rows = dict(report.rows)
    assert (report.kind, report.problems) == ("st", [])
    assert report.title.startswith("ST-Tahoe (final.ckpt): an ST (state transition) model")
    assert rows["beside it"] == str(Path("checkpoints") / "step=900.ckpt")
    sizes = ("backbone", "heads", "feed-forward", "cells per set", "reads")
    assert [rows[label] for label in sizes] == ["llama, 2 layer(s) of 16", "2 of 6", "16", "4", "12 genes (HVGs)"]
    assert rows["genes"] == "12: GENE0, GENE1, GENE5, … (symbols)"
    assert rows["perturbations"] == "4, as vectors of width 4: IFNG, MYC+KRAS, TP53, …"
    assert rows["control"] == "non-targeting"
    assert rows["licence"] == "Non-Commercial Licence (LICENSE)"
    assert f"ssl.STTransition(adata, pretrained='{st_folder}')" in report.uses[0]
    assert "reuse='backbone'" in report.uses[1]
    file = st_folder / "checkpoints" / "final.ckpt"
    assert inspect_path(file).rows[2:] == report.rows[2:]
    assert f"pretrained='{file}'" in inspect_path(file).uses[0]


@pytest.mark.parametrize(
    ("form", "label", "shown"),
    [
        ("tokens", "tokens beside the cells", "batch, confidence"),
        ("batch_encoder", "batches", "3: batch0, batch1, batch2"),
        ("decoder", "reads", "16 columns of adata.obsm['X_state']"),
        ("decoder", "gene decoder", "to 12 genes"),
        ("bare_basal", "layers of encoders, head", "4 (perturbations), 1 (cells); 1"),
        ("raw", "predicts", "a change, added to the cell and passed through a narrow layer; never negative"),
        ("gpt2", "backbone", "gpt2, 2 layer(s) of 16"),
    ],
)
def test_true_st_folders(form: str, label: str, shown: str) -> None:
    report = inspect_path(TRUE_ST / form)
    assert (report.kind, report.problems, len(report.uses)) == ("st", [], 2)
    assert dict(report.rows)[label] == shown


def test_st_of_which_the_backbone_alone_can_be_used(st_folder: Path) -> None:
    (st_folder / "pert_onehot_map.pt").write_bytes(b"\x80\x04junk")
    report = inspect_path(st_folder)
    assert "pert_onehot_map.pt is truncated or damaged" in report.problems[0]
    assert [("reuse='backbone'" in use) for use in report.uses] == [True]
    assert dict(report.rows)["backbone"] == "llama, 2 layer(s) of 16"


def test_st_of_which_nothing_can_be_used(st_folder: Path) -> None:
    file = st_folder / "checkpoints" / "final.ckpt"
    torch.save({"state_dict": {"project_out.0.weight": torch.ones(2, 2)}, "hyper_parameters": {"lr": 1.0}}, file)
    report = inspect_path(st_folder)
    assert (report.kind, report.uses) == ("st", [])
    assert "has the backbone None" in report.problems[0]


def test_our_own_save(tmp_path: Path) -> None:
    base = {"name": "compact base", "licence": "your data's", "source": None, "genes": ["A", "B"]}
    metadata = {"model": "LoRACovariateSE", "base": base}
    save_directory(tmp_path / "se", metadata=metadata, tensors={"base": {"w": torch.ones(1000, 20)}})
    for path in (tmp_path / "se", tmp_path / "se" / "model.json"):
        report = inspect_path(path)
        rows = dict(report.rows)
        assert report.kind == "saved"
        assert report.title == "se: a LoRACovariateSE saved by scstate_lora"
        assert (rows["base"], rows["licence of the base"]) == ("compact base", "your data's")
        assert "base from" not in rows
        assert rows["parameters in base"] == "0.02 M"
        assert rows["format version"] == "1"
        assert rows["genes"].startswith("2: A, B ")
        assert report.uses[0] == f"ssl.LoRACovariateSE.load('{tmp_path / 'se'}')"
    save_directory(tmp_path / "st", metadata={"model": "STTransition"}, tensors={"weights": {"w": torch.ones(2)}})
    assert inspect_path(tmp_path / "st").uses == [f"ssl.STTransition.load('{tmp_path / 'st'}')"]


def test_anything_else_raises(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.ones(2, 2)}}, tmp_path / "cnn.ckpt")
    with pytest.raises(ValueError, match=r"cnn\.ckpt is none of these: an SE or ST checkpoint.*It holds conv\.weight"):
        inspect_path(tmp_path / "cnn.ckpt")
    torch.save(3, tmp_path / "three.pt")
    with pytest.raises(ValueError, match=r"three\.pt is none of these.*no tensors by name"):
        inspect_path(tmp_path / "three.pt")
    (tmp_path / "notes.txt").write_text("What we did")
    with pytest.raises(ValueError, match=r"notes\.txt is not a file of tensors"):
        inspect_path(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="There is no"):
        inspect_path(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds neither a \.ckpt nor"):
        inspect_path(tmp_path / "empty")


def test_text_is_aligned() -> None:
    report = Report("se", "A title", [("a", "1"), ("longer", "word " * 40)], ["call()"], ["one\ntwo"])
    lines = report.text().splitlines()
    assert lines[:4] == ["A title", "", "  a       1", "  longer  " + "word " * 19 + "word"]
    assert lines[4].startswith(" " * 10 + "word")
    assert lines[-7:] == ["", "Problems:", "  one", "  two", "", "Use:", "  call()"]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("form", ["folder", "checkpoint"])
def test_encoder_of_scmodelforge(form: str, tmp_path: Path) -> None:
    parts = Parts.of(torch_encoder(pooling="mean"))
    path = getattr(parts, f"write_{form}")(tmp_path / "blood")
    report = inspect_path(path)
    rows = dict(report.rows)
    assert (report.kind, report.problems) == ("rank", [])
    assert report.title.endswith("an encoder of genes by rank, saved by scModelForge")
    assert rows["width (d_model)"] == str(MODEL["hidden_dim"])
    assert rows["tokens per cell"] == "up to 12, genes by rank, CLS first"
    assert rows["reads values too"] == "counts brought to 10,000 per cell, then log1p"
    assert rows["a cell is"] == "the mean of its tokens"
    assert rows["genes"].startswith("20: GENE0, GENE1")
    assert f"ssl.CellTypeClassifier(adata, base='{path}')" in report.uses[0]
    assert "scstate-lora annotate train" in report.uses[1]


def test_what_an_encoder_of_scmodelforge_lacks_is_a_problem(tmp_path: Path) -> None:
    path = Parts.of(torch_encoder()).write_folder(tmp_path / "blood")
    (path / "gene_vocab.json").unlink()
    report = inspect_path(path)
    assert report.uses == []
    assert "genes=list(training_adata.var_names)" in report.problems[0]
