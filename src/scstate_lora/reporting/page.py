"""`report`: gather the parts of a run and write them as one HTML page without outside links."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scstate_lora.data import Registry
from scstate_lora.pl.embeddings import begin_layouts
from scstate_lora.reporting.annotation import add_annotation, annotation_experiment, is_classifier
from scstate_lora.reporting.audits import audit_of
from scstate_lora.reporting.cards import data_card, embedding_card, prediction_card
from scstate_lora.reporting.embeddings import EMBEDDINGS, MAX_DRAWN_CELLS, embedding_sections
from scstate_lora.reporting.gene_changes import context_keys_of, found_sentences, found_table, gene_changes
from scstate_lora.reporting.glossary import Explainer
from scstate_lora.reporting.overview import data_in_words, in_words, predicted_contexts, question_of
from scstate_lora.reporting.parts import Experiment, Overview
from scstate_lora.reporting.predictions import genes_section, scores_picture, scores_section
from scstate_lora.reporting.score_tables import model_names, single_contexts
from scstate_lora.reporting.sections import data_section, model_sections, split_section, versions_section
from scstate_lora.reporting.targets import (
    MANY,
    SHOWN,
    Summary,
    all_scores,
    largest,
    n_targets,
    results_over_targets,
    targets_section,
)
from scstate_lora.reporting.verdicts import Result, compare_with_baseline

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.reporting.parts import Section


def report(
    adata: AnnData,
    models: Any = None,
    path: str | Path = "report.html",
    *,
    predictions: AnnData | Sequence[AnnData] | None = None,
    title: str = "scstate_lora report",
) -> Path:
    """Write one self-contained HTML page: what was asked, what was found, and whether to believe it; details below.

    The first screen has the question, three cards (data, embedding, prediction) and the genes that change most in every
    kind of cells, measured and predicted. Then come pictures, and folded sections on data, split, models and all
    scores. Scores come from :func:`scstate_lora.tl.evaluate` and :func:`scstate_lora.tl.evaluate_perturbation`, and the
    page states what was not run; UMAP layouts, changes of genes (:func:`scstate_lora.tl.responses`) and the audit
    (:func:`scstate_lora.tl.audit`) are computed. `adata` is only read.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`; or cells that a
        :class:`scstate_lora.CellTypeClassifier` has labelled, which need no set-up.
    models
        A trained model or several (the pair that `setup_anndata` returns; None is left out). With a
        :class:`scstate_lora.CellTypeClassifier` the page says, from its left-out cells, whether labels are right beside
        simple methods, which types are safe and which confused, how far confidence holds and whether a new type would
        be found; and of `adata`, which labels were given, which cells were rejected and why, and whether predicted
        types have the marker genes of the training types. With nothing else the page is about labels alone.
    path
        File to write; missing folders are created, an existing file is replaced.
    predictions
        Predicted cells of :meth:`scstate_lora.STTransition.predict`, one AnnData per target. More than three targets
        are put in one table, and the three with the largest measured effects are shown in full.
    title
        Heading of the page.

    Returns
    -------
    The path written.

    Raises
    ------
    KeyError
        If `adata` was not set up, and `models` holds more than classifiers.
    TypeError
        If a member of `models` is not a model.
    ValueError
        If `path` is a folder, or `predictions` holds cells that no model predicted.
    """
    return write_page(path, [experiment(adata, models, predictions)], title=title)


def begin_report(adata: AnnData) -> None:
    """Begin in another process what :func:`report` will have to wait for: the layouts of the embeddings."""
    begin_layouts(adata, [key for key in EMBEDDINGS if key in adata.obsm], n_cells=MAX_DRAWN_CELLS)


def experiment(
    adata: AnnData,
    models: Any = None,
    predictions: AnnData | Sequence[AnnData] | None = None,
    *,
    name: str | None = None,
    audit: pd.DataFrame | None = None,
    n_train: int = 0,
) -> Experiment:
    """Gather all that the page tells of one experiment.

    Parameters
    ----------
    adata, models, predictions
        As in :func:`report`.
    name
        Name of the experiment and prefix of its headings, for a page of several.
    audit
        Findings of :func:`scstate_lora.tl.audit`; None computes them from the split of `adata`.
    n_train
        Training cells that are not in `adata`, but in a file of their own.
    """
    checked = _models(models)
    classifiers = [model for model in checked if is_classifier(model)]
    if classifiers and len(classifiers) == len(checked) and predictions is None:
        return _named(annotation_experiment(adata, classifiers, name), name)
    registry = Registry.from_adata(adata)
    predicted = [] if predictions is None else [predictions] if hasattr(predictions, "obs") else predictions
    summaries = [Summary.of(p) for p in predicted]  # one prediction in memory at a time
    shown = largest(summaries) if len(summaries) > SHOWN else list(range(len(summaries)))
    scores, results = all_scores(summaries), {}
    over_targets = scores is not None and n_targets(scores) >= MANY
    if scores is not None:
        results = results_over_targets(scores) if over_targets else _results_of(summaries[shown[0]])

    changes: list[pd.DataFrame] = []
    contexts: list[str] = []
    pictures, details = [], []
    audit = audit_of(adata, registry, predicted[shown[0]] if shown else None) if audit is None else audit
    for i in shown:
        own, own_scores = predicted[i], summaries[i].scores
        contexts = contexts or predicted_contexts(own, context_keys_of(registry))
        found = gene_changes(own, adata, registry)
        changes += [found] if found is not None else []
        if own_scores is not None and len(summaries) <= SHOWN:
            pictures.append(scores_picture(own_scores, target=summaries[i].target))
        details.append(scores_section(own))

    targets = [s.target for s in summaries]
    measured = contexts if scores is None else single_contexts(scores) or contexts
    question = question_of(registry, targets=targets, contexts=measured)
    overview = Overview(question if name is None else f"{name} · {question}", "in-short")
    overview.data.append(data_in_words(adata, registry, n_train=n_train))
    overview.cards = [data_card(adata, registry, scores, audit), embedding_card(adata, registry)]
    if registry.pert_key is not None:
        what = in_words(targets if over_targets or len(targets) < 2 else [targets[shown[0]]], "perturbations")
        overview.cards.append(prediction_card(results, target=what, why_none=_why_not_scored(predicted)))
    if len(summaries) > SHOWN:
        overview.found.append(
            f"Shown are the {SHOWN} of {len(summaries)} perturbations with the largest measured effects."
        )
    elif changes:
        overview.found += [sentence for found in changes for sentence in found_sentences(found)]
    overview.genes = found_table(changes)

    labels: list[Section] = []
    for model in classifiers:
        add_annotation(overview, labels, model, adata)
    cells, embeddings = embedding_sections(adata, registry)
    genes = genes_section(changes)
    if genes is not None:
        genes.blocks += pictures
    sections = [
        cells,
        *([genes] if genes is not None else []),
        *([targets_section(summaries, results if over_targets else {})] if len(summaries) > SHOWN else []),
        *labels,
        *details,
        embeddings,
        data_section(adata, registry, audit),
        split_section(adata, registry, checked, n_train=n_train),
        *model_sections(checked),
    ]
    return _named(Experiment(overview, sections, name or ""), name)


def write_page(path: str | Path, experiments: Sequence[Experiment], *, title: str) -> Path:
    """Write experiments, the versions of the packages and a glossary as one page; returns the path written."""
    path = Path(path)
    if path.is_dir():
        msg = f"path={str(path)!r} is a folder; give the name of the HTML file to write in it."
        raise ValueError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(title, experiments), encoding="utf-8")
    return path


def _results_of(summary: Summary) -> dict[str, list[Result]]:
    """Compare every model with the simple baseline in every score of one prediction."""
    if summary.scores is None:
        return {}
    scores = summary.scores
    metrics = [str(name) for name in dict.fromkeys(scores["metric"])]
    return {model: [compare_with_baseline(scores, model, m) for m in metrics] for model in model_names(scores)}


def _why_not_scored(predictions: Sequence[AnnData]) -> str:
    if not len(predictions):
        return "Nothing was predicted."
    return "The predicted cells were not scored: call scstate_lora.tl.evaluate_perturbation(...) first."


def _named(experiment: Experiment, name: str | None) -> Experiment:
    """Make anchors unique, also on a page of several experiments, whose name precedes the headings."""
    parts: list[Section | Overview] = [experiment.overview, *experiment.sections]
    used: dict[str, int] = {}
    for part in parts:
        used[part.anchor] = used.get(part.anchor, 0) + 1
        part.anchor += f"-{used[part.anchor]}" if used[part.anchor] > 1 else ""
        if name is not None:
            part.anchor = f"{name.lower().replace(' ', '-')}-{part.anchor}"
    if name is not None:
        for section in experiment.sections:
            section.title = f"{name} · {section.title}"
    return experiment


def _models(models: Any) -> list[Any]:
    if models is None:
        return []
    listed = [m for m in models if m is not None] if isinstance(models, (list, tuple)) else [models]
    for model in listed:
        if not (hasattr(model, "history") and hasattr(model, "summary")):
            msg = f"models holds a {type(model).__name__}, which is not a model: it has no .history and .summary()."
            raise TypeError(msg)
    return listed


def _render(title: str, experiments: Sequence[Experiment]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scstate_lora.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    page: str = environment.get_template("page.html.j2").render(
        title=title, experiments=experiments, versions=versions_section(), today=today, explain=Explainer()
    )
    return page.lstrip()
