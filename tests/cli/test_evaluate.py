"""The commands `evaluate` and `evaluate-embeddings`: files in, tables and results.json out, and repeated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import tl
from scstate_lora._compat import read_csv
from scstate_lora.config import DataConfig
from scstate_lora.config.evaluate import EvaluateOptions
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.workflow.results_file import Results

NAMED = ("--pert-key", "arm", "--control", "none", "--context-key", "type")
ROLES = (*NAMED, "--n-boot", "10", "--no-report")
SPLIT = ("--split-key", "part")


def _cells():
    """24 control and 20 cells of either drug in each of three types; the drugs in type C are test cells."""
    rng = np.random.default_rng(0)
    rows = [(t, arm) for t in "ABC" for arm, n in (("none", 24), ("drug", 20), ("dye", 20)) for _ in range(n)]
    obs = pd.DataFrame(rows, columns=["type", "arm"], index=[f"cell{i}" for i in range(len(rows))])
    obs["part"] = np.where((obs["type"] == "C") & (obs["arm"] != "none"), "test", "train")
    obs["donor"] = np.where(np.arange(len(obs)) % 2 == 0, "d1", "d2")
    rate = np.full((len(obs), 30), 4.0)
    rate[(obs["arm"] == "drug").to_numpy(), :6] += 6
    rate[(obs["arm"] == "dye").to_numpy(), 6:12] += 6
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs)
    adata.var_names = [f"g{i}" for i in range(30)]
    adata.obsm["X_own"] = (
        np.random.default_rng(1).normal(size=(len(obs), 5)) + 3 * pd.factorize(obs["type"])[0][:, None]
    )
    return adata


def _predicted(cells):
    """What a model without this package might hand back: the controls with more of the right genes, log1p."""
    cells = cells.copy()
    Registry.create(cells, DataConfig(pert_key="arm", control="none", cell_type_key="type")).write(cells)
    controls = cells[((cells.obs["arm"] == "none") & (cells.obs["type"] == "C")).to_numpy()].copy()
    parts = []
    for target, genes in (("drug", slice(0, 6)), ("dye", slice(6, 12))):
        x = log_expression(controls).toarray()
        x[:, genes] += 0.8
        obs = controls.obs[["type"]].assign(arm=target, control_cell=controls.obs_names)
        obs.index = [f"{name}|{target}" for name in obs.index]
        parts.append(ad.AnnData(x, obs=obs, var=controls.var[[]]))
    return ad.concat(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of cells. Not to be changed."""
    folder = tmp_path_factory.mktemp("files")
    cells = _cells()
    cells.write_h5ad(folder / "real.h5ad")
    test = cells.obs["part"] == "test"
    controls = cells.obs["arm"] == "none"
    cells[(test | (controls & (cells.obs["type"] == "C"))).to_numpy()].copy().write_h5ad(folder / "test.h5ad")
    cells[~test.to_numpy()].copy().write_h5ad(folder / "train.h5ad")
    _predicted(cells).write_h5ad(folder / "pred.h5ad")
    ours = _predicted(cells)
    write_result(ours, PREDICT, Prediction("log1p_cp10k", "arm", "none", ["drug", "dye"], "genes", 1e4).record())
    ours.write_h5ad(folder / "ours.h5ad")
    (folder / "genes.txt").write_text("g1\ng10\n\ng0\n")
    (folder / "text.h5ad").write_text("no cells")
    return folder


@pytest.fixture(scope="module")
def done(call, folder, tmp_path_factory):
    """A folder of scores, and what was printed. Not to be changed."""
    out = tmp_path_factory.mktemp("scores") / "new"
    files = [folder / "pred.h5ad", folder / "real.h5ad"]
    code, printed, err = call("evaluate", *files, *ROLES, *SPLIT, "--batch-key", "donor", "--out", out)
    assert code == 0, err
    return out, printed


def _expected(folder, **changes):
    """Scores and findings by the functions themselves."""
    real = ad.read_h5ad(folder / "real.h5ad")
    Registry.create(real, DataConfig(pert_key="arm", control="none", batch_key="donor", context_keys=[])).write(real)
    test, controls = real.obs["part"] == "test", (real.obs["arm"] == "none") & (real.obs["type"] == "C")
    parts = [real[mask.to_numpy()] for mask in (test | controls, controls, real.obs["part"] == "train")]
    pred = ad.read_h5ad(folder / "pred.h5ad")
    given = {"pert_key": "arm", "context_key": ["type"], "n_boot": 10} | changes
    scores = tl.evaluate_perturbation(pred, parts[0], parts[1], train=parts[2], **given)
    findings = tl.audit(parts[2], parts[0], pred=pred, pert_key="arm", control="none", context_key="type")
    return scores, findings


