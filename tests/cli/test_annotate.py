"""The commands `annotate train` and `annotate predict`: from a file with labels to a file that gets them."""

from __future__ import annotations

import re
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

import scstate_lora as ssl
from scstate_lora.cli.application import in_options
from scstate_lora.config.load import shipped
from scstate_lora.workflow import replay
from scstate_lora.workflow.results_file import Results
from tests.builders import SMALL_SE, wound
from tests.scmodelforge_files import Parts, torch_encoder

LABEL = "scstate_celltype"
TYPES = ("endothelial", "fibroblast", "keratinocyte")
QUICK = [
    f"compact={{{', '.join(f'{name}: {value}' for name, value in {**SMALL_SE, 'n_steps': 4}.items())}}}",
    *("head.n_members=1", "head.n_steps=10", "linear_start.n_top_genes=100", "train.max_epochs=1"),
    *("train.accelerator=cpu", "train.check_unknown=false"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Cells with labels as files, and with fewer columns as others. Not to be changed."""
    folder = tmp_path_factory.mktemp("cells")
    cells = wound(600, seed=3)
    cells = cells[cells.obs["cell_type"].isin(TYPES)].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs["donor"] = np.resize(["a", "b", "c"], cells.n_obs)
    cells.obs["lineage"] = np.where(cells.obs["cell_type"] == "keratinocyte", "epithelial", "stromal")
    cells.obs["age"] = np.random.default_rng(0).normal(40, 10, cells.n_obs)
    cells.write_h5ad(folder / "reference.h5ad")
    query = ad.AnnData(cells.X, obs=cells.obs[["donor"]], var=cells.var, layers={"kept": cells.X})
    query.obs["leiden"] = cells.obs["cell_type"].str[:3]
    query.obsm["X_pca"] = np.ones((query.n_obs, 2), dtype=np.float32)
    query.write_h5ad(folder / "query.h5ad")
    query.write_zarr(folder / "query.zarr")
    return folder


@pytest.fixture(scope="module")
def trained(call, folder):
    """Directory, stdout and stderr of a training. Not to be changed."""
    out = folder / "model"
    code, printed, err = call(
        *("annotate", "train", folder / "reference.h5ad", "--labels-key", "cell_type", "--label-tree", "lineage"),
        *("--batch-key", "donor", "--strategy", "frozen", "-o", out, *QUICK),
    )
    assert code == 0, err
    return out, printed, err


@pytest.fixture(scope="module")
def model(trained):
    return ssl.CellTypeClassifier.load(trained[0])


def test_train_writes_a_model_with_its_options_and_results(trained, folder):
    out, printed, _ = trained
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"]["labels_key"] == ["cell_type"]
    assert (config["head"]["n_members"], config["strategy"]) == (1, "frozen")
    results = Results.read(out / "results.json")
    assert results.command == "annotate train"
    assert results.files["input"]["path"] == str(folder / "reference.h5ad")
    pd.testing.assert_frame_equal(results.tables["scores"], pd.read_csv(out / "scores.csv"))
    assert results.split["train"] == ad.read_h5ad(folder / "reference.h5ad").n_obs
    with pytest.raises(ValueError, match="whose numbers come from training"):
        replay(out / "results.json", read=ad.read_h5ad)
    for method in ("CellTypeClassifier", "majority", "logistic regression", "kNN"):
        assert method in printed
    assert "3 labels" in printed
    assert f"ssl.CellTypeClassifier.load({str(out)!r})" in printed


def test_config_of_a_model_trains_the_same_again(call, trained, folder, tmp_path):
    out, _, _ = trained
    code, _, err = call("annotate", "train", "--config", out / "config.yaml", "-o", tmp_path / "again")
    assert code == 0, err
    one, two = (Results.read(path / "results.json").tables["scores"] for path in (out, tmp_path / "again"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_predict_adds_what_the_model_gives_and_keeps_the_rest(call, trained, model, folder, ending, tmp_path):
    out, read = tmp_path / f"labelled.{ending}", ad.read_h5ad if ending == "h5ad" else ad.read_zarr
    code, printed, err = call(
        *("annotate", "predict", trained[0], folder / f"query.{ending}", "-o", out, "--csv", tmp_path / "labels.csv"),
        *("--reject-below", "0.6", "--sets", "--clusters", "leiden", "--block", "epithelial", "--no-adapt"),
    )
    assert code == 0, err
    expected = ad.read_h5ad(folder / "query.h5ad")
    table = model.predict(expected, reject_below=0.6, sets=True, clusters="leiden", block=["epithelial"], adapt=False)
    written = read(out)
    assert list(written.obs) == list(expected.obs)
    for name in table:
        values = written.obs[name].astype(table[name].dtype)
        pd.testing.assert_series_equal(values, table[name], check_names=False, rtol=1e-6)
    np.testing.assert_allclose(written.obsm[f"{LABEL}_probability"], expected.obsm[f"{LABEL}_probability"], atol=1e-6)
    assert list(written.obsm[f"{LABEL}_probability"]) == model.labels
    assert written.uns["scstate_lora"]["annotate"] == expected.uns["scstate_lora"]["annotate"]
    np.testing.assert_array_equal(written.obsm["X_pca"], expected.obsm["X_pca"])
    assert (written.layers["kept"] != expected.X).nnz == 0
    assert (written.X != expected.X).nnz == 0
    stored = pd.read_csv(tmp_path / "labels.csv", index_col="cell", keep_default_na=False)
    assert list(stored) == list(table)
    assert (stored[LABEL] == table[LABEL]).all()
    assert f"{written.n_obs} cells, {(table[LABEL] != 'Unknown').sum()} labels given" in printed
    assert "keratinocyte" not in set(table[LABEL])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"labelled.{ending}", "labels.csv"]


def test_matrix_of_the_cells_to_label_is_read_in_blocks(call, trained, folder, tmp_path, monkeypatch):
    from scstate_lora.data.stream import ExpressionSource
    from scstate_lora.model.annotation import outputs

    most, share_all = [0], ExpressionSource.share_all
    monkeypatch.setattr(outputs, "_CHUNK", 20)
    monkeypatch.setattr(ExpressionSource, "share_all", lambda self: most.append(self.n_cells) or share_all(self))
    code, _, err = call("annotate", "predict", trained[0], folder / "query.h5ad", "-o", tmp_path / "few.h5ad")
    assert code == 0, err
    assert max(most) == 20
    monkeypatch.undo()
    code, _, err = call("annotate", "predict", trained[0], folder / "query.h5ad", "-o", tmp_path / "all.h5ad")
    assert code == 0, err
    few, whole = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("few", "all"))
    assert (few.obs[LABEL] == whole.obs[LABEL]).all()
    np.testing.assert_allclose(few.obsm[f"{LABEL}_probability"], whole.obsm[f"{LABEL}_probability"], atol=1e-6)


def test_labels_are_replaced_in_place_when_asked_to(call, trained, folder, tmp_path):
    file = tmp_path / "query.h5ad"
    shutil.copy(folder / "query.h5ad", file)
    for more in ((), ("--overwrite", "--coverage", "0.5"), ("--overwrite",)):
        code, _, err = call("annotate", "predict", trained[0], file, "-o", file, *more)
        assert (code, "--overwrite" in err) == ((0, False) if more else (2, True)), err
    written = ad.read_h5ad(file)
    assert list(written.obs).count(LABEL) == 1
    assert f"{LABEL}_set" in written.obs  # of the run before, as with predict()
    code, _, err = call("annotate", "predict", trained[0], file)
    assert code == 0, err
    assert (tmp_path / "query_labelled.h5ad").exists()


def test_embedding_of_the_file_is_a_base_and_numbers_are_learned(call, folder, tmp_path):
    cells = ad.read_h5ad(folder / "reference.h5ad")
    cells.obsm["X_mine"] = np.random.default_rng(1).normal(size=(cells.n_obs, 3)).astype(np.float32)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    train = ("annotate", "train", tmp_path / "cells.h5ad", "--labels-key", "age:continuous,cell_type")
    code, printed, err = call(*train, "--embed-key", "X_mine", "-o", tmp_path / "model", *QUICK)
    assert code == 0, err
    assert "age: a number" in printed
    code, printed, err = call("annotate", "predict", tmp_path / "model", tmp_path / "cells.h5ad")
    assert code == 0, err
    written = ad.read_h5ad(tmp_path / "cells_labelled.h5ad")
    assert {LABEL, f"{LABEL}_low", "scstate_cell_type", "scstate_cell_type_confidence"} <= set(written.obs)
    assert f"{cells.n_obs} cells: {LABEL} from " in printed


def test_encoder_of_scmodelforge_is_a_base(call, folder, tmp_path):
    cells = ad.read_h5ad(folder / "reference.h5ad")
    parts = Parts.of(torch_encoder())
    parts.genes = list(cells.var_names[: len(parts.genes)])
    base = parts.write_folder(tmp_path / "blood")
    names = ["finetune.lora.rank=2", f"finetune.checkpoint_path={base}", "finetune.label_key=cell_type"]
    cells[:, : len(parts.genes)].copy().write_h5ad(tmp_path / "cells.h5ad")
    train = ("annotate", "train", tmp_path / "cells.h5ad", "--config", str(shipped()["annotate_lora"]))
    code, _, err = call(*train, "-o", tmp_path / "model", *names, "data.batch_key=null", *QUICK)
    assert code == 0, err
    assert "finetune.lora.rank is lora.r" in err
    model = ssl.CellTypeClassifier.load(tmp_path / "model")
    assert (model.strategy, model.lora.r) == ("lora", 2)
    shutil.move(base, tmp_path / "moved")
    predict = ("annotate", "predict", tmp_path / "model", tmp_path / "cells.h5ad")
    code, _, err = call(*predict)
    assert code == 2
    assert "Say where it is: --base" in err
    code, _, err = call(*predict, "--base", tmp_path / "moved")
    assert code == 0, err


def test_inspect_shows_what_was_learned_and_how_to_use_it(call, trained):
    code, printed, err = call("inspect", trained[0])
    assert code == 0, err
    assert "a CellTypeClassifier saved by scstate_lora" in printed
    n_cells = Results.read(trained[0] / "results.json").split["train"]
    assert f"3, of {n_cells} cells: keratinocyte, endothelial, fibroblast" in printed
    assert "frozen; the encoder is left as it was" in printed
    assert re.search(r"on left-out batches +accuracy [\d.]+; .+: [\d.]+", printed)
    assert f"scstate-lora annotate predict {str(trained[0])!r}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels-key", "cell_typ"), "'cell_typ'.*Did you mean 'cell_type'"),
        (("--labels-key", "cell_type", "--label-tree", "linage"), "'linage'.*Did you mean 'lineage'"),
        (("--batch-key", "donor"), "the column of the labels is missing: data.labels_key"),
        (
            ("--labels-key", "cell_type,cell_type"),
            "--labels-key 'cell_type,cell_type' names 'cell_type' more than once",
        ),
        (("--labels-key", "cell_type", "head.n_member=2"), "Did you mean 'n_members'"),
        (("--labels-key", "cell_type", "--strategy", "lra"), "Did you mean 'lora'"),
        (("--labels-key", "cell_type", "--base", "nowhere/at/all"), "neither a file or folder nor an id"),
        (("--labels-key", "cell_type", "--unlabeled-category", "kertinocyte"), "--unlabeled-category 'kertinocyte' is"),
        (("--labels-key", "cell_type", "finetune.freeze_backbone=true"), "the strategy: 'frozen'"),
        (("--labels-key", "cell_type", "-o", "{folder}/query.h5ad"), "is a file; --out names a folder"),
        (("--labels-key", "cell_type", "-o", "{folder}"), "exists. Name another place by --out"),
    ],
)
def test_train_refuses_in_one_line_and_writes_nothing_raises(call, folder, tmp_path, arguments, message):
    given = [part.format(folder=folder) for part in arguments]
    out = () if "-o" in arguments else ("-o", tmp_path / "model")
    code, printed, err = call("annotate", "train", folder / "reference.h5ad", *given, *out)
    assert (code, printed) == (2, "")
    assert re.search(message, err), err
    assert err.count("Error") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{model}", "{folder}/nothing.h5ad"), "There is no file"),
        (("{folder}", "{folder}/query.h5ad"), "Give the directory that scstate-lora annotate train, or save"),
        (("{folder}/nowhere", "{folder}/query.h5ad"), "There is no directory"),
        (("{model}", "{folder}/query.h5ad", "-o", "{out}/labels.csv"), "must end in .h5ad"),
        (("{model}", "{folder}/query.h5ad", "--csv", "{folder}/query.h5ad"), "exists. Name another place"),
        (("{model}", "{folder}/query.h5ad", "--max-error", "2"), "--max-error 2.0 must lie between 0 and 1"),
        (("{model}", "{folder}/query.h5ad", "--allow", "fibroblst"), "Did you mean 'fibroblast'"),
        (("{model}", "{folder}/query.h5ad", "--clusters", "leidn"), "no column 'leidn' in obs. Did you mean 'leiden'"),
        (("{model}", "{folder}/mouse.h5ad"), "Only 0.0% of the model's 200 genes are in the data"),
    ],
)
def test_predict_refuses_in_one_line_and_writes_nothing_raises(call, trained, folder, tmp_path, arguments, message):
    mouse = ad.read_h5ad(folder / "query.h5ad")
    mouse.var_names = [f"other{i}" for i in range(mouse.n_vars)]
    if "{folder}/mouse.h5ad" in arguments:
        mouse.write_h5ad(folder / "mouse.h5ad")
    places = {"model": trained[0], "folder": folder, "out": tmp_path}
    given = [part.format(**places) for part in arguments]
    out = () if "-o" in arguments else ("-o", tmp_path / "out.h5ad")
    code, printed, err = call("annotate", "predict", *given, *out)
    assert (code, printed) == (2, "")
    assert re.search(message, err), err
    assert err.count("Error") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("annotate train", "labels_key='a' and batch_key='b'", "--labels-key 'a' and --batch-key 'b'"),
        ("annotate train", "Use strategy='frozen', or set up without embed_key.", "Use --strategy 'frozen', or set up"),
        ("annotate predict", "clusters='x' is not a column", "--clusters 'x' is not a column"),
        ("annotate predict", "Say where it is: load(..., base=...).", "Say where it is: load(..., --base"),
    ],
)
def test_messages_name_options_of_the_commands(command, message, expected):
    assert in_options(message, command).startswith(expected)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_lists_the_options(call, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, _ = call("annotate", command, "--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert code == 0
    if command == "train":
        assert all(f"{name}: " in plain for name in ("unfreeze_epoch", "n_members", "penalty", "use_dora", "n_targets"))
    else:
        flags = "--max-error --reject-below --reject-unknown --sets --allow --block --clusters --no-adapt --csv"
        assert all(flag in plain for flag in flags.split())
    assert "annotate" in call("--help")[1]
