"""A baseline and a metric are added in one place: tables, plots and reports then have them."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.metrics.baselines import BASELINES, CEILING, Baseline, reference_names
from scstate_lora.metrics.registry import METRICS, Metric, metric_label
from scstate_lora.reporting.predictions import scores_section

pytestmark = pytest.mark.usefixtures("_closed")


@pytest.fixture
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def cells() -> ad.AnnData:
    """40 control and 40 cells of either drug, which raise genes of their own, in two types."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"arm": np.repeat(["none", "drug", "dye"], 40), "type": np.tile(["A", "B"], 60)})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    rate = np.full((len(obs), 60), 4.0)
    rate[40:80, :10] += 8
    rate[80:, 10:20] += 8
    adata = ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    Registry.create(adata, DataConfig(pert_key="arm", control="none", cell_type_key="type")).write(adata)
    return adata


def _predicted(cells: ad.AnnData, targets: list[str]) -> ad.AnnData:
    """Predict the measured cells of each target, with noise."""
    parts = []
    controls = cells[cells.obs["arm"] == "none"]
    for target in targets:
        measured = cells[cells.obs["arm"] == target]
        noise = np.random.default_rng(1).normal(0, 0.3, measured.shape)
        x = np.maximum(log_expression(measured).toarray() + noise, 0).astype(np.float32)
        obs = measured.obs.assign(control_cell=controls.obs_names)
        parts.append(ad.AnnData(x, obs=obs, var=measured.var[[]]))
    predicted = ad.concat(parts)
    write_result(predicted, PREDICT, Prediction("log1p_cp10k", "arm", "none", targets, "genes").record())
    return predicted


def _largest_error(pred: np.ndarray, real: np.ndarray, _: np.ndarray) -> float:
    return float(np.abs(pred.mean(axis=0) - real.mean(axis=0)).max())


def _labels(axes: np.ndarray) -> list[str]:
    (legend,) = axes[0].figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_a_new_baseline_appears_in_tables_plots_and_reports(cells, monkeypatch):
    baseline = Baseline(
        "twice the controls", "P", cells=lambda control, _: 2 * control, effect=lambda mean, _: np.arange(len(mean))
    )
    monkeypatch.setitem(BASELINES, baseline.name, baseline)
    assert reference_names()[-2:] == [baseline.name, CEILING]
    pred, train, real = _predicted(cells, ["drug"]), cells[::3].copy(), cells[1::3].copy()
    table = tl.evaluate_perturbation(pred, real, cells, context_key="type", train=train, min_cells=5, n_boot=10)
    assert table.loc[table["model"] == baseline.name, "value"].notna().any()
    effects = tl.discrimination(_predicted(cells, ["drug", "dye"]), cells, cells, n_boot=10)
    assert effects.loc[effects["model"] == baseline.name, "value"].notna().all()

    axes = pl.metrics(table, metric="mae")
    assert baseline.name in _labels(axes)
    markers = {line.get_marker(): line.get_color() for line in axes[0].lines}
    assert markers["P"] == markers["x"]  # grey, as the other baselines

    of_model, of_all, *_ = scores_section(pred).blocks  # one table of a model: the baseline is not taken for one
    assert of_model.caption.startswith("model beside")
    assert {column.name for column in of_all.columns} >= {baseline.name, "mean shift", "model", "replicate"}


def test_a_baseline_is_no_name_of_a_model_raises(cells, monkeypatch):
    monkeypatch.setitem(BASELINES, "mine", Baseline("mine", "P"))
    with pytest.raises(ValueError, match="name='mine' is the name of a baseline"):
        tl.evaluate_perturbation(_predicted(cells, ["drug"]), cells, cells, context_key="type", name="mine")


def test_a_new_metric_appears_in_tables_plots_and_reports(cells, monkeypatch):
    metric = Metric(
        "largest error of a mean", "lower", 0.0, np.inf, lambda p, r, _: float(abs(p.mean(0) - r.mean(0)).max())
    )
    monkeypatch.setitem(METRICS, "largest_error", metric)
    pred, train, real = _predicted(cells, ["drug"]), cells[::3].copy(), cells[1::3].copy()
    table = tl.evaluate_perturbation(pred, real, cells, context_key="type", train=train, min_cells=5, n_boot=10)
    rows = table[table["metric"] == "largest_error"]
    assert rows["value"].notna().all()
    assert set(rows["model"]) == set(table["model"])
    assert rows.iloc[0][["direction", "lowest", "highest"]].tolist() == ["lower", 0.0, np.inf]

    assert pl.metrics(table, metric="largest_error")[0].get_title() == "largest error of a mean"
    of_model, of_all, *_ = scores_section(pred).blocks
    assert "largest error of a mean ↓" in [row[0] for row in of_all.rows]
    assert any("largest error of a mean" in cell for row in of_model.rows for cell in row)


def test_a_metric_of_someone_else_is_named_by_its_column():
    assert metric_label("my_own_score") == "my own score"
