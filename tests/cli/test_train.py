"""The command `train`: from a configuration to saved models, interrupted and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

import scstate_lora as ssl
from scstate_lora.cli.shared import split_file
from scstate_lora.training.checkpoints import Checkpoints
from scstate_lora.workflow.results_file import Results
from tests.builders import SMALL_ST, wound

CONFIG = """
file: {file}
data:
  covariates:
    - {{name: condition, type: categorical, num_categories: 2, embed_dim: 8}}
    - name: time_days
      type: continuous
      continuous_encoder: {{hidden_dim: 5, output_dim: 6, activation: relu}}
  cell_type_key: cell_type
accelerator: cpu
se:
  compact: {{n_steps: 10, d_model: 16, d_hid: 16, n_layers: 1, n_heads: 2, output_dim: 8, n_tokens: 17}}
  lora: {{r: 2}}
  conditioning: {{n_steps: 4, hidden_dims: [12]}}
  train: {{max_epochs: 2}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration beside the cells it names. Not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    cells = wound(260, seed=5)
    cells.write_h5ad(folder / "wound.h5ad")
    cells[:200].copy().write_h5ad(folder / "fewer.h5ad")
    (folder / "config.yaml").write_text(CONFIG.format(file=folder / "wound.h5ad"))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def finished(call, config, tmp_path_factory):
    """Folder, stdout and stderr of a training. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    code, out, err = call("train", "--config", config, "--out", folder)
    assert code == 0, err
    return folder, out, err


@pytest.fixture
def stop_after_epoch(monkeypatch):
    """Press Ctrl-C, so to speak, when a plan's epoch is over and its checkpoint written."""

    def stop(plan, epoch):
        written = Checkpoints.on_train_epoch_end

        def press(self, trainer, pl_module):
            is_time = type(pl_module).__name__ == plan and trainer.current_epoch == epoch
            self.stop_requested = KeyboardInterrupt() if is_time else None
            written(self, trainer, pl_module)

        monkeypatch.setattr(Checkpoints, "on_train_epoch_end", press)
        return lambda: monkeypatch.setattr(Checkpoints, "on_train_epoch_end", written)

    return stop


@pytest.fixture
def no_training(monkeypatch):
    """Fail when a refused command trains."""

    def train(*_args, **_kwargs):
        pytest.fail("trained before the refusal")

    for model in (ssl.LoRACovariateSE, ssl.STTransition):
        monkeypatch.setattr(model, "train", train)
    monkeypatch.setattr(ssl.LoRACovariateSE, "train_base", train)


def _write(config, path, change):
    """Write a configuration with a change to it."""
    options = yaml.safe_load(config.read_text())
    change(options)
    path.write_text(yaml.safe_dump(options))
    return path


def test_train_leaves_the_model_its_cells_tables_logs_and_options(finished):
    folder, out, _ = finished
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    for name in ("adata.h5ad", "config.yaml", "tables/split.csv", "tables/history_base.csv", "tables/history_se.csv"):
        assert name in left
    assert {"logs/se/metrics.csv", "logs/se/checkpoints/last.ckpt", "logs/se/checkpoints/best.ckpt"} <= left
    assert [name for name in left if name.startswith("logs/se/events")]
    assert not [name for name in left if name.startswith(("models/base", "models/st", "predictions"))]
    adata = ad.read_h5ad(folder / "adata.h5ad")
    model = ssl.LoRACovariateSE.load(folder / "models" / "se", adata=adata)
    found = model.get_latent_representation(key_added=None)
    np.testing.assert_allclose(found, adata.obsm["X_scstate_lora"], atol=1e-6)
    assert out.strip().startswith(f"Results in {folder}:")
    assert f"ssl.LoRACovariateSE.load('{folder / 'models' / 'se'}')" in out
    assert "models/st" not in out


def test_results_hold_options_and_losses_and_no_scores_to_repeat(call, finished):
    folder, *_ = finished
    results = Results.read(folder / "results.json")
    assert results.command == "train"
    assert results.files["real"]["path"] == "adata.h5ad"
    assert "input" in results.files
    assert {"split", "history_se"} <= set(results.tables)
    code, _, err = call("evaluate", "--replay", folder)
    assert code == 2
    assert "numbers come from training" in err


def test_covariates_of_the_file_are_inputs_with_the_sizes_asked(finished):
    model = ssl.LoRACovariateSE.load(finished[0] / "models" / "se")
    assert [(c.name, c.kind) for c in model.registry.covariates] == [
        ("condition", "categorical"),
        ("time_days", "continuous"),
    ]
    shapes = {name: tuple(p.shape) for name, p in model.network.conditioning.covariate_encoder.named_parameters()}
    assert (3, 8) in shapes.values()  # two conditions and unknown
    assert {(5, 1), (6, 5)} <= set(shapes.values())  # 1 -> 5 -> 6
    assert (12, 14) in shapes.values()  # both together


def test_resolved_configuration_trains_the_same_again(call, finished, tmp_path):
    folder, *_ = finished
    code, _, err = call("train", "--config", folder / "config.yaml", "--out", tmp_path / "again")
    assert code == 0, err
    first, second = (ad.read_h5ad(path / "adata.h5ad") for path in (folder, tmp_path / "again"))
    np.testing.assert_array_equal(second.obsm["X_scstate_lora"], first.obsm["X_scstate_lora"])
    assert (tmp_path / "again" / "config.yaml").read_text() == (folder / "config.yaml").read_text()


def test_the_command_line_goes_before_the_file(call, config, tmp_path):
    code, _, err = call(
        *("train", config.parent / "fewer.h5ad", "--config", config, "--out", tmp_path / "out"),
        *("se.train.max_epochs=1", "se.lora=false", "st={train: {max_epochs: 1}}", "st.model.hidden=16"),
        *("data.covariates=[{name: timepoint, embed_dim: 4}]", "data.pert_key=condition", "data.control=sham"),
        "data.context_keys=[]",
    )
    assert code == 0, err
    model = ssl.LoRACovariateSE.load(tmp_path / "out" / "models" / "se")
    assert [(c.name, c.embed_dim) for c in model.registry.covariates] == [("timepoint", 4)]
    assert model.lora is None
    assert ssl.STTransition.load(tmp_path / "out" / "models" / "st").is_trained
    assert ad.read_h5ad(tmp_path / "out" / "adata.h5ad").n_obs == 200
    assert (tmp_path / "out" / "tables" / "history_st.csv").exists()


def test_the_other_model_alone(call, config, tmp_path):
    def change(options):
        del options["se"]
        options["data"].update(pert_key="condition", control="sham", context_keys=[])
        options["st"] = {"model": SMALL_ST, "train": {"max_epochs": 1}}

    st = _write(config, tmp_path / "st.yaml", change)
    code, out, err = call("train", "--config", st, "--out", tmp_path / "out")
    assert code == 0, err
    assert not (tmp_path / "out" / "models" / "se").exists()
    assert "X_scstate_st" in ad.read_h5ad(tmp_path / "out" / "adata.h5ad").obsm
    assert "models/st" in out


def _st_alone(**st):
    """Make a change to a configuration: the other model alone, tiny."""

    def change(options):
        del options["se"]
        options["data"].update(pert_key="condition", control="sham", context_keys=[])
        small = {"model": {**SMALL_ST, "n_layers": 2}, "train": {"max_epochs": 1}}
        options["st"] = {**small, **st}

    return change


def test_every_section_of_the_other_model_arrives(call, config, tmp_path):
    """Adapters, hyper-connections, loss terms and features of the perturbation."""
    (tmp_path / "perts.csv").write_text("name,heat,time\nburn,1.5,2\nscald,0.5,1\nsham,0,0\n")
    change = _st_alone(
        objective={"mse": 0.25},
        finetune="lora",
        lora={"r": 3, "layers": [1, None]},
        pert_features=str(tmp_path / "perts.csv"),
        train={"max_epochs": 1, "lr": 1e-4, "mhc": {"n_streams": 2}},
    )
    # One perturbation alone trains, so that its features cannot be standardised: another one is needed.
    cells = ad.read_h5ad(config.parent / "wound.h5ad")
    arm = cells.obs["condition"].astype(str).to_numpy()
    arm[(arm == "burn") & (np.arange(cells.n_obs) % 2 == 0)] = "scald"
    cells.obs["condition"] = pd.Categorical(arm)
    cells.write_h5ad(tmp_path / "three.h5ad")
    st = _write(config, tmp_path / "st.yaml", change)
    code, _, err = call(
        *("train", tmp_path / "three.h5ad", "--config", st, "--out", tmp_path / "out"), "data.covariates=[timepoint]"
    )
    assert code == 0, err
    model = ssl.STTransition.load(tmp_path / "out" / "models" / "st")
    assert model.objective.mse == 0.25
    assert (model.finetune, model.lora.r, model.lora.layers) == ("lora", 3, (1, None))
    assert model.mhc.n_streams == 2
    assert model.perts.from_features
    assert set(model.perts.names) == {"sham", "burn", "scald"}
    assert model.history["lr"].max() <= 1e-4
    assert ad.read_h5ad(tmp_path / "out" / "adata.h5ad").obsm["X_scstate_st"].shape == (260, 16)


@pytest.mark.slow  # three trainings
def test_hyper_connections_go_on_after_an_interruption(call, config, tmp_path, stop_after_epoch):
    st = _write(config, tmp_path / "st.yaml", _st_alone(train={"max_epochs": 2, "mhc": True}))
    go_on = stop_after_epoch("STPlan", 0)
    command = ("train", "--config", st, "--out")
    assert call(*command, tmp_path / "out")[0] == 130
    go_on()
    for arguments in ((tmp_path / "out", "--resume"), (tmp_path / "at once",)):
        code, _, err = call(*command, *arguments)
        assert code == 0, err
    resumed, at_once = (ad.read_h5ad(tmp_path / name / "adata.h5ad") for name in ("out", "at once"))
    np.testing.assert_allclose(resumed.obsm["X_scstate_st"], at_once.obsm["X_scstate_st"], atol=1e-6)


@pytest.mark.parametrize(
    ("st", "message"),
    [
        (
            {"lora": {"r": 4}},
            "{config}: st: lora has options of adapters, but finetune is left out, so there are none",
        ),
        ({"lora": {"r": 4}, "finetune": "full"}, "finetune is 'full', so there are none. Write finetune: lora"),
        (
            {"reuse": "backbone"},
            "{config}: st: reuse='backbone' is about a pretrained model",
        ),
        ({"finetune": "lorra"}, "{config}: st.finetune='lorra' is not allowed"),
        ({"objective": {"enrgy": 2}}, "there is no option 'st.objective.enrgy'. Did you mean 'energy'?"),
        ({"pretrained": "nowhere/at/all.ckpt"}, "st.pretrained: nowhere/at/all.ckpt is neither a file or folder nor"),
        ({"pert_features": "nowhere.csv"}, "pert_features: there is no file nowhere.csv"),
        ({"train": {"mhc": {"n_stream": 2}}}, "Did you mean 'n_streams'?"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_section_of_the_other_model_that_cannot_be_raises(call, config, tmp_path, st, message):
    written = _write(config, tmp_path / "mine.yaml", _st_alone(**st))
    code, out, err = call("train", "--config", written, "--out", tmp_path / "out")
    assert code == 2
    assert message.format(config=written) in err
    assert (out, err.count("Error")) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_interrupted_training_goes_on_to_the_same_result(call, config, tmp_path, stop_after_epoch, monkeypatch):
    out = tmp_path / "out"
    go_on = stop_after_epoch("SEPlan", 0)
    command = ("train", "--config", config, "--out", out, "se.conditioning.n_steps=0")
    code, printed, err = call(*command)
    assert code == 130
    assert printed == ""
    assert f"The same command with --resume continues the run in {out}" in err
    assert "Traceback" not in err
    assert (out / "models" / "base").is_dir()
    code, _, err = call(*command)
    assert code == 2
    assert "holds an interrupted run. Resume it by --resume" in err

    go_on()
    monkeypatch.setattr(ssl.LoRACovariateSE, "train_base", lambda *_a, **_k: pytest.fail("the base is there"))
    code, _, err = call(*command, "--resume")
    assert code == 0, err
    monkeypatch.undo()
    assert not (out / "models" / "base").exists()
    code, _, err = call(*command[:4], tmp_path / "at once", *command[5:])
    assert code == 0, err
    resumed, at_once = (ad.read_h5ad(path / "adata.h5ad") for path in (out, tmp_path / "at once"))
    np.testing.assert_array_equal(resumed.obsm["X_scstate_lora"], at_once.obsm["X_scstate_lora"])
    for name in ("history_base", "history_se"):
        tables = [pd.read_csv(path / "tables" / f"{name}.csv") for path in (out, tmp_path / "at once")]
        same = [table.drop(columns=["seconds", "peak_memory_mb"]) for table in tables]
        pd.testing.assert_frame_equal(*same)
    loaded = ssl.LoRACovariateSE.load(out / "models" / "se", adata=resumed)  # with its base
    np.testing.assert_allclose(
        loaded.get_latent_representation(key_added=None), resumed.obsm["X_scstate_lora"], atol=1e-6
    )


def test_a_model_that_was_finished_before_the_interruption_is_not_trained_again(
    call, config, tmp_path, stop_after_epoch, monkeypatch
):
    small = ["st.model.hidden=16", "st.model.n_layers=1", "st.model.n_heads=2", "st.train.max_epochs=2"]
    data = ["data.pert_key=condition", "data.control=sham", "data.context_keys=[]"]
    command = ("train", "--config", config, "--out", tmp_path / "out", *data, *small)
    go_on = stop_after_epoch("STPlan", 0)
    assert call(*command)[0] == 130
    go_on()
    monkeypatch.setattr(ssl.LoRACovariateSE, "train", lambda *_a, **_k: pytest.fail("it is trained"))
    code, _, err = call(*command, "--resume")
    assert code == 0, err
    adata = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert {"X_scstate_lora", "X_scstate_base", "X_scstate_st"} <= set(adata.obsm)
    assert pd.read_csv(tmp_path / "out" / "tables" / "history_st.csv")["epoch"].nunique() == 2


def test_finished_training_goes_further(call, config, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    before = pd.read_csv(out / "tables" / "history_se.csv")
    command = ("train", "--config", config, "--out", out, "--resume")
    code, _, err = call(*command)  # nothing is left to do: as it was
    assert code == 0, err
    pd.testing.assert_frame_equal(pd.read_csv(out / "tables" / "history_se.csv"), before)
    code, _, err = call(*command, "se.train.max_epochs=3")
    assert code == 0, err
    after = pd.read_csv(out / "tables" / "history_se.csv")
    assert after["epoch"].max() == before["epoch"].max() + 1
    assert len(pd.read_csv(out / "tables" / "history_base.csv"))
    assert ssl.LoRACovariateSE.load(out / "models" / "se").history["epoch"].max() == after["epoch"].max()


def test_resume_without_a_run_starts_one(call, config, tmp_path, only_call):
    code, _, _ = call("train", "--config", config, "--out", tmp_path / "new", "--resume")
    assert only_call["resume"] is True
    assert only_call["overwrite"] is False
    assert only_call["folder"] == tmp_path / "new"
    assert code == 2


@pytest.fixture
def only_call(monkeypatch):
    """Catch what the workflow would be called with."""
    caught = {}

    def stop(cells, config, folder, *, resume, overwrite):
        caught.update(cells=cells, config=config, folder=folder, resume=resume, overwrite=overwrite)
        raise ValueError("stopped here")

    monkeypatch.setattr("scstate_lora.workflow.train", stop)
    return caught


def test_results_lie_under_the_name_of_the_file(call, config, only_call):
    call("train", "--config", config, "se.train.lr=1e-4")
    assert str(only_call["folder"]) == "runs/wound"
    assert only_call["config"].se.train.lr == 1e-4
    assert only_call["config"].st is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["seed=1"], "seed was 0 in the run in {out} and is 1 now"),
        (["se.lora.r=4"], "se.lora.r was 2"),
        (["{fewer}"], "The cells are not those of the run"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_resume_of_another_run_raises(call, config, finished, options, message):
    folder, *_ = finished
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    places = {"out": folder, "fewer": config.parent / "fewer.h5ad"}
    options = [option.format(**places) for option in options]
    code, _, err = call("train", *options, "--config", config, "--out", folder, "--resume")
    assert code == 2
    assert message.format(**places) in err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def _set(section, **values):
    def change(options):
        for name in section.split("."):
            options = options[name]
        options.update(values)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set("se.train", max_epoch=3),
            "{config}: there is no option 'se.train.max_epoch'. Did you mean 'max_epochs'?",
        ),
        (_set("se.lora", rnk=3), "{config}: there is no option 'se.lora.rnk'. Available: 'r', 'alpha'"),
        (_set("se.train", lr="fast"), "{config}: se.train.lr='fast' is not allowed"),
        (_set("data", covariate_keys=["timepoint"]), "{config}: data: covariates and covariate_keys are two names"),
        (
            _set("data", covariates=[{"name": "condition", "embed_dm": 3}]),
            "{config}: data.covariate_keys: covariate_keys[0]: there is no option 'embed_dm'. Did you mean",
        ),
        (_set("data", covariates=[{"name": "conditoin"}]), "adata.obs['conditoin'] does not exist. Did you mean"),
        (
            _set("data", covariates=[{"name": "condition", "num_categories": 3}]),
            "num_categories=3, but adata.obs['condition'] holds 2",
        ),
        (lambda options: options.pop("se"), "has neither a section se nor a section st"),
        (lambda options: options.pop("file"), "Which cells?"),
        (lambda options: options.update(file="nowhere.h5ad"), "There is no file nowhere.h5ad"),
        (lambda options: options.update(st={}), "the perturbation model, needs a perturbation"),
        (_set("se.train", run_folder="mine"), "se.train.run_folder"),
        (_set("se.train", accelerator="cdua"), "accelerator='cdua' is not allowed. Did you mean 'cuda'?"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_configuration_that_cannot_be_raises(call, config, tmp_path, change, message):
    written = _write(config, tmp_path / "mine.yaml", change)
    code, out, err = call("train", "--config", written, "--out", tmp_path / "out")
    assert code == 2
    assert message.format(config=written) in err
    assert out == ""
    assert err.count("Error") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("se.train.max_epoch=3", "On the command line, there is no option 'se.train.max_epoch'. Did you mean"),
        ("se.train=3", "On the command line, se.train=3 is not allowed"),
        ("se.train.lr.x=3", "'lr' is a value, not a section"),
        ("se=null", "nothing to train"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_override_that_cannot_be_raises(call, config, tmp_path, override, message):
    code, _, err = call("train", "--config", config, "--out", tmp_path / "out", "se.train.lr=0.1", override)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("se: [1", "line 1 cannot be read as YAML"),
        ("- a\n- b", "holds a list"),
        ("data: {covariates: [a]}\nse: {}\nse: {}\n", "line 3 cannot be read as YAML: 'se' is given twice"),
        (None, "There is no configuration {config}. Did you mean 'mine.yml'?"),
    ],
)
def test_file_that_is_no_configuration_raises(call, tmp_path, text, message):
    (tmp_path / "mine.yml").touch()
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    code, _, err = call("train", "--config", path)
    assert code == 2
    assert message.format(config=path) in err


def test_file_is_told_from_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.h5ad").touch()
    assert split_file(None, None) == (None, [])
    assert split_file("cells.h5ad", ["seed=1"]) == ("cells.h5ad", ["seed=1"])
    assert split_file("se.train.lr=1", ["seed=1"]) == (None, ["se.train.lr=1", "seed=1"])
    assert split_file("a=b.h5ad", None) == ("a=b.h5ad", [])
    assert split_file("../k=3/cells.h5ad", None) == ("../k=3/cells.h5ad", [])
