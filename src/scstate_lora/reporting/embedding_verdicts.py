"""Whether an embedding is better than a PCA of the same cells: score by score, and in a plain sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._constants import OBSM_BASE, OBSM_SE, OBSM_ST
from scstate_lora.metrics import goodness
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import headline_of, metric_label
from scstate_lora.reporting.parts import text
from scstate_lora.reporting.score_tables import ARROWS
from scstate_lora.reporting.verdicts import BETTER, EQUAL, NOT_COMPARED, WORSE, Judgement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Accuracies that differ by less are called equal: about one standard error of an accuracy of 0.9 over 1,000 cells.
SAME_WITHIN = 0.01
NO_EVIDENCE = "no evidence"
NAMES = {OBSM_SE: "adapted", OBSM_BASE: "base", OBSM_ST: "transition model", PCA: "PCA"}
"""Embeddings in words."""


@dataclass(frozen=True)
class EmbeddingResult:
    """How an embedding compares with the PCA in one score of one column."""

    embedding: str
    metric: str
    key: str
    relation: str
    """``"better"``, ``"worse"``, ``"equal"``, ``"no evidence"`` or ``"not compared"``."""
    value: float = np.nan
    pca: float = np.nan
    floor: float = np.nan
    """Score of ignoring the embedding."""
    why: str = ""

    @property
    def label(self) -> str:
        """The score in words."""
        return f"{metric_label(self.metric)} of {self.key}" if self.key else metric_label(self.metric)


def compare_with_pca(
    table: pd.DataFrame, *, covariates: Iterable[str] = (), context_keys: Iterable[str] = ()
) -> list[EmbeddingResult]:
    """Compare every score of an embedding with that of the PCA of the same cells.

    Parameters
    ----------
    table
        The table of :func:`scstate_lora.tl.evaluate`.
    covariates
        Covariates that the models are conditioned on, so that finding them in the embeddings is no evidence.
    context_keys
        Columns that the cells of one set share, which the transition model's representation is conditioned on as well.
    """
    conditioned_on = {OBSM_SE: set(covariates), OBSM_ST: {*covariates, *context_keys}}
    results = []
    for record in table[table["embedding"] != PCA].to_dict("records"):
        value, key = float(record["value"]), str(record["key"] or "")
        same = (table["embedding"] == PCA) & (table["metric"] == record["metric"]) & (table["key"] == record["key"])
        pca = float(table.loc[same, "value"].iloc[0]) if same.any() else np.nan
        why = ""
        if np.isnan(value):
            relation, why = NOT_COMPARED, str(record["reason"])
        elif key in conditioned_on.get(record["embedding"], ()):
            relation, why = NO_EVIDENCE, "the embedding is conditioned on it"
        elif np.isnan(pca):
            relation, why = NOT_COMPARED, "there is no PCA to compare with"
        else:
            gain = float(np.subtract(*goodness([value, pca], direction=record["direction"])))
            relation = EQUAL if abs(gain) <= SAME_WITHIN + 1e-9 else BETTER if gain > 0 else WORSE
        results.append(
            EmbeddingResult(
                str(record["embedding"]),
                str(record["metric"]),
                key,
                relation,
                value,
                pca,
                float(record["baseline"]),
                why,
            )
        )
    return results


def judge_embedding(results: Sequence[EmbeddingResult]) -> Judgement:
    """Say whether the adapted embedding, or the first there is, helps: how it compares in its headline scores."""
    embeddings = list(dict.fromkeys(r.embedding for r in results))
    judged = next((name for name in (OBSM_SE, OBSM_BASE) if name in embeddings), embeddings[0] if embeddings else "")
    own = [r for r in results if r.embedding == judged]
    name = "the adapted embedding" if judged == OBSM_SE else f"the embedding {NAMES.get(judged, judged)}"
    headline = set(headline_of([r.metric for r in own]))
    compared = [r for r in own if r.metric in headline and r.relation in (BETTER, WORSE, EQUAL)]
    if not compared:
        why = next((r.why for r in own if r.why), "nothing was scored")
        return Judgement("even", "not decided", [f"There is no score to compare {name} with a PCA by: {why}."])
    better, worse = ([r for r in compared if r.relation == relation] for relation in (BETTER, WORSE))
    if better and not worse:
        judgement = Judgement("good", "it helps", [f"It helps: {name} is better than a PCA of the same cells."])
    elif worse and not better:
        judgement = Judgement(
            "bad", "it does not help", [f"It does not help: {name} is worse than a PCA of the same cells. Use the PCA."]
        )
    elif better:
        judgement = Judgement("even", "mixed", [f"Mixed: {name} is better than a PCA in some scores, worse in others."])
    else:
        judgement = Judgement("even", "no gain", [f"No gain: {name} is as good as a PCA of the same cells."])
    shown = [*better, *worse, *(r for r in compared if r.relation == EQUAL)][:3]
    judgement.sentences.append("; ".join(f"{r.label} {text(r.value)}, PCA {text(r.pca)}" for r in shown) + ".")
    unread = list(dict.fromkeys(r.key for r in own if r.relation == NO_EVIDENCE))
    if unread:
        it = "it" if len(unread) == 1 else "them"
        judgement.sentences.append(f"That it tells {' and '.join(unread)} apart is no evidence: it was given {it}.")
    return judgement


def embedding_results_table(results: Sequence[EmbeddingResult]) -> pd.DataFrame:
    """Tabulate every score of every embedding beside the PCA's, and what ignoring the embedding gives."""
    return pd.DataFrame(
        [
            {
                "score": metric_label(r.metric),
                "of": r.key,
                "embedding": NAMES.get(r.embedding, r.embedding),
                "value": r.value,
                "PCA": r.pca,
                "without embedding": r.floor,
                "verdict": r.relation + (f": {r.why}" if r.why else ""),
            }
            for r in results
        ]
    )


def headline_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the headline scores: one row per score, one column per embedding, PCA first."""
    part = table[table["metric"].isin(headline_of(table["metric"]))].drop_duplicates(["metric", "key", "embedding"])
    names = [n for n in (PCA, OBSM_BASE, OBSM_SE) if n in set(part["embedding"])]
    names += [n for n in dict.fromkeys(part["embedding"]) if n not in names]
    rows = []
    for (metric, key), own in part.groupby(["metric", "key"], sort=False):
        values = dict(zip(own["embedding"], own["value"].astype(float), strict=True))
        arrow = ARROWS.get(str(own["direction"].iloc[0]), "")
        label = f"{metric_label(str(metric))} of {key} {arrow}" if key else f"{metric_label(str(metric))} {arrow}"
        rows.append({"score": label, **{NAMES.get(n, n): values.get(n, np.nan) for n in names}})
    return pd.DataFrame(rows)
