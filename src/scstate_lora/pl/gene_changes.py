"""Predicted against measured change, gene by gene, with names: `gene_response`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.pl.labels import label_points, settle
from scstate_lora.pl.response_tables import ALPHA, check_names, chosen_responses, names_of
from scstate_lora.pl.style import FAINT, MUTED, accents, frameless, ink, panels, shade, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

_MOST_PANELS = 30
_RASTERIZE_ABOVE = 5_000
_SAME, _OTHER, _NONE = "responds, predicted the same way", "responds, predicted the other way", "no measured response"
_UNTESTED = "gene (responses were not tested)"


def gene_response(
    table: pd.DataFrame,
    *,
    perturbation: str | Sequence[str] | None = None,
    context: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    n_genes: int = 8,
    ax: Axes | None = None,
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the predicted against the measured change of every gene, one panel per context and perturbation.

    On the dashed line both are equal; below it, a prediction is too small. Genes that respond in the measured cells
    (FDR under 5 %) are blue, and orange where the prediction has the other sign; the others are grey. All panels have
    the same limits. Names are written so that none covers another; a name without a place is left out.

    Parameters
    ----------
    table
        Table of :func:`scstate_lora.tl.responses`, or of any other model with the same columns ``perturbation``,
        ``context``, ``gene``, ``predicted``, ``measured``, and, if known, ``fdr``, ``measured_low`` and
        ``measured_high``: the intervals of the named genes are drawn as lines.
    perturbation, context
        Those to draw, one or several; all by default.
    genes
        Genes to name; by default in each panel those with the largest changes, measured or predicted.
    n_genes
        How many to name by default; 0 names none.
    ax
        Axes to draw on: for one context of one perturbation.

    Returns
    -------
    `ax`, or a new figure's array of Axes, one per context and perturbation.

    Raises
    ------
    KeyError
        If the table has no such perturbation, context or gene.
    ValueError
        If columns are missing, nothing is left to draw, `ax` is given for several panels, or there are more than 30.
    """
    rows = chosen_responses(table, perturbation=perturbation, context=context)
    if genes is not None:
        genes = names_of(genes)
        check_names(genes, rows["gene"], what="genes")
    groups = {str(name): part for name, part in rows.groupby("group", sort=False)}
    if ax is not None and len(groups) > 1:
        msg = f"One `ax` holds one panel, and the table has {len(groups)}. Name one `context` and one `perturbation`."
        raise ValueError(msg)
    if len(groups) > _MOST_PANELS:
        msg = f"{len(groups)} panels are too many for one figure, at most {_MOST_PANELS}. Name some contexts."
        raise ValueError(msg)
    values = rows[["predicted", "measured"]].to_numpy(dtype=float)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
    if ax is not None:
        axes = np.array([ax], dtype=object)
    else:
        axes = panels(
            len(groups), widest=4, size=(3.1, 3.3), beside=(0.3, 0.5), sharex=True, sharey=True, h_pad=0.08, w_pad=0.06
        )
    kinds: dict[str, Any] = {}
    for panel, (name, part) in zip(axes, groups.items(), strict=True):
        kinds |= _panel(panel, part, 1.12 * largest)
        panel.set_title(f"{shortened(name)}\n{_agreement(part)}", fontsize="medium", color=ink(panel))
    for panel in axes:
        panel.label_outer()
    order = [kind for kind in (_NONE, _SAME, _OTHER, _UNTESTED) if kind in kinds]
    handles = [kinds[kind] for kind in order]
    how: dict[str, Any] = {"frameon": False, "fontsize": "small", "labelcolor": ink(axes[0]), "markerscale": 1.6}
    if ax is not None:
        ax.legend(handles, order, loc="upper left", bbox_to_anchor=(0, -0.16), **how)
    else:
        n_across = 1 if len(groups) == 1 else 2 if len(groups) == 2 else 3
        axes[0].figure.legend(handles, order, loc="outside lower center", ncols=n_across, **how)
    settle(axes[0])
    for panel, part in zip(axes, groups.values(), strict=True):
        _name_genes(panel, part, genes, n_genes)
    return axes[0] if ax is not None else axes


