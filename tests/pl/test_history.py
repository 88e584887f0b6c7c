from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl


def titles(axes) -> list[str]:
    return [ax.get_title() for ax in axes]


def legend(figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_panels_of_one_model(history):
    axes = pl.loss_curves(SimpleNamespace(history=history))
    assert titles(axes) == ["total loss", "reconstruction", "contrastive", "gradient norm"]
    assert all(ax.get_xlabel() == "optimiser step" and ax.get_ylabel() for ax in axes)
    assert legend(axes[0].figure) == ["train", "validation"]
    # the gradient norm exists in training only
    assert axes[3].get_legend_handles_labels()[1] == ["train"]


def test_draws_the_numbers_of_the_history(history):
    _, ax = plt.subplots()
    assert pl.loss_curves(history, ax=ax) is ax
    raw, smooth, val = ax.get_lines()
    train = history[history["phase"] == "train"]
    np.testing.assert_allclose(raw.get_ydata(), train["loss"])
    np.testing.assert_allclose(val.get_ydata(), history.loc[history["phase"] == "val", "loss"])
    assert np.diff(smooth.get_ydata()).std() < np.diff(raw.get_ydata()).std()


def test_several_models_by_name_and_by_class(history):
    axes = pl.loss_curves({"LoRA": history, "full": SimpleNamespace(history=history)})
    assert legend(axes[0].figure) == ["LoRA, train", "LoRA, validation", "full, train", "full, validation"]
    axes = pl.loss_curves((SimpleNamespace(history=history), None, SimpleNamespace(history=history)))
    assert legend(axes[0].figure)[::2] == ["SimpleNamespace, train", "SimpleNamespace 2, train"]


def test_models_with_different_terms(history):
    other = history.drop(columns=["reconstruction", "contrastive"]).assign(energy=history["loss"] / 2)
    axes = pl.loss_curves({"se": history, "st": other})
    assert titles(axes) == ["total loss", "reconstruction", "contrastive", "energy", "gradient norm"]
    assert axes[3].get_legend_handles_labels()[1] == ["st, train", "st, validation"]


def test_a_single_term_that_is_the_loss_is_not_drawn_twice(history):
    only = history.drop(columns=["reconstruction", "contrastive"]).assign(energy=history["loss"])
    assert titles(pl.loss_curves(only)) == ["total loss", "gradient norm"]


def test_chosen_terms(history):
    assert titles(pl.loss_curves(history, terms=["contrastive"])) == ["total loss", "contrastive", "gradient norm"]
    assert titles(pl.loss_curves(history.drop(columns="grad_norm"), terms=[])) == ["total loss"]


def test_wide_span_is_logarithmic_and_says_so(history):
    _, ax = plt.subplots()
    pl.loss_curves(history.assign(loss=np.geomspace(100, 1, len(history))), ax=ax)
    assert ax.get_yscale() == "log"
    assert "log scale" in ax.get_ylabel()


def test_global_style_is_untouched(history):
    before = dict(plt.rcParams)
    pl.loss_curves(history)
    assert dict(plt.rcParams) == before


def test_unknown_term_raises(history):
    with pytest.raises(KeyError, match="Did you mean 'contrastive'"):
        pl.loss_curves(history, terms=["contrastiv"])


def test_untrained_model_raises(history):
    with pytest.raises(ValueError, match="is empty"):
        pl.loss_curves(SimpleNamespace(history=history.iloc[:0]))
    with pytest.raises(TypeError, match=r"'x' is a int without a `\.history` table"):
        pl.loss_curves({"x": 1})
    with pytest.raises(ValueError, match="holds no model"):
        pl.loss_curves({})


def test_missing_column_raises():
    with pytest.raises(ValueError, match=r"lacks the columns \['phase', 'step'\]"):
        pl.loss_curves(pd.DataFrame({"loss": [1.0]}))
