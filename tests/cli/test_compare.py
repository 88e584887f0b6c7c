"""The command `compare`: from a configuration to tables, pictures and a page."""

from __future__ import annotations

import html5lib
import numpy as np
import pandas as pd
import pytest
import yaml

from scstate_lora.config.compare import CompareConfig, Thresholds, load_compare
from scstate_lora.config.load import shipped
from scstate_lora.workflow.results_file import Results
from tests.builders import wound as simulate

SHIPPED = shipped()["compare"]
SMALL = ["st.model.hidden=16", "st.model.n_layers=1", "st.model.n_heads=2", "st.train.max_epochs=1", "accelerator=cpu"]


@pytest.fixture(scope="module")
def wound(tmp_path_factory):
    """File of a simulated wound. Not to be changed."""
    path = tmp_path_factory.mktemp("data") / "wound.h5ad"
    cells = simulate(220)
    cells[cells.obs["cell_type"].isin(["macrophage", "fibroblast", "keratinocyte"])].write_h5ad(path)
    return path


@pytest.mark.slow
def test_shipped_configuration_compares_the_simulated_wound(call, wound, tmp_path):
    variants = "compare.variants={ST: null, ST-LoRA: null, worse: {finetune: lora, lora: {r: 2}}}"
    code, out, err = call(
        "compare",
        wound,
        "--config",
        SHIPPED,
        "--out",
        tmp_path,
        *SMALL,
        "compare.seeds=[3]",
        "compare.min_cells=2",
        variants,
    )
    assert code == 0, err
    for name in ("zero-shot", "ST-LoRA-mHC", "worse", "mean shift", "ceiling", "Success criteria", "markers_up"):
        assert name in out, name
    folder = tmp_path / "compare"
    summary = pd.read_csv(folder / "summary.csv").set_index("model")
    assert list(summary.index[-4:]) == ["ceiling", "zero-shot", "ST-LoRA-mHC", "worse"]
    assert 0 < summary.loc["worse", "trained"] < summary.loc["ST-LoRA-mHC", "trained"]
    assert summary.loc["worse", "pearson_delta"] > 0
    assert set(pd.read_csv(folder / "training.csv")["seed"]) == {3}
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {"criteria", "scores", "losses", "gradients", "training"}
    page = (folder / "compare.html").read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert page.count("<img") == 5
    assert "ST-LoRA-mHC meets" in page
    assert (folder / "logs" / "worse" / "seed3" / "metrics.csv").exists()
    results = Results.read(folder / "results.json")
    assert results.command == "compare"
    assert results.settings["compare"]["seeds"] == [3]
    assert results.files["input"]["bytes"] == wound.stat().st_size
    assert list(results.tables) == ["scores", "by_seed", "training", "criteria", "histories"]
    np.testing.assert_array_equal(results.tables["training"]["seed"], pd.read_csv(folder / "training.csv")["seed"])


@pytest.mark.slow
def test_only_some_of_the_usual_and_again_into_the_same_folder(call, wound, tmp_path):
    plain = ["data.pert_key=condition", "data.control=sham", "data.cell_type_key=cell_type"]
    plain += ["data.context_keys=cell_type", "compare.variants=[zero-shot]", *SMALL]
    code, _, err = call("compare", wound, *plain, "--out", tmp_path)
    assert code == 0, err
    (tmp_path / "compare" / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = call("compare", wound, *plain, "--out", tmp_path)
    assert code == 2
    assert "holds a finished comparison" in err
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = call("compare", wound, *plain, "--out", tmp_path, "--overwrite")
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"compare"}
    assert (tmp_path / "compare" / "notes.txt").exists()
    scores = tmp_path / "compare" / "scores.csv"
    assert scores.stat().st_mtime_ns > before[scores]
    assert "time_key=" in out
    assert {path.stem for path in (tmp_path / "compare").glob("*.png")} == {"criteria", "scores"}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "data.pert_key"),
        (["compare.seed=[1]"], "'compare.seed'. Did you mean 'seeds'?"),
        (["compare.thresholds.pearson=1"], "pearson_delta"),
        (["compare.variants={a: {finetune: half}}"], "compare.variants: 'a': finetune='half'"),
        (["compare.variants={a: {lore: {}}}"], "Did you mean 'lora'?"),
    ],
)
def test_mistake_is_a_message(call, wound, tmp_path, given, match):
    code, _, err = call("compare", wound, "--out", tmp_path / "out", *given)
    assert code == 2
    assert err.startswith("Error: ")
    assert match in err
    assert not (tmp_path / "out").exists()


def test_shipped_file_has_true_defaults_and_known_options():
    options = load_compare(SHIPPED)
    assert options.compare.thresholds == Thresholds()
    assert set(yaml.safe_load(SHIPPED.read_text())["compare"]) == set(CompareConfig.model_fields) - {"target"}
    assert options.compare.variants["mHC, all trained"].mhc.n_streams == 4
