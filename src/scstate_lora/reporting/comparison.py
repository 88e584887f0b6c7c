"""One HTML page of a comparison: scores and criteria of every variant, and the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora import pl
from scstate_lora.metrics.registry import metric_label
from scstate_lora.reporting.page import write_page
from scstate_lora.reporting.parts import Card, Experiment, Overview, Section, skill_text, table
from scstate_lora.reporting.pictures import Picture, picture

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from scstate_lora.tl import Comparison

_CAPTIONS = {
    "criteria": "Criteria: the value of every variant, and whether it meets them.",
    "scores": "Scores by context beside the naive baselines; bars are 95 % intervals.",
    "losses": "Losses of the first seed.",
    "gradients": "Gradient norm of every step of the first seed, spikes marked.",
    "training": "Stability and costs: bars are means over seeds, dots single seeds, dotted lines the criteria.",
}


def pictures_of(result: Comparison) -> list[str]:
    """Kinds of :func:`scstate_lora.pl.compare` that have something to draw."""
    return [kind for kind in _CAPTIONS if len(result.histories) or kind not in ("losses", "gradients", "training")]


def write_comparison(result: Comparison, path: str | Path, *, title: str) -> Path:
    """Write a comparison as one self-contained page.

    Parameters
    ----------
    result
        Result of :func:`scstate_lora.tl.compare`.
    path
        File to write; an existing one is replaced.
    title
        Heading of the page.

    Returns
    -------
    The path written.
    """
    overview = Overview("Which variant predicts best, and is any worth its cost?", "in-short")
    overview.data.append(
        "Means over the seeds. All variants share one split and are scored on cells that no training saw."
    )
    criteria = Section("Criteria", "criteria")
    for model, rows in result.criteria.groupby("model", sort=False):
        overview.cards.append(_card(str(model), rows))
    criteria.blocks.append(_drawn(result, "criteria"))
    caption = "Criteria of every variant, and why one was not measured."
    criteria.blocks.append(table(result.criteria, caption, folded=True, save_as="criteria"))
    summary = result.summary()
    shown = summary.drop(columns="reason").assign(skill=summary["skill"].map(skill_text)).rename(columns=metric_label)
    models = Section("All models", "models")
    models.blocks.append(table(shown, "Every model beside the naive baselines.", save_as="summary", full=summary))
    pictures = Section("Pictures", "pictures")
    pictures.blocks += [_drawn(result, kind) for kind in pictures_of(result) if kind != "criteria"]
    numbers = Section("Numbers", "numbers", folded=True)
    caption = "Every training: size, stability, time and memory."
    numbers.blocks.append(table(result.training, caption, save_as="training"))
    numbers.blocks.append(table(result.scores, "Every score.", folded=True, save_as="scores"))
    return write_page(path, [Experiment(overview, [models, criteria, pictures, numbers])], title=title)


def _card(model: str, rows: pd.DataFrame) -> Card:
    """Say how many criteria a variant meets, and which it fails."""
    measured = rows[rows["met"] != "not measured"]
    failed = [str(name) for name in measured.loc[measured["met"] != "yes", "criterion"]]
    n_met = len(measured) - len(failed)
    mark = "even" if measured.empty else "bad" if failed else "good"
    sentence = f"{model} meets {n_met} of the {len(measured)} criteria that were measured."
    missed = [f"Not met: {', '.join(failed)}."] if failed else []
    return Card(model, mark, f"{n_met} of {len(measured)}", [sentence, *missed])


def _drawn(result: Comparison, kind: str) -> Picture:
    alt = f"{_CAPTIONS[kind]} The values are in the tables."
    return picture(lambda: pl.compare(result, kind=kind), _CAPTIONS[kind], alt=alt)
