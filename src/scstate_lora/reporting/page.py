"""`report`: gather the sections of a run and write them as one HTML page without scripts or outside links."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scstate_lora.data import Registry
from scstate_lora.pl.embeddings import begin_layouts
from scstate_lora.reporting.parts import Section
from scstate_lora.reporting.sections import (
    EMBEDDINGS,
    MAX_DRAWN_CELLS,
    data_section,
    embedding_section,
    model_sections,
    perturbation_section,
    split_section,
    versions_section,
)
from scstate_lora.reporting.targets import SHOWN, Summary, largest, targets_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def report(
    adata: AnnData,
    models: Any = None,
    path: str | Path = "report.html",
    *,
    predictions: AnnData | Sequence[AnnData] | None = None,
    title: str = "scstate_lora report",
) -> Path:
    """Write one self-contained HTML page: data, split, models, loss curves, embeddings, scores and plain verdicts.

    Only UMAP layouts are computed: scores come from :func:`scstate_lora.tl.evaluate` and
    :func:`scstate_lora.tl.evaluate_perturbation`, and the page states what was not run. `adata` is only read.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`.
    models
        A trained model or several (the pair that `setup_anndata` returns; None is left out).
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
        If `adata` was not set up.
    TypeError
        If a member of `models` is not a model.
    ValueError
        If `path` is a folder, or `predictions` holds cells that no model predicted.
    """
    return write_page(path, experiment_sections(adata, models, predictions), title=title)


def begin_report(adata: AnnData) -> None:
    """Begin in another process what :func:`report` will have to wait for: the layouts of the embeddings."""
    begin_layouts(adata, [key for key in EMBEDDINGS if key in adata.obsm], n_cells=MAX_DRAWN_CELLS)


def experiment_sections(
    adata: AnnData,
    models: Any = None,
    predictions: AnnData | Sequence[AnnData] | None = None,
    *,
    name: str | None = None,
) -> list[Section]:
    """Gather the sections of one experiment, headlines first.

    Parameters
    ----------
    adata, models, predictions
        As in :func:`report`.
    name
        Prefix of every heading, for a page of several experiments.
    """
    registry = Registry.from_adata(adata)
    checked = _models(models)
    predicted = [] if predictions is None else [predictions] if hasattr(predictions, "obs") else predictions
    detail = [
        data_section(adata, registry),
        split_section(adata, registry, checked),
        *model_sections(checked),
        embedding_section(adata, registry),
        *_perturbation_sections(predicted),
    ]
    for i, section in enumerate(s for s in detail if s.anchor == "predictions"):
        section.anchor += f"-{i + 1}"
    sections = [_in_short(detail), *detail]
    if name is not None:
        for section in sections:
            section.title = f"{name} · {section.title}"
            section.anchor = f"{name.lower().replace(' ', '-')}-{section.anchor}"
    return sections


def write_page(path: str | Path, sections: Sequence[Section], *, title: str) -> Path:
    """Write sections, and the versions of the packages, as one page; returns the path written."""
    path = Path(path)
    if path.is_dir():
        msg = f"path={str(path)!r} is a folder; give the name of the HTML file to write in it."
        raise ValueError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(title, [*sections, versions_section()]), encoding="utf-8")
    return path


def _perturbation_sections(predictions: Sequence[AnnData]) -> list[Section]:
    """Show each prediction; of many, a table of all and the few with the largest effects, reading one at a time."""
    if len(predictions) <= SHOWN:
        return [perturbation_section(p) for p in predictions]
    summaries = [Summary.of(p) for p in predictions]
    shown = [perturbation_section(predictions[i], brief=True) for i in largest(summaries)]
    return [targets_section(summaries), *shown]


def _models(models: Any) -> list[Any]:
    if models is None:
        return []
    listed = [m for m in models if m is not None] if isinstance(models, (list, tuple)) else [models]
    for model in listed:
        if not (hasattr(model, "history") and hasattr(model, "summary")):
            msg = f"models holds a {type(model).__name__}, which is not a model: it has no .history and .summary()."
            raise TypeError(msg)
    return listed


def _in_short(detail: Sequence[Section]) -> Section:
    """Collect the headlines of all sections at the top: predictions before embeddings."""
    section = Section("In short", "in-short")
    for part in sorted(detail, key=lambda s: not s.anchor.startswith("predictions")):
        section.verdicts += [v for v in part.verdicts if v.headline]
    if not section.verdicts:
        section.paragraphs.append("Nothing was scored, so there is no verdict.")
    return section


def _render(title: str, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scstate_lora.reporting", package_path="."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    page: str = environment.get_template("template.html.j2").render(title=title, sections=sections, today=today)
    return page
