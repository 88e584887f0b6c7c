"""The command `predict`: from a file and a saved perturbation model to a file of predicted cells."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora import workflow
from scstate_lora.data.results import read_prediction
from tests.builders import QUICK, SMALL_ST, wound

PUBLISHED = Path(__file__).parents[1] / "data" / "arc_st" / "trained"


def _train(adata, **data):
    ssl.STTransition.setup_anndata(
        adata, covariate_keys={"timepoint": None, "time_days": "continuous"}, pert_key="arm", control="sham", **data
    )
    model = ssl.STTransition(adata, model=SMALL_ST | ({"space": "embedding"} if "embed_key" in data else {}))
    model.train(max_epochs=1, **QUICK)
    return model


@pytest.fixture(scope="module")
def cells():
    """240 cells of a simulated wound, with two arms besides the control and an embedding. Not to be changed."""
    adata = wound(240, seed=2, obs=("condition", "timepoint", "time_days", "cell_type"))
    arm = adata.obs["condition"].astype(str).to_numpy()
    arm[(arm == "burn") & (np.arange(240) % 2 == 0)] = "scald"
    adata.obs["arm"] = pd.Categorical(arm)
    adata.obsm["X_own"] = np.random.default_rng(0).normal(size=(240, 6)).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    """Files of cells, and models. Not to be changed."""
    folder = tmp_path_factory.mktemp("predict")
    cells.write_h5ad(folder / "cells.h5ad")
    cells.write_zarr(folder / "cells.zarr")
    controls = cells[cells.obs["arm"] == "sham"].copy()
    del controls.obs["arm"]
    controls.write_h5ad(folder / "controls.h5ad")
    cells[:, :10].copy().write_h5ad(folder / "few_genes.h5ad")
    (folder / "text.h5ad").write_text("no cells")
    _train(cells.copy(), context_keys=[]).save(folder / "run" / "models" / "st")
    _train(cells.copy(), context_keys=[], embed_key="X_own").save(folder / "embedded")
    (folder / "run_se" / "models" / "se").mkdir(parents=True)
    (folder / "run_se" / "models" / "se" / "model.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ssl.STTransition.load(folder / "run" / "models" / "st")


def test_predicts_from_the_controls_of_a_file_beside_it_by_default(call, folder, model, cells, tmp_path):
    shutil.copy(folder / "cells.h5ad", tmp_path)
    code, out, err = call("predict", tmp_path / "cells.h5ad", "--model", folder / "run", "--target", "burn")
    assert code == 0, err
    path = tmp_path / "cells_predicted.h5ad"
    assert out == f"Wrote {path}: 120 predicted cells x 200 genes, arm = burn.\n"
    written, expected = ad.read_h5ad(path), model.predict(cells, target="burn")
    np.testing.assert_allclose(written.X, expected.X, atol=1e-5)
    assert written.obs_names.equals(expected.obs_names)
    assert written.var_names.equals(expected.var_names)
    found, known = read_prediction(written), read_prediction(expected)
    np.testing.assert_array_equal(found.train_cells, known.train_cells)
    assert found._replace(train_cells=None) == known._replace(train_cells=None)
    assert set(written.obs.columns) == set(expected.obs.columns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "cells_predicted.h5ad"]


def test_several_targets_contexts_and_covariates(call, folder, model, cells, tmp_path):
    out = tmp_path / "new" / "cells.h5ad"
    code, _, err = call(
        *("predict", folder / "cells.zarr", "--model", folder / "run" / "models" / "st", "-o", out),
        *("--target", "burn", "--target", "scald", "--target", "burn"),
        *("--context", "cell_type=macrophage,timepoint=day10", "--context", "cell_type=T cell"),
        *("--covariate", "timepoint=day19", "--covariate", "time_days=12"),
    )
    assert code == 0, err
    assert "Predicting: 100%" in err
    written = ad.read_h5ad(out)
    chosen = {"cell_type": ["macrophage", "T cell"], "timepoint": ["day10"]}
    moved = {"timepoint": "day19", "time_days": 12.0}
    expected = model.predict(cells, target=["burn", "scald"], contexts=chosen, covariates=moved)
    np.testing.assert_allclose(written.X, expected.X, atol=1e-5)
    assert written.obs_names.equals(expected.obs_names)
    assert list(written.obs["arm"]) == list(expected.obs["arm"])
    assert set(written.obs["timepoint"]) == {"day19"}
    assert set(written.obs["time_days"]) == {12.0}
    assert written.uns["scstate_lora"]["predict"]["target"].tolist() == ["burn", "scald"]


def test_cells_without_the_column_are_controls(call, folder, model, cells, tmp_path):
    out = tmp_path / "out.h5ad"
    code, _, err = call("predict", folder / "controls.h5ad", "--model", folder / "run", "--target", "scald", "-o", out)
    assert code == 0, err
    np.testing.assert_allclose(ad.read_h5ad(out).X, model.predict(cells, target="scald").X, atol=1e-5)


def test_embedding_and_decoded_genes_are_written(call, folder, cells, tmp_path):
    out = tmp_path / "out.h5ad"
    targets = ("--target", "burn", "--target", "scald")
    code, _, err = call("predict", folder / "cells.h5ad", "--model", folder / "embedded", *targets, "-o", out)
    assert code == 0, err
    written = ad.read_h5ad(out)
    expected = ssl.STTransition.load(folder / "embedded").predict(cells, target=["burn", "scald"])
    np.testing.assert_allclose(written.obsm["X_own"], expected.obsm["X_own"], atol=1e-5)
    np.testing.assert_allclose(written.X, expected.X, atol=1e-5)
    assert written.obsm["X_own"].shape == (240, 6)


def test_existing_output_is_replaced_when_asked_alone(call, folder, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_text("mine")
    command = ("predict", folder / "cells.h5ad", "--model", folder / "run", "--target", "burn", "--out", out)
    code, _, err = call(*command)
    assert code == 2
    assert f"{out} exists" in err
    assert "--overwrite" in err
    assert out.read_text() == "mine"
    code, _, err = call(*command, "--overwrite")
    assert code == 0, err
    assert ad.read_h5ad(out).n_obs == 120


def test_interrupted_writing_leaves_what_was_there(cells, model, tmp_path):
    class Stops:
        """Ctrl-C while the second target is predicted."""

        perts, registry = model.perts, model.registry

        def predict(self, *args, target, **kwargs):
            if target == "scald":
                raise KeyboardInterrupt
            return model.predict(*args, target=target, **kwargs)

    (tmp_path / "out.h5ad").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        workflow.predict_to_file(Stops(), cells, tmp_path / "out.h5ad", targets=["burn", "scald"])
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5ad"]
    assert (tmp_path / "out.h5ad").read_text() == "mine"


def test_model_trained_on_a_published_one_finds_it_where_it_is_now(call, tmp_path):
    """The whole way: trained from a configuration, saved without the published weights, which then move."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"gene": rng.choice(["non-targeting", "TP53", "IFNG"], 90), "batch": rng.choice(["batch0"], 90)})
    cells = ad.AnnData(rng.poisson(2, (90, 30)).astype(np.float32), obs=obs.set_index("c" + obs.index.astype(str)))
    cells.var_names = [f"GENE{i}" for i in range(30)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    shutil.copytree(PUBLISHED, tmp_path / "published")
    (tmp_path / "st.yaml").write_text(
        "data: {pert_key: gene, control: non-targeting, batch_key: batch}\n"
        f"st: {{pretrained: {tmp_path / 'published'}, train: {{max_epochs: 1}}}}\naccelerator: cpu\n"
    )
    out = tmp_path / "out"
    code, _, err = call("train", tmp_path / "cells.h5ad", "--config", tmp_path / "st.yaml", "--out", out)
    assert code == 0, err
    assert (out / "models" / "st" / "NOTICE").is_file()
    (tmp_path / "published").rename(tmp_path / "moved")
    command = ("predict", tmp_path / "cells.h5ad", "--model", out, "--target", "TP53")
    code, _, err = call(*command)
    assert code == 2
    assert "say where it is now by --pretrained" in err
    code, _, err = call(*command, "--pretrained", tmp_path / "moved")
    assert code == 0, err
    n_controls = (cells.obs["gene"] == "non-targeting").sum()
    assert ad.read_h5ad(tmp_path / "cells_predicted.h5ad").n_obs == n_controls


RUN = ("--model", "{folder}/run")
BURN = ("--target", "burn")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("nowhere.h5ad", (*RUN, *BURN), "There is no file {folder}/nowhere.h5ad"),
        ("text.h5ad", (*RUN, *BURN), "text.h5ad cannot be read"),
        ("few_genes.h5ad", (*RUN, *BURN), "Only 5.0% of the model's 200 genes are in the data"),
        ("cells.h5ad", (*RUN, "--target", "brrn"), "was not seen in training"),
        ("cells.h5ad", (*RUN, *BURN, "--target", "scadl"), "target='scadl' was not seen in training. Did you mean"),
        ("cells.h5ad", (*RUN, *BURN, "--target", "sham"), "target='sham' is the control"),
        ("cells.h5ad", (*RUN, *BURN, "--context", "cell_tpe=T cell"), "adata.obs['cell_tpe'] does not exist. Did you"),
        ("cells.h5ad", (*RUN, *BURN, "--context", "cell_type=T cel"), "'T cel' is not in adata.obs['cell_type']. Did"),
        ("cells.h5ad", (*RUN, *BURN, "--context", "T cell"), "--context 'T cell': write column=value"),
        ("cells.h5ad", (*RUN, *BURN, "--covariate", "timepint=day10"), "Did you mean 'timepoint'?"),
        ("cells.h5ad", (*RUN, *BURN, "--covariate", "timepoint=day11"), "was never seen in training. Did you mean"),
        ("cells.h5ad", (*RUN, *BURN, "--covariate", "time_days=x"), "--covariate time_days=x: 'time_days' is a number"),
        ("cells.h5ad", (*RUN, *BURN, "--covariate", "time_days=1", "--covariate", "time_days=2"), "more than once"),
        ("cells.h5ad", ("--model", "{folder}/none", *BURN), "--model {folder}/none does not exist"),
        ("cells.h5ad", ("--model", "{folder}/cells.h5ad", *BURN), "is a file; it must be the directory of a saved"),
        ("cells.h5ad", ("--model", "{folder}", *BURN), "holds neither a saved STTransition nor, in models/st"),
        ("cells.h5ad", ("--model", "{folder}/run_se", *BURN), "trained the other model alone: scstate-lora embed"),
        ("cells.h5ad", (*RUN, *BURN, "-o", "{folder}/x.csv"), "x.csv, must end in .h5ad"),
        ("cells.h5ad", (*RUN, *BURN, "-o", "{folder}/cells.h5ad", "--overwrite"), "is the file of the cells itself"),
    ],
)
def test_what_cannot_be_raises(call, folder, file, options, message):
    before = sorted(folder.rglob("*"))
    code, out, err = call("predict", folder / file, *[option.format(folder=folder) for option in options])
    assert code == 2
    assert message.format(folder=folder) in err
    assert err.count("Error") == 1
    assert "Traceback" not in err
    assert out == ""
    assert sorted(folder.rglob("*")) == before


def test_counts_are_written_on_request(call, folder, model, cells, tmp_path):
    out = tmp_path / "counts.h5ad"
    arguments = ("predict", folder / "cells.h5ad", "--model", folder / "run", "--target", "burn", "--out", out)
    code, _, err = call(*arguments, "--output", "counts")
    assert code == 0, err
    expected = model.predict(cells, target="burn", output="counts")
    np.testing.assert_array_equal(ad.read_h5ad(out).X.toarray(), expected.X.toarray())
    code, _, err = call(*arguments, "--output", "median", "--overwrite")
    assert code != 0
    assert "median" in err
