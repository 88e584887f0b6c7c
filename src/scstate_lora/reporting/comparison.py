"""One HTML page of a comparison: scores and criteria of every variant, and the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora import pl
from scstate_lora.reporting.page import write_page
from scstate_lora.reporting.parts import Section, Verdict, figure, skill_text, table

if TYPE_CHECKING:
    from pathlib import Path

    from scstate_lora.tl import Comparison

_CAPTIONS = {
    "criteria": "Criteria: the value, green if the criterion is met.",
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
    short = Section("In short", "in-short")
    short.paragraphs.append(
        "Means over the seeds. All variants share one split and are scored on cells that no training saw."
    )
    summary = result.summary()
    shown = summary.drop(columns="reason").assign(skill=summary["skill"].map(skill_text))
    short.blocks.append(table(shown, "Every model beside the naive baselines."))
    criteria = Section("Criteria", "criteria")
    for model, rows in result.criteria.groupby("model", sort=False):
        met = int((rows["met"] == "yes").sum())
        measured = int((rows["met"] != "not measured").sum())
        mark = "good" if met == measured and measured else "bad" if met < measured else "even"
        criteria.verdicts.append(Verdict(mark, f"{model} meets {met} of the {measured} criteria that were measured."))
    criteria.blocks.append(
        table(result.criteria, "Criteria of every variant, and why one was not measured.", folded=True)
    )
    pictures = Section("Pictures", "pictures")
    for kind in pictures_of(result):
        section = criteria if kind == "criteria" else pictures
        section.blocks.insert(
            0 if section is criteria else len(section.blocks), figure(pl.compare(result, kind=kind), _CAPTIONS[kind])
        )
    numbers = Section("Numbers", "numbers")
    numbers.blocks.append(table(result.training, "Every training: size, stability, time and memory."))
    return write_page(path, [short, criteria, pictures, numbers], title=title)
