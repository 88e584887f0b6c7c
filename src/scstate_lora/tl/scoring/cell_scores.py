"""Scores of predicted cells, perturbation by perturbation and context by context, beside baselines and a replicate."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora._utils import progress_bar
from scstate_lora.metrics.baselines import CEILING, MEAN_EFFECT, MEAN_SHIFT
from scstate_lora.tl.scoring.case import MeasuredCase, Scores, scored_metrics
from scstate_lora.tl.scoring.cells import GroupedCells
from scstate_lora.tl.scoring.controls import ContextControls, hidden_names
from scstate_lora.tl.scoring.layout import Layout
from scstate_lora.tl.scoring.panel import Panel, score_one
from scstate_lora.tl.scoring.predictors import baseline_predictors, mean_predictor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scstate_lora.tl.scoring.cells import Cells
    from scstate_lora.tl.scoring.predictors import Predictor
    from scstate_lora.tl.scoring.table import Counting
    from scstate_lora.tl.scoring.training import Training
    from scstate_lora.tl.scoring.yardstick import Yardsticks

DUPLICATE = "interpolated duplicate"
"""A replicate that is as right as its own tests are sure: the positive control of a metric, in no table."""
_SHOW_PROGRESS = 20  # from so many sets of cells on


def score_cells(
    predictors: Mapping[str, Predictor],
    measured: Cells,
    controls: Cells,
    pairs: Mapping[str, Sequence[str]],
    *,
    training: Training,
    has_baselines: bool = True,
    yardsticks: Yardsticks | None,
    counting: Counting,
    hidden_genes: Mapping[str, Sequence[int]],
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells against measured ones by all metrics of cells.

    Memory holds the dense cells of one perturbation and of the controls of one context at a time, and of all
    perturbations of a context two profiles a model.

    Parameters
    ----------
    predictors
        What is scored, by name.
    measured, controls
        Measured cells under the perturbations, and the control cells that everything is predicted from.
    pairs
        Perturbations to score by context, each with measured cells there.
    training
        Training cells that the baselines learn from.
    has_baselines
        Whether baselines and replicate are scored; without them there is no skill.
    yardsticks
        Choose the baselines at which the skill is 0; None without training cells.
    counting
        Which contexts count in averages, and with what weight.
    hidden_genes
        Of every perturbation the positions of the genes that it acts on.
    n_boot
        Bootstrap samples behind the intervals of averages.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    Table as :func:`scstate_lora.tl.evaluate_perturbation` returns it.
    """
    contexts = list(pairs)
    targets = sorted({target for names in pairs.values() for target in names})
    grouped = GroupedCells(measured)
    split = {context: ContextControls.of(controls, context, seed=seed) for context in contexts}
    hidden = [hidden_names(list(split.values()), half) for half in range(max(len(c.halves) for c in split.values()))]
    scored = dict(predictors)
    shown = list(predictors)
    if has_baselines:
        scored |= baseline_predictors(training)
        shown = [*scored, CEILING]
        scored |= {MEAN_EFFECT: mean_predictor(training)}
    scores = Scores([*shown, MEAN_EFFECT, DUPLICATE], list(scored_metrics()), targets, contexts)
    counts = np.zeros((len(targets), len(contexts), 2), dtype=int)
    n_sets = sum(map(len, pairs.values()))
    bar = progress_bar(total=n_sets, desc="Scoring", unit="set", disable=n_sets < _SHOW_PROGRESS)
    for c, (context, names) in enumerate(pairs.items()):
        control = split.pop(context)  # its dense cells are not kept
        panel = Panel(
            control,
            names,
            hidden_genes=hidden_genes,
            has_replicate=has_baselines,
            centroid=_centroid(training, context),
            seed=seed,
        )
        for target in names:
            rows = grouped.rows(target, context)
            counts[targets.index(target), c] = len(control.names), len(rows)
            case = MeasuredCase(control, grouped.dense(rows), seed=seed)
            tested = panel.case(target, case, grouped.depth(rows))
            mean, uninformed = None, ""
            for name, predictor in scored.items():
                if name == MEAN_EFFECT and _is_mean_shift(training, target):
                    scores.put(name, target, context, scores.at(MEAN_SHIFT, target, context))
                    panel.copy(MEAN_SHIFT, name, target)
                    continue
                predicted = score_one(scores, case, tested, name, partial(predictor.predict, target, control, hidden))
                if name in (MEAN_SHIFT, MEAN_EFFECT) and predicted is not None:
                    mean, uninformed = predicted.moments.mean, name
            if has_baselines:
                scores.put(CEILING, target, context, case.ceiling() | tested.replicate())
            if mean is not None:
                found = case.nearly_right(mean) | tested.nearly_right(uninformed, mean)
                scores.put(DUPLICATE, target, context, found)
            bar.update()
        of_halves = (CEILING, DUPLICATE) if has_baselines else (None, None)
        panel.score(scores, ceiling=of_halves[0], duplicate=of_halves[1])
    bar.close()
    yardstick = None
    if yardsticks is not None:
        yardstick = yardsticks.of((target, context) for context, names in pairs.items() for target in names)
    layout = Layout(scores, counts, duplicate=DUPLICATE, counting=counting, n_boot=n_boot, seed=seed)
    return layout.table(shown, yardstick)


def _is_mean_shift(training: Training, target: str) -> bool:
    """Whether the mean shift knows nothing of the perturbation either."""
    effects = training.means.effects
    return target not in effects or len(effects) == 1


def _centroid(training: Training, context: str) -> np.ndarray | None:
    """Mean over training perturbations of their mean cells in a context; None of fewer than two."""
    means = [mean for (_, where), mean in training.means.perturbed.items() if where == context]
    return np.mean(means, axis=0) if len(means) > 1 else None
