"""The commands `embed`, `inspect` and `convert`, on published checkpoints and on models trained with them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import cli, tl
from tests.builders import QUICK

ARC = Path(__file__).parents[1] / "data" / "arc"
FOLDER = ARC / "folder"


@pytest.fixture(scope="module")
def cells():
    """50 cells of counts, also as a layer, with gene symbols in a column too. Not to be changed."""
    genes = ssl.SEBase.load(FOLDER).genes
    x = sparse.csr_matrix(np.random.default_rng(0).poisson(0.2, (50, 65)).astype(np.float32))
    names = [*genes, *(f"UNKNOWN{i}" for i in range(5))]
    adata = ad.AnnData(x, obs=pd.DataFrame(index=[f"cell{i}" for i in range(50)]), var=pd.DataFrame(index=names))
    adata.var["symbol"] = names
    adata.layers["doubled"] = 2 * x
    return adata


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    """The cells as files, with damaged ones. Not to be changed."""
    folder = tmp_path_factory.mktemp("cells")
    cells.write_h5ad(folder / "cells.h5ad")
    cells.write_zarr(folder / "cells.zarr")
    mouse = cells.copy()
    mouse.var_names = [name.title() for name in mouse.var_names]
    del mouse.var["symbol"]
    mouse.write_h5ad(folder / "mouse.h5ad")
    (folder / "truncated.h5ad").write_bytes((folder / "cells.h5ad").read_bytes()[:3000])
    (folder / "text.h5ad").write_text("no cells")
    (folder / "text.ckpt").write_text("no weights")
    (folder / "truncated.ckpt").write_bytes((ARC / "ckpt_embedded" / "model.ckpt").read_bytes()[:50_000])
    return folder


@pytest.fixture(scope="module")
def expected(cells):
    return tl.embed(cells.copy(), FOLDER, key_added=None, progress_bar=False)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_embed_writes_the_cells_with_the_embedding(call, folder, expected, ending, tmp_path):
    out = tmp_path / "results" / f"embedded.{ending}"
    code, printed, err = call("embed", folder / f"cells.{ending}", "--base", FOLDER, "--out", out)
    assert code == 0, err
    written = ad.read_h5ad(out) if ending == "h5ad" else ad.read_zarr(out)
    np.testing.assert_array_equal(written.obsm["X_state"], expected)
    assert printed == f"Wrote {out}: the cells, with the embedding in obsm['X_state'].\n"
    assert "60 of the data's 65 genes are in the base's vocabulary of 60" in err
    assert "holds counts" in err
    assert "Embedding: 100%" in err
    assert "50/50" in err
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_embed_writes_the_embedding_alone(call, folder, expected, tmp_path):
    out = tmp_path / "embedding.npy"
    code, printed, err = call("embed", folder / "cells.h5ad", "--base", FOLDER / "model.safetensors", "--out", out)
    assert code == 0, err
    # The tensors lie elsewhere in memory, and where they do decides in which order some processors sum.
    np.testing.assert_allclose(np.load(out), expected, atol=2e-6)
    assert printed == f"Wrote {out}: the embedding.\n"


def test_embed_options_are_those_of_the_function(call, folder, cells, tmp_path):
    options = ["--layer", "doubled", "--input-scale", "counts", "--gene-key", "symbol", "--key-added", "X_mine"]
    computed = ["--batch-size", "7", "--n-workers", "2", "--device", "cpu", "--precision", "fp32"]
    out = tmp_path / "embedded.h5ad"
    code, printed, err = call(
        "embed",
        folder / "cells.h5ad",
        *("--base", ARC / "ckpt_embedded" / "model.ckpt", "--out", out, "--n-tokens", "15", "--seed", "3"),
        *options,
        *computed,
    )
    assert code == 0, err
    adata = cells.copy()
    found = tl.embed(
        adata,
        ARC / "ckpt_embedded" / "model.ckpt",
        key_added="X_mine",
        layer="doubled",
        input_scale="counts",
        gene_key="symbol",
        n_tokens=15,
        seed=3,
        progress_bar=False,
    )
    written = ad.read_h5ad(out)
    np.testing.assert_allclose(written.obsm["X_mine"], found, atol=5e-6)  # other batches, other rounding
    assert dict(written.uns["scstate_lora"]["embed"]["X_mine"]) == adata.uns["scstate_lora"]["embed"]["X_mine"]
    assert "obsm['X_mine']" in printed


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        (["--n-tokens", "expressed"], {"n_tokens": "expressed"}),
        (["--arc-per-cell-scale"], {"arc_per_cell_scale": True}),
    ],
)
def test_embed_switches(call, folder, cells, expected, option, arguments, tmp_path):
    out = tmp_path / "embedding.npy"
    code, _, err = call("embed", folder / "cells.h5ad", "--base", FOLDER, "--out", out, *option)
    assert code == 0, err
    found = tl.embed(cells.copy(), FOLDER, key_added=None, progress_bar=False, **arguments)
    np.testing.assert_array_equal(np.load(out), found)
    assert np.abs(found - expected).max() > 1e-4


def test_a_bar_is_a_line_in_a_log(call, folder, tmp_path):
    _, _, err = call("embed", folder / "cells.h5ad", "--base", FOLDER, "--out", tmp_path / "embedding.npy")
    bars = [line for line in re.split(r"[\n\r]", err) if "%|" in line]
    assert len(bars) <= 4


def test_convert_gives_a_base_of_the_same_embedding(call, folder, expected, tmp_path):
    published = tmp_path / "published"
    shutil.copytree(FOLDER, published)
    code, printed, err = call("convert", published, "--out", tmp_path / "converted")
    assert code == 0, err
    assert printed == f"Wrote {tmp_path / 'converted'}: use it as base={str(tmp_path / 'converted')!r}.\n"
    assert {file.name for file in (tmp_path / "converted").iterdir()} == {"model.json", "base.safetensors", "NOTICE"}
    shutil.rmtree(published)  # nothing of it is needed any more
    out = tmp_path / "embedding.npy"
    code, _, err = call("embed", folder / "cells.h5ad", "--base", tmp_path / "converted", "--out", out)
    assert code == 0, err
    np.testing.assert_array_equal(np.load(out), expected)
    code, printed, err = call("inspect", tmp_path / "converted")
    assert code == 0, err
    assert re.match(r"converted: an? SEBase saved by scstate_lora\n", printed)
    assert "ssl.tl.embed(adata, " in printed


def test_inspect_says_what_a_checkpoint_is_and_its_uses(call):
    code, printed, err = call("inspect", FOLDER)
    assert code == 0, err
    assert printed.startswith("folder (se_tiny_epoch16.ckpt): an SE (state embedding) checkpoint\n")
    for label, value in {
        "beside it": "model.safetensors, se_tiny_epoch4.ckpt",
        "layers": "1",
        "heads": "2",
        "tokens per cell": "20",
        "embedding length": r"18 \(8 for the cell, 10 for the data set\)",
        "genes": r"60: TP53, ACTB, GAPDH, … \(symbols\)",
        "licence": "unknown; Arc's published SE weights are non-commercial",
    }.items():
        assert re.search(rf"^  {label} +{value}", printed, re.MULTILINE), label
    for use in ("ssl.tl.embed(adata, ", "ssl.LoRACovariateSE(adata, base=", "ssl.tl.decode_expression(adata, "):
        assert f"{use}'{FOLDER}'" in printed
    assert "Problems" not in printed


def test_inspect_says_what_is_missing(call, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "se")
    (tmp_path / "se" / "protein_embeddings.pt").unlink()
    code, printed, err = call("inspect", tmp_path / "se")
    assert code == 0, err
    assert "Problems:\n" in printed
    assert "protein_embeddings.pt" in printed
    assert "Use:" not in printed


def test_inspect_protein_embeddings(call):
    code, printed, err = call("inspect", FOLDER / "protein_embeddings.pt")
    assert code == 0, err
    assert printed.startswith("protein_embeddings.pt: protein embeddings")


EMBED = ("embed", "{folder}/cells.h5ad", "--base", "{se}", "--out", "{out}")
REFUSED = {
    "no file": (("embed", "{folder}/nowhere.h5ad", *EMBED[2:]), "nowhere.h5ad"),
    "damaged file": (("embed", "{folder}/truncated.h5ad", *EMBED[2:]), "truncated.h5ad"),
    "text as cells": (("embed", "{folder}/text.h5ad", *EMBED[2:]), "text.h5ad"),
    "checkpoint as cells": (("embed", "{se}", *EMBED[2:]), "must end in|is neither|folder"),
    "mouse": (("embed", "{folder}/mouse.h5ad", *EMBED[2:]), r"Only \d of the data's 65 genes .* mouse symbols"),
    "no base": (
        (*EMBED[:3], "nowhere", *EMBED[4:]),
        "nowhere is neither a file or folder nor an id on the Hug",
    ),
    "cells as base": ((*EMBED[:3], "{folder}/cells.h5ad", *EMBED[4:]), "is an HDF5 file"),
    "text as base": ((*EMBED[:3], "{folder}/text.ckpt", *EMBED[4:]), r"text\.ckpt is not a file of tensors"),
    "damaged base": ((*EMBED[:3], "{folder}/truncated.ckpt", *EMBED[4:]), "truncated or damaged"),
    "another ending": ((*EMBED[:5], "{out}.csv"), r"must end in \.h5ad"),
    "unknown layer": ((*EMBED, "--layer", "dubled"), "has no layer 'dubled'. Did you mean 'doubled'"),
    "unknown column": ((*EMBED, "--gene-key", "symbl"), "Did you mean 'symbol'"),
    "wrong scale": ((*EMBED, "--input-scale", "log1p"), "use 'counts'"),
    "unknown scale": ((*EMBED, "--input-scale", "raw"), "Available: 'counts', 'log1p'"),
    "n_tokens is a word": (
        (*EMBED, "--n-tokens", "expresed"),
        "n_tokens: 'expresed' must be a whole number, at least 2, or 'expressed'",
    ),
    "n_tokens is low": ((*EMBED, "--n-tokens", "1"), "n_tokens: '1' must be a whole number, at least 2"),
    "batch_size": ((*EMBED, "--batch-size", "0"), "batch_size='0' is not allowed: .*greater than or equal to 1"),
    "n_workers": ((*EMBED, "--n-workers", "0"), "n_workers='0' is not allowed: .*greater than or equal to 1"),
    "device": ((*EMBED, "--device", "gpu"), "device='gpu' is unknown. Use 'cpu'"),
    "precision": ((*EMBED, "--precision", "fp8"), "precision='fp8' is not allowed. .*'fp16'"),
    "inspect nothing": (("inspect", "{folder}/nowhere"), "nowhere"),
    "inspect cells": (("inspect", "{folder}/cells.h5ad"), "is an HDF5 file"),
    "inspect text": (("inspect", "{folder}/text.ckpt"), "is not a file of tensors"),
    "inspect an empty folder": (("inspect", "{empty}"), "it holds: nothing"),
    "convert nothing": (
        ("convert", "nowhere", "--out", "{out}"),
        "nowhere is neither a file or folder nor an id on the Hug",
    ),
    "convert cells": (("convert", "{folder}/cells.h5ad", "--out", "{out}"), "is an HDF5 file"),
    "convert over a file": (("convert", "{se}", "--out", "{folder}/cells.h5ad"), "replace it by --overwrite"),
    "convert over cells": (
        ("convert", "{se}", "--out", "{folder}/cells.h5ad", "--overwrite"),
        "exists and is not a saved model",
    ),
    "embed over a file": (
        ("embed", "{folder}/cells.h5ad", "--base", "{se}", "--out", "{folder}/cells.h5ad"),
        "cells.h5ad exists. Name another place by --out, or replace it by --overwrite",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_one_line_and_leaves_nothing(call, what, folder, tmp_path):
    arguments, message = REFUSED[what]
    (tmp_path / "empty").mkdir()
    before = sorted(folder.iterdir()), (folder / "cells.h5ad").read_bytes()
    places = {"folder": folder, "se": FOLDER, "out": tmp_path / "out.h5ad", "empty": tmp_path / "empty"}
    code, printed, err = call(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert printed == ""
    errors = err[err.index("Error: ") :].splitlines()
    assert len(errors) == 2, err
    assert re.search(message, errors[0]), errors[0]
    assert errors[1] == "(--traceback shows where it was raised.)"
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert (sorted(folder.iterdir()), (folder / "cells.h5ad").read_bytes()) == before


def test_traceback_shows_where_an_error_was_raised(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scstate-lora", "inspect", str(folder / "cells.h5ad"), "--traceback"])
    with pytest.raises(ValueError, match="HDF5"):
        cli.main()


@pytest.fixture(scope="module")
def conditioned(cells, tmp_path_factory):
    """Folder of a checkpoint, of a model of its adapters, and of cells with covariates. Not to be changed."""
    folder = tmp_path_factory.mktemp("conditioned")
    shutil.copytree(FOLDER, folder / "base")
    adata = cells.copy()
    adata.obs["condition"] = ["stim", "ctrl"] * 25
    adata.obs["day"] = np.linspace(0, 20, 50)
    adata.write_h5ad(folder / "cells.h5ad")
    adata.write_zarr(folder / "cells.zarr")
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition", "day"])
    model = ssl.LoRACovariateSE(adata, base=folder / "base", lora={"r": 2}, conditioning={"n_steps": 3})
    model.train(max_epochs=1, **QUICK)
    model.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def model(conditioned):
    return ssl.LoRACovariateSE.load(conditioned / "model")


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_model_embeds_under_the_cells_own_covariates(call, conditioned, model, ending, tmp_path):
    out = tmp_path / f"embedded.{ending}"
    given = conditioned / f"cells.{ending}"
    code, printed, err = call("embed", given, "--model", conditioned / "model", "--out", out)
    assert code == 0, err
    written = ad.read_h5ad(out) if ending == "h5ad" else ad.read_zarr(out)
    expected = model.get_latent_representation(ad.read_h5ad(conditioned / "cells.h5ad"), key_added=None)
    np.testing.assert_array_equal(written.obsm["X_scstate_lora"], expected)
    assert printed == f"Wrote {out}: the cells, with the embedding in obsm['X_scstate_lora'].\n"


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["condition=stim,day=14"], {"condition": "stim", "day": 14.0}),
        (["condition=", "day=3.5"], {"condition": None, "day": 3.5}),
        (["day="], {"day": None}),
    ],
)
def test_model_embeds_under_other_covariates(call, conditioned, model, given, values, tmp_path):
    out = tmp_path / "embedded.h5ad"
    options = [part for text in given for part in ("--covariates", text)]
    code, _, err = call("embed", conditioned / "cells.h5ad", "--model", conditioned / "model", "--out", out, *options)
    assert code == 0, err
    cells = ad.read_h5ad(conditioned / "cells.h5ad")
    written = ad.read_h5ad(out)
    assert "X_scstate_lora" not in written.obsm
    found = written.obsm["X_scstate_counterfactual"]
    np.testing.assert_array_equal(found, model.get_latent_representation(cells, covariates=values, key_added=None))
    assert np.abs(found - model.get_latent_representation(cells, key_added=None)).max() > 1e-3
    record = written.uns["scstate_lora"]["embed"]["X_scstate_counterfactual"]["covariates"]
    assert record == {name: "withheld" if value is None else value for name, value in values.items()}


def test_covariates_that_the_cells_lack_may_be_given(call, conditioned, model, tmp_path):
    cells = ad.read_h5ad(conditioned / "cells.h5ad")
    del cells.obs["condition"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ("embed", tmp_path / "cells.h5ad", "--model", conditioned / "model", "--out", tmp_path / "out.npy")
    code, _, err = call(*command)
    assert code == 2
    assert "condition" in err
    code, _, err = call(*command, "--covariates", "condition=ctrl")
    assert code == 0, err
    expected = model.get_latent_representation(cells, covariates={"condition": "ctrl"}, key_added=None)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_missing_values_of_the_cells_name_the_option_that_withholds(call, conditioned, model, tmp_path):
    cells = ad.read_h5ad(conditioned / "cells.h5ad")
    cells.obs["day"] = np.where(np.arange(cells.n_obs) < 3, np.nan, cells.obs["day"].astype(float))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ("embed", tmp_path / "cells.h5ad", "--model", conditioned / "model", "--out", tmp_path / "embedded.h5ad")
    code, _, err = call(*command)
    assert code == 2
    assert "3 missing values" in err
    assert "--covariates 'day='" in err
    assert "covariates=" not in err
    del cells.obs["day"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    code, _, err = call(*command)
    assert code == 2
    assert "--covariates 'day=VALUE', or withhold the covariate, --covariates 'day='" in err
    assert call(*command, "--covariates", "day=")[0] == 0


def test_base_that_moved_is_named(call, conditioned, model, tmp_path):
    shutil.copytree(conditioned / "model", tmp_path / "model")
    described = tmp_path / "model" / "model.json"
    described.write_text(described.read_text().replace(str(conditioned / "base"), str(tmp_path / "gone")))
    command = ("embed", conditioned / "cells.h5ad", "--model", tmp_path / "model", "--out", tmp_path / "out.npy")
    code, _, err = call(*command)
    assert code == 2
    assert "Say where it is: --base" in err
    code, _, err = call(*command, "--base", ARC / "ckpt_embedded" / "model.ckpt")
    assert code == 2
    assert "was trained on another base" in err
    code, _, err = call(*command, "--base", conditioned / "base")
    assert code == 0, err
    expected = model.get_latent_representation(ad.read_h5ad(conditioned / "cells.h5ad"), key_added=None)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


MODEL = ("--model", "{model}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Name the model: a base model by --base, or a saved LoRACovariateSE by --model"),
        (("--base", "{base}", "--covariates", "condition=stim"), "--covariates are for a trained model"),
        ((*MODEL, "--covariates", "condition"), "--covariates 'condition': write column=value"),
        ((*MODEL, "--covariates", "condition=stim,condition=ctrl"), "names a column more than once"),
        ((*MODEL, "--covariates", "day=1", "--covariates", "day=2"), "names 'day' more than once"),
        ((*MODEL, "--covariates", "conditoin=stim"), "Did you mean 'condition'"),
        ((*MODEL, "--covariates", "condition=stimm"), "never seen in training. Did you mean 'stim'"),
        ((*MODEL, "--covariates", "day=late"), "--covariates day=late: 'day' is a number"),
        ((*MODEL, "--layer", "doubled", "--n-tokens", "5"), "--layer, --n-tokens: not with --model"),
        ((*MODEL, "--protein-embeddings", "{base}/protein_embeddings.pt"), "belong to a checkpoint, named by --base"),
        (
            ("--model", "{folder}/nowhere"),
            "nowhere does not exist; it must be the directory of a saved LoRACovariateSE",
        ),
        (("--model", "{base}"), "holds neither a saved LoRACovariateSE nor, in models/se, that of a run"),
    ],
)
def test_model_that_cannot_embed_is_one_line_and_leaves_nothing(call, conditioned, tmp_path, options, message):
    places = {"model": conditioned / "model", "base": conditioned / "base", "folder": conditioned}
    command = ("embed", conditioned / "cells.h5ad", "--out", tmp_path / "out.h5ad")
    code, printed, err = call(*command, *(option.format(**places) for option in options))
    assert code == 2
    assert printed == ""
    assert re.search(message, err), err
    assert err.count("Error") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--base", "--out"])
def test_a_missing_option_is_named(call, option, folder, tmp_path):
    given = {"--base": str(FOLDER), "--out": str(tmp_path / "out.h5ad")}
    del given[option]
    code, _, err = call("embed", folder / "cells.h5ad", *given.popitem())
    assert code == 2
    assert option in re.sub(r"\x1b\[[0-9;]*m", "", err)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "embed",
            "--base --model --covariates --config --protein-embeddings "
            "--out --key-added --layer --input-scale --gene-key --n-tokens --seed --batch-size --device "
            "--precision --n-workers --compile --arc-per-cell-scale --traceback",
        ),
        ("inspect", "--traceback"),
        ("convert", "--out --traceback"),
    ],
)
def test_help_lists_the_options(call, command, options, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, printed, _ = call(command, "--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert code == 0
    for option in options.split():
        assert re.search(rf"{option}\b", plain), option
    assert command in call("--help")[1]
