"""The configurations in configs/: each loads, names nothing but options, and says what is true."""

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
from scstate_lora.config import DataConfig, RunConfig, SERunConfig, TrainConfig, load_run
from scstate_lora.config.options import Options
from scstate_lora.data.fields import ContinuousCovariate
from scstate_lora.data.registry import Registry
from scstate_lora.data.split_files import SplitFile
from scstate_lora.data.splits import SplitRules, make_split

FOLDER = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def wound():
    """Simulated wound of 200 cells. Not to be changed."""
    return ssl.datasets.wound_healing(200, n_genes=200, seed=0)


def test_there_are_some():
    assert {"se_compact.yaml", "se_covariates.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file_is_a_configuration(path):
    config = load_run(path, absent={"se": None, "st": None})
    assert config.se is not None or config.st is not None
    assert load_run(path, absent={"se": None, "st": None}, overrides=["seed=3"]).seed == 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_commented_out_options_are_options_too(path):
    lines = [line.strip().removeprefix("# ") for line in path.read_text().splitlines() if line.strip().startswith("# ")]
    options = yaml.safe_load("\n".join(line for line in lines if line.startswith(("file:", "st:", "holdout:")))) or {}
    data = {"holdout": options.pop("holdout", None)}
    assert RunConfig.parse({"data": data, **options}, name=path.name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_covariates_fit_the_simulated_wound(path, wound):
    data = load_run(path).data
    registry = Registry.create(
        wound.copy(), **data.model_dump(include={"covariate_keys", "cell_type_key", "batch_key"})
    )
    assert registry.covariates[1].name == "time_days"
    assert isinstance(registry.covariates[1], ContinuousCovariate)


def test_large_file_writes_every_option_of_the_model_out():
    options = yaml.safe_load((FOLDER / "se_covariates.yaml").read_text())
    for name, field in SERunConfig.model_fields.items():
        if name != "compact":  # it has a base
            kinds = [
                kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_options(kind)
            ]
            left_out = {"run_folder", "resume_from"} if kinds[0] is TrainConfig else set()
            assert set(options["se"][name]) == set(kinds[0].model_fields) - left_out
    named_otherwise = {"covariate_keys", "pert_key", "control", "context_keys", "modality", "holdout", "split_key"}
    named_otherwise |= {"split", "split_dataset", "zeroshot_controls"}
    assert set(options["data"]) == set(DataConfig.model_fields) - named_otherwise | {"covariates"}


def test_split_file_splits_the_simulated_wound(wound):
    registry = Registry.create(wound.copy(), pert_key="condition", control="sham", cell_type_key="cell_type")
    split = make_split(wound, registry, SplitRules(split=FOLDER / "splits_example.toml"))
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
    assert config.se.lora == default.lora
    assert (config.se.lora.r, config.se.lora.alpha, config.se.lora.dropout) == (16, 32, 0.1)
    assert config.se.lora.targets == ("q", "v")
    assert config.se.conditioning == default.conditioning
    assert config.base == "arcinstitute/SE-600M"


def test_compact_file_trains(wound, tmp_path):
    obs = wound.obs[["condition", "time_days", "cell_type", "mouse_id"]]
    cells = ad.AnnData(wound.X, obs=obs, var=pd.DataFrame(index=wound.var_names))
    cells.write_h5ad(tmp_path / "wound.h5ad")
    few = ["se.compact.n_steps=3", "se.conditioning.n_steps=2", "se.train.max_epochs=1", "accelerator=cpu"]
    command = ["train", tmp_path / "wound.h5ad", "--config", FOLDER / "se_compact.yaml", "--out", tmp_path / "out"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["scstate-lora", *map(str, command), *few])
        with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code, err.getvalue()
    assert ad.read_h5ad(tmp_path / "out" / "adata.h5ad").obsm["X_scstate_lora"].shape == (200, 128)
