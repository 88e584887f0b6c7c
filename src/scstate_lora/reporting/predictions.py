"""Sections on predicted cells: the genes that change, drawn, and all scores beside the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora import pl
from scstate_lora.data.log_scale import describe_scale
from scstate_lora.data.results import EVALUATE_PERTURBATION, read_prediction, read_result
from scstate_lora.metrics.registry import headline_of
from scstate_lora.reporting.parts import Section, skill_text, table
from scstate_lora.reporting.pictures import Picture, picture
from scstate_lora.reporting.score_tables import (
    ALL_CONTEXTS,
    average_of,
    model_names,
    remarks,
    single_contexts,
    wide_scores,
)
from scstate_lora.reporting.verdicts import compare_with_baseline, results_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_MOST_PANELS = 6
_MOST_COLUMNS = 20
_SKILL = (
    "Skill: 0 is the baseline that was best on training cells which were left out, 1 the replicate; under 0 is "
    "worse than that baseline. Clipped to -1 and 1; n/a where the replicate is not above the baseline by more than "
    "twice the noise of both."
)


def genes_section(changes: Sequence[pd.DataFrame]) -> Section | None:
    """Draw predicted against measured changes with the names of genes; None where nothing was measured."""
    measured = [part[part["measured"].notna()] for part in changes]
    rows = pd.concat(measured, ignore_index=True) if measured else pd.DataFrame()
    if rows.empty:
        return None
    section = Section("Which genes change, measured and predicted", "genes")
    sizes = rows.groupby(["perturbation", "context"], sort=False)["n_measured"].first()
    groups = list(sizes.index)
    drawn = rows.set_index(["perturbation", "context"]).loc[groups[:_MOST_PANELS]].reset_index()
    left_out = f" The first {_MOST_PANELS} of {len(groups)}." if len(groups) > _MOST_PANELS else ""
    section.blocks.append(
        picture(
            lambda: pl.gene_response(drawn),
            "Predicted against measured change of every gene: on the dashed line both are equal, below it the "
            f"prediction is too small.{left_out}",
            alt=f"Scatter plots of predicted against measured change. {_correlations(drawn)}",
        )
    )
    columns = rows.set_index(["perturbation", "context"]).loc[groups[:_MOST_COLUMNS]].reset_index()
    is_tested = bool(columns["fdr"].notna().any())
    what = "respond" if is_tested else "change"
    dots = "; a dot marks a measured response with an FDR under 5 %" if is_tested else ""
    section.blocks.append(
        picture(
            lambda: pl.responders(columns),
            f"The genes that {what} most, measured on the left, predicted on the right{dots}.",
            alt="Heat map of the measured and predicted changes of the strongest responders; the values are in the "
            "file beside the table of genes.",
        )
    )
    return section


def _correlations(rows: pd.DataFrame) -> str:
    """Give the correlation of both changes in every group, for those who do not see the picture."""
    parts = []
    for (name, context), part in rows.groupby(["perturbation", "context"], sort=False):
        values = part[["predicted", "measured"]].to_numpy(dtype=float)
        if len(values) > 2 and (values.std(axis=0) > 0).all():
            parts.append(f"{name} in {context} {np.corrcoef(values.T)[0, 1]:.2f}")
    return f"Correlations: {', '.join(parts)}." if parts else ""


def scores_picture(scores: pd.DataFrame, *, target: str) -> Picture:
    """Draw the headline scores between the simple baseline and a replicate; without skill, their values."""
    average = average_of(scores)
    scope = "average over contexts" if len(single_contexts(scores)) > 1 else "".join(single_contexts(scores))
    alt = f"Dot plot of the headline scores of {target}; the values are in the table of all scores."
    own = average[average["model"].isin(model_names(average)) & average["metric"].isin(headline_of(average["metric"]))]
    if np.isfinite(own["skill"].astype(float)).any():
        context = str(average["context"].iloc[0])
        caption = (
            f"Headline scores of {target}, {scope}: left of 0 the simple baseline is better, at 1 the model is as "
            "good as a replicate."
        )
        return picture(lambda: pl.scores(scores, context=context), caption, alt=alt, tight=True)
    return picture(lambda: pl.metrics(average), f"Headline scores of {target}, {scope}.", alt=alt)


def scores_section(predictions: AnnData) -> Section:
    """Compare predicted with measured cells in all scores, beside the naive baselines."""
    prediction = read_prediction(predictions)
    target, control = ", ".join(prediction.targets), prediction.control
    section = Section(f"Predicted cells: {target}", "predictions", folded=True)
    section.paragraphs.append(
        f"{predictions.n_obs:,} cells were predicted, from measured {control!r} cells to {target!r}. "
        f"Expression is {'drawn counts' if prediction.scale == 'counts' else describe_scale(prediction.target_sum)}."
    )
    scores = read_result(predictions, EVALUATE_PERTURBATION)
    if scores is None:
        section.paragraphs.append("They were not scored: call scstate_lora.tl.evaluate_perturbation(...) first.")
        return section
    average, contexts = average_of(scores), single_contexts(scores)
    scope = "average over contexts" if len(contexts) > 1 else "".join(contexts) or "all cells"
    for i, model in enumerate(model_names(scores)):
        results = [compare_with_baseline(scores, model, str(metric)) for metric in dict.fromkeys(scores["metric"])]
        caption = f"{model} beside the simple baseline, {scope}. {_scored_with(average)}".strip()
        name = f"scores-{target}" if i == 0 else ""
        section.blocks.append(table(results_table(results, model=model), caption, save_as=name, full=scores))
    section.blocks += [
        table(wide_scores(average, "value"), f"Scores of all baselines, {scope}; the replicate last.", folded=True),
        table(wide_scores(average.assign(skill=average["skill"].map(skill_text)), "skill"), _SKILL, folded=True),
    ]
    if len(contexts) > 1:
        by_context = scores[scores["context"] != ALL_CONTEXTS]
        wide = pd.concat([wide_scores(part, "value").assign(context=c) for c, part in by_context.groupby("context")])
        wide = wide[["context", *wide.columns.drop("context")]]
        section.blocks.append(table(wide, "Scores by context.", folded=True))
    noted = remarks(scores, "model")
    if len(noted):
        section.blocks.append(table(noted, "Remarks: scores missing, or not on all cells.", folded=len(noted) > 5))
    return section


def _scored_with(average: pd.DataFrame) -> str:
    """Say how many control and measured cells the scores are of."""
    if "n_control" not in average:
        return ""
    n_control, n_measured = (int(average[column].max()) for column in ("n_control", "n_measured"))
    return f"All are of the same {n_control:,} control cells, beside {n_measured:,} measured cells."
