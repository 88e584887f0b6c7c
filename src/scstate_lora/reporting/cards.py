"""The three cards of the first screen: can the data answer, does adaptation help, is the prediction to be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._constants import OBSM_BASE, OBSM_SE
from scstate_lora.data.results import EVALUATE, read_result
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import headline_of
from scstate_lora.reporting.embedding_verdicts import (
    EmbeddingResult,
    compare_with_pca,
    headline_scores,
    judge_embedding,
)
from scstate_lora.reporting.parts import Card, Table, table, text
from scstate_lora.reporting.score_tables import ALL_CONTEXTS, ARROWS, model_names
from scstate_lora.reporting.verdicts import BETTER, NOT_COMPARED, WORSE, Judgement, Result, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry

_FEW_CELLS = 20  # with fewer, a mean is mostly noise
_SHOWN = 5  # rows of a card's table
_COMPARED = (PCA, OBSM_BASE, OBSM_SE)
_DATA, _EMBEDDING, _PREDICTION = "Data: can they answer it?", "Embedding: does it help?", "Prediction: to be believed?"


def data_card(adata: AnnData, registry: Registry, scores: pd.DataFrame | None, audit: pd.DataFrame | None) -> Card:
    """Say whether the data can answer the question: cells, controls, what the audit found, scores that can tell.

    Parameters
    ----------
    adata, registry
        The cells, and how they were set up.
    scores
        Scores of the predictions; None without.
    audit
        Findings of :func:`scstate_lora.tl.audit`; None if it was not run.
    """
    if registry.pert_key is None:
        sentences = [f"{adata.n_obs:,} cells and no perturbation: the question is about the embedding only."]
        return Card(_DATA, "good", "yes", sentences, None)
    errors, warnings = (_found(audit, severity) for severity in ("error", "warning"))
    sentences, too_few, shown = [], False, None
    if scores is not None:
        cells = cells_table(scores)
        fewest, fewest_controls = int(cells["measured"].min()), int(cells["controls"].min())
        too_few = min(fewest, fewest_controls) < _FEW_CELLS
        few = ", which is few." if too_few else "."
        sentences.append(f"At least {fewest:,} held-out and {fewest_controls:,} control cells in every group{few}")
        n_able, n_scores = _able(scores)
        if n_scores:
            sentences.append(f"{n_able} of {n_scores} headline scores can tell a simple baseline from a replicate.")
        too_few |= n_able == 0
        shown = _cells_shown(cells)
    else:
        sentences.append("No prediction was scored with measured cells that were held out.")
    # What a finding means stands after its colon, and under Data.
    if errors:
        sentences.append(f"The audit found an error: {errors[0].split(': ')[0]}.")
    elif warnings:
        sentences.append(f"The audit warns: {warnings[0].split(': ')[0]}.")
    elif audit is not None:
        sentences.append("The audit found no leak and no confounding.")
    more = len(errors) + len(warnings) - 1
    if more > 0:
        sentences[-1] += f" {more} more {'is' if more == 1 else 'are'} listed under Data."
    mark, answer = ("bad", "no") if errors else ("care", "with care") if warnings or too_few else ("good", "yes")
    if scores is None and not errors:
        mark, answer = "even", "not scored"
    return Card(_DATA, mark, answer, sentences, shown)


def _found(audit: pd.DataFrame | None, severity: str) -> list[str]:
    """List the findings of the audit of one severity."""
    return [] if audit is None else [str(f) for f in audit.loc[audit["severity"] == severity, "finding"]]


def cells_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Numbers of measured and of control cells that scores are of, by perturbation and context."""
    single = scores[scores["context"] != ALL_CONTEXTS]
    single = single if len(single) else scores
    if "n_measured" not in single:
        return pd.DataFrame({"context": list(dict.fromkeys(single["context"])), "measured": 0, "controls": 0})
    keys = [key for key in ("perturbation", "context") if key in single]
    cells = single.groupby(keys, sort=False)[["n_measured", "n_control"]].max().reset_index()
    return cells.rename(columns={"n_measured": "measured", "n_control": "controls"})


