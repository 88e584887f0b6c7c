"""Scores of predicted cells beside the naive baselines and the replicate ceiling: `evaluate_perturbation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scstate_lora.data.results import EVALUATE_PERTURBATION, write_result
from scstate_lora.tl.scoring.cell_scores import score_cells
from scstate_lora.tl.scoring.cells import GroupedCells
from scstate_lora.tl.scoring.inputs import own_genes, read_inputs
from scstate_lora.tl.scoring.predictors import PredictedCells
from scstate_lora.tl.scoring.table import MIN_CELLS, Counting
from scstate_lora.tl.scoring.yardstick import Yardsticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.tl.scoring.predictors import Predictor


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
    min_cells: int = MIN_CELLS,
    weights: Literal["equal", "cells"] = "equal",
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predicted cells against measured ones, by perturbation and context, beside naive baselines.

    All scores are over the log1p expression and the genes of `pred`. Model, baselines and ceiling are scored with
    the same control cells: those of `control` that `pred` was predicted from. Predicted cells of others are left out.
    In a context where nothing was predicted from those of `control`, the controls of `real` and then of `train` are
    used.

    A delta is the mean of cells minus the mean of controls of the same context. If prediction and measurement are
    compared with the same controls, their noise is in both deltas and counts as agreement. So every score of changes
    (``pearson_delta*``, ``mse_de_weighted``, ``de_*``) takes the cells that were predicted from one random half of the
    controls, beside that half, and the measured cells beside the other half, and is averaged over both directions of 5
    splits, which all models and baselines share. What baselines learn from training cells they learn without the other
    half. All other scores compare whole sets of cells.

    * ``pearson_delta``, ``pearson_delta_top20``, ``pearson_delta_top50``: correlation of predicted and measured delta
      over all genes, or those with the largest measured delta.
    * ``mae``, ``mse``: difference between the means of predicted and measured cells.
    * ``e_distance``: energy distance, V-statistic, not halved (:func:`scstate_lora.metrics.energy_distance`).
    * ``variance_ratio``: total variance over the measured one; 1 is right, near 0 is mode collapse.
    * ``mse_de_weighted``: ``mse`` with every gene weighted by the evidence that it changes in the measured cells.
    * ``mmd``: squared maximum mean discrepancy, Gaussian kernels (:func:`scstate_lora.metrics.mmd`).
    * ``nearest_distance_relative``: mean distance of a predicted cell to the nearest measured one, over that of a
      measured cell to the nearest other one. 1 is right; a prediction that collapsed to a likely profile, or copies
      measured cells, is below 1.
    * ``e_distance_centered``: E-distance after both sets are moved to their means; ``sd_ratio``, ``sd_r2``,
      ``detection_r2``, ``detection_mae``: standard deviation and detection rate of every gene beside the measured ones;
      ``cell_cov_corr``: whether the genes that change most vary together as measured
      (:func:`scstate_lora.metrics.cell_cov_corr`; at least 50 cells on either side, 500 at most).
    * ``de_overlap50``, ``de_direction50``, ``de_precision50``: the share of the 50 most changed measured genes (Welch's
      t-test, FDR under 5 %) that are among the 50 most changed predicted ones; the share of them that is predicted to
      move the same way; and the share of the 50 most changed predicted genes that change in the measured cells.

    Further ones are of counts: those of `pred` if it has counts and the measured cells, too, else expm1 of the log1p
    values. They take all control cells on both sides, and leave out the genes that a perturbation is named after:

    * ``sig_jaccard``, ``direction_fidelity_yield``, ``direction_reach``, ``lfc_nmae``: which genes are called by
      Wilcoxon's test (:func:`scstate_lora.metrics.de_table`), their direction, and their log fold change. Of a
      prediction with more cells than were measured as many as were measured are tested;
    * ``pds_cosine``: how well perturbations of a context are told apart, 0.5 by chance;
    * ``expr_mse_unbiased_capped_norm``: squared error over squared effect, without noise
      (:func:`scstate_lora.metrics.unbiased_errors`); its averages are ratios of sums;
    * ``hit_recall_budget``, ``hit_recall_fdr10``: of the perturbations with a measured effect (10 called genes) the
      share among the quarter, 20 at most, with the largest predicted effect, and above the best threshold with at most
      10 % false ones.

    And of the perturbations of a context together: ``pearson_delta_centroid`` (changes against the mean of the training
    perturbations there, or without two of them of the measured ones) and ``centroid_accuracy``
    (:func:`scstate_lora.metrics.centroid_accuracy`).

    Rows of ``model``: the model (`name`) and

    * ``"no change"``: the control cells, of more than 1,000 of a context so many, as for all baselines;
    * ``"mean shift"``: the control cells plus the average delta of the training contexts, clipped at 0;
    * ``"perturbed mean"``: the average perturbed profile of the training contexts;
    * ``"context mean"``: the average training cell of the context, whatever its perturbation;
    * ``"linear"``: the control cells plus a delta by ridge regression on the context's control mean and on the
      perturbation, clipped at 0 (:class:`scstate_lora.metrics.LinearEffects`; with fewer than three training contexts
      it is the mean shift);
    * ``"ceiling"``: a replicate: one random half of the measured cells against the other, each with a half of the
      controls of its own, the mean of 5 splits. Halves have more noise than the whole, so this is corrected to full
      depth: correlations by Spearman and Brown, ``2 r / (1 + r)``; squared errors, E-distance and MMD are halved; the
      absolute error is divided by the root of 2. For ``de_*`` and the scores of counts, which take 2 of the splits, no
      correction is known, and ``variance_ratio``, ``nearest_distance_relative`` and the unbiased error need none.

    The skill is 0 for the baseline that was best at a metric on training cells which were left out: whole contexts
    where the scored ones have no training cells of the perturbation, perturbations where training lacks them, else
    cells. It never depends on the test cells; the column ``yardstick`` names it.

    Whether a metric can tell good from bad on these cells is said beside it. ``dynamic_range``: where an interpolated
    duplicate lies between a prediction of the average training effect, 0, and a perfect one, 1; the duplicate is one
    half of the measured cells, each gene moved towards that average by the adjusted p-value of its change, scored
    against the other half. ``baseline_saturation``: where the yardstick lies between "no change", 0, and ceiling, 1.

    Distances (of ``e_distance``, ``mmd``, ``nearest_distance_relative``) are between at most 1,000 cells a set.

    All training contexts have the same weight. For an unseen target, mean shift and perturbed mean are averages over
    the training perturbations, and the linear baseline needs `pert_features`.

    In the average over contexts, those with fewer than `min_cells` control or measured cells do not count.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`, for one target or many; or by any model, if
        `pert_key` names the column of the perturbation, which it shares with `real`, as it shares the columns of the
        context. Its values are log1p on the scale of `real`, or counts (with the counts over all genes in
        ``obs["library_size"]`` unless it has all genes); its control cells are left out. If it has no
        ``obs["control_cell"]`` with the names of the control cells that it was predicted from, its change is taken
        against all control cells, and the noise of these, if it is in the prediction, counts as agreement.
    real
        Measured cells; those with the predicted targets are used.
    control
        Measured cells; those with the control level that `pred` was predicted from are used. Best are controls that
        were held out of the training: a model that was trained on them, beside perturbed cells of the same context, has
        their noise in its change. A warning is logged then.
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
    min_cells
        Fewest control cells, and fewest measured cells, of a context that counts in the average.
    weights
        Whether contexts weigh the same in the average, or as their number of measured cells.
    n_boot
        Bootstrap samples of contexts behind the interval of the average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    One row per model, perturbation, context and metric: ``model``, ``context`` (``"all"`` is the average over
    contexts), ``perturbation`` (``"all"`` is the average over perturbations, if there are several), ``metric``,
    ``value``, ``split_sd`` (standard deviation over the random halves, NaN without halves), ``skill``, ``ci_low`` and
    ``ci_high`` (95 % interval of the average over perturbations, or of one perturbation over contexts; NaN of a single
    one), ``direction`` (``"higher"``, ``"lower"`` or nearest to ``"one"`` is better), ``lowest`` and ``highest``
    possible value, ``n_control`` and ``n_measured``: number of control cells that were predicted from, and of measured
    cells; ``weight`` in the average, 0 if it does not count, and of an average over perturbations their number;
    ``reason``: why a value is NaN, or what an average lacks, else empty. ``skill`` is 0 for the yardstick and 1 for the
    ceiling; of an average it is the ratio of averages, not the average of ratios. It is NaN, and ``skill_reason`` says
    so, where the ceiling is not above the yardstick by more than twice the standard deviation of their difference over
    the random halves. ``yardstick``, ``dynamic_range`` and ``baseline_saturation`` are described above.

    Adds ``pred.uns["scstate_lora"]["evaluate_perturbation"]``, the same table.

    Raises
    ------
    KeyError
        If a column or gene is missing, or a measured AnnData was not set up.
    TypeError
        If `pert_features` is not a table of numbers.
    ValueError
        If `pred` is not a prediction, a measured AnnData holds predicted cells, no context can be scored,
        no control cell of `pred` is among the controls, or `pert_features` lacks a perturbation of `train`.

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
    trained_on = own_genes(sorted({target for target, _ in inputs.training.pairs}), inputs.genes)
    predictors: dict[str, Predictor] = {name: PredictedCells(GroupedCells(inputs.predicted))}
    table = score_cells(
        predictors,
        inputs.measured,
        inputs.controls,
        inputs.pairs,
        training=inputs.training,
        yardsticks=None if train is None else Yardsticks(inputs.training, trained_on, seed=seed),
        counting=counting,
        hidden_genes=own_genes(inputs.targets, inputs.genes),
        n_boot=n_boot,
        seed=seed,
    )
    write_result(pred, EVALUATE_PERTURBATION, table)
    return table
