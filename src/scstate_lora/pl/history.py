"""Loss curves: total loss, named terms and gradient norm over training, of one model or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from scstate_lora._utils import did_you_mean
from scstate_lora.metrics.history import named_histories
from scstate_lora.pl.style import color_cycle, ink, panels, paper, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

# Columns of a history that are not named terms of the loss.
_NOT_TERMS = frozenset({"phase", "epoch", "step", "loss", "grad_norm", "lr", "seconds", "peak_memory_mb"})
# A panel whose curves span more than this factor is drawn on a logarithmic axis.
_LOG_ABOVE = 20.0


def loss_curves(
    models: Any, *, terms: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes | np.ndarray[Any, np.dtype[Any]]:
    """Draw the losses over training.

    Training is drawn as the loss of every step (faint) and its running mean over one fortieth of the steps (solid),
    validation as a dashed line with one marker per epoch. A panel turns logarithmic when its values span more than a
    factor of 20.

    Parameters
    ----------
    models
        A trained model (anything with a ``.history``), a history itself (a DataFrame with the columns ``phase``,
        ``step`` and ``loss``), or several of these: a dictionary by name, or a list, named by class.
    terms
        Named terms of the loss to draw, one panel each. ``None`` draws all that the histories have, ``[]`` none.
    ax
        Axes to draw the total loss on, alone.

    Returns
    -------
    `ax`, or a new figure's array of Axes: total loss, named terms, and the gradient norm if it was logged.

    Raises
    ------
    TypeError
        If something is neither a model nor a history.
    ValueError
        If a history is empty or lacks a column.
    KeyError
        If a term is in none of the histories.
    """
    histories = named_histories(models, columns=("phase", "step", "loss"))
    if ax is not None:
        _draw(ax, histories, "loss")
        return ax
    columns = ["loss", *_terms(histories, terms)]
    if any("grad_norm" in h and h["grad_norm"].notna().any() for h in histories.values()):
        columns.append("grad_norm")
    axes = panels(len(columns), widest=3, size=(4.2, 3.1), beside=(0, 0.3 * len(histories)), h_pad=0.12)
    for panel, column in zip(axes, columns, strict=True):
        _draw(panel, histories, column)
        panel.get_legend().remove()
    figure = axes[0].figure
    handles, labels = axes[0].get_legend_handles_labels()
    # One column of the legend per model, as far as the figure is wide enough.
    n_across = min(max(2, len(histories)), max(1, int(figure.get_figwidth() / (0.085 * max(map(len, labels)) + 0.6))))
    figure.legend(handles, labels, loc="outside lower center", ncols=n_across, frameon=False)
    return axes


def _terms(histories: Mapping[str, pd.DataFrame], terms: Sequence[str] | None) -> list[str]:
    """Names of the loss terms to draw, in the order of the histories' columns."""
    available: dict[str, None] = {}
    for history in histories.values():
        numeric = history.select_dtypes("number").columns
        available |= {c: None for c in numeric if c not in _NOT_TERMS and history[c].notna().any()}
    if terms is None:
        # A single term without a weight is the total loss again: nothing to see twice.
        return [t for t in available if not all(_is_total(h, t) for h in histories.values() if t in h)]
    for term in terms:
        if term not in available:
            msg = f"No history has a loss term {term!r}. {did_you_mean(term, available)}"
            raise KeyError(msg)
    return list(terms)


def _is_total(history: pd.DataFrame, term: str) -> bool:
    both = history[[term, "loss"]].dropna()
    return bool(np.allclose(both[term], both["loss"], rtol=1e-6))


def _draw(ax: Axes, histories: Mapping[str, pd.DataFrame], column: str) -> None:
    """One panel: ``column`` of every history against the step."""
    drawn: list[np.ndarray[Any, np.dtype[Any]]] = []
    for (name, history), color in zip(histories.items(), color_cycle(len(histories)), strict=True):
        if column not in history:
            continue
        prefix = f"{shortened(name)}, " if len(histories) > 1 else ""
        train = history.loc[(history["phase"] == "train") & history[column].notna(), ["step", column]]
        if len(train):
            smooth = train[column].rolling(max(1, len(train) // 40), center=True, min_periods=1).mean()
            ax.plot(train["step"], train[column], color=color, alpha=0.25, linewidth=0.8, rasterized=len(train) > 5000)
            ax.plot(train["step"], smooth, color=color, linewidth=1.6, label=f"{prefix}train")
            drawn.append(train[column].to_numpy(dtype=float))
        val = history.loc[(history["phase"] == "val") & history[column].notna(), ["step", column]]
        if len(val):
            ax.plot(
                val["step"], val[column], color=color, linestyle="--", marker="o", markersize=3.5,
                markerfacecolor=paper(ax), linewidth=1.2, label=f"{prefix}validation",
            )  # fmt: skip
            drawn.append(val[column].to_numpy(dtype=float))
    title = {"loss": "total loss", "grad_norm": "gradient norm"}.get(column, column.replace("_", " "))
    values = np.concatenate(drawn) if drawn else np.empty(0)
    values = values[np.isfinite(values)]
    log = values.size > 0 and values.min() > 0 and values.max() > _LOG_ABOVE * values.min()
    if log:
        ax.set_yscale("log")
        # Plain numbers at 1, 2 and 5; powers of ten say little over one or two decades.
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(title + (", log scale" if log else ""))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize="small", frameon=False, labelcolor=ink(ax))
