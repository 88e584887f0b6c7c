"""Pictures of the page: each drawn for light and for dark screens, within the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Drawn = Axes | np.ndarray[Any, np.dtype[Any]]

_DOTS_PER_INCH = 144
_PIXELS_PER_INCH = 96  # of the page: a picture has 1.5 dots per pixel, and text of 8.5 to 10 points its own size
_COLORS = 128  # of a picture's palette
PAPERS = {"light": "#ffffff", "dark": "#171b21"}
"""Background of the pictures, that of the page's style sheet."""
_INKS = {"light": "#1f2328", "dark": "#e3e7ec"}
_STYLES = {"light": "default", "dark": "dark_background"}


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


def picture(draw: Callable[[], Drawn], caption: str, *, alt: str) -> Picture:
    """Draw a picture twice, for light and for dark screens, and close its figures.

    Parameters
    ----------
    draw
        Draws it, and returns its Axes.
    caption
        What is to be seen, below it.
    alt
        Its content in words, for those who do not see it.
    """
    images: dict[str, tuple[str, int, int]] = {}
    for name in PAPERS:
        with plt.style.context(_STYLES[name]), mpl.rc_context(_colors(name)):
            drawn = np.ravel(np.asarray(draw(), dtype=object))[0].figure
            images[name] = _png(drawn)
            plt.close(drawn)
    (light, width, height), (dark, _, _) = images["light"], images["dark"]
    return Picture(caption, alt, light, dark, width, height)


def _colors(name: str) -> dict[str, Any]:
    """Colours of text and background as matplotlib's options."""
    ink, paper = _INKS[name], PAPERS[name]
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papers = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {**dict.fromkeys(inks, ink), **dict.fromkeys(papers, paper)}


def _png(figure: Figure) -> tuple[str, int, int]:
    """Turn a figure into a PNG of few colours as a data URI; also its width and height on the page."""
    from PIL import Image

    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)  # once: savefig would lay out twice
        figure.set_layout_engine("none")
    raw, small = io.BytesIO(), io.BytesIO()
    fast = {"compress_level": 0}  # it is compressed below
    figure.savefig(raw, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.06, pil_kwargs=fast)
    image = Image.open(raw).convert("RGB")
    few = image.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(few.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette[np.asarray(few)[0, 0]] = np.asarray(image)[0, 0]  # the page's own background, not a shade beside it
    few.putpalette(palette.tobytes())
    few.save(small, format="png")
    width, height = (round(n * _PIXELS_PER_INCH / _DOTS_PER_INCH) for n in image.size)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode("ascii"), width, height
