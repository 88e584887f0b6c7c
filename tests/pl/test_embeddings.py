from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from scstate_lora import pl
from scstate_lora.pl import layouts
from scstate_lora.pl.embeddings import begin_layouts


def test_before_and_after_by_covariate(cells):
    axes = pl.embedding(cells, color=["cell_type", "days"])
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes[0]] == ["X_scstate_base", "X_scstate_lora"]
    assert [t.get_text() for t in axes[0, 1].get_legend().get_texts()] == ["B", "NK", "T"]
    assert axes[0, 0].get_legend() is None
    assert axes[0, 0].get_xlabel() == "UMAP 1"
    colour_bars = [a for a in axes[0, 0].figure.axes if a.get_label() == "<colorbar>"]
    assert [a.get_ylabel() for a in colour_bars] == ["days"]


def test_adata_is_only_read(cells):
    before = cells.copy()
    pl.embedding(cells, color="cell_type")
    assert set(cells.obsm) == set(before.obsm)
    assert not cells.uns
    assert not cells.obsp
    assert cells.obs.equals(before.obs)


def test_same_picture_every_time(cells):
    first, second = (pl.embedding(cells, color="cell_type", compare=None)[0, 0] for _ in range(2))
    np.testing.assert_array_equal(first.collections[0].get_offsets(), second.collections[0].get_offsets())


def test_another_colour_takes_the_same_layout(cells, monkeypatch):
    first = pl.embedding(cells, color="cell_type", compare=None)[0, 0]
    monkeypatch.setattr(layouts, "_compute", pytest.fail)
    second = pl.embedding(cells, color="days", compare=None)[0, 0]
    np.testing.assert_array_equal(first.collections[0].get_offsets(), second.collections[-1].get_offsets())


@pytest.mark.slow  # another process compiles UMAP
def test_layouts_of_another_process_are_those_of_this_one(cells, monkeypatch):
    here = {key: layouts.umap_layout(cells.obsm[key]) for key in ("X_scstate_lora", "X_scstate_base")}
    layouts._known.clear()
    begin_layouts(cells, ["X_scstate_lora", "X_flat", "X_scstate_base"], n_cells=None)
    monkeypatch.setattr(layouts, "_compute", pytest.fail)
    for key in reversed(here):  # in another order than they were begun
        np.testing.assert_array_equal(layouts.umap_layout(cells.obsm[key]), here[key])
    assert not layouts._begun


def test_layouts_are_computed_here_if_the_other_process_dies(monkeypatch):
    array = np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32)
    here = layouts.umap_layout(array)
    layouts._known.clear()

    def dies():
        raise BrokenProcessPool("killed")
        yield

    monkeypatch.setattr(layouts, "_begun", {layouts._content(array): dies()})
    np.testing.assert_array_equal(layouts.umap_layout(array), here)
    assert not layouts._begun


def test_few_layouts_are_kept(monkeypatch):
    monkeypatch.setattr(layouts, "_known", layouts.OrderedDict())
    monkeypatch.setattr(layouts, "_compute", lambda array: array[:, :2])
    arrays = [np.full((6, 3), i, dtype=np.float32) for i in range(12)]
    for array in arrays:
        assert layouts.umap_layout(array)[0, 0] == array[0, 0]
    assert len(layouts._known) == 8


def test_two_dimensions_are_drawn_as_they_are(cells):
    _, ax = plt.subplots()
    assert pl.embedding(cells, "X_flat", color="cell_type", ax=ax) is ax
    drawn = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(cells.obsm["X_flat"], axis=0))
    assert ax.get_xlabel() == "flat 1"


def test_colours_are_scanpys(cells):
    from scanpy.plotting.palettes import default_20

    def used(ax) -> set[str]:
        return {to_hex(c) for c in ax.collections[0].get_facecolors()}

    assert used(pl.embedding(cells, "X_flat", color="cell_type", compare=None)[0, 0]) == set(default_20[:3])
    cells.uns["cell_type_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    assert used(pl.embedding(cells, "X_flat", color="cell_type", compare=None)[0, 0]) == set(
        cells.uns["cell_type_colors"]
    )


def test_missing_values_and_booleans(cells):
    cells.obs.loc[cells.obs_names[:5], "cell_type"] = np.nan
    cells.obs.loc[cells.obs_names[:5], "days"] = np.nan
    axes = pl.embedding(cells, "X_flat", color=["cell_type", "treated", "days"], compare=None)
    assert [t.get_text() for t in axes[0, 0].get_legend().get_texts()][-1] == "missing"
    assert [t.get_text() for t in axes[1, 0].get_legend().get_texts()] == ["False", "True"]
    assert sum(len(c.get_offsets()) for c in axes[2, 0].collections) == cells.n_obs


def test_many_cells_are_sampled_and_it_says_so(cells):
    ax = pl.embedding(cells, "X_flat", color="cell_type", n_cells=50)[0, 0]
    assert len(ax.collections[0].get_offsets()) == 50
    assert "50 of 120 cells" in pl.embedding(cells, color="cell_type", n_cells=50)[0, 1].get_title()


def test_legend_of_many_categories_lies_outside_the_panel(cells):
    cells.obs["many"] = [f"category {i % 40}" for i in range(cells.n_obs)]
    ax = pl.embedding(cells, "X_flat", color="many", compare=None)[0, 0]
    ax.figure.canvas.draw()
    box, panel = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert box.x0 >= panel.x1
    assert box.x1 <= ax.figure.bbox.x1


def test_few_cells(cells):
    assert pl.embedding(cells[:6].copy(), color="cell_type").shape == (1, 2)


def test_without_the_base_embedding_only_after(cells):
    del cells.obsm["X_scstate_base"]
    assert pl.embedding(cells, color="cell_type").shape == (1, 1)


def test_unknown_names_raise(cells):
    with pytest.raises(KeyError, match=r"adata\.obsm has no 'X_scstate_lor'.*Did you mean 'X_scstate_lora'"):
        pl.embedding(cells, "X_scstate_lor", color="cell_type")
    with pytest.raises(KeyError, match="'X_other'"):
        pl.embedding(cells, color="cell_type", compare="X_other")
    with pytest.raises(KeyError, match="Did you mean 'cell_type'"):
        pl.embedding(cells, color="celltype")


def test_unusable_input_raises(cells):
    with pytest.raises(ValueError, match="names no column"):
        pl.embedding(cells, color=[])
    with pytest.raises(ValueError, match="3 cells"):
        pl.embedding(cells[:3].copy(), color="cell_type")
    with pytest.raises(ValueError, match="One `ax` holds one panel"):
        pl.embedding(cells, color=["cell_type", "days"], ax=plt.subplots()[1])
    cells.obsm["X_thin"] = cells.obsm["X_scstate_base"][:, :1]
    with pytest.raises(ValueError, match=r"shape \(120, 1\)"):
        pl.embedding(cells, "X_thin", color="cell_type")
    cells.obsm["X_scstate_base"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"'X_scstate_base'.* NaN or infinite values in 1 cells"):
        pl.embedding(cells, color="cell_type")
