"""The genes that respond most, by context, predicted beside measured: `responders`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from scstate_lora.pl.response_tables import ALPHA, check_names, chosen_responses, names_of
from scstate_lora.pl.style import color_bar, diverging_map, ink, shortened, text_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

_MOST_COLUMNS, _MOST_GENES = 40, 100
_GAP = 0.6  # between the two blocks, in columns


def responders(
    table: pd.DataFrame,
    *,
    perturbation: str | Sequence[str] | None = None,
    context: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    n_genes: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw the changes of the genes that respond most, by context: measured on the left, predicted on the right.

    Both share one colour scale around 0, which ends at the 99th percentile of the sizes shown. Genes are sorted by
    their mean measured change. A dot marks a measured response with an FDR under 5 %; grey is unknown.

    Parameters
    ----------
    table
        Table of :func:`scstate_lora.tl.responses`, or of any other model with the same columns ``perturbation``,
        ``context``, ``gene``, ``predicted``, ``measured``, and ``fdr`` if known.
    perturbation, context
        Those to draw, one or several; all by default. A column is a context of a perturbation.
    genes
        Genes to draw; by default the strongest responders of each column in turn, until there are `n_genes`.
    n_genes
        How many to draw by default.
    ax
        Axes to draw on.

    Returns
    -------
    `ax`, or the Axes of a new figure.

    Raises
    ------
    KeyError
        If the table has no such perturbation, context or gene.
    ValueError
        If columns are missing, nothing is left to draw, or there are more than 40 columns or 100 genes.
    """
    rows = chosen_responses(table, perturbation=perturbation, context=context)
    columns = list(dict.fromkeys(rows["group"]))
    if len(columns) > _MOST_COLUMNS:
        msg = (
            f"The table has {len(columns)} contexts and perturbations, too many columns for one figure; at most "
            f"{_MOST_COLUMNS}. Name `perturbation` or `context`."
        )
        raise ValueError(msg)
    if genes is not None:
        chosen = names_of(genes)
        check_names(chosen, rows["gene"], what="genes")
    else:
        chosen = _strongest(rows, columns, n_genes)
    if not 1 <= len(chosen) <= _MOST_GENES:
        msg = f"{len(chosen)} genes cannot be drawn; 1 to {_MOST_GENES} can. Change `genes` or `n_genes`."
        raise ValueError(msg)
    rows = rows.assign(gene=rows["gene"].astype(str)).drop_duplicates(["gene", "group"])

    def matrix(column: str) -> pd.DataFrame:
        return rows.pivot(index="gene", columns="group", values=column).reindex(index=chosen, columns=columns)

    measured = matrix("measured")
    chosen = list(measured.mean(axis=1).sort_values(ascending=False, kind="stable").index)
    blocks = {"measured": measured.loc[chosen].to_numpy(float), "predicted": matrix("predicted").to_numpy(float)}
    fdr = matrix("fdr").to_numpy(float) if "fdr" in rows else np.full(measured.shape, np.nan)
    if ax is None:
        letters = min(18, max(len(name) for name in columns))
        size = (2.6 + 0.34 * (2 * len(columns) + 1), 1.1 + 0.21 * len(chosen) + 0.075 * letters)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    _draw(ax, blocks, fdr, genes=chosen, columns=columns)
    return ax


def _strongest(rows: pd.DataFrame, columns: Sequence[str], n_genes: int) -> list[str]:
    """Return the genes with the largest measured changes, of each column in turn; responding ones first."""
    responds = (rows["fdr"] < ALPHA) if "fdr" in rows else rows["measured"].notna()
    order = rows.assign(responds=responds, size=rows["measured"].abs()).sort_values(
        ["responds", "size"], ascending=False, kind="stable"
    )
    ranked = [order.loc[order["group"] == name, "gene"].astype(str).tolist() for name in columns]
    chosen: dict[str, None] = {}
    for rank in range(max(map(len, ranked))):
        for names in ranked:
            if len(chosen) < n_genes and rank < len(names):
                chosen[names[rank]] = None
    return list(chosen)


def _draw(
    ax: Axes, blocks: dict[str, np.ndarray], fdr: np.ndarray, *, genes: Sequence[str], columns: Sequence[str]
) -> None:
    sizes = np.abs(np.concatenate([block.ravel() for block in blocks.values()]))
    sizes = sizes[np.isfinite(sizes)]
    limit = float(np.quantile(sizes, 0.99)) if len(sizes) else 1.0
    limit = limit or 1.0
    clipped = bool(len(sizes) and sizes.max() > limit * (1 + 1e-9))
    scale = diverging_map(ax)
    starts = {"measured": 0.0, "predicted": len(columns) + _GAP}
    for name, block in blocks.items():
        x = starts[name]
        image = ax.imshow(
            np.ma.masked_invalid(block), cmap=scale, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest",
            extent=(x - 0.5, x + len(columns) - 0.5, len(genes) - 0.5, -0.5),
        )  # fmt: skip
        ax.text(
            x + (len(columns) - 1) / 2, 1.01, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom",
            color=ink(ax),
        )  # fmt: skip
    for (row, column), value in np.ndenumerate(fdr):
        change = blocks["measured"][row, column]
        if value < ALPHA and np.isfinite(change):
            color = text_on(scale(0.5 + 0.5 * change / limit))
            ax.plot([column], [row], marker=".", markersize=3.5, color=color, linestyle="", markeredgewidth=0)
    positions = [start + i for start in starts.values() for i in range(len(columns))]
    ax.set_xticks(positions, [shortened(name, 18) for name in columns] * 2, rotation=90)
    ax.set_yticks(range(len(genes)), [shortened(gene, 18) for gene in genes])
    ax.set_xlim(-0.5, positions[-1] + 0.5)
    ax.set_ylim(len(genes) - 0.5, -0.5)
    ax.tick_params(length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    label = "change (log1p)" + ("; • responds, FDR < 5 %" if (fdr < ALPHA).any() else "")
    color_bar(image, ax, label, extend="both" if clipped else "neither", aspect=30, shrink=0.7)
