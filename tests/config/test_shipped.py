"""The configurations that come with the package: each loads, names nothing but options, and says what is true."""

from __future__ import annotations

import contextlib
import io
import sys
import tomllib
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
import yaml

import scstate_lora as ssl
from scstate_lora import cli
from scstate_lora.config import (
    DataConfig,
    MHCConfig,
    RunConfig,
    SELoraConfig,
    SERunConfig,
    STRunConfig,
    TrainConfig,
    TrainOptions,
    load_run,
)
from scstate_lora.config.load import shipped
from scstate_lora.config.options import Options
from scstate_lora.data.bound import BoundData
from scstate_lora.data.registry import Registry
from scstate_lora.data.split_files import SplitFile
from scstate_lora.data.splits import SplitRules, make_split

FOLDER = Path(str(shipped()["st_lora"])).parent
OTHERS = {"compare", "annotate_gradual", "annotate_lora"}
"""Of commands of their own."""
SHIPPED = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in OTHERS)


@pytest.fixture(scope="module")
def wound():
    """Simulated wound of 200 cells. Not to be changed."""
    return ssl.datasets.wound_healing(200, n_genes=200, seed=0)


def test_there_are_some():
    assert {"se_compact.yaml", "se_covariates.yaml", "st_lora.yaml", "st_lora_mhc.yaml"} <= {
        path.name for path in SHIPPED
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file_is_a_configuration(path):
    config = load_run(path, defaults={"se": None, "st": None})
    assert config.se is not None or config.st is not None
    assert load_run(path, defaults={"se": None, "st": None}, overrides=["seed=3"]).seed == 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_commented_out_options_are_options_too(path):
    lines = [line.strip().removeprefix("# ") for line in path.read_text().splitlines() if line.strip().startswith("# ")]
    options = yaml.safe_load("\n".join(line for line in lines if line.startswith(("file:", "st:", "holdout:")))) or {}
    data = {"holdout": options.pop("holdout", None)}
    assert data["holdout"] is not None or path.name == "se_compact.yaml"
    assert RunConfig.parse({"data": data, **options}, name=path.name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_columns_are_those_of_the_simulated_wound(path, wound):
    data = load_run(path).data
    named = {"covariate_keys", "pert_key", "control", "cell_type_key", "batch_key", "context_keys"}
    registry = Registry.create(wound.copy(), DataConfig(**data.model_dump(include=named)))
    days = registry.covariates[1]
    expected = "categorical" if path.stem.startswith("st_") else "continuous"
    assert (days.name, days.kind) == ("timepoint" if expected == "categorical" else "time_days", expected)
    assert registry.targets == (["burn"] if path.stem.startswith("st_") else [])


@pytest.mark.parametrize(
    ("name", "section", "kind", "left_out"),
    [
        ("se_covariates", "se", SERunConfig, {"compact"}),  # it has a base
        ("st_lora", "st", STRunConfig, set()),
        ("st_lora_mhc", "st", STRunConfig, set()),
    ],
)
def test_large_file_writes_every_option_of_the_model_out(name, section, kind, left_out):
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())[section]
    assert set(written) == set(kind.model_fields) - left_out
    for option, field in kind.model_fields.items():
        inner = [k for k in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_options(k)]
        if inner and option not in left_out:
            unwanted = {"run_folder", "resume_from"} if inner[0] is TrainConfig else set()
            assert set(written[option]) == set(inner[0].model_fields) - unwanted


def test_files_say_what_data_there_can_be():
    rare = {"covariate_keys", "modality", "holdout", "split_key", "split_dataset", "zeroshot_controls"}
    for name, absent in (("se_covariates", {"pert_key", "control", "context_keys", "split"}), ("st_lora", set())):
        options = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["data"]
        assert set(options) == set(DataConfig.model_fields) - rare - absent | {"covariates"}


def test_split_file_splits_the_simulated_wound(wound):
    registry = Registry.create(
        wound.copy(), DataConfig(pert_key="condition", control="sham", cell_type_key="cell_type")
    )
    split = make_split(BoundData(registry, wound), SplitRules.of(DataConfig(split=FOLDER / "splits_example.toml")))
    types, burned = wound.obs["cell_type"].astype(str), wound.obs["condition"] == "burn"
    expected = types.map({"macrophage": "test", "T cell": "val"}).fillna("train")
    expected[burned & (types == "fibroblast")] = "test"
    assert (split == expected).all()
    assert set(split) == {"train", "val", "test"}


def test_what_is_commented_out_of_the_split_file_is_allowed_too():
    lines = (FOLDER / "splits_example.toml").read_text().splitlines()
    more = lines[lines.index("# Several perturbations:") + 1 :]
    sections = tomllib.loads("\n".join(lines + [line.removeprefix("# ") for line in more]))
    few = SplitFile.of(sections).fewshot["wound.keratinocyte"]
    assert (few.val, few.test) == (("drug A",), ("drug B", "drug C"))


def _is_options(kind):
    return isinstance(kind, type) and issubclass(kind, Options)


def test_large_file_has_the_defaults_of_the_objective_and_the_adapters():
    config = load_run(FOLDER / "se_covariates.yaml")
    default = SERunConfig()
    assert config.se.objective == default.objective
    assert config.se.lora == SELoraConfig()
    assert (config.se.lora.r, config.se.lora.alpha, config.se.lora.dropout) == (16, 32, 0.1)
    assert config.se.lora.targets == ("q", "v")
    assert config.se.conditioning == default.conditioning
    assert config.base == "arcinstitute/SE-600M"


def test_st_file_has_the_defaults_but_for_the_adapters():
    st, default = load_run(FOLDER / "st_lora.yaml").st, STRunConfig()
    assert (st.finetune, default.finetune) == ("lora", None)
    assert (st.lora.r, st.lora.alpha, st.lora.dropout) == (16, 32, 0.05)
    train = st.train.model_dump(exclude_none=True)
    assert train == TrainOptions().model_dump(include=set(train))
    assert st.model_copy(update={"finetune": None, "train": default.train}) == default


def test_mhc_file_differs_by_hyper_connections_alone():
    plain, connected = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("st_lora", "st_lora_mhc"))
    assert plain["st"]["train"].pop("mhc") is False
    written = connected["st"]["train"].pop("mhc")
    assert connected == plain
    assert set(written) == set(MHCConfig.model_fields)
    assert MHCConfig.parse(written, name="mhc") == MHCConfig()


