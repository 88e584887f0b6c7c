"""Scores of predicted cells beside the naive baselines and the replicate ceiling: `evaluate_perturbation`."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora._constants import UNS_KEY
from scstate_lora._utils import did_you_mean
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.fields import as_labels, obs_column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from scipy import sparse

NO_CHANGE, MEAN_SHIFT, PERTURBED_MEAN, CEILING = "no change", "mean shift", "perturbed mean", "ceiling"
ALL_CONTEXTS = "all"
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
}


class _Cells(NamedTuple):
    """Cells of one role: their log1p expression over the predicted genes and the context of each."""

    expression: sparse.csr_matrix
    contexts: np.ndarray

    def at(self, rows: np.ndarray) -> _Cells:
        """Return the cells of a boolean mask."""
        return _Cells(self.expression[np.flatnonzero(rows)], self.contexts[rows])

    def of(self, context: str) -> np.ndarray:
        """Dense float32 expression of one context, shape ``(n, n_genes)``."""
        return self.expression[np.flatnonzero(self.contexts == context)].toarray()

    def means(self) -> dict[str, np.ndarray]:
        """Mean expression of every context, float64 of shape ``(n_genes,)``."""
        return {
            context: np.asarray(
                self.expression[np.flatnonzero(self.contexts == context)].mean(axis=0, dtype=np.float64)
            ).ravel()
            for context in sorted(set(self.contexts))
        }


def evaluate_perturbation(
    pred: AnnData,
    real: AnnData,
    control: AnnData,
    *,
    context_key: str | Sequence[str],
    train: AnnData | None = None,
    pert_key: str | None = None,
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

    Rows of ``model``: the model (`name`); ``"no change"``, the control cells; ``"mean shift"``, the control cells plus
    the average delta of the training contexts, clipped at 0; ``"perturbed mean"``, the average perturbed profile of the
    training contexts; ``"ceiling"``, one half of the measured cells against the other, 5 random splits averaged. In
    training every context weighs the same.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`STTransition.predict`, for one target.
    real
        Measured cells; those with the predicted target are used.
    control
        Measured cells; those with the control level are used. They must be measured, not predicted.
    context_key
        Column or columns of obs that make a context, for instance the cell type; an empty list makes one context of all
        cells. The contexts scored are those with both predicted and measured cells.
    train
        Cells that the model was trained on, control and perturbed, from which the baselines learn. Without it the mean
        shift, the perturbed mean and the skill are NaN.
    pert_key
        Column of the perturbation in `real`, `control` and `train`; by default the one of the prediction.
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
    ValueError
        If `pred` is no prediction of one target, a measured AnnData holds predicted cells, no context can be scored, or
        a context has no measured controls.

    Warns
    -----
    UserWarning
        If perturbed cells of `train` are among those of `real`.
    """
    if name in (NO_CHANGE, MEAN_SHIFT, PERTURBED_MEAN, CEILING):
        raise ValueError(f"name={name!r} is the name of a baseline; choose another one.")
    predict = pred.uns.get(UNS_KEY, {}).get("predict")
    if predict is None:
        raise ValueError(
            "pred.uns['scstate_lora']['predict'] does not exist; pred must come from STTransition.predict."
        )
    context_keys = [context_key] if isinstance(context_key, str) else list(context_key)
    measured = {"real": real, "control": control} | ({} if train is None else {"train": train})
    for argument, adata in measured.items():
        _refuse_predicted(adata, argument)

    pert_key = str(predict["pert_key"]) if pert_key is None else pert_key
    level = str(predict["control"])
    target = _target(pred, str(predict["pert_key"]))
    genes = [str(g) for g in pred.var_names]
    read = partial(_cells, genes=genes, context_keys=context_keys)
    predicted = read(pred, "pred")
    perturbed = read(real, "real").at(_rows(real, "real", pert_key, target))
    controls = read(control, "control").at(_rows(control, "control", pert_key, level))
    contexts = _contexts(predicted, perturbed, controls)
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    if train is not None:
        _warn_of_overlap(real, train, pert_key=pert_key, target=target)
        trained, labels = read(train, "train"), _labels(train, pert_key, "train")
        before, after = trained.at(labels == level).means(), trained.at(labels == target).means()
    deltas = [after[context] - before[context] for context in after if context in before]

    models = [name, NO_CHANGE, MEAN_SHIFT, PERTURBED_MEAN, CEILING]
    values = np.full((len(models), len(contexts), len(_METRICS)), np.nan)
    reasons = np.full(values.shape, "", dtype=object)
    for c, context in enumerate(contexts):
        control_cells = controls.of(context)
        predictions = [
            predicted.of(context),
            metrics.no_change(control_cells),
            metrics.mean_shift(control_cells, deltas) if deltas else None,
            metrics.perturbed_mean(control_cells, list(after.values())) if after else None,
        ]
        values[:, c], reasons[:, c] = _score(predictions, perturbed.of(context), control_cells, seed=seed)
    table = _table(values, reasons, models=models, contexts=contexts, n_boot=n_boot, seed=seed)
    pred.uns[UNS_KEY] = {**pred.uns[UNS_KEY], "evaluate_perturbation": table}
    return table