def test_tables_are_those_of_the_functions(done, folder):
    out, _ = done
    scores, findings = _expected(folder)
    for name, table in (("perturbation", scores), ("audit", findings)):
        stored = Results.read(out / "results.json").tables[name]
        pd.testing.assert_frame_equal(stored, table.astype(stored.dtypes), check_exact=True)
        written = read_csv(out / "tables" / f"{name}.csv")
        assert list(written.columns) == list(table.columns)
        assert len(written) == len(table)
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "tables"]


def test_the_verdict_is_printed(done, folder):
    out, printed = done
    scores, findings = _expected(folder)
    assert "model: 2 perturbations in 1 context, averages:" in printed
    average = (scores["perturbation"] == "all") & (scores["context"] == "all")
    own = scores[average & (scores["metric"] == "pearson_delta")].set_index("model")
    line = next(line for line in printed.splitlines() if line.startswith("Pearson of delta"))
    yardstick = own.loc["model", "yardstick"]
    assert line.split("  ")[0] == "Pearson of delta"
    values = [f"{own.loc[name, 'value']:.3g}" for name in ("model", yardstick, "ceiling")]
    assert [text for text in line.split() if text in values] == values
    assert yardstick in line
    assert "Not decided whether model predicts dye, drug better than" in printed.replace("drug, dye", "dye, drug")
    for row in findings[findings["severity"] != "info"].to_dict("records"):
        assert f"Audit, {row['severity']}: {row['finding']}." in printed
    assert f"Results in {out}: tables/audit.csv, tables/perturbation.csv, results.json." in printed


def test_results_hold_settings_files_and_the_split(done, folder):
    out, _ = done
    results = Results.read(out / "results.json")
    assert results.command == "evaluate"
    assert set(results.settings) == set(EvaluateOptions.model_fields)
    assert results.settings["control"] == "none"
    assert results.settings["seed"] == 0
    assert set(results.files) == {"pred", "real"}
    assert results.files["pred"]["path"] == str((folder / "pred.h5ad").resolve())
    assert results.files["pred"]["bytes"] == (folder / "pred.h5ad").stat().st_size
    assert results.split["source"] == "adata.obs['part']"
    assert [results.split[part] for part in ("train", "val", "test")] == [152, 0, 40]


def test_equal_calls_write_equal_bytes(call, done, folder, tmp_path):
    options = (*ROLES, *SPLIT, "--batch-key", "donor", "--out", tmp_path / "again")
    code, _, err = call("evaluate", folder / "pred.h5ad", folder / "real.h5ad", *options)
    assert code == 0, err
    assert (tmp_path / "again" / "results.json").read_bytes() == (done[0] / "results.json").read_bytes()


def _scores(call, out, *arguments):
    code, printed, err = call("evaluate", *arguments, "--n-boot", "10", "--no-report", "--out", out)
    assert code == 0, err
    return Results.read(out / "results.json").tables["perturbation"], printed, err


def test_other_ways_to_name_the_training_cells(call, done, folder, tmp_path):
    pred, real = folder / "pred.h5ad", folder / "real.h5ad"
    known = Results.read(done[0] / "results.json").tables["perturbation"]
    conditions = ("--holdout", "type=C,arm=drug", "--holdout", "type=C,arm=dye")
    held_out, *_ = _scores(call, tmp_path / "a", pred, real, *ROLES, *conditions)
    pd.testing.assert_frame_equal(held_out, known)
    of_file, *_ = _scores(call, tmp_path / "b", pred, folder / "test.h5ad", *ROLES, "--train", folder / "train.h5ad")
    pd.testing.assert_frame_equal(of_file, known)
    split = Results.read(tmp_path / "b" / "results.json").split
    assert split["source"] == "a file of training cells"
    assert [split[part] for part in ("train", "val", "test")] == [152, 0, 64]


