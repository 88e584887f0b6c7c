from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl


@pytest.fixture
def table():
    """What `tl.velocity_alignment` returns in a plane: 200 cells, ten without a direction."""
    rng = np.random.default_rng(0)
    n = 200
    made = pd.DataFrame({"control_cell": [f"c{i}" for i in range(n)], "cell_type": np.tile(["A", "B"], n // 2)})
    made["cosine"] = np.where(made["cell_type"] == "A", 0.8, -0.3) + rng.uniform(-0.1, 0.1, n)
    made.loc[:9, "cosine"] = np.nan
    made["confidence"] = np.linspace(0, 1, n)
    for name in ("x", "y", "shift_x", "shift_y", "velocity_x", "velocity_y"):
        made[name] = rng.normal(size=n)
    return made


def test_histogram_is_of_the_cells_with_a_direction(table):
    _, ax = plt.subplots()
    assert pl.velocity_alignment(table, ax=ax) is ax
    heights = np.array([patch.get_height() for patch in ax.patches])
    assert heights.sum() == pytest.approx(1)
    assert heights[:10].sum() == 0
    assert ax.get_title() == f"190 cells, median {table['cosine'].median():.2f} (10 without a direction)"
    assert ax.get_xlim() == (-1, 1)


def test_histogram_by_group_and_from_the_predicted_cells(table):
    adata = ad.AnnData(np.zeros((1, 1), dtype=np.float32))
    adata.uns["scstate_lora"] = {"velocity_alignment": table}
    ax = pl.velocity_alignment(adata, group_key="cell_type")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A (95)", "B (95)"]
    medians = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(medians, table.groupby("cell_type")["cosine"].median())


def test_uncertain_cells_are_left_out(table):
    ax = pl.velocity_alignment(table, min_confidence=0.5)
    assert ax.get_title().startswith("100 cells")
    table["confidence"] = np.nan
    assert pl.velocity_alignment(table, min_confidence=0.5).get_title().startswith("190 cells")


def test_arrows_point_along_shift_and_velocity(table):
    ax = pl.velocity_alignment(table, kind="arrows")
    quivers = [c for c in ax.collections if hasattr(c, "U")]
    for quiver, name in zip(quivers, ("velocity", "shift"), strict=True):
        shown = table.set_index(["x", "y"]).loc[[tuple(at) for at in quiver.XY]]
        assert len(shown) == 150
        ratio = quiver.U / shown[f"{name}_x"].to_numpy()
        np.testing.assert_allclose(ratio, ratio[0])
        np.testing.assert_allclose(quiver.V / shown[f"{name}_y"].to_numpy(), ratio[0])
        assert ratio[0] > 0
    ax.figure.canvas.draw()


def test_mistake_raises(table):
    with pytest.raises(ValueError, match="histogram"):
        pl.velocity_alignment(table, kind="histogramm")
    with pytest.raises(ValueError, match="two columns"):
        pl.velocity_alignment(table.drop(columns="shift_x"), kind="arrows")
    with pytest.raises(KeyError, match="cell_type"):
        pl.velocity_alignment(table, group_key="celltype")
    with pytest.raises(ValueError, match="at most 40"):
        pl.velocity_alignment(table, group_key="control_cell")
    with pytest.raises(ValueError, match="no cosine to draw"):
        pl.velocity_alignment(table.assign(cosine=np.nan))
    with pytest.raises(ValueError, match="lacks the columns"):
        pl.velocity_alignment(table[["cosine"]])
    with pytest.raises(KeyError, match="has no 'velocity_alignment'"):
        pl.velocity_alignment(ad.AnnData(np.zeros((1, 1), dtype=np.float32)))
    with pytest.raises(TypeError, match="found int"):
        pl.velocity_alignment(3)