def _cells_shown(cells: pd.DataFrame) -> Table:
    """Show the cells of each context; of many perturbations the medians."""
    if len(cells) > _SHOWN:
        by = cells.groupby("context", sort=False)[["measured", "controls"]].median().reset_index()
        caption = f"Median number of cells over {cells['perturbation'].nunique()} perturbations."
    else:
        by, caption = cells[["context", "measured", "controls"]], ""
    left_out = f" {len(by) - _SHOWN} more contexts are listed with the scores." if len(by) > _SHOWN else ""
    return table(by.head(_SHOWN), caption + left_out)


def _able(scores: pd.DataFrame) -> tuple[int, int]:
    """Count the headline scores that have a skill, which has to exceed its noise, for half of the targets; and all.

    One that nothing has a value of, as telling perturbations apart where there is one, is none of them.
    """
    known = scores[scores["value"].notna()]
    chosen = scores["metric"].isin(headline_of(scores["metric"])) & scores["metric"].isin(known["metric"])
    part = scores[chosen & scores["model"].isin(model_names(scores))]
    average = part[part["context"] == ALL_CONTEXTS]
    part = average if len(average) else part
    share = part.assign(known=np.isfinite(part["skill"].astype(float))).groupby("metric")["known"].mean()
    return int((share >= 0.5).sum()), len(share)


def embedding_card(adata: AnnData, registry: Registry) -> Card:
    """Say whether adaptation helps, beside a PCA of the same cells."""
    scores = read_result(adata, EVALUATE)
    if scores is None:
        return Card(_EMBEDDING, "even", "not scored", ["Call scstate_lora.tl.evaluate(adata) to score the embeddings."])
    judgement = judge_embedding(embedding_results(scores, registry))
    shown = headline_scores(scores[scores["embedding"].isin(_COMPARED)]).head(_SHOWN)
    return Card(_EMBEDDING, judgement.mark, judgement.answer, judgement.sentences, table(shown, ""))


def embedding_results(scores: pd.DataFrame, registry: Registry) -> list[EmbeddingResult]:
    """Compare all scores of embeddings with the PCA's, by what the models were conditioned on."""
    # The transition model reads cells in sets of one context and perturbation.
    shared = [*registry.context_keys, *([registry.pert_key] if registry.pert_key is not None else [])]
    return compare_with_pca(scores, covariates=[c.name for c in registry.covariates], context_keys=shared)


def prediction_card(results: Mapping[str, Sequence[Result]], *, target: str, why_none: str) -> Card:
    """Say whether to believe the prediction, beside the simple baseline and a replicate.

    Parameters
    ----------
    results
        How every model compares in every score; empty if nothing was scored.
    target
        What was predicted, in words.
    why_none
        What to say if nothing was scored.
    """
    if not results:
        return Card(_PREDICTION, "even", "not scored", [why_none])
    judgements: dict[str, Judgement] = {m: judge(own, model=m, target=target) for m, own in results.items()}
    model, first = next(iter(judgements.items()))
    sentences = [*first.sentences, *(j.sentences[0] for name, j in judgements.items() if name != model)]
    headline = headline_of([r.metric for r in results[model]])
    shown = [r for r in results[model] if r.metric in headline and r.relation != NOT_COMPARED]
    rows = [
        {
            "score": f"{r.label} {ARROWS[r.direction]}",
            "verdict": {BETTER: "✓ better", WORSE: "✗ worse"}.get(r.relation, r.relation),
            "model": text(r.value),
            "simple baseline": f"{text(r.baseline_value)} {r.baseline}",
            "replicate": text(r.replicate),
        }
        for r in shown
    ]
    own = table(pd.DataFrame(rows), "") if rows else None
    return Card(_PREDICTION, first.mark, first.answer, sentences, own, broad=True)