@pytest.mark.parametrize("name", ["st_lora", "st_lora_mhc"])
def test_st_file_trains_and_predicts(name, wound, tmp_path):
    wound.write_h5ad(tmp_path / "wound.h5ad")
    small = ["st.model={hidden: 16, n_layers: 1, n_heads: 2}", "st.lora.r=2", "st.train.max_epochs=1"]
    small += ["accelerator=cpu", "data.context_keys=[]"]
    _succeed(
        *("train", tmp_path / "wound.h5ad", "--config", FOLDER / f"{name}.yaml", "--out", tmp_path / "out"), *small
    )
    model = ssl.STTransition.load(tmp_path / "out" / "models" / "st")
    assert (model.finetune, model.lora.r) == ("lora", 2)
    assert model.mhc == (MHCConfig() if name == "st_lora_mhc" else None)
    assert not (tmp_path / "out" / "models" / "se").exists()
    _succeed("predict", tmp_path / "wound.h5ad", "--model", tmp_path / "out", "--target", "burn")
    predicted = ad.read_h5ad(tmp_path / "wound_predicted.h5ad")
    assert predicted.n_obs == (wound.obs["condition"] == "sham").sum()


def _succeed(*command):
    """Run the command line in this process."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["scstate-lora", *map(str, command)])
        with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code, err.getvalue()


def test_compact_file_trains(wound, tmp_path):
    obs = wound.obs[["condition", "time_days", "cell_type", "mouse_id"]]
    cells = ad.AnnData(wound.X, obs=obs, var=pd.DataFrame(index=wound.var_names))
    cells.write_h5ad(tmp_path / "wound.h5ad")
    few = ["se.compact.n_steps=3", "se.conditioning.n_steps=2", "se.train.max_epochs=1", "accelerator=cpu"]
    _succeed(
        *("train", tmp_path / "wound.h5ad", "--config", FOLDER / "se_compact.yaml", "--out", tmp_path / "out"), *few
    )
    assert ad.read_h5ad(tmp_path / "out" / "adata.h5ad").obsm["X_scstate_lora"].shape == (200, 128)
