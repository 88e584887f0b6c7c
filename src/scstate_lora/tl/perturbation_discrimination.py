"""Whether the predicted effects of many perturbations identify them: `discrimination`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scstate_lora.data.results import DISCRIMINATION, write_result
from scstate_lora.tl.scoring.cells import shared_targets
from scstate_lora.tl.scoring.effect_scores import score_effects
from scstate_lora.tl.scoring.inputs import own_genes, read_inputs
from scstate_lora.tl.scoring.table import MIN_CELLS, Counting

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def discrimination(
    pred: AnnData,
    real: AnnData,
    control: AnnData,
    *,
    context_key: str | Sequence[str] = (),
    train: AnnData | None = None,
    pert_key: str | None = None,
    pert_features: pd.DataFrame | None = None,
    name: str = "model",
    min_cells: int = MIN_CELLS,
    weights: Literal["equal", "cells"] = "equal",
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score how well predicted effects discriminate between perturbations, beside naive baselines.

    An effect is the mean of cells under a perturbation minus the mean of control cells of the same context, over the
    log1p expression and the genes of `pred`. Control cells are taken as by :func:`evaluate_perturbation`: those that
    were predicted from, for model and baselines alike; predicted effects are against one random half of them and
    measured ones against the other, averaged over both directions of 5 splits.

    Within a context, the measured effects of all perturbations are ranked by their cosine with one predicted effect;
    the score is the share of the other perturbations that rank behind the right one: 1, always nearest; 0.5, chance
    (:func:`scstate_lora.metrics.discrimination_score`). The genes that a perturbation is named after, also those of a
    combination ``"A+B"``, are left out of its comparison, because a knocked-down gene would give it away.

    Rows of ``model``: the model (`name`) and

    * ``"no change"``: no effect, which has no direction: always NaN;
    * ``"mean effect"``: the average effect over training perturbations and contexts, for every perturbation: 0.5 on
      average, except for the genes left out, however well it correlates with the measured effects;
    * ``"mean shift"``: the perturbation's own average effect over the training contexts, NaN where training lacks it;
    * ``"linear"``: ridge regression on the context's control mean and on the perturbation
      (:class:`scstate_lora.metrics.LinearEffects`); for unseen perturbations by `pert_features`;
    * ``"ceiling"``: one random half of the measured cells against the other, each with a half of the controls of its
      own, 5 splits averaged. How the score would be at full depth is not known, so it is not corrected.

    Perturbations with fewer than `min_cells` measured cells in a context, or too few controls there, have a row of
    their own, and count in no average.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`, for two targets or more.
    real
        Measured cells of the same targets. A target without measured cells in a context is left out of it.
    control
        Measured cells; those with the control level that `pred` was predicted from are used.
    context_key
        Column or columns of obs that define a context, for instance the cell type; by default all cells are one.
    train
        Training cells of the model, from which the baselines learn.
    pert_key
        Column of the perturbation in `real`, `control` and `train`; by default that of the prediction.
    pert_features
        Features of perturbations for the linear baseline, as given to the model: one row per perturbation.
    name
        Name of the model in the table.
    min_cells
        Fewest measured cells of a perturbation in a context, and fewest control cells there, that count in averages.
    weights
        Whether contexts weigh the same in the average of a perturbation, or as its number of measured cells.
    n_boot
        Bootstrap samples of perturbations behind the interval of an average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    One row per model, perturbation and context: ``model``, ``context``, ``perturbation``, ``metric``
    (``"discrimination"``), and the columns that :func:`evaluate_perturbation` describes. Further rows are averages of
    every model: within each context (``perturbation`` is ``"all"``), of each perturbation over contexts (``context`` is
    ``"all"``), and over both. Only averages over perturbations have an interval (95 %) and a skill: 0 is chance, 1 the
    ceiling, NaN where the ceiling is not above chance by more than twice its standard deviation over the random halves.

    Adds ``pred.uns["scstate_lora"]["discrimination"]``, the same table.

    Raises
    ------
    KeyError
        If a column or gene is missing, or a measured AnnData was not set up.
    TypeError
        If `pert_features` is not a table of numbers.
    ValueError
        If `pred` is not a prediction, a measured AnnData holds predicted cells, no context has two perturbations both
        predicted and measured, no control cell of `pred` is among the controls, or `pert_features` lacks a perturbation
        of `train`.

    Warns
    -----
    UserWarning
        If perturbed cells of `train`, or cells that the model was trained on, are among those of `real`.
    """
    counting = Counting.checked(min_cells, weights)
    inputs = read_inputs(
        pred,
        real,
        control,
        context_key=context_key,
        train=train,
        pert_key=pert_key,
        pert_features=pert_features,
        name=name,
    )
    table = score_effects(
        inputs.predicted,
        inputs.measured,
        inputs.controls,
        shared_targets(inputs.predicted, inputs.measured, inputs.contexts),
        name=name,
        training=inputs.training,
        hidden_genes=own_genes(inputs.targets, inputs.genes),
        counting=counting,
        n_boot=n_boot,
        seed=seed,
    )
    write_result(pred, DISCRIMINATION, table)
    return table
