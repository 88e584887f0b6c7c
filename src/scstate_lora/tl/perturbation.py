"""Scores of predicted cells beside the naive baselines and the replicate ceiling: `evaluate_perturbation`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora.data import Registry
from scstate_lora.data.results import EVALUATE_PERTURBATION, read_prediction, write_result
from scstate_lora.tl.scoring.cells import (
    ALL_CONTEXTS,
    Trained,
    common_contexts,
    feature_table,
    labels_of,
    read_cells,
    refuse_predicted,
    require_level,
    warn_of_overlap,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from scstate_lora.data.perturbations import PerturbationTable

NO_CHANGE, MEAN_SHIFT, PERTURBED_MEAN, CEILING = "no change", "mean shift", "perturbed mean", "ceiling"
CONTEXT_MEAN, LINEAR = "context mean", "linear"
BASELINES = (NO_CHANGE, MEAN_SHIFT, PERTURBED_MEAN, CONTEXT_MEAN, LINEAR)
_N_SPLITS = 5  # random halves averaged for the ceiling


class _Metric(NamedTuple):
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # of predicted, measured and control cells
    direction: Literal["higher", "lower", "one"]  # "higher" or "lower" is better, or best at "one"
    lowest: float
    highest: float


def _of_means(score: Callable[..., float]) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    return lambda pred, real, control: score(_mean(pred), _mean(real), _mean(control))


_METRICS = {
    "pearson_delta": _Metric(_of_means(metrics.pearson_delta), "higher", -1.0, 1.0),
    "pearson_delta_top20": _Metric(_of_means(partial(metrics.pearson_delta_top, n_top=20)), "higher", -1.0, 1.0),
    "pearson_delta_top50": _Metric(_of_means(partial(metrics.pearson_delta_top, n_top=50)), "higher", -1.0, 1.0),
    "mae": _Metric(lambda pred, real, _: metrics.mae(_mean(pred), _mean(real)), "lower", 0.0, np.inf),
    "mse": _Metric(lambda pred, real, _: metrics.mse(_mean(pred), _mean(real)), "lower", 0.0, np.inf),
    "e_distance": _Metric(lambda pred, real, _: metrics.energy_distance(pred, real), "lower", 0.0, np.inf),
    "variance_ratio": _Metric(lambda pred, real, _: metrics.variance_ratio(pred, real), "one", 0.0, np.inf),
    "mse_de_weighted": _Metric(metrics.weighted_mse, "lower", 0.0, np.inf),
    "mmd": _Metric(lambda pred, real, _: metrics.mmd(pred, real), "lower", 0.0, 2.0),
    "nearest_distance": _Metric(lambda pred, real, _: metrics.nearest_distance(pred, real), "lower", 0.0, np.inf),
    "nearest_distance_relative": _Metric(
        lambda pred, real, _: metrics.relative_nearest_distance(pred, real), "lower", 0.0, np.inf
    ),
    "de_overlap50": _Metric(partial(metrics.de_overlap, n_top=50), "higher", 0.0, 1.0),
    "de_direction50": _Metric(partial(metrics.de_direction, n_top=50), "higher", 0.0, 1.0),
    "de_precision50": _Metric(partial(metrics.de_precision, n_top=50), "higher", 0.0, 1.0),
}


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
    """Score predicted cells against measured ones, context by context, beside what simple methods reach.

    All scores are over log1p of counts per 10,000 and the genes of `pred`; a delta is a mean minus the mean of the
    measured controls of the same context.

    * ``pearson_delta``, ``pearson_delta_top20``, ``pearson_delta_top50``: correlation of predicted and measured delta
      over all genes, or those with the largest measured delta.
    * ``mae``, ``mse``: difference between the means of predicted and measured cells.
    * ``e_distance``: energy distance, V-statistic, not halved (:func:`scstate_lora.metrics.energy_distance`).
    * ``variance_ratio``: total variance over the measured one; 1 is right, near 0 is mode collapse.
    * ``mse_de_weighted``: ``mse`` with every gene weighted by how surely it changes in the measured cells.
    * ``mmd``: squared maximum mean discrepancy, Gaussian kernels (:func:`scstate_lora.metrics.mmd`).
    * ``nearest_distance``, ``nearest_distance_relative``: mean distance of a predicted cell to the nearest measured
      one, as it is and over the mean distance between measured cells. A collapsed prediction can score well here.
    * ``de_overlap50``, ``de_direction50``, ``de_precision50``: of the 50 most changed measured genes (Welch's t-test,
      FDR under 5 %), those also among the 50 most changed predicted ones, and those predicted to move the same way; of
      the 50 most changed predicted genes, those that change in the measured cells.

    Rows of ``model``: the model (`name`) and

    * ``"no change"``: the control cells;
    * ``"mean shift"``: the control cells plus the average delta of the training contexts, clipped at 0;
    * ``"perturbed mean"``: the average perturbed profile of the training contexts;
    * ``"context mean"``: the average training cell of the context, whatever its perturbation;
    * ``"linear"``: the control cells plus a delta by ridge regression on the context's control mean and on the
      perturbation, clipped at 0 (:class:`scstate_lora.metrics.LinearEffects`, which says what can be learnt from few
      contexts; with fewer than three it is the mean shift);
    * ``"ceiling"``: one half of the measured cells against the other, 5 random splits averaged.

    In training every context weighs the same. Of a target that no training cell has, mean shift and perturbed mean are
    the averages over the perturbations of training, and the linear baseline needs `pert_features`.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`, for one target.
    real
        Measured cells; those with the predicted target are used.
    control
        Measured cells; those with the control level are used. They must be measured, not predicted.
    context_key
        Column or columns of obs that make a context, for instance the cell type; an empty list makes one context of all
        cells. The contexts scored are those with both predicted and measured cells. Missing values that the setup
        allowed are the context ``"(missing)"``.
    train
        Cells that the model was trained on, control and perturbed, from which the baselines learn. Without it all but
        "no change" and the ceiling, and the skill, are NaN.
    pert_key
        Column of the perturbation in `real`, `control` and `train`; by default the one of the prediction.
    pert_features
        Features of perturbations for the linear baseline, as given to the model: one row a perturbation.
    name
        What to call the model in the table.
    n_boot
        Bootstrap samples of contexts behind the interval of the average.
    seed
        Of the random halves and the bootstrap.

    Returns
    -------
    One row a metric: ``model``, ``context`` (``"all"`` is the average over contexts), ``metric``, ``value``, ``skill``,
    ``ci_low`` and ``ci_high`` (95 % interval of the average, NaN with a single context), ``direction`` (``"higher"``,
    ``"lower"`` or nearest to ``"one"`` is better), ``lowest`` and ``highest`` possible value, ``reason``: why a value
    is NaN, or which contexts an average lacks, else empty.
    ``skill`` is 0 for the mean shift and 1 for the ceiling, NaN where the ceiling is no better than the mean shift;
    of the average it is the ratio of averages, not the average of ratios.

    Adds ``pred.uns["scstate_lora"]["evaluate_perturbation"]``, the same table.

    Raises
    ------
    KeyError
        If a column or gene is missing, or a measured AnnData was not set up.
    TypeError
        If `pert_features` is no table of numbers.
    ValueError
        If `pred` is no prediction of one target, a measured AnnData holds predicted cells, no context can be scored, a
        context has no measured controls, or `pert_features` lacks a perturbation of `train`.

    Warns
    -----
    UserWarning
        If perturbed cells of `train` are among those of `real`.
    """
    if name in (*BASELINES, CEILING):
        msg = f"name={name!r} is the name of a baseline; choose another one."
        raise ValueError(msg)
    prediction = read_prediction(pred)
    for argument, adata in (("real", real), ("control", control), ("train", train)):
        if adata is not None:
            refuse_predicted(adata, argument)

    level, own_key = prediction.control, prediction.pert_key
    pert_key = own_key if pert_key is None else pert_key
    keys = [context_key] if isinstance(context_key, str) else list(context_key)
    read = partial(read_cells, genes=[str(g) for g in pred.var_names], context_keys=keys)
    registry = Registry.from_adata(real)
    target = _target(pred, own_key, registry)
    predicted = read(pred, "pred", registry=registry, pert_key=own_key)
    measured = read(real, "real", registry=registry, pert_key=pert_key)
    perturbed = require_level(measured, "real", pert_key, target)
    held = read(control, "control", registry=Registry.from_adata(control), pert_key=pert_key)
    controls = require_level(held, "control", pert_key, level)
    contexts = common_contexts(predicted, perturbed, controls)
    trained = None
    if train is not None:
        trained = read(train, "train", registry=Registry.from_adata(train), pert_key=pert_key)
        in_train = train.obs_names[trained.perturbations == target]
        warn_of_overlap(real.obs_names[measured.perturbations == target], in_train, what=f"cells {target!r}")
    features = feature_table(pert_features, trained, control=level)
    known = Trained.of(trained, control=level, features=features)

    models = [name, *BASELINES, CEILING]
    values = np.full((len(models), len(contexts), len(_METRICS)), np.nan)
    reasons = np.full(values.shape, "", dtype=object)
    for c, context in enumerate(contexts):
        control_cells = controls.of(context)
        predictions = [predicted.of(context), *_baselines(control_cells, context, target, known, features)]
        values[:, c], reasons[:, c] = _score(predictions, perturbed.of(context), control_cells, seed=seed)
    table = _table(values, reasons, models=models, contexts=contexts, n_boot=n_boot, seed=seed)
    write_result(pred, EVALUATE_PERTURBATION, table)
    return table


def _baselines(
    control: np.ndarray, context: str, target: str, train: Trained, features: PerturbationTable | None
) -> list[np.ndarray | str]:
    """Return the cells that each of the baselines predicts for one context, or why it predicts none."""
    lacking = "no training context with the needed cells: give train="
    deltas, perturbed = _of_target(train.deltas, target), _of_target(train.perturbed, target)
    linear: np.ndarray | str = lacking
    if train.linear is not None:
        try:
            row = None if features is None or target in train.linear.effects else features.encode([target])[0]
            linear = metrics.shifted(control, train.linear.predict(_mean(control), target, features=row))
        except ValueError as error:
            linear = f"{error} Give pert_features=." if features is None else str(error)
    seen = train.all_cells.get(context)
    return [
        metrics.no_change(control),
        metrics.mean_shift(control, deltas) if deltas else lacking,
        metrics.perturbed_mean(control, perturbed) if perturbed else lacking,
        (f"train has no cell of {context}" if train.all_cells else lacking)
        if seen is None
        else metrics.context_mean(control, seen),
        linear,
    ]


def _of_target(means: dict[tuple[str, str], np.ndarray], target: str) -> list[np.ndarray]:
    """Means of the target by context; of a target without any, one mean for each of the other perturbations."""
    own = [mean for (name, _), mean in means.items() if name == target]
    if own:
        return own
    names = sorted({name for name, _ in means})
    return [np.mean([mean for (n, _), mean in means.items() if n == name], axis=0) for name in names]


def _score(
    predictions: Sequence[np.ndarray | str], real: np.ndarray, control: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score every prediction, and last the ceiling; values and reasons of shape ``(n_predictions + 1, n_metrics)``."""
    results = [[_attempt(metric, cells, real, control) for metric in _METRICS.values()] for cells in predictions]
    results.append([_attempt_ceiling(metric, real, control, seed=seed) for metric in _METRICS.values()])
    values = np.array([[value for value, _ in row] for row in results])
    reasons = np.array([[reason for _, reason in row] for row in results], dtype=object)
    return values, reasons


def _target(pred: AnnData, pert_key: str, registry: Registry) -> str:
    targets = sorted(set(labels_of(pred, pert_key, "pred", registry)))
    if len(targets) != 1:
        msg = (
            f"pred.obs[{pert_key!r}] holds {len(targets)} targets ({', '.join(targets[:5])}); score one at a time: "
            f"evaluate_perturbation(pred[pred.obs[{pert_key!r}] == ...], ...). For all at once there is discrimination."
        )
        raise ValueError(msg)
    return str(targets[0])


def _attempt(metric: _Metric, cells: np.ndarray | str, real: np.ndarray, control: np.ndarray) -> tuple[float, str]:
    """Return the value and no reason, or NaN and why it could not be computed."""
    if isinstance(cells, str):
        return np.nan, cells
    try:
        return metric.score(cells, real, control), ""
    except (ValueError, np.linalg.LinAlgError) as error:
        return np.nan, str(error)


def _attempt_ceiling(metric: _Metric, real: np.ndarray, control: np.ndarray, *, seed: int) -> tuple[float, str]:
    try:
        return metrics.ceiling(real, lambda a, b: metric.score(a, b, control), n_splits=_N_SPLITS, seed=seed), ""
    except (ValueError, np.linalg.LinAlgError) as error:
        return np.nan, str(error)


def _table(
    values: np.ndarray, reasons: np.ndarray, *, models: list[str], contexts: list[str], n_boot: int, seed: int
) -> pd.DataFrame:
    """Lay out values and reasons of shape ``(n_models, n_contexts, n_metrics)``, with averages, skill and intervals."""
    rows = []
    for m, model in enumerate(models):
        for k, (name, metric) in enumerate(_METRICS.items()):
            row = {"model": model, "metric": name, "ci_low": np.nan, "ci_high": np.nan}
            row |= {"direction": metric.direction, "lowest": metric.lowest, "highest": metric.highest}
            good, floor, top = metrics.goodness(
                values[[m, models.index(MEAN_SHIFT), models.index(CEILING)], :, k], direction=metric.direction
            )
            skill = metrics.skill(good, floor=floor, ceiling=top)
            for c, context in enumerate(contexts):
                row |= {"context": context, "value": values[m, c, k], "skill": skill[c], "reason": reasons[m, c, k]}
                rows.append(dict(row))
            if contexts != [ALL_CONTEXTS]:
                rows.append(
                    row
                    | _average(values[m, :, k], reasons[m, :, k], contexts, n_boot=n_boot, seed=seed)
                    | {"skill": _skill_of_averages(good, floor, top)}
                )
    columns = ["model", "context", "metric", "value", "skill", "ci_low", "ci_high", "direction", "lowest", "highest"]
    return pd.DataFrame(rows)[[*columns, "reason"]]


def _average(
    values: np.ndarray, reasons: np.ndarray, contexts: list[str], *, n_boot: int, seed: int
) -> dict[str, float | str]:
    """Average one metric of one model over the contexts where it could be computed."""
    finite = np.isfinite(values)
    low, high = metrics.bootstrap_interval(values[finite], n_boot=n_boot, seed=seed)
    lacking = [f"{context}: {reason}" for context, reason in zip(contexts, reasons, strict=True) if reason]
    if not finite.any():
        reason = "; ".join(dict.fromkeys(reasons))
    else:
        reason = f"without {'; '.join(lacking)}" if lacking else ""
    value = float(values[finite].mean()) if finite.any() else np.nan
    return {"context": ALL_CONTEXTS, "value": value, "ci_low": low, "ci_high": high, "reason": reason}


def _skill_of_averages(good: np.ndarray, floor: np.ndarray, top: np.ndarray) -> float:
    """Skill of the averages over the contexts where model, mean shift and ceiling all have a value."""
    columns = np.stack([good, floor, top])
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    if not columns.shape[1]:
        return np.nan
    own, low, high = columns.mean(axis=1)
    return float(metrics.skill(own, floor=low, ceiling=high))


def _mean(cells: np.ndarray) -> np.ndarray:
    return cells.mean(axis=0, dtype=np.float64)
