from __future__ import annotations

import copy
import re
import shutil
import warnings

import anndata as ad
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import yaml
from threadpoolctl import threadpool_info

import scstate_lora as ssl
from scstate_lora import workflow
from scstate_lora._compat import read_csv
from scstate_lora.config import RunConfig
from scstate_lora.demo import run_demo
from scstate_lora.reporting import report
from scstate_lora.tl.scoring.held_out import HeldOutCells
from scstate_lora.workflow.features import read_features
from scstate_lora.workflow.folder import TABLES
from scstate_lora.workflow.repetition import replay
from scstate_lora.workflow.results_file import Results
from tests.builders import SMALL_ST
from tests.builders import wound as simulate

SMALL = {
    "se": {
        "compact": {"n_steps": 6, "d_model": 16, "d_hid": 16, "n_layers": 1, "n_heads": 2, "output_dim": 8},
        "conditioning": {"n_steps": 4, "hidden_dims": [16]},
        "train": {"max_epochs": 1},
    },
    "st": {"model": SMALL_ST, "train": {"max_epochs": 1}},
    "accelerator": "cpu",
}
DATA = {
    "covariate_keys": ["condition", "timepoint"],
    "pert_key": "condition",
    "control": "sham",
    "cell_type_key": "cell_type",
}


def _config(data=None, **changes):
    return RunConfig.parse({**SMALL, "data": {**DATA, **(data or {})}, **changes}, name="run")


@pytest.fixture(scope="module")
def wound():
    """Simulated wound of 700 cells x 200 genes. Not to be changed."""
    return simulate(700, seed=3)


