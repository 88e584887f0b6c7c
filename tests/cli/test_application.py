from __future__ import annotations

import subprocess
import sys
import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import yaml

import scstate_lora as ssl
from scstate_lora import cli, workflow
from scstate_lora._compat import mudata_without_pull
from scstate_lora.cli.application import plain_warnings
from scstate_lora.config import RunConfig
from tests.builders import wound

SMALL = [
    "se.compact.n_steps=6",
    "se.compact.d_model=16",
    "se.compact.d_hid=16",
    "se.compact.n_heads=2",
    "se.compact.output_dim=8",
    "se.conditioning.n_steps=4",
    "se.conditioning.hidden_dims=[16]",
    "se.train.max_epochs=1",
    "st.train.max_epochs=1",
    "st.model.hidden=16",
    "accelerator=cpu",
]
KEYS = ["--pert-key", "condition", "--control", "sham", "--cell-type-key", "cell_type"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a wound as h5ad and h5mu, and damaged files. Not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    cells = wound(700, seed=5)
    cells.write_h5ad(folder / "wound.h5ad")
    human = cells.copy()
    human.var_names = human.var_names.str.upper()
    human.write_h5ad(folder / "human.h5ad")
    twice = cells[:50].copy()
    twice.obs_names = ["cell"] * 50
    twice.write_h5ad(folder / "twice.h5ad")
    proteins = cells[:, :20].copy()
    proteins.var_names = [f"protein{i}" for i in range(20)]
    with mudata_without_pull():
        mudata.MuData({"rna": cells, "proteins": proteins}).write_h5mu(folder / "wound.h5mu")
    (folder / "truncated.h5ad").write_bytes((folder / "wound.h5ad").read_bytes()[:5000])
    (folder / "text.h5ad").write_text("no data")
    (folder / "second.h5ad").write_bytes((folder / "wound.h5mu").read_bytes())
    (folder / "table.csv").write_text("a,b\n")
    return folder


@pytest.fixture(scope="module")
def finished(call, files, tmp_path_factory):
    """Folder, stdout, stderr and warnings of a run on a modality, with cells held out."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    held_out = ["--holdout", "cell_type=macrophage,condition=burn", "--holdout", "cell_type=fibroblast,condition=burn"]
    keys = ["--covariates", "condition, time_days:continuous", *KEYS, "--batch-key", "mouse_id"]
    with warnings.catch_warnings(record=True) as warned:  # pytest would keep them from stderr
        warnings.simplefilter("default")
        code, out, err = call(
            "run", files / "wound.h5mu", "--modality", "rna", *keys, *held_out, "--out", folder, *SMALL, "seed=7"
        )
    assert code == 0, err
    return folder, out, err, warned


@pytest.fixture
def only_options(monkeypatch):
    """Catch what the workflow would be called with."""
    caught = {}

    def stop(_data, config, folder, **_options):
        caught.update(config=config, folder=folder)
        raise ValueError("stopped here")

    monkeypatch.setattr(workflow, "run", stop)
    return caught


@pytest.fixture
def no_training(monkeypatch):
    """Fail when a refused run trains."""

    def train(*_args, **_kwargs):
        pytest.fail("trained before the refusal")

    monkeypatch.setattr(ssl.LoRACovariateSE, "train_base", train)
    monkeypatch.setattr(ssl.LoRACovariateSE, "train", train)


def test_help_names_commands_and_options(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "run" in out
    assert "demo" in out
    code, out, _ = call("run", "--help")
    assert code == 0
    for option in ("--covariates", "--pert-key", "--holdout", "--out", "se.train.max_epochs"):
        assert option in out


def test_run_leaves_cells_predictions_tables_models_and_a_page(finished):
    folder, *_ = finished
    adata = ad.read_h5ad(folder / "adata.h5ad")
    assert {"X_scstate_base", "X_scstate_lora", "X_scstate_st"} <= set(adata.obsm)
    held_out = adata.obs["scstate_split"] == "test"
    expected = adata.obs["cell_type"].isin(["macrophage", "fibroblast"]) & (adata.obs["condition"] == "burn")
    np.testing.assert_array_equal(held_out, expected)
    assert ad.read_h5ad(folder / "predictions.h5ad").n_obs == (adata.obs["condition"] == "sham").sum()
    assert set(pd.read_csv(folder / "tables" / "perturbation.csv")["context"]) == {"macrophage", "fibroblast", "all"}
    assert "<html" in (folder / "report.html").read_text()
    assert ssl.LoRACovariateSE.load(folder / "models" / "se").is_trained
    assert ssl.STTransition.load(folder / "models" / "st").is_trained


def test_run_keeps_the_options_it_was_given(finished):
    folder, *_ = finished
    config = RunConfig.parse(yaml.safe_load((folder / "config.yaml").read_text()), name="config.yaml")
    assert config.seed == 7
    assert config.se.train.max_epochs == 1
    assert config.data.covariate_keys == {"condition": None, "time_days": "continuous"}
    assert config.data.batch_key == "mouse_id"


def test_run_says_the_split_and_its_progress_on_stderr_and_the_results_on_stdout(finished):
    folder, out, err, warned = finished
    assert "condition (categorical), time_days (continuous)" in err
    assert "train  val  test" in err
    for title in ("Compact base", "LoRACovariateSE", "STTransition"):
        assert f"{title}: 100%" in err
    hidden = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)  # as Python hides them by default
    assert [str(w.message) for w in warned if not issubclass(w.category, hidden)] == []
    assert out.strip().startswith(f"Results in {folder}:")
    assert "%|" not in out
    for name in (
        "report.html",
        "adata.h5ad",
        "predictions.h5ad",
        "tables",
        "models/se",
        "models/st",
        "logs",
        "config.yaml",
    ):
        assert f"  {name} " in out


def test_options_reach_the_configuration(call, files, only_options):
    options = ["--covariates", "condition,timepoint", "--layer", "raw", "--input-scale", "counts", "--gene-key", "id"]
    call("run", files / "wound.h5ad", *options, *KEYS, "data.context_keys=[cell_type]", "data.test_size=0.3")
    data = only_options["config"].data
    assert data.covariate_keys == ["condition", "timepoint"]
    assert (data.layer, data.input_scale, data.gene_key) == ("raw", "counts", "id")
    assert (data.pert_key, data.control, data.cell_type_key) == ("condition", "sham", "cell_type")
    assert (data.context_keys, data.test_size, data.holdout) == (["cell_type"], 0.3, None)
    assert str(only_options["folder"]) == "runs/wound"


def test_without_covariates_the_perturbation_is_the_one(call, files, only_options):
    call("run", files / "wound.h5ad", *KEYS)
    assert only_options["config"].data.covariate_keys == ["condition"]
    _, _, err = call("run", files / "wound.h5ad", "--cell-type-key", "cell_type")
    assert "by --covariates" in err
    assert "by --pert-key" in err


def test_a_configuration_is_taken_and_the_options_go_before_it(call, files, tmp_path, only_options):
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"file: {files / 'wound.h5ad'}\n"
        "data: {covariates: [{name: timepoint, embed_dim: 8}], pert_key: condition, control: sham}\n"
        "base: null\nst: null\nse: {train: {max_epochs: 3, lr: 0.1}}\n"
    )
    call("run", "--config", config, "--control", "burn", "se.train.lr=0.2")
    found = only_options["config"]
    assert found.data.covariate_keys[0].embed_dim == 8
    assert (found.data.pert_key, found.data.control) == ("condition", "burn")
    assert (found.se.train.max_epochs, found.se.train.lr, found.st) == (3, 0.2, None)
    call("run", files / "human.h5ad", "--config", config, "--covariates", "condition", "--embed-key", "X_mine")
    assert only_options["config"].data.covariate_keys == ["condition"]
    assert only_options["config"].data.embed_key == "X_mine"
    assert str(only_options["folder"]) == "runs/human"


def test_run_works_from_an_embedding(call, files, tmp_path):
    adata = ad.read_h5ad(files / "wound.h5ad")[:300].copy()
    adata.obsm["X_mine"] = np.asarray(adata.X[:, :6].todense(), dtype=np.float32)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    options = ["--covariates", "condition", "--out", tmp_path / "out", *SMALL, "data.embed_key=X_mine"]
    code, _, err = call("run", tmp_path / "cells.h5ad", *options)
    assert code == 0, err
    left = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert left.obsm["X_scstate_lora"].shape == (300, 6)
    assert not (tmp_path / "out" / "logs" / "base").exists()
    assert (tmp_path / "out" / "report.html").exists()


REFUSED = {
    "unknown covariate": (["--covariates", "conditoin"], "adata.obs['conditoin'] does not exist. Did you mean"),
    "unknown kind": (["--covariates", "condition:cont"], "adata.obs['condition:cont'] does not exist"),
    "words as numbers": (["--covariates", "condition:continuous"], "is not numeric"),
    "empty covariate": (["--covariates", "condition,,timepoint"], "--covariates 'condition,,timepoint'"),
    "repeated covariate": (["--covariates", "condition,condition"], "names 'condition' more than once"),
    "wrong control": ([*KEYS, "--control", "Sham"], "Did you mean 'sham'?"),
    "no control": (["--pert-key", "condition"], "needs --control"),
    "no perturbation": (["--control", "sham"], "needs --pert-key"),
    "context without control": ([*KEYS, "data.context_keys=[mouse_id]"], "context_keys=[]"),
    "unknown layer": (["--layer", "raw"], "adata.layers['raw']"),
    "wrong scale": (["--input-scale", "log1p"], "use 'counts'"),
    "unknown scale": (["--input-scale", "raw"], "Available: 'counts', 'log1p'"),
    "modality of an h5ad": (["--modality", "rna"], "is for MuData"),
    "no condition": (["--holdout", "macrophage"], "--holdout 'macrophage': write column=value"),
    "unknown level": (["--holdout", "cell_type=Macrophage"], "Did you mean 'macrophage'?"),
    "all of a level": (["--holdout", "condition=burn"], "Hold out fewer cells"),
    "no base": (["--base", "nowhere"], "nowhere is neither a file or folder nor an id on the Hugging Face hub"),
    "unknown section": (["se.trian.max_epochs=1"], "no option 'se.trian'. Did you mean 'train'?"),
    "unknown option": (["se.train.max_epoch=1"], "no option 'se.train.max_epoch'. Did you mean 'max_epochs'?"),
    "unknown key": (["sed=1"], "Did you mean 'seed'"),
    "wrong value": (["se.train.max_epochs=many"], "se.train.max_epochs='many' is not allowed"),
    "low value": (["se.train.max_epochs=0"], "se.train.max_epochs=0 is not allowed"),
    "value for a section": (["se.train=3"], "se.train=3 is not allowed"),
    "no assignment": (["nonsense"], "'nonsense' is not an assignment"),
    "unknown accelerator": (["accelerator=cdua"], "Did you mean 'cuda'"),
    "unknown precision": (["precision=half"], "precision='half' is not allowed"),
    "unknown flag": (["--pertkey", "condition"], "--pert-key"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("no_training")
def test_refusal_is_one_message_and_leaves_nothing_raises(call, files, tmp_path, case):
    options, message = REFUSED[case]
    covariates = [] if "--covariates" in options else ["--covariates", "condition"]
    code, out, err = call("run", files / "wound.h5ad", *covariates, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert out == ""
    assert err.count("Error") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing.h5ad", [], "There is no file"),
        ("table.csv", [], "a file in .h5ad or .h5mu is needed"),
        (".", [], "is a folder"),
        ("text.h5ad", [], "text.h5ad cannot be read"),
        ("truncated.h5ad", [], "truncated.h5ad cannot be read"),
        ("second.h5ad", [], "no .h5ad inside"),
        ("wound.h5mu", [], "Name one by --modality"),
        ("wound.h5mu", ["--modality", "rns"], "Did you mean 'rna'?"),
        ("twice.h5ad", [], "adata.obs_names_make_unique()"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_file_that_cannot_be_used_raises(call, files, tmp_path, name, options, message):
    code, _, err = call("run", files / name, "--covariates", "condition", "--out", tmp_path / "out", *options)
    assert code == 2
    assert err.startswith("Error: ")
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_training")
def test_symbols_of_another_species_than_the_base_raise(call, files, finished, tmp_path):
    base = ["--base", finished[0] / "models" / "se"]
    code, _, err = call("run", files / "human.h5ad", "--covariates", "condition", "--out", tmp_path / "out", *base)
    assert code == 2
    assert "mouse symbols" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_training")
def test_out_that_cannot_be_written_raises(call, files, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for command in (["run", files / "wound.h5ad", "--covariates", "condition"], ["demo"]):
        for out in (file, file / "below"):
            code, _, err = call(*command, "--out", out)
            assert code == 2
            assert "file is a file; --out names a folder" in err
    assert file.read_text() == "mine"


@pytest.mark.usefixtures("no_training")
def test_input_in_the_place_of_the_results_raises(call, finished):
    folder, *_ = finished
    before = (folder / "adata.h5ad").read_bytes()
    code, _, err = call("run", folder / "adata.h5ad", "--covariates", "condition", "--out", folder)
    assert code == 2
    assert "would be overwritten by the results" in err
    assert (folder / "adata.h5ad").read_bytes() == before


def test_missing_arguments_raise(call, files):
    code, _, err = call("run", files / "wound.h5ad")
    assert code == 2
    assert "--covariates" in err
    code, _, err = call("rn")
    assert code == 2
    assert "'rn'" in err


def test_demo_calls_the_demonstration_and_says_where(call, tmp_path, monkeypatch):
    def write(folder):
        (folder / "wound_healing").mkdir()
        (folder / "report.html").write_text("page")

    monkeypatch.setattr("scstate_lora.demo.run_demo", write)
    code, out, _ = call("demo", "--out", tmp_path)
    assert code == 0
    assert "report.html" in out
    assert "wound_healing" in out


def test_errors_of_ours_show_a_traceback_only_on_demand(files, tmp_path):
    command = [
        sys.executable,
        "-m",
        "scstate_lora.cli",
        "run",
        str(files / "missing.h5ad"),
        "--covariates",
        "condition",
    ]
    plain = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert plain.returncode == 2
    assert plain.stderr.splitlines()[0] == f"Error: There is no file {files / 'missing.h5ad'}."
    assert "Traceback" not in plain.stderr
    assert plain.stdout == ""
    assert list(tmp_path.iterdir()) == []
    full = subprocess.run([*command, "--traceback"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert full.returncode != 0
    assert "Traceback" in full.stderr


def test_a_warning_to_the_user_is_its_message_alone():
    before = warnings.formatwarning
    with plain_warnings():
        assert warnings.formatwarning(UserWarning("far away."), UserWarning, "typer.py", 3) == "Warning: far away.\n"
        assert "typer.py:3" in warnings.formatwarning(DeprecationWarning("old."), DeprecationWarning, "typer.py", 3)
    assert warnings.formatwarning is before


def test_bugs_are_not_hidden(files, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(workflow, "run", broken)
    monkeypatch.setattr(sys, "argv", ["scstate-lora", "run", str(files / "wound.h5ad"), "--covariates", "condition"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()
