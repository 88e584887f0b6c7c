"""Plain sentences drawn from the evaluation tables, also where a model loses to a naive baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora._constants import OBSM_SE, OBSM_ST
from scstate_lora.metrics import goodness
from scstate_lora.metrics.baselines import BASELINES, CEILING, YARDSTICK, reference_names
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import metric_label
from scstate_lora.reporting.parts import Verdict, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

ALL_CONTEXTS = "all"
# Accuracies that differ by less are called equal: about one standard error of an accuracy of 0.9 over 1,000 cells.
SAME_WITHIN = 0.01
# An interval over fewer contexts is not informative.
_FEWEST_CONTEXTS = 3


def model_names(table: pd.DataFrame) -> list[str]:
    """Names in ``evaluate_perturbation``'s table that are models, not references."""
    return [name for name in dict.fromkeys(table["model"]) if name not in reference_names()]


def baseline_names() -> list[str]:
    """Names of the baselines, the yardstick last."""
    return sorted(BASELINES, key=lambda name: name == YARDSTICK)


def perturbation_verdicts(table: pd.DataFrame, *, target: str) -> list[Verdict]:
    """Judge every model against the mean shift: first in one sentence, then metric by metric.

    Parameters
    ----------
    table
        The table of :func:`scstate_lora.tl.evaluate_perturbation`.
    target
        The perturbation that was predicted.
    """
    verdicts: list[Verdict] = []
    for model in model_names(table):
        single = [(metric, _against_yardstick(table, model, metric)) for metric in dict.fromkeys(table["metric"])]
        verdicts.append(_overall(model, single, target=target))
        verdicts += [verdict for _, verdict in single]
    return verdicts


def _overall(model: str, single: Sequence[tuple[str, Verdict]], *, target: str) -> Verdict:
    by_mark = {mark: [metric_label(m) for m, v in single if v.mark == mark] for mark in ("good", "bad", "even")}
    n_good, n_bad = len(by_mark["good"]), len(by_mark["bad"])
    parts = [
        f"better than the {YARDSTICK} on {_listed(by_mark['good'])}" if by_mark["good"] else "",
        f"worse {'' if n_good else f'than the {YARDSTICK} '}on {_listed(by_mark['bad'])}" if by_mark["bad"] else "",
        f"not decided on {_listed(by_mark['even'])}" if by_mark["even"] else "",
    ]
    sentence = f"Predicting {target!r}, {model!r} is " + "; ".join(p for p in parts if p) + "."
    n_even = len(by_mark["even"])
    if n_bad > max(n_good, n_even):
        sentence += " Adding an average difference to the control cells predicts better here."
    mark = "bad" if n_bad > max(n_good, n_even) else "good" if n_good > max(n_bad, n_even) else "even"
    return Verdict(mark, sentence, headline=True)


def _against_yardstick(table: pd.DataFrame, model: str, metric: str) -> Verdict:
    """Compare one model with the mean shift on one metric: the average over contexts, then context by context."""
    part = table[table["metric"] == metric]
    direction = str(part["direction"].iloc[0])
    contexts = list(part["context"])
    average = part[part["context"] == (ALL_CONTEXTS if ALL_CONTEXTS in contexts else contexts[0])]
    rows = {row["model"]: row for row in average.to_dict("records")}
    values = {name: float(row["value"]) for name, row in rows.items()}
    value, floor = values[model], values.get(YARDSTICK, np.nan)
    if np.isnan(value):
        return Verdict("even", f"{metric_label(metric)}: not computed for {model} ({rows[model]['reason']}).")
    sentence = f"{metric_label(metric)}: {model} {text(value)}"
    references = [
        name for name in (*baseline_names(), CEILING) if name != YARDSTICK and not np.isnan(values.get(name, np.nan))
    ]
    others = f" ({'; '.join(f'{name} {text(values[name])}' for name in references)})" if references else ""
    if np.isnan(floor):
        return Verdict("even", f"{sentence}; the {YARDSTICK} is unknown, so it cannot be compared{others}.")

    gain = float(np.subtract(*goodness([value, floor], direction=direction)))  # type: ignore[arg-type]  # read from a table
    if abs(gain) <= 1e-6 * max(1.0, abs(floor)):
        return Verdict("even", f"{sentence}, the same as the {YARDSTICK}{others}.")
    sentence += f", {'better' if gain > 0 else 'worse'} than the {YARDSTICK} with {text(floor)}"
    gains = _gains(part, model, direction)
    if len(gains) < _FEWEST_CONTEXTS:
        return Verdict("good" if gain > 0 else "bad", f"{sentence}{others}.")
    low, high = _interval_of_mean(gains)
    sentence += f", better in {int((gains > 0).sum())} of {len(gains)} contexts{others}"
    if (gain > 0 and low > 0) or (gain < 0 and high < 0):
        return Verdict("good" if gain > 0 else "bad", f"{sentence}.")
    interval = f"{text(low)} to {text(high)} (95 % interval over contexts, positive is better)"
    return Verdict("even", f"{sentence}. The difference is {interval}: undecided.")


def _gains(part: pd.DataFrame, model: str, direction: str) -> np.ndarray:
    """Gain of the model over the mean shift in every context that has both, shape ``(n_contexts,)``."""
    wide = part[part["context"] != ALL_CONTEXTS].pivot(index="context", columns="model", values="value")
    both = wide.reindex(columns=[model, YARDSTICK]).dropna().to_numpy()
    good = goodness(both, direction=direction)  # type: ignore[arg-type]  # read from a table
    return good[:, 0] - good[:, 1]


def _interval_of_mean(gains: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over contexts; paired, so difficulty shared within a context cancels."""
    draws = np.random.default_rng(0).choice(gains, size=(2000, len(gains))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def embedding_verdicts(
    table: pd.DataFrame, *, covariates: Iterable[str] = (), context_keys: Iterable[str] = ()
) -> list[Verdict]:
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
    verdicts = []
    for record in table[table["embedding"] != PCA].to_dict("records"):
        score = f"{metric_label(record['metric'])} of {record['key']}: {record['embedding']}"
        value, baseline = float(record["value"]), float(record["baseline"])
        if np.isnan(value):
            verdicts.append(Verdict("even", f"{score} not computed ({record['reason']})."))
            continue
        same = (table["embedding"] == PCA) & (table["metric"] == record["metric"]) & (table["key"] == record["key"])
        pca = float(table.loc[same, "value"].iloc[0]) if same.any() else np.nan
        sentence, headline = f"{score} {text(value)}", record["metric"] == "knn_accuracy"
        floor = f" (ignoring the embedding gives {text(baseline)})" if not np.isnan(baseline) else ""
        if record["key"] in conditioned_on.get(record["embedding"], ()):
            caveat = "the embedding is conditioned on it, so this is no evidence: compare the plain embeddings"
            verdicts.append(Verdict("even", f"{sentence}{floor}; {caveat}."))
        elif np.isnan(pca):
            verdicts.append(Verdict("even", f"{sentence}{floor}; no PCA to compare with."))
        else:
            gain = float(np.subtract(*goodness([value, pca], direction=record["direction"])))
            mark = "even" if abs(gain) <= SAME_WITHIN + 1e-9 else ("good" if gain > 0 else "bad")
            relation = {
                "even": f"equal to PCA with {text(pca)}, within {SAME_WITHIN}",
                "good": f"better than PCA with {text(pca)}",
                "bad": f"worse than PCA with {text(pca)}",
            }[mark]
            verdicts.append(Verdict(mark, f"{sentence}, {relation}{floor}.", headline))
    return verdicts


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
