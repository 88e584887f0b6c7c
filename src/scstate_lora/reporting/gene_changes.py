"""Which genes change where, predicted and measured: for the first screen, the pictures and the table to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT
from scstate_lora.data import log_predicted
from scstate_lora.data.bound import BoundData
from scstate_lora.data.contexts import join_labels
from scstate_lora.data.results import read_prediction
from scstate_lora.metrics.changes import FDR
from scstate_lora.pl.style import shortened
from scstate_lora.reporting.parts import Table, table
from scstate_lora.tl.scoring.table import MIN_CELLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry

_NAMED, _NAMED_OF_SEVERAL = 5, 3  # genes per direction, of one perturbation, and of each of several
_SHOWN_CONTEXTS = 6
_LONGEST = 14  # letters of a gene's name
_UP, _DOWN = "↑", "↓"


def context_keys_of(registry: Registry) -> list[str]:
    """Columns by which changes are told apart: the cell type, as the main job scores it; without one, the context."""
    return [registry.cell_type_key] if registry.cell_type_key is not None else list(registry.context_keys)


def gene_changes(pred: AnnData, adata: AnnData, registry: Registry) -> pd.DataFrame | None:
    """Tabulate predicted and measured changes as `tl.responses` does; without measured test cells the predicted ones.

    Parameters
    ----------
    pred
        Predicted cells.
    adata
        All measured cells: those of the test are taken, and the control cells.
    registry
        How `adata` was set up.

    Returns
    -------
    The table, without tests where fewer than 10 cells were measured; None if no genes were predicted, or it is not
    known from which control cells.
    """
    prediction = read_prediction(pred)
    if prediction.space != "genes" or not pred.n_vars or "control_cell" not in pred.obs:
        return None
    keys = [key for key in context_keys_of(registry) if key in pred.obs]
    cells = BoundData(registry, adata)
    is_target = np.isin(cells.perturbations, prediction.targets)
    if OBS_SPLIT in adata.obs:
        is_target &= cells.split == "test"
    contexts = {*join_labels([cells.labels(key) for key in keys], len(cells))[is_target]}
    predicted = join_labels([pred.obs[key].astype(str).to_numpy(dtype=object) for key in keys], pred.n_obs)
    if contexts & {*predicted}:
        return tl.responses(pred, adata[is_target], adata, context_key=keys)
    return _predicted_alone(pred, cells, predicted, target=", ".join(prediction.targets))


def _predicted_alone(pred: AnnData, cells: BoundData, contexts: np.ndarray, *, target: str) -> pd.DataFrame | None:
    """Tabulate predicted changes against the control cells that were predicted from, largest first."""
    genes = [str(name) for name in pred.var_names]
    expression = log_predicted(pred)
    rows = cells.adata.obs_names.get_indexer(pred.obs["control_cell"].astype(str))
    controls = cells.logged_genes(genes)
    tables = []
    for context in sorted(set(contexts)):
        own = np.flatnonzero((contexts == context) & (rows >= 0))
        if not len(own):
            continue
        control = np.asarray(controls[rows[own]].mean(axis=0)).ravel()
        frame = pd.DataFrame(
            {
                "perturbation": target, "context": context, "gene": genes, "control": control,
                "predicted": np.asarray(expression[own].mean(axis=0)).ravel() - control, "measured": np.nan,
                "measured_low": np.nan, "measured_high": np.nan, "fdr": np.nan, "n_control": len(own),
                "n_predicted": len(own), "n_measured": 0,
            }
        )  # fmt: skip
        tables.append(frame.sort_values("predicted", key=np.abs, ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True) if tables else None


def found_table(tables: Sequence[pd.DataFrame]) -> Table | None:
    """Tabulate the most changed genes by perturbation and context, measured beside predicted, for the first screen."""
    rows = [
        {"perturbation": name, **_found_row(str(context), part, _NAMED if len(tables) == 1 else _NAMED_OF_SEVERAL)}
        for changes in tables
        for (name, context), part in changes.groupby(["perturbation", "context"], sort=False)
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows[:_SHOWN_CONTEXTS])
    if frame["perturbation"].nunique() == 1:
        frame = frame.drop(columns="perturbation")
    for column in [c for c in frame if (frame[c] == "").all()]:
        frame = frame.drop(columns=column)
    left_out = f"{len(rows) - _SHOWN_CONTEXTS} more contexts are in the file. " if len(rows) > _SHOWN_CONTEXTS else ""
    few = (
        f"; not tested with fewer than {MIN_CELLS} cells"
        if frame.astype(str).stack().str.contains("too few").any()
        else ""
    )
    caption = f"{left_out}Genes by size of the change. ✓: the measured cells change the same way, FDR under 5 %{few}."
    return table(frame, caption, save_as="gene-changes", full=_largest_first(tables))


def _largest_first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put all changes together, the largest first, measured or predicted."""
    changes = pd.concat(list(tables), ignore_index=True)
    size = changes[["predicted", "measured"]].abs().max(axis=1)
    return changes.loc[size.sort_values(ascending=False, kind="stable").index]


