"""Scores of predicted cells of one perturbation, context by context, beside baselines and the replicate ceiling."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora.metrics.baselines import BASELINES, CEILING, YARDSTICK, Case
from scstate_lora.metrics.registry import METRICS, Metric
from scstate_lora.tl.scoring.table import ALL, SCORE_COLUMNS, average, reason_of_average, skill_of_averages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scstate_lora.metrics.baselines import Baseline, TrainingMeans
    from scstate_lora.tl.scoring.cells import Cells

    Predictor = Callable[[np.ndarray, str], np.ndarray]

_N_SPLITS = 5  # random halves averaged for the ceiling


def prediction(predicted: Cells) -> Predictor:
    """Return predicted cells as a predictor."""
    return lambda _, context: predicted.of(context)


def baseline_predictors(target: str, training: TrainingMeans) -> dict[str, Predictor]:
    """Return the baselines of one perturbation as predictors, by name."""

    def predict(control: np.ndarray, context: str, baseline: Baseline) -> np.ndarray:
        assert baseline.cells is not None  # chosen below
        return baseline.cells(control, Case(target, context, training))

    return {name: partial(predict, baseline=b) for name, b in BASELINES.items() if b.cells is not None}


def score_cells(
    predictors: Mapping[str, Predictor],
    measured: Cells,
    controls: Cells,
    contexts: Sequence[str],
    *,
    with_ceiling: bool = True,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells against measured ones by all metrics of cells.

    Parameters
    ----------
    predictors
        By name, a function of the control cells ``(n, n_genes)`` and the name of a context, which returns predicted
        cells; a ValueError says why there are none.
    measured, controls
        Measured cells under the perturbation, and control cells.
    contexts
        Contexts to score, each with cells of both.
    with_ceiling
        Whether to score one half of the measured cells against the other.
    n_boot
        Bootstrap samples of contexts behind the interval of the average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    Table as :func:`scstate_lora.tl.evaluate_perturbation` returns it. The skill is NaN without ceiling or yardstick.
    """
    scored = {name: metric for name, metric in METRICS.items() if metric.score is not None}
    models = [*predictors, *([CEILING] if with_ceiling else [])]
    values = np.full((len(models), len(contexts), len(scored)), np.nan)
    reasons = np.full(values.shape, "", dtype=object)
    for c, context in enumerate(contexts):
        control, real = controls.of(context), measured.of(context)
        for m, predict in enumerate(predictors.values()):
            try:
                cells = predict(control, context)
            except ValueError as error:
                reasons[m, c] = str(error)
                continue
            for k, metric in enumerate(scored.values()):
                values[m, c, k], reasons[m, c, k] = _attempt(partial(_score, metric, cells, real, control))
        if with_ceiling:
            for k, metric in enumerate(scored.values()):
                values[-1, c, k], reasons[-1, c, k] = _attempt(partial(_ceiling, metric, real, control, seed))
    return _table(values, reasons, models=models, contexts=contexts, scored=scored, n_boot=n_boot, seed=seed)


def _score(metric: Metric, cells: np.ndarray, real: np.ndarray, control: np.ndarray) -> float:
    assert metric.score is not None  # those that are scored
    return metric.score(cells, real, control)


def _ceiling(metric: Metric, real: np.ndarray, control: np.ndarray, seed: int) -> float:
    return metrics.ceiling(real, lambda a, b: _score(metric, a, b, control), n_splits=_N_SPLITS, seed=seed)


def _attempt(score: Callable[[], float]) -> tuple[float, str]:
    """Return the value and no reason, or NaN and why it could not be computed."""
    try:
        return score(), ""
    except (ValueError, np.linalg.LinAlgError) as error:
        return np.nan, str(error)


def _table(
    values: np.ndarray,
    reasons: np.ndarray,
    *,
    models: Sequence[str],
    contexts: Sequence[str],
    scored: Mapping[str, Metric],
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """Lay out values and reasons of shape ``(n_models, n_contexts, n_metrics)``, with averages, skill and intervals."""
    unknown = np.full((len(contexts), len(scored)), np.nan)
    by_model = dict(zip(models, values, strict=True))
    floors, ceilings = by_model.get(YARDSTICK, unknown), by_model.get(CEILING, unknown)
    rows = []
    for m, model in enumerate(models):
        for k, (name, metric) in enumerate(scored.items()):
            row = {"model": model, "metric": name, "ci_low": np.nan, "ci_high": np.nan, **metric.columns()}
            good, floor, top = metrics.goodness(
                [values[m, :, k], floors[:, k], ceilings[:, k]], direction=metric.direction
            )
            skill = metrics.skill(good, floor=floor, ceiling=top)
            for c, context in enumerate(contexts):
                row |= {"context": context, "value": values[m, c, k], "skill": skill[c], "reason": reasons[m, c, k]}
                rows.append(dict(row))
            if list(contexts) != [ALL]:
                own = values[m, :, k]
                row |= {"context": ALL, **average(own, n_boot=n_boot, seed=seed)}
                row["skill"] = skill_of_averages(good, floor, top)
                row["reason"] = reason_of_average(own, reasons[m, :, k], contexts)
                rows.append(row)
    return pd.DataFrame(rows)[["model", "context", "metric", *SCORE_COLUMNS]]
