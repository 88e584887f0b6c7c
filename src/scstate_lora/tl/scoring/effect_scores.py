"""Scores of predicted effects of many perturbations by how well they tell these apart, beside baselines and ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora.metrics.baselines import BASELINES, CEILING, Case
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.scoring.cells import mean_of
from scstate_lora.tl.scoring.table import ALL, SCORE_COLUMNS, average

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scstate_lora.metrics.baselines import TrainingMeans
    from scstate_lora.tl.scoring.cells import Cells

METRIC = "discrimination"
CHANCE = 0.5
_N_SPLITS = 5  # random halves averaged for the ceiling
_NO_DIRECTION = "the predicted effect is zero and has no direction"


class EffectScores(NamedTuple):
    """Scores of the perturbations of one context by one model."""

    values: np.ndarray
    """``(n_perturbations,)``."""
    reasons: list[str]
    """Why each value is NaN, else empty."""


def score_effects(
    predicted: Cells,
    measured: Cells,
    controls: Cells,
    targets: Mapping[str, Sequence[str]],
    *,
    name: str,
    training: TrainingMeans,
    hidden_genes: Mapping[str, Sequence[int]],
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a model's effects, the baselines' and those of half of the measured cells.

    Parameters
    ----------
    predicted, measured, controls
        Predicted and measured cells under the perturbations, and control cells.
    targets
        Perturbations by context, each predicted and measured there.
    name
        Name of the model.
    training
        Means that the baselines learn from.
    hidden_genes
        Of every perturbation the positions of genes that its score must not see.
    n_boot
        Bootstrap samples of perturbations behind the interval of an average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    Table as :func:`scstate_lora.tl.discrimination` returns it.
    """
    baselines = {key: baseline.effect for key, baseline in BASELINES.items() if baseline.effect is not None}
    scores: dict[tuple[str, str], EffectScores] = {}
    for context, names in targets.items():
        control_mean = mean_of(controls.at(controls.contexts == context).expression)
        effects = _means(measured, context, names) - control_mean
        hidden = [hidden_genes[target] for target in names]
        own = _means(predicted, context, names) - control_mean
        scores[name, context] = _score(own, [""] * len(names), effects, hidden)
        for key, effect in baselines.items():
            guesses, reasons = np.zeros_like(effects), [""] * len(names)
            for i, target in enumerate(names):
                try:
                    guesses[i] = effect(control_mean, Case(target, context, training))
                except ValueError as error:
                    reasons[i] = str(error)
            scores[key, context] = _score(guesses, reasons, effects, hidden)
        scores[CEILING, context] = _ceiling(measured, context, names, control_mean, hidden, seed=seed)
    return _table(scores, targets, models=[name, *baselines, CEILING], n_boot=n_boot, seed=seed)


def _score(
    effects: np.ndarray, reasons: Sequence[str], measured: np.ndarray, hidden: Sequence[Sequence[int]]
) -> EffectScores:
    """Score effects ``(n_perturbations, n_genes)``, which are zero where there is none, for the reason given."""
    values = metrics.discrimination_score(effects, measured, excluded=hidden)
    return EffectScores(
        values,
        ["" if np.isfinite(value) else reason or _NO_DIRECTION for value, reason in zip(values, reasons, strict=True)],
    )


def _means(cells: Cells, context: str, names: Sequence[str]) -> np.ndarray:
    """Mean cell of every perturbation in one context, ``(n_perturbations, n_genes)``."""
    means = cells.at(cells.contexts == context).group_means()
    return np.array([means[name, context] for name in names])