def _found_row(context: str, part: pd.DataFrame, n: int) -> dict[str, str]:
    """Name the most changed genes of one context."""
    responds = part[part["fdr"] < FDR]
    right = int((responds["predicted"] * responds["measured"] > 0).sum())
    measured = part["measured"].notna().any()
    row = {"cells": str(context), "measured " + _UP: "", "measured " + _DOWN: ""}
    if measured:
        row["measured " + _UP], row["measured " + _DOWN] = (_named(responds, "measured", sign, n) for sign in (1, -1))
        if responds.empty:
            n_cells = int(part["n_measured"].iloc[0])
            row["measured " + _UP] = f"{n_cells} cells, too few" if n_cells < MIN_CELLS else f"none ({n_cells} cells)"
    confirmed = {s: set(responds.loc[s * responds["measured"] > 0, "gene"]) for s in (1, -1)}
    for sign, arrow in ((1, _UP), (-1, _DOWN)):
        row["predicted " + arrow] = _named(part, "predicted", sign, n, confirmed=confirmed[sign])
    row["right direction"] = f"{right:,} of {len(responds):,} genes" if len(responds) else ""
    return row


def _named(part: pd.DataFrame, column: str, sign: int, n: int, *, confirmed: Iterable[str] = ()) -> str:
    """Name the genes with the largest changes of one sign, the confirmed ones marked."""
    moved = part[sign * part[column] > 0]
    top = moved.loc[moved[column].abs().sort_values(ascending=False, kind="stable").index].head(n)
    return ", ".join(shortened(gene, _LONGEST) + (" ✓" if gene in confirmed else "") for gene in top["gene"])


def found_sentences(changes: pd.DataFrame) -> list[str]:
    """Say in words which genes change in every context of one perturbation, as measured, else as predicted."""
    if changes.empty:
        return []
    name = str(changes["perturbation"].iloc[0])
    contexts = list(dict.fromkeys(changes["context"]))
    responds = changes[changes["fdr"] < FDR]
    is_measured = changes["measured"].notna().any()
    if is_measured and changes["n_measured"].max() < MIN_CELLS:
        return [f"Which genes respond to {name} cannot be tested: no group has {MIN_CELLS} measured cells."]
    if is_measured and responds.empty:
        return [
            f"No gene's measured response to {name} passes an FDR of 5 %: the effect is small, or the cells are few."
        ]
    column, rows = ("measured", responds) if is_measured else ("predicted", changes)
    n = len(contexts)
    where = f"in {'both' if n == 2 else f'all {n}'} kinds of cells" if n > 1 else f"in {contexts[0]}"
    parts = []
    for verb, sign in (("raises", 1), ("lowers", -1)):
        moved = rows[sign * rows[column] > 0]
        in_all = moved.groupby("gene")[column].agg(["size", "mean"])
        in_all = in_all[in_all["size"] == len(contexts)].sort_values("mean", key=np.abs, ascending=False, kind="stable")
        if len(in_all):
            parts.append(f"{verb} {', '.join(shortened(gene, _LONGEST) for gene in in_all.index[:6])}")
    if not parts:
        return [f"No gene responds to {name} in every kind of cells: look at each of them below."]
    how = "Measured" if is_measured else "Predicted, without measured cells to compare with"
    return [f"{how}: {name} {' and '.join(parts)} {where}.".replace(" in all.", ".")]