@pytest.fixture(scope="module")
def finished(wound, tmp_path_factory):
    """A run and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "wound"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        done = workflow.run(wound.copy(), _config(), folder)
    return done, folder


@pytest.fixture
def no_training(monkeypatch):
    """Fail when a refused run trains."""

    def train(*_args, **_kwargs):
        pytest.fail("trained before the refusal")

    monkeypatch.setattr(ssl.LoRACovariateSE, "train_base", train)
    monkeypatch.setattr(ssl.LoRACovariateSE, "train", train)


@pytest.mark.slow  # all plots
def test_cells_read_back_evaluate_and_plot(finished, wound):
    matplotlib.use("Agg")
    done, folder = finished
    adata = ad.read_h5ad(folder / "adata.h5ad")
    assert adata.obs_names.equals(wound.obs_names)
    assert (adata.X != wound.X).nnz == 0
    for key in ("X_scstate_base", "X_scstate_lora", "X_scstate_st"):
        np.testing.assert_array_equal(adata.obsm[key], done.adata.obsm[key])
        assert np.isfinite(adata.obsm[key]).all()
    stored = adata.uns["scstate_lora"]["evaluate"].copy()
    assert set(stored["embedding"]) == {"X_scstate_base", "X_scstate_lora", "X_scstate_st", "PCA"}
    assert isinstance(ssl.pl.metrics(adata), (plt.Axes, list, np.ndarray))
    assert ssl.pl.embedding(adata, color="condition") is not None
    plt.close("all")
    unseen = (adata.obs["scstate_split"] != "train").to_numpy()
    pd.testing.assert_frame_equal(ssl.tl.evaluate(adata, cells=unseen), stored, check_dtype=False)
    assert not np.allclose(ssl.tl.evaluate(adata)["value"], stored["value"])


def test_predictions_read_back(finished):
    done, folder = finished
    predictions = ad.read_h5ad(folder / "predictions.h5ad")
    np.testing.assert_array_equal(predictions.X, done.predictions[0].X)
    controls = done.adata.obs_names[done.adata.obs["condition"] == "sham"]
    assert list(predictions.obs["control_cell"]) == list(controls)
    assert set(predictions.obs["condition"]) == {"burn"}
    scores = predictions.uns["scstate_lora"]["evaluate_perturbation"]
    references = {"no change", "mean shift", "perturbed mean", "context mean", "linear", "ceiling"}
    assert {"STTransition", *references} == set(scores["model"])


def test_tables_hold_the_scores_and_histories(finished):
    done, folder = finished
    assert sorted(p.stem for p in (folder / "tables").iterdir()) == sorted(TABLES)
    read = {p.stem: read_csv(p) for p in (folder / "tables").iterdir()}
    split = done.adata.obs["scstate_split"].value_counts()
    assert read["split"][["train", "val", "test"]].sum().to_dict() == split.to_dict()
    for name, history in (
        ("base", done.models.se.base_history),
        ("se", done.models.se.history),
        ("st", done.models.st.history),
    ):
        np.testing.assert_array_equal(read[f"history_{name}"]["loss"], history["loss"])
    np.testing.assert_array_equal(
        read["embeddings"]["value"], done.adata.uns["scstate_lora"]["evaluate"]["value"].to_numpy()
    )
    assert set(read["perturbation"]["perturbation"]) == {"burn"}


def test_results_hold_options_files_split_and_tables(finished):
    done, folder = finished
    results = Results.read(folder / "results.json")
    assert results.command == "run"
    assert results.settings == _config().model_dump(mode="json")
    assert results.files["pred"]["path"] == "predictions.h5ad"
    assert results.files["real"]["bytes"] == (folder / "adata.h5ad").stat().st_size
    assert results.split["fingerprint"] == done.models.st._fingerprint
    assert sum(results.split[part] for part in ("train", "val", "test")) == done.adata.n_obs
    assert set(results.tables) == set(TABLES)
    for name in ("perturbation", "embeddings"):
        written = read_csv(folder / "tables" / f"{name}.csv")
        np.testing.assert_array_equal(results.tables[name]["value"], written["value"])


def test_replay_scores_the_stored_predictions_again(finished, tmp_path, no_training):
    _, folder = finished
    outcome = replay(folder, read=ad.read_h5ad)
    assert outcome.numbers.is_same, outcome.numbers
    recorded = Results.read(folder / "results.json").tables
    numbers = [recorded[name].select_dtypes("number") for name in ("perturbation", "embeddings")]
    assert outcome.numbers.same == sum(table.notna().to_numpy().sum() for table in numbers)
    assert outcome.files == outcome.versions == []

    for name in ("predictions.h5ad", "adata.h5ad", "results.json"):
        shutil.copy(folder / name, tmp_path)
    cells = ad.read_h5ad(tmp_path / "adata.h5ad")
    cells.obsm["X_scstate_lora"] = cells.obsm["X_scstate_lora"][::-1].copy()
    cells.write_h5ad(tmp_path / "adata.h5ad")
    outcome = replay(tmp_path, read=ad.read_h5ad)
    assert not outcome.numbers.is_same
    assert set(outcome.numbers.different["table"]) == {"embeddings"}
    assert all(row.startswith("X_scstate_lora, ") for row in outcome.numbers.different["row"])
    assert [text.partition(",")[0] for text in outcome.files] == ["real"]


def test_replay_shares_sums_out_as_recorded(finished, tmp_path):
    _, folder = finished
    for name in ("predictions.h5ad", "adata.h5ad"):
        shutil.copy(folder / name, tmp_path)
    recorded, seen = Results.read(folder / "results.json"), []
    recorded.versions["threads"] = "2"  # the tests have one
    recorded.write(tmp_path / "results.json")

    def read(path):
        seen.append({pool["num_threads"] for pool in threadpool_info()})
        return ad.read_h5ad(path)

    assert replay(tmp_path, read=read).versions == []
    assert seen == [{2}]


def test_configuration_reads_back_the_same(finished):
    _, folder = finished
    text = (folder / "config.yaml").read_text()
    assert RunConfig.parse(yaml.safe_load(text), name="config.yaml") == _config()


def test_models_load_and_give_the_same(finished):
    done, folder = finished
    se = ssl.LoRACovariateSE.load(folder / "models" / "se", adata=done.adata)
    np.testing.assert_array_equal(se.get_latent_representation(key_added=None), done.adata.obsm["X_scstate_lora"])
    st = ssl.STTransition.load(folder / "models" / "st", adata=done.adata)
    np.testing.assert_array_equal(st.predict(target="burn").X, done.predictions[0].X)


def test_every_training_has_logs_of_its_own(finished):
    done, folder = finished
    histories = {"base": done.models.se.base_history, "se": done.models.se.history, "st": done.models.st.history}
    assert sorted(p.name for p in (folder / "logs").iterdir()) == sorted(histories)
    for name, history in histories.items():
        logs = read_csv(folder / "logs" / name / "metrics.csv")
        np.testing.assert_array_equal(logs["loss"], history["loss"])
        assert list((folder / "logs" / name).glob("events.out.tfevents.*"))
        assert not (folder / "logs" / name / "checkpoints").exists()  # the models are saved


@pytest.mark.slow  # a report
def test_report_is_written_from_a_run(finished):
    done, folder = finished
    page = report(done.adata, done.models, folder / "report.html", predictions=done.predictions).read_text()
    assert "were not scored" not in page
    assert "<img" in page


def test_the_same_folder_takes_a_second_run_where_that_is_requested(finished, tmp_path, caplog):
    """Without perturbation, on the cells of the first run: nothing of the first one is left."""
    done, first = finished
    folder = tmp_path / "copy"
    shutil.copytree(first, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "models" / "mine").mkdir()
    (folder / "tables" / "mine.csv").write_text("mine")
    adata = ad.read_h5ad(folder / "adata.h5ad")
    adata.obsm["X_mine"] = adata.obsm["X_scstate_base"]
    config = _config({"pert_key": None, "control": None}, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = workflow.run(adata, config, folder, overwrite=True)
    assert "stays as it is until the new results" in caplog.text
    assert not folder.with_name("copy.new").exists()
    assert "Removed 'X_scstate_lora', 'X_scstate_base', 'X_scstate_st' from obsm" in caplog.text
    assert again.models.st is None
    assert again.predictions == []
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"notes.txt", "tables/mine.csv", "adata.h5ad", "config.yaml", "tables/history_se.csv"} <= left
    assert (folder / "models" / "mine").is_dir()
    assert not {"predictions.h5ad", "tables/history_st.csv", "tables/perturbation.csv"} & left
    assert not [name for name in left if name.startswith(("models/st", "logs/st"))]
    assert len(list((folder / "logs" / "se").glob("events.*"))) == 1
    read = ad.read_h5ad(folder / "adata.h5ad")
    assert set(read.obsm) == {"X_scstate_lora", "X_scstate_base", "X_mine"}
    assert np.abs(read.obsm["X_scstate_base"] - done.adata.obsm["X_scstate_base"]).max() > 1e-3


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("job", [workflow.run, workflow.train])
def test_a_finished_run_is_not_replaced_unasked_raises(finished, wound, no_training, job):
    _, folder = finished
    before = _files(folder)
    with pytest.raises(FileExistsError, match=r"holds a finished run.*--overwrite \(from Python, overwrite=True\)"):
        job(wound.copy(), _config(), folder)
    assert _files(folder) == before


def _stop(*_args, **_kwargs):
    raise KeyboardInterrupt


def _interrupt(wound, config, folder):
    """Start a run that replaces what is in the folder, and interrupt it when the embedding model is saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.LoRACovariateSE, "get_latent_representation", _stop)
        with pytest.raises(KeyboardInterrupt):
            workflow.run(wound.copy(), config, folder, overwrite=True)


