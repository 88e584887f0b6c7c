"""The page of labelled cells, or its parts on the page of another experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scstate_lora.data.label_targets import UNKNOWN
from scstate_lora.reporting.annotation.cards import annotation_cards
from scstate_lora.reporting.annotation.labelled import LabelledCells, trained_rows
from scstate_lora.reporting.annotation.markers import N_AMONG, N_TOP, compare_markers, doubtful
from scstate_lora.reporting.annotation.sections import (
    composition,
    confidence_section,
    data_section,
    labels_section,
    markers_section,
    numbers_section,
    types_section,
    unknown_section,
)
from scstate_lora.reporting.parts import Card, Experiment, Overview, table
from scstate_lora.reporting.sections import model_sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.model.annotation.celltype_classifier import CellTypeClassifier
    from scstate_lora.reporting.parts import Section, Table

_SHOWN, _NAMED = 12, 4


def is_classifier(model: Any) -> bool:
    """Whether a model is one that labels cells."""
    from scstate_lora.model.annotation.celltype_classifier import CellTypeClassifier

    return isinstance(model, CellTypeClassifier)


def annotation_experiment(adata: AnnData, models: Sequence[CellTypeClassifier], name: str | None) -> Experiment:
    """Gather a page that is about labels alone.

    Parameters
    ----------
    adata
        Cells that a model has labelled, or may.
    models
        The classifiers.
    name
        Name of the experiment, for a page of several.
    """
    keys = [key for model in models for key in (model.targets or [t.key for t in model.registry.label_targets])]
    question = f"What are these cells ({', '.join(dict.fromkeys(keys))}), and which labels can be believed?"
    overview = Overview(question if name is None else f"{name} · {question}", "in-short")
    overview.data.append(_data_in_words(adata, models))
    sections: list[Section] = []
    for model in models:
        add_annotation(overview, sections, model, adata)
    return Experiment(overview, [*sections, *model_sections(models)], name or "")


def add_annotation(overview: Overview, sections: list[Section], model: CellTypeClassifier, adata: AnnData) -> None:
    """Add the cards and the sections of one classifier to a page.

    Parameters
    ----------
    overview, sections
        First screen and sections of the page.
    model
        The classifier.
    adata
        Cells that it has labelled, or may.
    """
    if not model.is_trained:
        sentence = "The classifier is not trained: call model.train() first."
        overview.cards.append(Card("Labels: are they right?", "even", "not trained", [sentence]))
        return
    targets = LabelledCells.of(model, adata)
    several = len(targets) > 1
    folded: list[Section] = []
    for cells in targets:
        markers = _markers(model, cells)
        own = [types_section(cells), confidence_section(cells)]
        if cells.name is not None:
            own = [labels_section(cells), *own, markers_section(markers, same_cells=_is_own(model, adata))]
        unknown = unknown_section(cells)
        own += [] if unknown is None else [unknown]
        folded.append(data_section(cells, adata, strategy=model.strategy))
        cards = annotation_cards(cells)
        if several:
            parts: list[Section | Card] = [*own, folded[-1], *cards]
            for part in parts:
                part.title = f"{cells.target.key} · {part.title}"
        overview.cards += cards
        if cells.name is not None:
            overview.found += _found(cells, markers)
            overview.genes = overview.genes or _found_table(cells, markers)
        sections += own
    for key, target in model.targets.items():
        if target.target.tree is None:
            sections.append(numbers_section(target, model.scores[model.scores["target"] == key]))
    sections += folded


def _data_in_words(adata: AnnData, models: Sequence[CellTypeClassifier]) -> str:
    trained = [model for model in models if model.is_trained]
    if not trained:
        return f"Data: {adata.n_obs:,} cells. No model is trained."
    target = next(iter(trained[0].targets.values()))
    own = ", the training cells themselves" if _is_own(trained[0], adata) else ""
    return (
        f"Data: {adata.n_obs:,} cells to label{own}. Reference: {sum(target.n_labelled):,} labelled cells. How many "
        f"labels are right was measured on {target.folds} of the reference, by models that had not seen them."
    )


def _is_own(model: CellTypeClassifier, adata: AnnData) -> bool:
    own = _cells_of(model)
    return own is not None and own.n_obs == adata.n_obs and bool((own.obs_names == adata.obs_names).all())


def _cells_of(model: CellTypeClassifier) -> AnnData | None:
    """Return the cells that a model was made on; None if it was loaded without them."""
    try:
        return model.adata
    except ValueError:
        return None


def _markers(model: CellTypeClassifier, cells: LabelledCells) -> pd.DataFrame | str:
    """Compare marker genes, or say why that cannot be."""
    if cells.name is None:
        return "These cells have no labels yet."
    reference = _cells_of(model)
    if reference is None or cells.target.key not in reference.obs:
        return (
            "The model was loaded without its labelled training cells, so their marker genes are not known: "
            "CellTypeClassifier.load(path, adata=reference)."
        )
    types = trained_rows(cells.target, reference, cells.target.classes)
    labels = cells.column().astype(str).to_numpy(dtype=object)
    return compare_markers(model.registry, cells.adata, labels, reference, types)


def _found(cells: LabelledCells, markers: pd.DataFrame | str) -> list[str]:
    """Say in words which labels were given, and whether marker genes agree."""
    counts = composition(cells)
    named = counts[counts["label"] != UNKNOWN].head(4)
    common = ", ".join(f"{row['label']} ({row['share']:.0%})" for _, row in named.iterrows())
    sentences = [f"The commonest labels: {common}."] if common else ["No cell got a label."]
    if isinstance(markers, str) or not markers["shared"].notna().any():
        return sentences
    doubted = doubtful(markers)
    n = int(markers["shared"].notna().sum())
    agree = f"{n - len(doubted)} of {n} labels have the marker genes of their training type"
    return [*sentences, f"{agree}; not: {', '.join(doubted)}." if doubted else f"{agree}."]


def _found_table(cells: LabelledCells, markers: pd.DataFrame | str) -> Table:
    """Tabulate labels with their confidence and the marker genes that they share with the training type."""
    found = composition(cells)
    shown = found[["label", "cells"]].copy()
    shown["share"] = [f"{share:.1%}" for share in found["share"]]
    shown["confidence"] = found["median confidence"].round(2)
    if not isinstance(markers, str):
        by_label = markers.set_index("label")
        genes = by_label["shared genes"].where(by_label["shared"].notna(), by_label["first genes"])
        named = [", ".join(genes.get(label, "").split(", ")[:_NAMED]) for label in shown["label"]]
        shown.insert(1, "markers", named)
    caption = (
        f"Labels of these cells, with the median confidence. Markers: genes of the first {N_TOP} that are among the "
        f"first {N_AMONG} of the training type; the first of a label that training cells do not have."
    )
    if isinstance(markers, str):
        caption = "Labels of these cells, with the median confidence."
    more = f" {len(shown) - _SHOWN} more labels are in the file." if len(shown) > _SHOWN else ""
    return table(shown.head(_SHOWN), caption + more, save_as="labels-found", full=shown)
