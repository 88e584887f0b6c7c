"""Plain sentences drawn from the evaluation tables, also where a model loses to a naive baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from scstate_lora._constants import OBSM_SE, OBSM_ST
from scstate_lora.metrics import bootstrap_interval, goodness
from scstate_lora.metrics.baselines import BASELINES, CEILING, MEAN_SHIFT, reference_names
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import metric_label
from scstate_lora.reporting.parts import Verdict, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from scstate_lora.metrics.perturbation import Direction

ALL_CONTEXTS = "all"
# Accuracies that differ by less are called equal: about one standard error of an accuracy of 0.9 over 1,000 cells.
SAME_WITHIN = 0.01
# An interval over fewer contexts is not informative.
_FEWEST_CONTEXTS = 3
_UNDECIDED = "not decided"


def model_names(table: pd.DataFrame) -> list[str]:
    """Names in ``evaluate_perturbation``'s table that are models, not references."""
    return [name for name in dict.fromkeys(table["model"]) if name not in reference_names()]


def baseline_names() -> list[str]:
    """Names of the baselines, the yardstick last."""
    return sorted(BASELINES, key=lambda name: name == MEAN_SHIFT)


def average_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the average over perturbations and contexts; of a single one, its own."""
    table = over_perturbations(table)
    contexts = list(table["context"])
    return table[table["context"] == (ALL_CONTEXTS if ALL_CONTEXTS in contexts else contexts[0])]


def over_perturbations(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the average over perturbations; of a single one, its own."""
    if "perturbation" not in table or not (table["perturbation"] == ALL_CONTEXTS).any():
        return table
    return table[table["perturbation"] == ALL_CONTEXTS]


def direction_of(table: pd.DataFrame) -> Direction:
    """Return the direction of the one metric of a table."""
    return cast("Direction", str(table["direction"].iloc[0]))


def best_baseline(values: Mapping[str, float], direction: Direction) -> str | None:
    """Return the baseline with the best value; of equal ones the first, and None if none has a value."""
    known = {name: values[name] for name in baseline_names() if not np.isnan(values.get(name, np.nan))}
    if not known:
        return None
    return list(known)[int(np.argmax(goodness(list(known.values()), direction=direction)))]


def baseline_to_beat(rows: pd.DataFrame, direction: Direction) -> str | None:
    """Return the baseline that a model has to beat, and None if none has a value.

    It is the one that the table says was chosen on training cells, else the best one.

    Parameters
    ----------
    rows
        Rows of one metric: one of every model.
    direction
        Of the metric.
    """
    values = dict(zip(rows["model"], rows["value"].astype(float), strict=True))
    chosen = str(rows["yardstick"].iloc[0]) if "yardstick" in rows else ""
    return chosen if np.isfinite(values.get(chosen, np.nan)) else best_baseline(values, direction)


def perturbation_verdicts(table: pd.DataFrame, *, target: str) -> list[Verdict]:
    """Judge every model against the best baseline of each metric: first in one sentence, then metric by metric.

    The best baseline is the one that was best on training cells which were left out, where the table names it.

    Parameters
    ----------
    table
        The table of :func:`scstate_lora.tl.evaluate_perturbation`.
    target
        The perturbation that was predicted.
    """
    verdicts: list[Verdict] = []
    for model in model_names(table):
        single = [_against_best(table, model, str(metric)) for metric in dict.fromkeys(table["metric"])]
        verdicts.append(_overall(model, single, target=target))
        verdicts += [Verdict(result.mark, result.text) for result in single]
    return verdicts


class _Result(NamedTuple):
    """How a model compares with the best baseline of one metric."""

    metric: str
    relation: str
    """``"better"``, ``"worse"``, ``"equal"``, ``"not decided"`` or ``"not compared"``."""
    text: str
    best: str = ""
    """Name of the best baseline."""

    @property
    def mark(self) -> str:
        """Mark of the verdict."""
        return {"better": "good", "worse": "bad"}.get(self.relation, "even")

    def named(self) -> str:
        """Name the metric, and the baseline that it was compared with."""
        return metric_label(self.metric) + (f" ({self.best})" if self.best else "")


