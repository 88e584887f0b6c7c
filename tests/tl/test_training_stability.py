from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scstate_lora import metrics, tl


@pytest.fixture
def history():
    """Three epochs of ten steps: the loss falls, one gradient is large, the second epoch validates best."""
    train = pd.DataFrame({"phase": "train", "epoch": np.repeat(range(3), 10), "step": range(1, 31)})
    train["loss"] = np.linspace(3, 1, 30)
    train["grad_norm"] = np.where(np.arange(30) == 7, 50.0, np.tile([1.0, 1.1, 0.9], 10))
    train["seconds"], train["peak_memory_mb"] = np.arange(30) * 0.1, np.linspace(50, 80, 30)
    val = pd.DataFrame({"phase": "val", "epoch": range(3), "step": [10, 20, 30], "loss": [4.0, 1.0, 2.0]})
    val["seconds"], val["peak_memory_mb"] = [1.2, 2.4, 3.6], 80.0
    return pd.concat([train, val], ignore_index=True)


def _values(table):
    return dict(zip(table["metric"], table["value"], strict=True))


def test_measures_of_a_history(history):
    table = tl.stability(history)
    assert list(table.columns) == ["model", "metric", "value", "unit", "direction", "reason"]
    assert set(table["model"]) == {"history"}
    assert (table["reason"] == "").all()
    late = history.loc[history["phase"] == "train", "loss"].iloc[-3:]
    assert _values(table) == pytest.approx(
        {
            "loss_variance": late.var(ddof=0),
            "loss_variance_relative": late.var(ddof=0) / late.mean() ** 2,
            "gradient_spikes": 1 / 3,
            "validation_improvement": 0.75,
            "best_epoch": 2,
            "epochs": 3,
            "steps": 30,
            "seconds_per_epoch": 1.2,
            "peak_memory_mb": 80,
        }
    )


def test_models_by_name_and_what_is_missing_has_a_reason(history):
    class Trained:
        pass

    model = Trained()
    model.history = history[history["phase"] == "train"].drop(columns=["grad_norm", "seconds"])
    table = tl.stability({"a": history, "b": model})
    assert list(dict.fromkeys(table["model"])) == ["a", "b"]
    missing = table[(table["model"] == "b") & table["value"].isna()].set_index("metric")["reason"]
    assert set(missing.index) == {"validation_improvement", "best_epoch", "gradient_spikes", "seconds_per_epoch"}
    assert "no cell is a validation cell" in missing["validation_improvement"]
    assert "no gradient norms" in missing["gradient_spikes"]
    assert tl.stability(model)["model"].iloc[0] == "Trained"


def test_share_and_deviations_are_settable(history):
    found = _values(tl.stability(history, share=1.0, n_mad=1000))
    assert found["gradient_spikes"] == 0
    assert found["loss_variance"] == pytest.approx(metrics.loss_variance(np.linspace(3, 1, 30), share=1))


def test_no_history_raises(history):
    with pytest.raises(TypeError, match="a int without"):
        tl.stability(3)
    with pytest.raises(ValueError, match="is empty"):
        tl.stability(history.iloc[:0])
    with pytest.raises(ValueError, match="lacks the columns"):
        tl.stability(history.drop(columns="epoch"))