@pytest.mark.filterwarnings("ignore:7 perturbed cells are in both real and train")
def test_the_page_has_the_audit_with_a_file_of_training_cells(call, folder, tmp_path):
    real, train = (ad.read_h5ad(folder / name) for name in ("test.h5ad", "train.h5ad"))
    real.obs["scstate_split"] = "train"  # of an earlier run: now the file says what trains
    leaked = ad.concat([train, real[(real.obs["arm"] == "drug").to_numpy()][:7]])
    real.write_h5ad(tmp_path / "test.h5ad")
    leaked.write_h5ad(tmp_path / "train.h5ad")
    files = [folder / "pred.h5ad", tmp_path / "test.h5ad", "--train", tmp_path / "train.h5ad"]
    code, printed, err = call("evaluate", *files, *NAMED, "--n-boot", "10", "--out", tmp_path / "new")
    assert code == 0, err
    page = (tmp_path / "new" / "report.html").read_text("utf-8")
    finding = "7 perturbed cells are in both train and test, by name"
    assert finding in printed
    assert f"The audit found an error: {finding}." in page
    assert "perturbation and context of 20 of 40 perturbed test cells are both in training, together" in page
    assert "All are for testing; the 159 training cells are in a file of their own." in page
    assert "Held out whole" not in page


def test_without_training_cells_there_is_no_skill(call, folder, tmp_path):
    table, printed, err = _scores(call, tmp_path / "out", folder / "pred.h5ad", folder / "real.h5ad", *ROLES)
    assert table["skill"].isna().all()
    assert "There are no training cells" in err
    assert "--split-key" in err
    own = table[(table["model"] == "model") & (table["metric"] == "mae")]
    assert own["value"].notna().all()
    assert "the simple baseline no change" in printed


def test_a_prediction_of_ours_names_its_columns_itself(call, done, folder, tmp_path):
    known = Results.read(done[0] / "results.json").tables["perturbation"]
    table, *_ = _scores(
        call, tmp_path / "out", folder / "ours.h5ad", folder / "real.h5ad", "--context-key", "type", *SPLIT
    )
    pd.testing.assert_frame_equal(table, known)
    assert Results.read(tmp_path / "out" / "results.json").settings["pert_key"] == "arm"


def test_the_split_of_a_run_is_found(call, done, folder, tmp_path):
    known = Results.read(done[0] / "results.json").tables["perturbation"]
    real = ad.read_h5ad(folder / "real.h5ad")
    real.obs["scstate_split"] = real.obs.pop("part")
    real.write_h5ad(tmp_path / "real.h5ad")
    table, *_ = _scores(call, tmp_path / "out", folder / "pred.h5ad", tmp_path / "real.h5ad", *ROLES)
    pd.testing.assert_frame_equal(table, known)


def test_genes_of_a_file_are_scored(call, folder, tmp_path):
    files = (folder / "pred.h5ad", folder / "real.h5ad")
    table, *_ = _scores(call, tmp_path / "a", *files, *ROLES, *SPLIT, "--genes", folder / "genes.txt")
    pred, real = (ad.read_h5ad(path) for path in files)
    Registry.create(real, DataConfig(pert_key="arm", control="none", context_keys=[])).write(real)
    mean = [
        np.asarray(x.mean(axis=0)).ravel()
        for x in (
            pred[(pred.obs["arm"] == "drug").to_numpy(), ["g1", "g10", "g0"]].X,
            log_expression(real)[((real.obs["arm"] == "drug") & (real.obs["type"] == "C")).to_numpy()][:, [1, 10, 0]],
        )
    ]
    own = table[(table["model"] == "model") & (table["metric"] == "mae") & (table["perturbation"] == "drug")]
    np.testing.assert_allclose(own["value"], np.abs(mean[0] - mean[1]).mean(), rtol=1e-5)
    assert set(Results.read(tmp_path / "a" / "results.json").files) == {"pred", "real", "genes"}


def test_shared_genes_of_counts_are_scored_at_their_full_depth(call, folder, tmp_path):
    real = ad.read_h5ad(folder / "real.h5ad")
    real.write_h5ad(tmp_path / "pred.h5ad")  # the measured cells as a prediction
    more = ad.concat([real, ad.AnnData(np.ones((192, 1), np.float32), obs=real.obs[[]])[:, []]], axis=1, merge="first")
    more.write_h5ad(tmp_path / "real.h5ad")
    table, *_ = _scores(
        call, tmp_path / "a", tmp_path / "pred.h5ad", tmp_path / "real.h5ad", *ROLES, *SPLIT, "--genes", "shared"
    )
    perfect = table[(table["model"] == "model") & (table["metric"] == "mae")]
    np.testing.assert_allclose(perfect["value"], 0, atol=1e-6)


