from __future__ import annotations

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from scstate_lora.data import Registry
from scstate_lora.pl import embeddings as pl_embeddings
from scstate_lora.reporting import begin_report, embeddings
from scstate_lora.reporting.pictures import INKS, PAPERS, darkened, picture


def _rgb(color: str) -> np.ndarray:
    return np.round(255 * np.array(to_rgb(color))).astype(np.uint8)


def _luminance(color: np.ndarray) -> float:
    linear = np.where(color / 255 <= 0.04045, color / 255 / 12.92, ((color / 255 + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(one: np.ndarray, other: np.ndarray) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


@pytest.fixture(scope="module")
def drawn():
    def draw():
        _, ax = plt.subplots(figsize=(3, 2))
        ax.set_title("text")
        ax.scatter([0, 1], [0, 1], s=900, color=["#d62728", "#1f77b4"])
        ax.text(1.2, 0.5, "beyond the figure", transform=ax.transAxes)
        return ax

    before = len(plt.get_fignums())
    pictures = picture(draw, "Two dots.", alt="Two dots"), picture(draw, "Two dots.", alt="Two dots", tight=True)
    assert len(plt.get_fignums()) == before
    return pictures


def test_backgrounds_are_those_of_the_page(drawn):
    for shown in drawn:
        np.testing.assert_array_equal(_pixels(shown.light)[0, 0], _rgb(PAPERS["light"]))
        np.testing.assert_array_equal(_pixels(shown.dark)[0, 0], _rgb(PAPERS["dark"]))


def test_hues_stay_and_text_is_readable(drawn):
    light, dark = _pixels(drawn[0].light), _pixels(drawn[0].dark)
    is_red = (light[..., 0] > 180) & (light[..., 1] < 80)
    is_blue = (light[..., 2] > 150) & (light[..., 0] < 60)
    assert is_red.any()
    assert is_blue.any()
    assert (dark[is_red].argmax(axis=1) == 0).all()
    assert (dark[is_blue].argmax(axis=1) == 2).all()
    is_ink = (light.max(axis=2) < 60) & (light.max(axis=2) - light.min(axis=2) < 12)
    assert is_ink.any()
    assert min(_contrast(color, _rgb(PAPERS["dark"])) for color in dark[is_ink][:20]) > 9


def test_ink_and_paper_become_those_of_the_dark():
    colors = darkened(np.array([_rgb(PAPERS["light"]), _rgb(INKS["light"])]))
    np.testing.assert_allclose(colors, [_rgb(PAPERS["dark"]), _rgb(INKS["dark"])], atol=6)


def test_what_goes_beyond_the_figure_is_kept_if_it_counts(drawn):
    cut, whole = drawn
    assert whole.width > cut.width
    assert _pixels(whole.light).shape[1] > whole.width  # more than one dot per pixel


def test_style_and_backend_stay(drawn):
    assert plt.rcParams["text.color"] == "black"


def test_the_page_draws_the_layouts_that_were_begun_for_it(adata, monkeypatch):
    begun, asked = [], []
    adata.obsm["X_scstate_lora"] = np.random.default_rng(0).normal(size=(adata.n_obs, 5))
    monkeypatch.setattr(embeddings, "MAX_DRAWN_CELLS", 50)
    monkeypatch.setattr("scstate_lora.reporting.page.MAX_DRAWN_CELLS", 50)
    monkeypatch.setattr(pl_embeddings, "begin_umap_layouts", begun.extend)
    monkeypatch.setattr(embeddings, "umap_layout", lambda array: asked.append(array) or array[:, :2])
    begin_report(adata)
    embeddings._laid_out(adata, ["X_scstate_base", "X_scstate_lora"], adata.obs[["cell_type"]])
    assert [len(array) for array in begun] == [50]
    np.testing.assert_array_equal(begun[0], asked[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_style_sheet_has_the_colours_of_the_pictures_and_enough_contrast(scheme):
    import re
    from importlib.resources import files

    css = (files("scstate_lora.reporting") / "templates" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    colors = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme == "dark"]))
    assert colors["paper"] == PAPERS[scheme]
    assert colors["ink"] == INKS[scheme]
    for name in ("ink", "quiet", "link", "good", "bad", "care", "even"):
        for background in ("paper", "raised"):
            assert _contrast(_rgb(colors[name]), _rgb(colors[background])) >= 4.5, (name, background)


def test_a_column_of_many_levels_is_not_drawn_with_colours_that_nobody_can_tell_apart(adata):
    assert embeddings._columns(adata, Registry.from_adata(adata)).columns.tolist() == ["cell_type", "condition"]
    names = [f"P{i}" if value == "stim" else "ctrl" for i, value in enumerate(adata.obs["condition"])]
    adata.obs["condition"] = pd.Categorical(names)
    columns = embeddings._columns(adata, Registry.from_adata(adata))
    assert columns.columns.tolist() == ["cell_type", "perturbed"]
    assert columns["perturbed"].value_counts().to_dict() == {"ctrl": 40, "perturbed": 40}