def test_an_interrupted_replacement_leaves_the_old_results_and_goes_on(finished, wound, tmp_path, monkeypatch):
    done, first = finished
    folder = tmp_path / "copy"
    shutil.copytree(first, folder)
    before = _files(folder)
    config = _config({"pert_key": None, "control": None}, seed=1)
    _interrupt(wound, config, folder)
    assert _files(folder) == before
    with pytest.raises(FileExistsError, match=r"copy\.new.*--overwrite --resume"):
        workflow.run(wound.copy(), _config(), folder, resume=True)
    monkeypatch.setattr(ssl.LoRACovariateSE, "train", _stop)  # the model is there already
    again = workflow.run(wound.copy(), config, folder, overwrite=True, resume=True)
    assert not folder.with_name("copy.new").exists()
    assert not (folder / "predictions.h5ad").exists()
    stored = ad.read_h5ad(folder / "adata.h5ad").obsm["X_scstate_lora"]
    np.testing.assert_array_equal(stored, again.adata.obsm["X_scstate_lora"])
    assert np.abs(stored - done.adata.obsm["X_scstate_lora"]).max() > 1e-3
    loaded = ssl.LoRACovariateSE.load(folder / "models" / "se", adata=again.adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(key_added=None), stored)


def test_overwriting_where_nothing_is_writes_into_the_folder_and_resumes_there(wound, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    config = _config({"pert_key": None, "control": None})
    _interrupt(wound, config, folder)
    assert (folder / "models" / "se").is_dir()
    monkeypatch.setattr(ssl.LoRACovariateSE, "train", _stop)
    workflow.run(wound.copy(), config, folder, overwrite=True, resume=True)
    assert (folder / "adata.h5ad").exists()


@pytest.mark.slow  # a run
def test_several_targets_of_which_one_cannot_be_scored(wound, tmp_path, monkeypatch, caplog):
    """Log expression, cells held out by a condition, three arms; a score that fails does not end the run."""
    logged = wound.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    arm = logged.obs["condition"].astype(str).to_numpy()
    arm[(arm == "burn") & (np.arange(logged.n_obs) % 2 == 0)] = "scald"
    logged.obs["arm"] = arm
    held_out = [{"cell_type": name, "arm": target} for name in ("macrophage", "fibroblast") for target in set(arm)]
    held_out = [condition for condition in held_out if condition["arm"] != "sham"]

    cells_of = HeldOutCells.cells_of

    def fail_for_scald(self, predicted, controls, *, target=""):
        if target == "scald":
            raise ValueError("too few cells.")
        return cells_of(self, predicted, controls, target=target)

    monkeypatch.setattr(HeldOutCells, "cells_of", fail_for_scald)
    done = workflow.run(
        logged, _config({"covariate_keys": ["timepoint"], "pert_key": "arm", "holdout": held_out}), tmp_path
    )
    own = read_csv(tmp_path / "tables" / "perturbation.csv").query("model == 'STTransition'")
    assert set(own.loc[own["perturbation"] == "scald", "reason"]) >= {"too few cells."}
    assert own.loc[own["perturbation"] == "scald", "value"].isna().all()
    assert own.loc[own["perturbation"] == "burn", "value"].notna().any()
    assert "adata.X is treated as log1p" in caplog.text
    tested = done.adata.obs.loc[done.adata.obs["scstate_split"] == "test"]
    assert set(tested["cell_type"]) == {"macrophage", "fibroblast"}
    assert "sham" not in set(tested["arm"])
    predictions = ad.read_h5ad(tmp_path / "predictions.h5ad")
    assert predictions.obs["arm"].value_counts().to_dict() == {
        "burn": (arm == "sham").sum(),
        "scald": (arm == "sham").sum(),
    }
    assert predictions.obs_names.is_unique
    assert predictions.uns["scstate_lora"]["predict"]["target"].tolist() == ["burn", "scald"]
    stored = predictions.uns["scstate_lora"]["evaluate_perturbation"]
    assert set(stored["perturbation"]) == {"burn", "scald", "all"}
    scores = pd.read_csv(tmp_path / "tables" / "perturbation.csv")
    assert len(scores) == len(stored)
    (single,) = set(done.predictions[0].uns["scstate_lora"]["evaluate_perturbation"]["perturbation"])
    assert single == "burn"
    assert set(scores["context"]) == {"macrophage", "fibroblast", "all"}


@pytest.fixture
def arms(wound, tmp_path):
    """Cells with three perturbations, and what a run on them needs to predict one that is held out."""
    cells = wound.copy()
    arm = cells.obs["condition"].astype(str).to_numpy()
    for i, name in enumerate(("scald", "acid")):
        arm[(arm == "burn") & (np.arange(cells.n_obs) % 3 == i)] = name
    cells.obs["arm"] = arm
    data = {"covariate_keys": ["timepoint"], "pert_key": "arm", "holdout": [{"arm": "acid"}]}
    return cells, _config(data, st={**SMALL["st"], "pert_features": str(tmp_path / "arms.csv")})


@pytest.mark.slow  # a run
def test_a_perturbation_that_was_held_out_is_predicted_by_its_features(arms, tmp_path):
    cells, config = arms
    features = pd.DataFrame({"heat": [1.0, 0.5, 0.8]}, index=["burn", "scald", "acid"])
    features.to_csv(tmp_path / "arms.csv")
    done = workflow.run(cells, config, tmp_path / "out")
    assert [set(p.obs["arm"]) for p in done.predictions] == [{"acid"}, {"burn"}, {"scald"}]
    scores = pd.read_csv(tmp_path / "out" / "tables" / "perturbation.csv")
    assert set(scores["perturbation"]) == {"acid"}  # no cell of the others was held out
    linear = scores[(scores["model"] == "linear") & (scores["metric"] == "mae")]
    assert linear["value"].notna().all()  # by the features: training has no acid


@pytest.mark.usefixtures("no_training")
def test_a_perturbation_without_features_is_found_before_training_raises(arms, tmp_path):
    cells, config = arms
    (tmp_path / "arms.csv").write_text("name,heat\nburn,1\nscald,0.5\n")
    with pytest.raises(ValueError, match=r"adata\.obs\['arm'\]='acid' has no row in pert_features"):
        workflow.run(cells, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a run
def test_embedding_without_decoder_is_predicted_and_not_scored(wound, tmp_path, caplog):
    embedded = wound.copy()
    embedded.obsm["X_own"] = np.random.default_rng(0).normal(size=(wound.n_obs, 6)).astype(np.float32)
    st = {**SMALL["st"], "model": {**SMALL["st"]["model"], "space": "embedding", "gene_decoder": False}}
    done = workflow.run(embedded, _config({"embed_key": "X_own"}, st=st), tmp_path)
    assert "not scored: they are embeddings without a gene decoder" in caplog.text
    assert ad.read_h5ad(tmp_path / "predictions.h5ad").obsm["X_own"].shape == (done.predictions[0].n_obs, 6)
    report(done.adata, done.models, tmp_path / "report.html", predictions=done.predictions)


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz"])
def test_features_are_read_by_name(tmp_path, ending):
    expected = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0, 1, 0]}, index=["NA", "10", "TP53+MYC"])
    expected.to_csv(tmp_path / f"perts.{ending}", sep="\t" if ending == "tsv" else ",")
    read = read_features(tmp_path / f"perts.{ending}")
    pd.testing.assert_frame_equal(read, expected)