@pytest.mark.parametrize("kind", ["log1p", "counts", "without control cells"])
def test_a_report_is_written_of_any_prediction(call, folder, tmp_path, kind):
    pred = ad.read_h5ad(folder / "pred.h5ad")
    if kind == "counts":
        pred.X = np.round(np.expm1(pred.X) / 100)
    elif kind == "without control cells":
        del pred.obs["control_cell"]
    pred.write_h5ad(tmp_path / "pred.h5ad")
    files = (tmp_path / "pred.h5ad", folder / "real.h5ad")
    code, out, err = call(
        "evaluate", *files, *NAMED, *SPLIT, "--n-boot", "10", "--name", "mine", "--out", tmp_path / "a"
    )
    assert code == 0, err
    page = (tmp_path / "a" / "report.html").read_text()
    for text in ("pred.h5ad: mine", "drug", "dye", "mean shift"):
        assert text in page, text
    assert "report.html" in out


# Repeated


def test_replay_gives_the_same_numbers_and_writes_nothing(call, done):
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    results = Results.read(out / "results.json")
    n = sum(t.select_dtypes("number").notna().to_numpy().sum() for t in results.tables.values())
    code, printed, err = call("evaluate", "--replay", out / "results.json")
    assert code == 0, err
    assert printed.strip() == f"The same {n:,} numbers."
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_replay_names_changed_files_and_numbers(call, folder, tmp_path):
    pred = ad.read_h5ad(folder / "pred.h5ad")
    pred.write_h5ad(tmp_path / "pred.h5ad")
    _scores(call, tmp_path / "out", tmp_path / "pred.h5ad", folder / "real.h5ad", *ROLES, *SPLIT)
    pred.X[:, :6] *= 1.1
    pred.write_h5ad(tmp_path / "pred.h5ad")
    code, printed, err = call("evaluate", "--replay", tmp_path / "out")
    assert code == 1, err
    assert "Not the same:" in printed
    assert "perturbation: model, " in printed
    assert "linear" not in printed.split("Changed file")[0]  # no baseline has changed
    assert f"Changed file: pred, {(tmp_path / 'pred.h5ad').resolve()}: the content is not the recorded one" in printed
    assert "real" not in printed.split("Changed file")[1].split(":")[1]


def test_replay_names_changed_versions(call, done, tmp_path):
    content = json.loads((done[0] / "results.json").read_text())
    content["versions"]["numpy"] = "1.0"
    (tmp_path / "results.json").write_text(json.dumps(content))
    code, printed, err = call("evaluate", "--replay", tmp_path)
    assert code == 0, err
    assert "The same" in printed
    assert f"Changed versions: numpy 1.0 then, {np.__version__} now." in printed


def test_replay_asks_for_a_file_that_is_gone(call, folder, tmp_path):
    moved = {name: tmp_path / f"{name}.h5ad" for name in ("pred", "real")}
    for name, path in moved.items():
        shutil.copy(folder / f"{name}.h5ad", path)
    _scores(call, tmp_path / "out", moved["pred"], moved["real"], *ROLES, *SPLIT)
    moved["real"].rename(tmp_path / "elsewhere.h5ad")
    code, printed, err = call("evaluate", "--replay", tmp_path / "out")
    assert code == 2
    assert printed == ""
    assert f"real: there is no file {moved['real'].resolve()}" in err
    assert "as the second argument" in err
    code, printed, err = call("evaluate", moved["pred"], tmp_path / "elsewhere.h5ad", "--replay", tmp_path / "out")
    assert code == 0, err
    assert printed.strip().startswith("The same")
    assert "Changed" not in printed


# Embeddings


def test_embeddings_are_scored_and_repeated(call, folder, tmp_path):
    file = folder / "real.h5ad"
    options = ("--embedding", "X_own", "--label-key", "type", "--covariate", "arm", "--out", tmp_path / "out")
    code, printed, err = call("evaluate-embeddings", file, *options)
    assert code == 0, err
    cells = ad.read_h5ad(file)
    Registry.create(cells, DataConfig()).write(cells)
    expected = tl.evaluate(cells, "X_own", label_key="type", covariate_keys="arm")
    results = Results.read(tmp_path / "out" / "results.json")
    stored = results.tables["embeddings"]
    pd.testing.assert_frame_equal(stored, expected.astype(stored.dtypes), check_exact=True)
    assert results.command == "evaluate-embeddings"
    own = expected[(expected["embedding"] == "X_own") & (expected["metric"] == "knn_accuracy")]["value"].item()
    line = next(line for line in printed.splitlines() if line.startswith("kNN accuracy of type"))
    assert f"{own:.3g}" in line
    code, printed, err = call("evaluate", "--replay", tmp_path / "out")
    assert code == 0, err
    assert "The same" in printed
    stored.loc[0, "value"] += 0.01
    results.write(tmp_path / "out" / "results.json")
    code, printed, err = call("evaluate", "--replay", tmp_path / "out")
    assert code == 1
    assert "1 numbers differ" in printed or "1 number differs" in printed