def _agreement(part: pd.DataFrame) -> str:
    """Return the correlation of both changes and the number of genes, in words."""
    known = part[["predicted", "measured"]].dropna().to_numpy(dtype=float)
    if len(known) > 2 and (known.std(axis=0) > 0).all():
        return f"r = {np.corrcoef(known.T)[0, 1]:.2f}, {len(known):,} genes"
    return f"{len(known):,} gene{'s' if len(known) != 1 else ''}"


def _kinds(part: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which genes respond and are predicted to move the same way, by the words of the legend."""
    predicted, measured = (part[c].to_numpy(dtype=float) for c in ("predicted", "measured"))
    known = np.isfinite(predicted) & np.isfinite(measured)
    fdr = part["fdr"].to_numpy(dtype=float) if "fdr" in part else np.full(len(part), np.nan)
    if not np.isfinite(fdr).any():
        return {_UNTESTED: known}
    responds = known & (fdr < ALPHA)
    other = responds & (predicted * measured < 0)
    return {_NONE: known & ~responds, _SAME: responds & ~other, _OTHER: other}


def _panel(ax: Axes, part: pd.DataFrame, limit: float) -> dict[str, Any]:
    """Draw the points of one panel; return one artist of every kind."""
    for line in (ax.axhline, ax.axvline):
        line(0, color=shade(ax, FAINT), linewidth=0.8, zorder=0)
    ax.plot([-limit, limit], [-limit, limit], color=shade(ax, MUTED), linewidth=0.9, linestyle="--", zorder=1)
    blue, orange = accents(ax)
    colors = {_NONE: shade(ax, 0.45), _SAME: blue, _OTHER: orange, _UNTESTED: blue}
    drawn = {}
    x, y = (part[c].to_numpy(dtype=float) for c in ("measured", "predicted"))
    for kind, which in _kinds(part).items():
        if not which.any():
            continue
        faint = kind == _NONE
        drawn[kind] = ax.scatter(
            x[which], y[which], s=7 if faint else 14, color=colors[kind], alpha=0.5 if faint else 0.85, linewidths=0,
            zorder=2 if faint else 3, rasterized=which.sum() > _RASTERIZE_ABOVE,
        )  # fmt: skip
    if not drawn:
        ax.text(
            0.5, 0.5, "no change is known", transform=ax.transAxes, ha="center", va="center", color=shade(ax, MUTED)
        )
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_aspect("equal")
    ax.set_xlabel("measured change (log1p)")
    ax.set_ylabel("predicted change (log1p)")
    frameless(ax)
    return drawn


def _name_genes(ax: Axes, part: pd.DataFrame, genes: Sequence[str] | None, n_genes: int) -> None:
    known = part[part[["predicted", "measured"]].notna().all(axis=1)]
    size = known[["predicted", "measured"]].abs().max(axis=1)
    largest = known.loc[size.sort_values(ascending=False, kind="stable").index]
    if genes is None:
        named = largest.head(n_genes)
    else:
        named = largest[largest["gene"].astype(str).isin(genes)]
    if named.empty:
        return
    points = named[["measured", "predicted"]].to_numpy(dtype=float)
    visible = [known[["measured", "predicted"]].to_numpy(dtype=float)]
    if "measured_low" in named and "measured_high" in named:
        for (_, y), low, high in zip(points, named["measured_low"], named["measured_high"], strict=True):
            if np.isfinite(low) and np.isfinite(high):
                ax.plot([low, high], [y, y], color=shade(ax, MUTED), linewidth=0.7, zorder=2, scalex=False)
                visible.append(np.column_stack([np.linspace(low, high, 9), np.full(9, y)]))
    label_points(ax, points, named["gene"].astype(str).tolist(), others=np.vstack(visible))