def test_features_as_r_writes_them_are_read(tmp_path):
    (tmp_path / "perts.tsv").write_text("a\tb\nNA\t1\t2\nB\t3\t4\n")
    assert read_features(tmp_path / "perts.tsv").to_dict("index") == {"NA": {"a": 1, "b": 2}, "B": {"a": 3, "b": 4}}


@pytest.mark.parametrize("stored", ["index", "column"])
def test_features_are_read_from_parquet(tmp_path, monkeypatch, stored):
    table = pd.DataFrame({"name": ["A", "B"], "a": [1.0, 2.0]})
    (tmp_path / "perts.parquet").touch()
    monkeypatch.setattr(pd, "read_parquet", lambda _path: table.set_index("name") if stored == "index" else table)
    read = read_features(tmp_path / "perts.parquet")
    assert read["a"].to_dict() == {"A": 1.0, "B": 2.0}
    assert list(read.columns) == ["a"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("perts.xlsx", "", "is of another kind; it must end in .csv, .csv.gz, .tsv, .tsv.gz or .parquet"),
        ("perts.csv", "", "cannot be read: No columns"),
        ("perts.csv", "name;a\nA;1\n", "has 1 rows and 0 columns besides the names"),
        ("perts.csv", "name,a\n", "cannot be read"),
        ("perts.csv", "name,a\nA,1,2,3\n", "the first line has 2 columns, the others have 4"),
        ("perts.csv", "name,a\nA,1\nA,2\n", "has 'A' in several rows"),
        ("perts.csv", "name,a\nA,1\nB,high\n", "the column 'a' holds values that are not numbers, for instance 'high'"),
        ("perts.csv", "name,a\nA,1\nB,2,3,4\n", "cannot be read"),
        ("perts.csv.gz", "name,a\nA,1\n", "cannot be read"),
        ("perts.parquet", "no parquet", "perts.parquet cannot be read"),
    ],
)
def test_features_that_cannot_be_read_raise(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_features(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_features_of_another_name_raise(tmp_path):
    (tmp_path / "perts.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'perts\.csv'"):
        read_features(tmp_path / "pert.csv")


def test_without_cells_left_out_all_are_scored_and_it_is_said(wound, tmp_path, caplog):
    done = workflow.run(wound.copy(), _config({"test_size": 0, "val_size": 0}), tmp_path)
    assert "'burn' is not scored: no cell of it was held out" in caplog.text
    assert "scored on all cells, training ones included: 0 others are too few" in caplog.text
    table = done.adata.uns["scstate_lora"]["evaluate"]
    assert table["value"].notna().all()
    assert table["reason"].str.startswith("scored on all cells").all()
    assert not (tmp_path / "tables" / "perturbation.csv").exists()


def test_cells_too_few_for_scores_still_give_embeddings(wound, tmp_path, caplog):
    rows = np.concatenate([np.flatnonzero(wound.obs["condition"] == c)[:15] for c in ("sham", "burn")])
    config = _config({"covariate_keys": ["condition"], "pert_key": None, "control": None})
    done = workflow.run(wound[rows].copy(), config, tmp_path)
    assert "30 cells are too few to score" in caplog.text
    assert "X_scstate_lora" in ad.read_h5ad(tmp_path / "adata.h5ad").obsm
    assert not (tmp_path / "tables" / "embeddings.csv").exists()
    assert "were not scored" in report(done.adata, done.models, tmp_path / "report.html").read_text()


def test_trained_base_is_taken_and_not_trained(finished, wound, tmp_path):
    first, folder = finished
    done = workflow.run(wound.copy(), _config(base=str(folder / "models" / "se")), tmp_path)
    np.testing.assert_array_equal(done.adata.obsm["X_scstate_base"], first.adata.obsm["X_scstate_base"])
    assert not (tmp_path / "logs" / "base").exists()
    assert not (tmp_path / "tables" / "history_base.csv").exists()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"covariate_keys": ["conditoin"]}, {}, "Did you mean 'condition'"),
        ({"control": "Sham"}, {}, "Did you mean 'sham'"),
        ({"holdout": [{"condition": "burn"}]}, {}, "No training cell"),
        ({"context_keys": ["mouse_id"]}, {}, "no control"),
        ({}, {"precision": "bf16-true"}, "precision='bf16-true' is not allowed. Did you mean 'bf16-mixed'"),
        ({}, {"accelerator": "cdua"}, "Did you mean 'cuda'"),
        ({}, {"st": {"train": {"accelerator": "cdua"}}}, "accelerator='cdua' is not allowed. Did you mean 'cuda'"),
        ({}, {"st": {"train": {"run_folder": "mine"}}}, "st.train.run_folder"),
        ({}, {"se": None}, "se is null"),
        ({}, {"base": "nowhere"}, "There is no file or folder nowhere"),
        ({}, {"st": {"model": {"cell_set_len": 500}}}, "cell_set_len=500"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_refused_run_leaves_nothing_raises(wound, tmp_path, data, options, message):
    folder = tmp_path / "out"
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message):
        workflow.run(wound.copy(), _config(data, **options), folder)
    assert not folder.exists()


