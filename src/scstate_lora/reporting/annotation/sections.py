"""Sections on labelled cells: types and their confusion, confidence, the labels given, marker genes, and new types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora import pl
from scstate_lora.data.label_targets import UNKNOWN
from scstate_lora.pl.embeddings import drawn_cells
from scstate_lora.pl.layouts import umap_layout
from scstate_lora.reporting.annotation.labelled import FEW, SAFE
from scstate_lora.reporting.annotation.markers import FEWEST_CELLS, N_AMONG, N_TOP, doubtful
from scstate_lora.reporting.parts import Section, Verdict, table
from scstate_lora.reporting.pictures import Picture, picture

if TYPE_CHECKING:
    from anndata import AnnData

    from scstate_lora.inference.left_out_cells import LeftOutNumbers
    from scstate_lora.model.annotation.target_model import TargetModel
    from scstate_lora.reporting.annotation.labelled import LabelledCells

LATENT = "X_scstate_celltype"
_MOST_TYPES = 60  # of pl.confusion
_MOST_COLORS = 30
_MAX_DRAWN_CELLS = 4_000


def types_section(cells: LabelledCells) -> Section:
    """Tabulate and draw which types are recognised, and which are confused with which, on left-out cells."""
    section = Section("Which types are safe, and which are confused", "types")
    obs = cells.true_and_predicted.obs
    section.paragraphs.append(
        f"{len(obs):,} cells ({cells.target.folds}), labelled by models that were fitted without them. A type is safe "
        f"if {SAFE:.0%} of its cells are recognised and {SAFE:.0%} of the labels that say so are right; with fewer "
        f"than {FEW} cells nothing is said. How many labels are right depends on how common a type is."
    )
    shown = cells.types.copy()
    for column in ("recognised", "labels that are right"):
        shown[column] = [_percent(value) for value in shown[column]]
    section.blocks.append(table(shown, "Types on left-out cells.", save_as="types", full=cells.types))
    if 0 < len(cells.target.classes) <= _MOST_TYPES and len(obs):
        section.blocks.append(
            picture(
                lambda: pl.confusion(cells.true_and_predicted, true_key="label", pred_key="predicted"),
                "Labels of left-out cells by their true type; a row is a type and sums to 1.",
                alt=f"Matrix of true and predicted types. {_pairs_in_words(cells)}",
            )
        )
    if len(cells.pairs):
        pairs = cells.pairs.assign(share=[_percent(s) for s in cells.pairs["share"]])
        pairs = pairs.rename(columns={"first": "type", "second": "and", "n": "cells with the other's label"})
        section.blocks.append(table(pairs, "Pairs of types, the most confused first.", folded=True))
    return section


def _pairs_in_words(cells: LabelledCells) -> str:
    worst = [f"{row['first']} and {row['second']} ({row['share']:.0%})" for _, row in cells.pairs.head(3).iterrows()]
    return f"Most confused: {', '.join(worst)}." if worst else "No type is confused with another."


def confidence_section(cells: LabelledCells) -> Section:
    """Draw how often labels are right at each confidence, and say what an aim of wrong labels costs."""
    section = Section("How far a confidence can be believed", "confidence")
    left_out = cells.left_out
    predicted = np.array(cells.target.classes, dtype=object)[left_out.probabilities.argmax(axis=1)]
    obs = pd.DataFrame(
        {
            "label": np.where(left_out.correct, predicted, "another label"),
            "predicted": predicted,
            "confidence": left_out.probabilities.max(axis=1),
        },
        index=[str(i) for i in range(len(left_out))],
    )
    section.blocks.append(
        picture(
            lambda: pl.calibration(
                ad.AnnData(obs=obs), true_key="label", pred_key="predicted", confidence_key="confidence"
            ),
            f"Share of right labels by stated confidence, on {cells.target.folds}. On the dashed line a confidence is "
            "what it says; below it, labels are trusted too much. One number, the temperature, was fitted to these "
            "very cells.",
            alt=f"Reliability diagram; the calibration error is {cells.calibration_error:.3f}.",
        )
    )
    aims = cells.aims.copy()
    aims["max_error"] = [_percent(value) for value in aims["max_error"]]
    for column in [c for c in aims if c in ("labelled", "to the finest level", "wrong labels")]:
        aims[column] = [_percent(value) for value in aims[column]]
    section.blocks.append(
        table(
            aims,
            "What predict(max_error=) would give on left-out cells: from which confidence on there is a label, how "
            "many cells get one, and how many of these are wrong. n/a: the promise cannot be made.",
        )
    )
    section.paragraphs += _facts(cells)
    return section


def _facts(cells: LabelledCells) -> list[str]:
    """Say which threshold the prediction used, and what was done about the shift of each batch."""
    if cells.name is None:
        return []
    threshold, shifts = cells.facts["threshold"], cells.facts["shift"]
    if threshold is None:  # JSON has no infinity
        used = "No confidence kept the promise on left-out cells, so that no cell got a label: allow more errors."
    elif threshold > 0:
        used = f"These cells got a label from a confidence of {threshold:.2g} on."
    else:
        used = "These cells all got their likeliest label, however uncertain: max_error= or reject_below= changes that."
    if not shifts:
        return [used, "No shift of a batch was taken off (adapt=False)."]
    notes = [f"{batch}: {note}" for batch, note in list(shifts.items())[:8]]
    more = f"; {len(shifts) - 8} more" if len(shifts) > 8 else ""
    return [used, f"Shift of each batch of these cells against the training cells. {'; '.join(notes)}{more}."]


def labels_section(cells: LabelledCells) -> Section:
    """Count the labels that these cells got; draw the cells; say which were rejected, and what they look like."""
    section = Section("The labels of these cells", "labels")
    assert cells.name is not None  # the caller has looked
    drawn = _drawn(cells)
    if drawn is not None:
        section.blocks.append(drawn)
    labels = cells.column().astype(str)
    by_label = composition(cells)
    section.blocks.append(
        table(
            by_label.assign(share=[_percent(s) for s in by_label["share"]]),
            "Labels given. A label whose confidence is low, or whose cells are unlike all types (0 is usual), asks for "
            "a look at its markers.",
            save_as="labels",
            full=by_label,
        )
    )
    rejected = cells.column("rejected").astype(str)
    rows = [
        {
            "reason": reason,
            "cells": int((rejected == reason).sum()),
            "of all": _percent(float((rejected == reason).mean())),
            "likeliest labels": _counted(cells.likeliest[(rejected == reason).to_numpy()]),
        }
        for reason in sorted(set(rejected) - {""})
    ]
    if rows:
        section.blocks.append(table(pd.DataFrame(rows), "Cells without a label, and what they resemble most."))
    elif not (labels == UNKNOWN).any():
        section.paragraphs.append("No cell was rejected.")
    votes = f"{cells.name}_cluster_label"
    if votes in cells.adata.obs:
        agreed = cells.adata.obs.groupby(votes, observed=True)[f"{cells.name}_cluster_share"]
        shown = pd.DataFrame({"cells": agreed.size(), "mean share of its cells with this label": agreed.mean()})
        shown = shown.sort_values("cells", ascending=False).reset_index(names="label of the cluster")
        section.blocks.append(table(shown, "Labels of clusters.", folded=True))
    return section


def composition(cells: LabelledCells) -> pd.DataFrame:
    """One row a label, the commonest first: cells, share, medians of confidence and unknown score."""
    columns = {"label": cells.column().astype(str), "confidence": cells.column("confidence")}
    frame = pd.DataFrame({**columns, "unknown score": cells.column("unknown_score")})
    grouped = frame.groupby("label")
    found = pd.DataFrame({"cells": grouped.size(), "share": grouped.size() / len(frame)})
    found["median confidence"] = grouped["confidence"].median()
    found["median unknown score"] = grouped["unknown score"].median()
    return found.sort_values("cells", ascending=False, kind="stable").reset_index().dropna(axis=1, how="all")


def _counted(labels: np.ndarray) -> str:
    counts = pd.Series(labels).value_counts().head(4)
    return ", ".join(f"{name} ({n:,})" for name, n in counts.items())


def _drawn(cells: LabelledCells) -> Picture | None:
    """Draw the cells by label and confidence, in the layout that they bring, else in one of the encoder's embedding."""
    adata = cells.adata
    key = next((k for k in ("X_umap", LATENT) if k in adata.obsm), None)
    if key is None or adata.n_obs < 5 or cells.column().astype(str).nunique() > _MOST_COLORS:
        return None
    chosen = drawn_cells(adata.n_obs, _MAX_DRAWN_CELLS)
    array = np.asarray(adata.obsm[key], dtype=np.float32)[chosen]
    layout = array if array.shape[1] == 2 else umap_layout(array)
    obs = pd.DataFrame({"label": cells.column().astype(str), "confidence": cells.column("confidence")}).iloc[chosen]
    drawn = ad.AnnData(obs=obs.astype({"label": "category"}), obsm={"cells": layout})
    which = f"{len(chosen):,} of {adata.n_obs:,}" if len(chosen) < adata.n_obs else f"All {adata.n_obs:,}"
    where = "adata.obsm['X_umap']" if key == "X_umap" else "a UMAP of the encoder's embedding"

    def draw() -> np.ndarray:
        axes = np.asarray(pl.embedding(drawn, "cells", color=["label", "confidence"], n_cells=None), dtype=object)
        for ax in axes.ravel():
            ax.set_xlabel("UMAP 1", fontsize="small")
            ax.set_ylabel("UMAP 2", fontsize="small")
        return axes

    caption = f"{which} cells in {where}, by label and by confidence."
    return picture(draw, caption, alt=f"Scatter plots of the cells. {caption}")