def _score(
    predictions: Sequence[np.ndarray | None], real: np.ndarray, control: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score every prediction, and last the ceiling; values and reasons of shape ``(n_predictions + 1, n_metrics)``."""
    results = [[_attempt(metric, cells, real, control) for metric in _METRICS.values()] for cells in predictions]
    results.append([_attempt_ceiling(metric, real, control, seed=seed) for metric in _METRICS.values()])
    values = np.array([[value for value, _ in row] for row in results])
    reasons = np.array([[reason for _, reason in row] for row in results], dtype=object)
    return values, reasons


def _refuse_predicted(adata: AnnData, argument: str) -> None:
    if "predict" in adata.uns.get(UNS_KEY, {}) or "control_cell" in adata.obs:
        raise ValueError(
            f"{argument} holds predicted cells (it comes from STTransition.predict); scores need measured ones. "
            f"Give the measured cells as {argument}."
        )


def _labels(adata: AnnData, key: str, argument: str) -> np.ndarray:
    if key not in adata.obs:
        raise KeyError(f"{argument}.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}")
    return as_labels(obs_column(adata, key)).to_numpy(dtype=object)


def _target(pred: AnnData, pert_key: str) -> str:
    targets = sorted(set(_labels(pred, pert_key, "pred")))
    if len(targets) != 1:
        raise ValueError(
            f"pred.obs[{pert_key!r}] holds {len(targets)} targets ({', '.join(targets[:5])}); score one at a time: "
            f"evaluate_perturbation(pred[pred.obs[{pert_key!r}] == ...], ...)."
        )
    return targets[0]


def _rows(adata: AnnData, argument: str, pert_key: str, level: str) -> np.ndarray:
    """Mask of the cells with that level of the perturbation; there must be one."""
    labels = _labels(adata, pert_key, argument)
    if level not in labels:
        found = ", ".join(repr(label) for label in sorted(set(labels))[:10])
        raise ValueError(f"{argument}.obs[{pert_key!r}] has no cell {level!r}; it holds {found}.")
    return labels == level


def _cells(adata: AnnData, argument: str, *, genes: list[str], context_keys: list[str]) -> _Cells:
    """Read all cells, genes in the order of the prediction."""
    columns = [_labels(adata, key, argument) for key in context_keys]
    contexts = np.full(adata.n_obs, ALL_CONTEXTS, dtype=object)
    if columns:
        contexts = np.array([" | ".join(parts) for parts in zip(*columns, strict=True)], dtype=object)
    is_predicted = "predict" in adata.uns.get(UNS_KEY, {})
    found = [str(g) for g in adata.var_names] if is_predicted else Registry.from_adata(adata).var_names
    position = {gene: i for i, gene in enumerate(found)}
    for gene in genes:
        if gene not in position:
            missing = sum(g not in position for g in genes)
            raise KeyError(
                f"{missing} of the {len(genes)} genes of pred are not in {argument}, the first is {gene!r}. "
                f"{did_you_mean(gene, found)}"
            )
    return _Cells(log_expression(adata)[:, [position[gene] for gene in genes]], contexts)


def _contexts(predicted: _Cells, perturbed: _Cells, controls: _Cells) -> list[str]:
    contexts = sorted(set(predicted.contexts) & set(perturbed.contexts))
    if not contexts:
        raise ValueError(
            f"No context has both predicted and measured cells: pred has {sorted(set(predicted.contexts))[:10]}, "
            f"real has {sorted(set(perturbed.contexts))[:10]}."
        )
    if ALL_CONTEXTS in contexts and len(contexts) > 1:
        raise ValueError(f"A context is called {ALL_CONTEXTS!r}, the name of the average over contexts; rename it.")
    lacking = sorted(set(contexts) - set(controls.contexts))
    if lacking:
        raise ValueError(
            f"control has no measured control cells in {', '.join(lacking)}; a delta needs controls of its own "
            "context. Add them, or leave these contexts out of pred."
        )
    return contexts


def _warn_of_overlap(real: AnnData, train: AnnData, *, pert_key: str, target: str) -> None:
    trained = set(train.obs_names[_labels(train, pert_key, "train") == target])
    shared = len(trained & set(real.obs_names[_labels(real, pert_key, "real") == target]))
    if shared:
        warnings.warn(
            f"{shared} cells {target!r} are in both real and train, by name: the scores are not of held-out cells.",
            UserWarning,
            stacklevel=3,
        )


def _attempt(metric: _Metric, cells: np.ndarray | None, real: np.ndarray, control: np.ndarray) -> tuple[float, str]:
    """Return the value and no reason, or NaN and why it could not be computed."""
    if cells is None:
        return np.nan, "no training context with the needed cells: give train="
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
