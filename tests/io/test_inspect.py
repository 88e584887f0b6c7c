from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from scstate_lora.io.inspect import Report, inspect_path
from scstate_lora.io.save_load import save_directory

if TYPE_CHECKING:
    from collections.abc import Callable

TRUE = Path(__file__).parents[1] / "data" / "arc"
"""Small models that arc-state wrote."""


def _st_folder(folder: Path) -> Path:
    """An ST model in the layout of published ones."""
    (folder / "checkpoints").mkdir(parents=True)
    state = {
        "pert_encoder.0.weight": torch.ones(16, 3),
        "transformer_backbone.norm.weight": torch.ones(16),
        "project_out.0.weight": torch.ones(10, 16),
    }
    hyper_parameters = {
        "input_dim": 10,
        "hidden_dim": 16,
        "output_dim": 10,
        "pert_dim": 3,
        "cell_set_len": 64,
        "predict_residual": True,
        "embed_key": "X_hvg",
        "transformer_backbone_key": "llama",
        "transformer_backbone_kwargs": {"num_hidden_layers": 4},
        "gene_names": [np.str_(f"ENSG0000000000{i}") for i in range(5)],
    }
    for name in ("step=900.ckpt", "step=1000.ckpt"):
        checkpoint = {"state_dict": state, "hyper_parameters": hyper_parameters}
        torch.save(checkpoint, folder / "checkpoints" / name)
    (folder / "config.yaml").write_text("model: {}\n")
    dims = {"pert_dim": np.int64(3), "pert_names": np.array(["drug_a", "drug_b", "DMSO", "drug_c"])}
    (folder / "var_dims.pkl").write_bytes(pickle.dumps(dims))
    return folder


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
    assert rows["embedding length"] == "15 (5 of the cell, 10 of the data set)"
    sizes = ("width (d_model)", "layers", "heads", "feed-forward (d_hid)", "protein embedding width", "tokens a cell")
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
    assert rows["tokens a cell"] == "20"
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


def test_st(tmp_path: Path) -> None:
    folder = _st_folder(tmp_path / "ST-Tahoe")
    report = inspect_path(folder)
    rows = dict(report.rows)
    assert report.kind == "st"
    assert report.title.startswith("ST-Tahoe (step=1000.ckpt): an ST (state transition) model")
    assert rows["beside it"] == str(Path("checkpoints") / "step=900.ckpt")
    assert [rows[label] for label in ("backbone", "layers", "input", "hidden")] == ["llama", "4", "10", "16"]
    assert rows["genes"] == "5: ENSG00000000000, ENSG00000000001, ENSG00000000002, … (Ensembl ids, human)"
    assert rows["perturbations"] == "4: drug_a, drug_b, DMSO, …"
    assert "ssl.STTransition" in report.uses[0]
    assert inspect_path(folder / "checkpoints" / "step=900.ckpt").title.startswith("ST-Tahoe (step=900.ckpt)")
    (folder / "checkpoints" / "final.ckpt").write_bytes((folder / "checkpoints" / "step=900.ckpt").read_bytes())
    assert inspect_path(folder).title.startswith("ST-Tahoe (final.ckpt)")


def test_older_st_folder_and_damaged_dimensions(tmp_path: Path) -> None:
    folder = _st_folder(tmp_path / "ST")
    (folder / "checkpoints" / "step=900.ckpt").rename(folder / "final.ckpt")
    (folder / "checkpoints" / "step=1000.ckpt").unlink()
    (folder / "checkpoints").rmdir()
    assert dict(inspect_path(folder).rows)["perturbations"].startswith("4:")
    (folder / "var_dims.pkl").write_bytes(b"\x80\x04junk")
    report = inspect_path(folder)
    assert report.kind == "st"
    assert "var_dims.pkl" in report.problems[0]


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
        assert rows["numbers in base"] == "0.02 M"
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
    with pytest.raises(ValueError, match=r"notes\.txt is no file of tensors"):
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