def markers_section(markers: pd.DataFrame | str, *, same_cells: bool) -> Section:
    """Tabulate the first genes of predicted types beside those of training types; or say why there are none."""
    section = Section("Marker genes of predicted and of training types", "markers")
    if isinstance(markers, str):
        section.paragraphs.append(markers)
        return section
    if markers.empty:
        section.paragraphs.append(f"There are no two labels, one of them of {FEWEST_CELLS} cells, to compare.")
        return section
    section.paragraphs.append(
        "Genes are ranked for each label against all other cells (t-test), in these cells and in the training cells "
        "alike. The model labels by expression and so finds its own markers again: agreement is no proof, and lack of "
        "it is a warning. Check a few names that you know."
    )
    if same_cells:
        section.paragraphs.append("These cells are the training cells themselves, so agreement says little.")
    doubted = doubtful(markers)
    if doubted:
        text = f"Fewer than {N_TOP // 2} of the first {N_TOP} genes are markers of the training type:"
        section.verdicts.append(Verdict("bad", f"{text} {', '.join(doubted)}."))
    elif markers["shared"].notna().any():
        text = f"Every label with a training type shares {N_TOP // 2} or more of its first {N_TOP} genes with it."
        section.verdicts.append(Verdict("good", text))
    column = f"of {N_TOP}, among the first {N_AMONG} of the training type"
    shown = markers.assign(shared=["" if np.isnan(s) else f"{s:.0f}" for s in markers["shared"]])
    shown = shown.rename(columns={"shared": column})
    section.blocks.append(table(shown, "First genes by predicted label.", save_as="markers"))
    return section


