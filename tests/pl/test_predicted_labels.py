from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from scstate_lora import metrics, pl
from tests.pl.conftest import LONG, assert_well_made, make_labels

KEYS = {"true_key": "cell_type", "pred_key": "predicted"}
CONFIDENCE = {**KEYS, "confidence_key": "confidence"}


@pytest.fixture
def labelled():
    """Three B cells, two of them recognised; one NK cell that is; six T cells, three without a prediction."""
    adata = make_labels(["x"], n_per_type=10)
    adata.obs["cell_type"] = pd.Categorical(["B"] * 3 + ["NK"] + ["T"] * 6)
    adata.obs["predicted"] = ["B", "B", "NK", "NK", "T", "T", "ILC", None, None, np.nan]
    adata.obs["confidence"] = [0.9, 0.8, 0.6, 0.7, 0.9, 0.55, 0.5, np.nan, np.nan, 0.2]
    return adata


def dots(ax) -> dict[str, float]:
    names = [label.get_text() for label in ax.get_yticklabels()]
    return {names[int(d.get_ydata()[0])]: d.get_xdata()[0] for d in ax.get_lines() if d.get_marker() == "o"}


def test_accuracy_of_every_type_with_cells_and_interval(labelled, style):
    ax = pl.celltype_accuracy(labelled, **KEYS)
    assert dots(ax) == {"NK": 1.0, "B": pytest.approx(2 / 3), "T": pytest.approx(2 / 6)}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["NK", "B", "T"]  # best first
    assert [text.get_text() for text in ax.texts] == ["1", "3", "6", "cells"]
    lines = [tuple(line.get_xdata()) for line in ax.get_lines() if len(set(line.get_xdata())) == 2]
    low, high = metrics.wilson_interval(np.array([1, 2, 2]), np.array([1, 3, 6]))
    np.testing.assert_allclose(lines, np.column_stack([low, high]))
    assert ax.get_title() == "accuracy 50.0% of cells, 66.7% mean of types\n3 of 10 cells without a prediction"
    assert_well_made(ax)


def test_colours_are_those_of_the_anndata(labelled):
    labelled.uns["cell_type_colors"] = ["#112233", "#445566", "#778899"]
    ax = pl.celltype_accuracy(labelled, **KEYS)
    colors = [line.get_color() for line in ax.get_lines() if line.get_marker() == "o"]
    assert all(same_color(a, b) for a, b in zip(colors, ["#445566", "#112233", "#778899"], strict=True))


def test_confusion_of_types_that_are_none_and_of_no_prediction(labelled, style):
    ax = pl.confusion(labelled, **KEYS)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["B", "NK", "T", "ILC", "no prediction"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["B (3)", "NK (1)", "T (6)"]
    shares = np.array([[2 / 3, 1 / 3, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 2 / 6, 1 / 6, 3 / 6]])
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    assert ax.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in ax.texts] == [".67", ".33", "1.00", ".33", ".17", ".50"]
    assert_well_made(ax)
    counts = pl.confusion(labelled, counts=True, **KEYS)
    assert [text.get_text() for text in counts.texts] == ["2", "1", "1", "2", "1", "3"]


def test_calibration_is_that_of_the_bins(labelled, style):
    ax = pl.calibration(labelled, n_bins=2, **CONFIDENCE)
    # 7 cells have both labels and a confidence, all of them in the upper bin, and 5 are right
    (line,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    mean = np.mean([0.9, 0.8, 0.6, 0.7, 0.9, 0.55, 0.5])
    np.testing.assert_allclose(line.get_xydata(), [[mean, 5 / 7]])
    assert ax.get_title() == f"ECE {abs(mean - 5 / 7):.3f}, 7 cells (3 left out)"
    assert [patch.get_height() for patch in ax.patches] == [0, 1]
    assert_well_made(ax)


def test_calibration_by_group(style):
    adata = make_labels(["B", "T"], n_per_type=200)
    adata.obs["batch"] = np.where(np.arange(400) % 2, LONG, "2")
    adata.obs.loc[adata.obs["batch"] == "2", "confidence"] = 0.99
    ax = pl.calibration(adata, group_key="batch", **CONFIDENCE)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    right = (adata.obs["cell_type"].astype(str) == adata.obs["predicted"])[adata.obs["batch"] == "2"].mean()
    assert legend[0] == f"2: ECE {0.99 - right:.3f} (200 cells)"
    assert "…" in legend[1]
    assert_well_made(ax)


@pytest.mark.parametrize("n_types", [1, 2, 30])
def test_any_number_of_types_with_long_names(n_types, style):
    adata = make_labels([f"{LONG}{i}" for i in range(n_types)])
    for ax in (pl.celltype_accuracy(adata, **KEYS), pl.confusion(adata, **KEYS)):
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert len(set(labels)) == n_types
        assert all("…" in label for label in labels)
        assert_well_made(ax)
    n_pairs = len(adata.obs[["cell_type", "predicted"]].astype(str).drop_duplicates())
    assert len(pl.confusion(adata, **KEYS).texts) == (n_pairs if n_types < 30 else 0)
    assert_well_made(pl.calibration(adata, **CONFIDENCE))


def test_draws_on_the_given_axes_and_leaves_the_cells_alone(labelled):
    before = labelled.obs.copy()
    for draw in (pl.celltype_accuracy, pl.confusion):
        _, ax = plt.subplots()
        assert draw(labelled, ax=ax, **KEYS) is ax
    _, ax = plt.subplots()
    assert pl.calibration(labelled, ax=ax, **CONFIDENCE) is ax
    pd.testing.assert_frame_equal(labelled.obs, before)
    assert not labelled.uns


@pytest.mark.parametrize("draw", [pl.celltype_accuracy, pl.confusion])
def test_missing_columns_and_labels_raise(draw, labelled):
    with pytest.raises(KeyError, match=r"no column 'celltype'.*'cell_type'"):
        draw(labelled, true_key="celltype", pred_key="predicted")
    labelled.obs["cell_type"] = np.nan
    with pytest.raises(ValueError, match="no label for any of the 10 cells"):
        draw(labelled, **KEYS)
    with pytest.raises(ValueError, match="61 types"):
        draw(make_labels([str(i) for i in range(61)], n_per_type=1), **KEYS)


def test_unusable_confidence_raises(labelled):
    labelled.obs["score"] = 3.5
    with pytest.raises(ValueError, match="must be probabilities"):
        pl.calibration(labelled, confidence_key="score", **KEYS)
    labelled.obs["confidence"] = np.nan
    with pytest.raises(ValueError, match="No cell has a label"):
        pl.calibration(labelled, **CONFIDENCE)
    with pytest.raises(ValueError, match="between 0 and 1"):
        pl.celltype_accuracy(labelled, level=95, **KEYS)
    many = make_labels([str(i) for i in range(11)])
    with pytest.raises(ValueError, match="11 values; 1 to 10"):
        pl.calibration(many, group_key="cell_type", **CONFIDENCE)
