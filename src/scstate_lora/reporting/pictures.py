"""Pictures of the page, within the page: drawn once, in colours for light and for dark screens."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

    Drawn = Axes | np.ndarray[Any, np.dtype[Any]]

_DOTS_PER_INCH = 132
_PIXELS_PER_INCH = 92  # of the page: text of 8.5 to 10 points has about its own size, and a pixel more than one dot
_COLORS = 128  # of a picture's palette
PAPERS = {"light": "#ffffff", "dark": "#171b21"}
"""Background of the pictures, that of the page's style sheet."""
INKS = {"light": "#1f2328", "dark": "#e3e7ec"}
"""Colour of their text."""


@dataclass(frozen=True)
class Picture:
    """An image, light and dark, as data URIs; its size is in pixels of the page."""

    kind = "picture"
    caption: str
    alt: str
    light: str
    dark: str
    width: int
    height: int


def picture(draw: Callable[[], Drawn], caption: str, *, alt: str, tight: bool = False) -> Picture:
    """Draw a picture for light and for dark screens, and close its figure.

    Parameters
    ----------
    draw
        Draws it, and returns its Axes.
    caption
        What is to be seen, below it.
    alt
        Its content in words, for those who do not see it.
    tight
        Whether to cut it to what is drawn, also where that goes beyond the figure.
    """
    with plt.style.context("default"), mpl.rc_context(_colors()):
        figure = np.ravel(np.asarray(draw(), dtype=object))[0].figure
        image = _few_colors(figure, tight=tight)
        plt.close(figure)
    light = _data_uri(image)
    image.putpalette(darkened(np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)).tobytes())
    width, height = (round(n * _PIXELS_PER_INCH / _DOTS_PER_INCH) for n in image.size)
    return Picture(caption, alt, light, _data_uri(image), width, height)


def darkened(colors: np.ndarray) -> np.ndarray:
    """Turn colours on a light background into those on a dark one: light becomes dark, and every hue stays.

    Parameters
    ----------
    colors
        Red, green and blue, uint8 ``(n, 3)``; the background is white.

    Returns
    -------
    The same of the dark picture.
    """
    ink, dark_ink, dark_paper = (np.array(to_rgb(c)) for c in (INKS["light"], INKS["dark"], PAPERS["dark"]))
    values = colors / 255
    lightness = (values.max(axis=1, keepdims=True) + values.min(axis=1, keepdims=True)) / 2
    share_of_ink = np.clip((1 - lightness) / (1 - (ink.max() + ink.min()) / 2), 0, 1)
    gray = dark_paper + share_of_ink * (dark_ink - dark_paper)
    return np.asarray(np.round(255 * np.clip(gray + values - lightness, 0, 1)), dtype=np.uint8)


def _colors() -> dict[str, Any]:
    """Colours of text and background as matplotlib's options."""
    ink, paper = INKS["light"], PAPERS["light"]
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papers = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {**dict.fromkeys(inks, ink), **dict.fromkeys(papers, paper)}


def _few_colors(figure: Figure, *, tight: bool) -> Image:
    """Turn a figure into an image with a palette, whose background is exactly that of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)  # once: savefig would lay out twice
        figure.set_layout_engine("none")
    if tight:
        raw = io.BytesIO()
        figure.savefig(raw, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.06)
        full = Image.open(raw).convert("RGB")
    else:
        figure.set_dpi(_DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        full = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    few = full.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(few.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette[np.asarray(few)[0, 0]] = np.asarray(full)[0, 0]
    few.putpalette(palette.tobytes())
    return few


def _data_uri(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