def unknown_section(cells: LabelledCells) -> Section | None:
    """Tabulate how well each type is found if the reference lacks it; None where that was not checked."""
    check = cells.unknown_check
    if not len(check):
        return None
    section = Section("Would a new type be found?", "unknown")
    section.paragraphs.append(
        "Each type was left out of training in turn, by expression alone, and its cells in the first left-out fold "
        "were told from those of known types by their unknown score. AUROC: 1 finds all, 0.5 is chance. Found: share "
        "of the new type above the score that 5% of known cells exceed. A type that resembles a known one is labelled "
        "as it."
    )
    shown = check.sort_values("auroc", kind="stable")
    shown = shown.assign(found=[_percent(f) for f in shown["found"]])
    shown = shown.rename(columns={"type": "left out", "auroc": "AUROC", "n_cells": "cells"})
    section.blocks.append(table(shown, "The hardest first.", save_as="unknown-types", full=check))
    return section


def numbers_section(target: TargetModel, scores: pd.DataFrame) -> Section:
    """Score a target of numbers on left-out cells, beside the mean, with the width of its intervals."""
    section = Section(f"Numbers: {target.key}", "numbers")
    left_out: LeftOutNumbers = target.left_out  # type: ignore[assignment]  # of numbers
    section.paragraphs.append(
        f"On {target.folds}. An interval that holds the true number in 95 % of the cells reaches "
        f"{left_out.half_width(0.95):.3g} to either side of the value."
    )
    shown = scores.drop(columns="target").dropna(axis=1, how="all").rename(columns={"mean_error": "mean error"})
    section.blocks.append(table(shown, "Mean absolute error, and share of the variance that is explained (R²)."))
    return section


def data_section(cells: LabelledCells, adata: AnnData, *, strategy: str | None) -> Section:
    """Say what was labelled, by what, and what the choices rest on."""
    target = cells.target
    rows = [
        ("labelled cells", f"{adata.n_obs:,} x {adata.n_vars:,} genes"),
        ("labels", f"{target.key}, {len(target.classes)} of the finest level"),
        ("training cells", f"{sum(target.n_labelled):,} with a label of it"),
        ("strategy", str(strategy)),
        ("left out in turn", target.folds),
        ("heads on the encoder count", f"{target.choice['strength']:g} times"),
        ("loss on left-out cells", f"{target.choice['start_loss']:.3g} from the linear start alone, "
         f"{target.choice['loss']:.3g} with heads"),
        ("temperature", f"{cells.left_out.temperature:.3g}"),
        ("columns", "none" if cells.name is None else f"adata.obs[{cells.name!r}] and those that begin so"),
    ]  # fmt: skip
    return Section(
        "Data and choices",
        "choices",
        blocks=[table(pd.DataFrame(rows, columns=["property", "value"]), "")],
        folded=True,
    )


def _percent(value: float) -> str:
    return "n/a" if not np.isfinite(value) else f"{value:.1%}"