def _ceiling(
    measured: Cells,
    context: str,
    names: Sequence[str],
    control_mean: np.ndarray,
    hidden: Sequence[Sequence[int]],
    *,
    seed: int,
) -> EffectScores:
    """Score random halves of the measured cells against the others."""
    cells = measured.at(measured.contexts == context)
    groups = cells.groups()
    rows_of = [groups[name, context] for name in names]
    rng = np.random.default_rng(seed)

    def effects(halves: list[np.ndarray]) -> np.ndarray:
        means = [mean_of(cells.expression[rows]) if len(rows) else control_mean for rows in halves]
        return np.array(means) - control_mean

    splits = []
    for _ in range(_N_SPLITS):
        orders = [rng.permutation(rows) for rows in rows_of]
        first, second = [o[: len(o) // 2] for o in orders], [o[len(o) // 2 :] for o in orders]
        splits.append(metrics.discrimination_score(effects(first), effects(second), excluded=hidden))
    values = np.mean(splits, axis=0)
    reasons = [
        "" if np.isfinite(value) else f"two halves need at least two measured cells; {name!r} has {len(rows)}"
        for value, name, rows in zip(values, names, rows_of, strict=True)
    ]
    return EffectScores(values, reasons)


def _table(
    scores: Mapping[tuple[str, str], EffectScores],
    targets: Mapping[str, Sequence[str]],
    *,
    models: Sequence[str],
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """Lay the scores out, with averages over perturbations, over contexts and over both."""
    perturbations = sorted({name for names in targets.values() for name in names})
    by_context = dict(targets)
    parts = {(model, context): scores[model, context] for model in models for context in targets}
    if list(targets) != [ALL]:
        by_context[ALL] = perturbations
        for model in models:
            parts[model, ALL] = _over_contexts(scores, targets, perturbations, model)
    ceilings = {context: _mean(parts[CEILING, context].values) for context in by_context}
    rows = []
    for model in models:
        for context, names in by_context.items():
            values, reasons = parts[model, context]
            for name, value, reason in zip(names, values, reasons, strict=True):
                rows.append(_row(model, context, name, {"value": float(value), "reason": reason}))
            mean = average(values, n_boot=n_boot, seed=seed)
            skill = float(metrics.skill(mean["value"], floor=CHANCE, ceiling=ceilings[context]))
            rows.append(_row(model, context, ALL, {**mean, "skill": skill, "reason": _reason(values, reasons)}))
    return pd.DataFrame(rows)[["model", "context", "perturbation", "metric", *SCORE_COLUMNS]]


def _over_contexts(
    scores: Mapping[tuple[str, str], EffectScores],
    targets: Mapping[str, Sequence[str]],
    perturbations: Sequence[str],
    model: str,
) -> EffectScores:
    """Average the scores of every perturbation over the contexts that it has one in."""
    values: dict[str, list[float]] = {name: [] for name in perturbations}
    why = dict.fromkeys(perturbations, "")
    for context, names in targets.items():
        for name, value, reason in zip(names, *scores[model, context], strict=True):
            values[name].append(value)
            why[name] = why[name] or reason
    means = np.array([_mean(np.array(parts)) for parts in values.values()])
    reasons = [
        f"without some contexts: {reason}" if reason and np.isfinite(mean) else reason
        for reason, mean in zip(why.values(), means, strict=True)
    ]
    return EffectScores(means, reasons)


def _row(model: str, context: str, perturbation: str, score: Mapping[str, float | str]) -> dict[str, float | str]:
    row: dict[str, float | str] = {"model": model, "context": context, "perturbation": perturbation, "metric": METRIC}
    return {**row, "skill": np.nan, "ci_low": np.nan, "ci_high": np.nan, **METRICS[METRIC].columns(), **score}


def _reason(values: np.ndarray, reasons: Sequence[str]) -> str:
    """Say how many perturbations an average lacks, or why there is none."""
    finite = np.isfinite(values)
    missing = [reason for is_known, reason in zip(finite, reasons, strict=True) if not is_known]
    if finite.any() and missing:
        return f"without {len(missing)} of {len(values)} perturbations: {missing[0]}"
    return "; ".join(list(dict.fromkeys(missing))[:3])


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