def test_too_few_cells_to_train_on_leaves_nothing_raises(wound, tmp_path):
    pair = wound[[np.flatnonzero(wound.obs["condition"] == c)[0] for c in ("sham", "burn")]].copy()
    config = _config({"covariate_keys": ["condition"], "pert_key": None, "control": None})
    with pytest.raises(ValueError, match="at least 3 training cells"):
        workflow.run(pair, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adata.h5ad", "config.yaml", "models/se/mine.bin", "tables/split.csv"])
@pytest.mark.usefixtures("no_training")
def test_files_of_others_raise(wound, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine: 1\n")
    with pytest.raises(FileExistsError, match="not the folder of an earlier run"):
        workflow.run(wound.copy(), _config(), tmp_path)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine: 1\n"]


@pytest.mark.slow  # two runs and the layouts of their pages
def test_demo_runs_both_experiments_and_writes_one_page(wound, tmp_path, monkeypatch):
    """The demonstration itself, on fewer cells and with short trainings."""
    blood = ssl.datasets.pbmc68k()[:, :100].copy()
    monkeypatch.setattr(ssl.datasets, "wound_healing", lambda *_args, **_kwargs: wound[::2].copy())
    monkeypatch.setattr(ssl.datasets, "pbmc68k", lambda: blood)
    configs = {}

    def short(data, config, folder, *, overwrite):
        configs[folder.name] = config
        small = RunConfig.parse({**copy.deepcopy(SMALL), "data": config.data.model_dump()}, name="run")
        return workflow.run(data, small, folder, overwrite=overwrite)

    monkeypatch.setattr("scstate_lora.demo.run", short)
    run_demo(tmp_path)
    assert configs["wound_healing"].data.pert_key == "condition"
    assert configs["pbmc68k"].data.pert_key is None
    for name in configs:
        assert "X_scstate_lora" in ad.read_h5ad(tmp_path / name / "adata.h5ad").obsm
    page = (tmp_path / "report.html").read_text()
    assert "Simulated wound" in page
    assert "Blood cells" in page
