"""Names written beside points, none over another: `label_points`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patheffects import withStroke

from scstate_lora.pl.style import DARK, MUTED, paper, shade, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_RADII = (4, 9, 15, 23, 33, 46, 62, 82)  # distances from the point to try, in points of 1/72 inch
_ANGLES = np.deg2rad([45, 135, 315, 225, 0, 180, 90, 270, 22, 158, 338, 202, 68, 112, 292, 248])
_LINE_FROM = 9  # a name farther than this gets a line to its point
_GAP = 1.5  # between two names, in points


def settle(ax: Axes) -> None:
    """Lay out the figure of these Axes, so that places in it can be computed."""
    ax.figure.canvas.figure.draw_without_rendering()


def label_points(
    ax: Axes,
    points: np.ndarray,
    names: Sequence[str],
    *,
    others: np.ndarray | None = None,
    longest: int = 16,
) -> list[Annotation]:
    """Write names beside points, so that none covers another, a labelled point or the frame.

    Of the places around a point the nearest one is taken that hides the fewest points; farther ones have a line to the
    point. A name for which there is no place is left out.

    Parameters
    ----------
    ax
        Axes whose limits and place in the figure are final, see :func:`settle`.
    points
        Points to label, the most important first, ``(n, 2)`` in data coordinates.
    names
        Their names, ``(n,)``.
    others
        All points that had better stay visible, ``(m, 2)``; by default those labelled.
    longest
        Letters of a name at most.

    Returns
    -------
    The names that were written.
    """
    scale = ax.figure.dpi / 72
    own = ax.transData.transform(points) / scale  # everything in points
    around = own if others is None else np.vstack([own, ax.transData.transform(others) / scale])
    frame = np.array(ax.get_window_extent().extents) / scale
    halo = [withStroke(linewidth=1.8, foreground=paper(ax))]  # a point or line below a name does not cut it
    written: list[Annotation] = []
    boxes = np.empty((0, 4))
    for xy, at, name in zip(points, own, names, strict=True):
        note = ax.annotate(
            shortened(name, longest), xy, xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize="x-small", color=shade(ax, 1.0), zorder=5,
        )  # fmt: skip
        extent = note.get_window_extent()
        half = np.array([extent.width, extent.height]) / scale / 2 + _GAP / 2
        best = _best(at, half, frame=frame, boxes=boxes, labelled=own, around=around)
        note.remove()
        if best is None:
            continue
        far = bool(np.hypot(*_outside(at, best, half)) > _LINE_FROM)
        line = {"arrowstyle": "-", "color": shade(ax, MUTED), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        written.append(
            ax.annotate(
                shortened(name, longest),
                xy,
                xytext=tuple(best - at),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize="x-small",
                color=shade(ax, 1.0 if not far else DARK),
                zorder=5,
                arrowprops=line if far else None,
                path_effects=halo,
            )
        )
        boxes = np.vstack([boxes, [*(best - half), *(best + half)]])
    return written


def _outside(at: np.ndarray, center: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Distance of a point from a box along both directions; 0 within."""
    return np.maximum(np.abs(at - center) - half, 0)


def _places(at: np.ndarray, half: np.ndarray, frame: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Centres of a box to try, and what each costs: rings around the point, then the whole Axes."""
    for radius in _RADII:
        for i, angle in enumerate(_ANGLES):
            yield at + (radius + half) * np.array([np.cos(angle), np.sin(angle)]), 0.1 * radius + 0.01 * i
    for x in np.arange(frame[0] + half[0], frame[2] - half[0], 2 * half[0]):
        for y in np.arange(frame[1] + half[1], frame[3] - half[1], 2 * half[1]):
            center = np.array([x, y])
            yield center, 20 + 0.1 * float(np.hypot(*(center - at)))


def _best(
    at: np.ndarray,
    half: np.ndarray,
    *,
    frame: np.ndarray,
    boxes: np.ndarray,
    labelled: np.ndarray,
    around: np.ndarray,
) -> np.ndarray | None:
    """Return the centre of the cheapest free place for a box of that half size; None if there is none."""
    best, lowest = None, np.inf
    for center, cost in _places(at, half, frame):
        if cost >= lowest:
            continue
        low, high = center - half, center + half
        if (low < frame[:2]).any() or (high > frame[2:]).any():
            continue
        if ((low < boxes[:, 2:]) & (high > boxes[:, :2])).all(axis=1).any():
            continue
        if _within(labelled, low - 2, high + 2).any():
            continue
        cost += 1.0 * np.count_nonzero(_within(around, low, high))
        cost += 1.5 * _crossings(at, center, boxes)
        if cost < lowest:
            best, lowest = center, cost
    return best


def _within(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.asarray(((points > low) & (points < high)).all(axis=1))


def _crossings(start: np.ndarray, end: np.ndarray, boxes: np.ndarray) -> int:
    """Count the boxes that the line to a name would cross."""
    steps = start + np.linspace(0.1, 1, 10)[:, None] * (end - start)
    return sum(bool(_within(steps, box[:2], box[2:]).any()) for box in boxes)