def _overall(model: str, single: Sequence[_Result], *, target: str) -> Verdict:
    by_relation: dict[str, list[str]] = {}
    for result in single:
        by_relation.setdefault(result.relation, []).append(result.named())
    phrases = {
        "better": "better than the best baseline on",
        "worse": "worse than the best baseline on",
        "equal": "equal to the best baseline on",
        _UNDECIDED: f"{_UNDECIDED} on",
        "not compared": "not compared on",
    }
    parts = [f"{phrase} {_listed(by_relation[name])}" for name, phrase in phrases.items() if name in by_relation]
    sentence = f"Predicting {target!r}, {model!r} is " + "; ".join(parts) + "."
    n_good, n_bad = len(by_relation.get("better", ())), len(by_relation.get("worse", ()))
    n_even = len(single) - n_good - n_bad
    mark = "bad" if n_bad > max(n_good, n_even) else "good" if n_good > max(n_bad, n_even) else "even"
    if mark == "bad":
        sentence += " A naive baseline predicts better here."
    return Verdict(mark, sentence, headline=True)


def _against_best(table: pd.DataFrame, model: str, metric: str) -> _Result:
    """Compare one model with the best baseline of one metric: the average over contexts, then context by context."""
    part = over_perturbations(table[table["metric"] == metric])
    direction = direction_of(part)
    average = average_of(part)
    rows = {row["model"]: row for row in average.to_dict("records")}
    values = {name: float(row["value"]) for name, row in rows.items()}
    value = values[model]
    if np.isnan(value):
        why = rows[model]["reason"]
        return _Result(metric, "not compared", f"{metric_label(metric)}: not computed for {model} ({why}).")
    sentence = f"{metric_label(metric)}: {model} {text(value)}"
    best = baseline_to_beat(average, direction)
    best_here = best_baseline(values, direction)
    references = [name for name in (*baseline_names(), CEILING) if name != best]
    known = "; ".join(
        f"{name} {text(values[name])}" + (", the best on these cells" if name == best_here else "")
        for name in references
        if not np.isnan(values.get(name, np.nan))
    )
    others = f" ({known})" if known else ""
    if best is None:
        return _Result(
            metric, "not compared", f"{sentence}; no baseline has a score, so it cannot be compared{others}."
        )
    which = "the best baseline" if best == best_here else "the baseline that training cells chose"
    if text(value) == text(values[best]):
        return _Result(metric, "equal", f"{sentence}, equal to {which}, {best}{others}.", best)
    gain = float(np.subtract(*goodness([value, values[best]], direction=direction)))
    relation = "better" if gain > 0 else "worse"
    sentence += f", {relation} than {which}, {best}, with {text(values[best])}"
    gains, weights = _gains(part, model, best, direction)
    if len(gains) < _FEWEST_CONTEXTS:
        n = f"{len(gains)} contexts" if len(gains) > 1 else "one context"
        return _Result(metric, _UNDECIDED, f"{sentence}{others}. Of {n} no interval can be made: {_UNDECIDED}.", best)
    low, high = bootstrap_interval(gains, weights=weights, n_boot=2000)
    sentence += f", better in {int((gains > 0).sum())} of {len(gains)} contexts{others}"
    if (gain > 0 and low > 0) or (gain < 0 and high < 0):
        return _Result(metric, relation, f"{sentence}.", best)
    interval = f"{text(low)} to {text(high)} (95 % interval over contexts, positive is better)"
    return _Result(metric, _UNDECIDED, f"{sentence}. The difference is {interval}: {_UNDECIDED}.", best)


def _gains(part: pd.DataFrame, model: str, baseline: str, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Gain over a baseline in every context that has both and counts in the average, and weights, ``(n_contexts,)``.

    Paired, so that the difficulty that both share within a context cancels.
    """
    single = part[(part["context"] != ALL_CONTEXTS) & part["model"].isin([model, baseline])]
    single = single.assign(weight=single["weight"] if "weight" in single else 1.0)
    wide = single.pivot(index="context", columns="model", values="value").reindex(columns=[model, baseline])
    weights = single.groupby("context")["weight"].first().reindex(wide.index).to_numpy(dtype=float)
    both = wide.to_numpy(dtype=float)
    counts = np.isfinite(both).all(axis=1) & (weights > 0)
    good = goodness(both[counts], direction=direction)
    return good[:, 0] - good[:, 1], weights[counts]


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