# Refused

PRED, REAL = "{folder}/pred.h5ad", "{folder}/real.h5ad"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name two files: predicted cells, then measured ones"),
        ((PRED,), "Name two files"),
        ((PRED, "{folder}/nowhere.h5ad", *ROLES), "There is no file {folder}/nowhere.h5ad"),
        ((PRED, "{folder}/text.h5ad", *ROLES), "text.h5ad cannot be read"),
        ((PRED, REAL), "Name both, by --pert-key and --control"),
        ((PRED, REAL, "--pert-key", "arn", "--control", "none"), "pred.h5ad has no column 'arn' in obs. Did you mean"),
        ((PRED, REAL, *ROLES, "--context-key", "typ"), "pred.h5ad has no column 'typ' in obs. Did you mean 'type'"),
        ((PRED, REAL, *ROLES, "--batch-key", "doner"), "real.h5ad has no column 'doner' in obs. Did you mean 'donor'"),
        ((PRED, REAL, *ROLES, "--split-key", "prt"), "real.h5ad has no column 'prt' in obs. Did you mean 'part'"),
        ((PRED, REAL, "--pert-key", "arm", "--control", "nnoe"), "--control 'nnoe' is not in adata.obs['arm']"),
        ((PRED, REAL, *ROLES, *SPLIT, "--holdout", "type=C"), "--split-key and --holdout both say"),
        ((PRED, REAL, *ROLES, "--holdout", "typ=C"), "real.h5ad has no column 'typ' in obs"),
        ((PRED, REAL, *ROLES, *SPLIT, "--train", REAL), "With a file of training cells leave them out"),
        ((PRED, REAL, *ROLES, *SPLIT, "--genes", "{folder}/none.txt"), "there is no file {folder}/none.txt"),
        ((PRED, REAL, *ROLES, *SPLIT, "--name", "linear"), "--name 'linear' is the name of a baseline"),
        ((PRED, REAL, *ROLES, "--weights", "some"), "is not allowed"),
        ((PRED, REAL, *ROLES, "--holdout", "type=A,arm=none"), "holds out no perturbed cell of REAL"),
        (("--replay", "{folder}/none.json"), "There is no file {folder}/none.json"),
        (("--replay", "{folder}/genes.txt"), "genes.txt is not JSON"),
        (("--replay", "{folder}/genes.txt", "--seed", "3"), "Leave out --seed"),
    ],
)
def test_what_cannot_be_raises(call, folder, arguments, message):
    before = sorted(folder.rglob("*"))
    code, out, err = call("evaluate", *[text.format(folder=folder) for text in arguments])
    assert code == 2
    assert message.format(folder=folder) in err
    assert err.count("Error") == 1
    assert "Traceback" not in err
    assert out == ""
    assert sorted(folder.rglob("*")) == before


def test_embeddings_that_do_not_exist_raise(call, folder):
    code, _, err = call("evaluate-embeddings", folder / "real.h5ad", "--embedding", "X_won")
    assert code == 2
    assert "real.h5ad has no embedding 'X_won' in obsm. Did you mean 'X_own'?" in err


def test_scores_are_replaced_when_asked_alone(call, done, folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    command = ("evaluate", folder / "pred.h5ad", folder / "real.h5ad", *ROLES, *SPLIT, "--out", out)
    code, _, err = call(*command)
    assert code == 2
    assert "results.json exists" in err
    code, _, err = call(*command, "--overwrite")
    assert code == 0, err
    (out / "config.yaml").write_text("")
    code, _, err = call(*command, "--overwrite")
    assert code == 2
    assert "is the folder of a run" in err


def test_a_mistaken_column_is_told_without_torch(folder):
    script = (
        "import sys, anndata; before = 'torch' in sys.modules\n"
        "from scstate_lora import cli\n"
        f"sys.argv = ['x', 'evaluate', {str(folder / 'pred.h5ad')!r}, {str(folder / 'real.h5ad')!r}, *{ROLES!r},"
        " '--split-key', 'prt']\n"
        "try:\n    cli.main()\nexcept SystemExit as stopped:\n"
        "    print(stopped.code, before == ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2 True\n"
    assert "'part'" in done.stderr
