"""Scores of predicted cells beside the naive baselines and the replicate ceiling: `evaluate_perturbation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora.data.results import EVALUATE_PERTURBATION, read_prediction, write_result
from scstate_lora.tl.scoring.cell_scores import baseline_predictors, prediction, score_cells
from scstate_lora.tl.scoring.inputs import read_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def evaluate_perturbation(
    pred: AnnData,
    real: AnnData,
    control: AnnData,
    *,
    context_key: str | Sequence[str],
    train: AnnData | None = None,
    pert_key: str | None = None,
    pert_features: pd.DataFrame | None = None,
    name: str = "model",
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells against measured ones, context by context, beside naive baselines.

    All scores are over log1p of counts per 10,000 and the genes of `pred`; a delta is the mean of cells minus the mean
    of the measured controls of the same context.

    * ``pearson_delta``, ``pearson_delta_top20``, ``pearson_delta_top50``: correlation of predicted and measured delta
      over all genes, or those with the largest measured delta.
    * ``mae``, ``mse``: difference between the means of predicted and measured cells.
    * ``e_distance``: energy distance, V-statistic, not halved (:func:`scstate_lora.metrics.energy_distance`).
    * ``variance_ratio``: total variance over the measured one; 1 is right, near 0 is mode collapse.
    * ``mse_de_weighted``: ``mse`` with every gene weighted by the evidence that it changes in the measured cells.
    * ``mmd``: squared maximum mean discrepancy, Gaussian kernels (:func:`scstate_lora.metrics.mmd`).
    * ``nearest_distance``, ``nearest_distance_relative``: mean distance of a predicted cell to the nearest measured
      one, and the same divided by the mean distance between measured cells. A collapsed prediction can score well here.
    * ``de_overlap50``, ``de_direction50``, ``de_precision50``: the share of the 50 most changed measured genes (Welch's
      t-test, FDR under 5 %) that are among the 50 most changed predicted ones; the share of them that is predicted to
      move the same way; and the share of the 50 most changed predicted genes that change in the measured cells.

    Rows of ``model``: the model (`name`) and

    * ``"no change"``: the control cells;
    * ``"mean shift"``: the control cells plus the average delta of the training contexts, clipped at 0;
    * ``"perturbed mean"``: the average perturbed profile of the training contexts;
    * ``"context mean"``: the average training cell of the context, whatever its perturbation;
    * ``"linear"``: the control cells plus a delta by ridge regression on the context's control mean and on the
      perturbation, clipped at 0 (:class:`scstate_lora.metrics.LinearEffects`; with fewer than three training contexts
      it is the mean shift);
    * ``"ceiling"``: one half of the measured cells against the other, 5 random splits averaged.

    All training contexts have the same weight. For an unseen target, mean shift and perturbed mean are averages over
    the training perturbations, and the linear baseline needs `pert_features`.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`, for one target.
    real
        Measured cells; those with the predicted target are used.
    control
        Measured cells; those with the control level are used.
    context_key
        Column or columns of obs that define a context, for instance the cell type; an empty list makes one context of
        all cells. Contexts with both predicted and measured cells are scored. Missing values that the set-up allowed
        are the context ``"(missing)"``.
    train
        Training cells of the model, control and perturbed, from which the baselines learn. Without them all baselines
        but "no change", and the skill, are NaN.
    pert_key
        Column of the perturbation in `real`, `control` and `train`; by default that of the prediction.
    pert_features
        Features of perturbations for the linear baseline, as given to the model: one row per perturbation.
    name
        Name of the model in the table.
    n_boot
        Bootstrap samples of contexts behind the interval of the average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    One row per model, context and metric: ``model``, ``context`` (``"all"`` is the average over contexts), ``metric``,
    ``value``, ``skill``, ``ci_low`` and ``ci_high`` (95 % interval of the average, NaN with a single context),
    ``direction`` (``"higher"``, ``"lower"`` or nearest to ``"one"`` is better), ``lowest`` and ``highest`` possible
    value, ``reason``: why a value is NaN, or which contexts an average lacks, else empty. ``skill`` is 0 for the mean
    shift and 1 for the ceiling, NaN where the ceiling is no better than the mean shift; of the average it is the ratio
    of averages, not the average of ratios.

    Adds ``pred.uns["scstate_lora"]["evaluate_perturbation"]``, the same table.

    Raises
    ------
    KeyError
        If a column or gene is missing, or a measured AnnData was not set up.
    TypeError
        If `pert_features` is not a table of numbers.
    ValueError
        If `pred` is not a prediction of one target, a measured AnnData holds predicted cells, no context can be scored,
        a context has no measured controls, or `pert_features` lacks a perturbation of `train`.

    Warns
    -----
    UserWarning
        If perturbed cells of `train` are among those of `real`.
    """
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
    if len(inputs.targets) != 1:
        key = read_prediction(pred).pert_key
        msg = (
            f"pred.obs[{key!r}] holds {len(inputs.targets)} targets ({', '.join(inputs.targets[:5])}); score one at a "
            f"time: evaluate_perturbation(pred[pred.obs[{key!r}] == ...], ...). For all at once use discrimination."
        )
        raise ValueError(msg)
    predictors = {name: prediction(inputs.predicted), **baseline_predictors(inputs.targets[0], inputs.training)}
    table = score_cells(predictors, inputs.measured, inputs.controls, inputs.contexts, n_boot=n_boot, seed=seed)
    write_result(pred, EVALUATE_PERTURBATION, table)
    return table
