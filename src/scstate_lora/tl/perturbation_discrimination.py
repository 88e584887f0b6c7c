"""Whether predictions of many perturbations can be told apart by what they predict: `discrimination`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora.data import Registry
from scstate_lora.data.perturbations import SEPARATOR
from scstate_lora.data.results import DISCRIMINATION, read_prediction, write_result
from scstate_lora.tl.scoring.cells import (
    ALL_CONTEXTS,
    Cells,
    Trained,
    common_contexts,
    feature_table,
    mean_of,
    read_cells,
    refuse_predicted,
    require_level,
    warn_of_overlap,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data.perturbations import PerturbationTable

NO_CHANGE, MEAN_EFFECT, MEAN_SHIFT, LINEAR, CEILING = "no change", "mean effect", "mean shift", "linear", "ceiling"
ALL_PERTURBATIONS = "all"
_METRIC = "discrimination"
_N_SPLITS = 5  # random halves averaged for the ceiling
_NO_DIRECTION = "the predicted effect is zero and has no direction"
_NEEDS_TRAIN = "no training context with the needed cells: give train="


class _Scores(NamedTuple):
    """Scores of the perturbations of one context by one model, and why one is NaN."""

    values: np.ndarray  # (n_perturbations,)
    reasons: list[str]


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
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score how well predicted effects tell perturbations apart, beside what simple methods reach.

    An effect is the mean of cells under a perturbation minus the mean of the measured controls of the same context,
    over log1p of counts per 10,000 and the genes of `pred`. Within a context, the measured effects of all perturbations
    are ordered by their cosine with one predicted effect; the score is the share of the other perturbations that lie
    behind the right one: 1, always nearest; 0.5, chance (:func:`scstate_lora.metrics.discrimination_score`). The genes
    that a perturbation is named after, also those of a combination ``"A+B"``, are left out of its own comparison:
    a knocked-down gene would give it away.

    Rows of ``model``: the model (`name`) and

    * ``"no change"``: predicts no effect, which has no direction: always NaN;
    * ``"mean effect"``: the average effect over the perturbations and contexts of training for every perturbation,
      0.5 on average but for the genes left out, whatever its correlation with the measured effects;
    * ``"mean shift"``: the perturbation's own average effect over the training contexts, NaN where training lacks it;
    * ``"linear"``: ridge regression on the context's control mean and on the perturbation
      (:class:`scstate_lora.metrics.LinearEffects`); of perturbations that training lacks by `pert_features`;
    * ``"ceiling"``: one half of the measured cells against the other, 5 random splits averaged.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`, for two targets or more.
    real
        Measured cells of the same targets. Targets without measured cells in a context are left out there.
    control
        Measured cells; those with the control level are used. They must be measured, not predicted.
    context_key
        Column or columns of obs that make a context, for instance the cell type; by default all cells are one context.
    train
        Cells that the model was trained on, from which the baselines learn.
    pert_key
        Column of the perturbation in `real`, `control` and `train`; by default the one of the prediction.
    pert_features
        Features of perturbations for the linear baseline, as given to the model: one row a perturbation.
    name
        What to call the model in the table.
    n_boot
        Bootstrap samples of perturbations behind the interval of an average.
    seed
        Of the random halves and the bootstrap.

    Returns
    -------
    One row a perturbation and context: ``model``, ``context``, ``perturbation``, ``metric`` (``"discrimination"``),
    ``value``, ``skill``, ``ci_low`` and ``ci_high``, ``direction`` (``"higher"``), ``lowest`` and ``highest`` possible
    value, ``reason``: why a value is NaN, or what an average lacks, else empty. Besides, for every model, the average
    of each context (``perturbation`` is ``"all"``), of each perturbation over contexts (``context`` is ``"all"``), and
    of those (both are ``"all"``). Only averages over perturbations have an interval (95 %) and a skill: 0 is chance,
    1 the ceiling, NaN where the ceiling is no better than chance.

    Adds ``pred.uns["scstate_lora"]["discrimination"]``, the same table.

    Raises
    ------
    KeyError
        If a column or gene is missing, or a measured AnnData was not set up.
    TypeError
        If `pert_features` is no table of numbers.
    ValueError
        If `pred` is no prediction, a measured AnnData holds predicted cells, no context has two perturbations both
        predicted and measured, one has no measured controls, or `pert_features` lacks a perturbation of `train`.

    Warns
    -----
    UserWarning
        If perturbed cells of `train` are among those of `real`.
    """
    models = [name, NO_CHANGE, MEAN_EFFECT, MEAN_SHIFT, LINEAR, CEILING]
    if name in models[1:]:
        msg = f"name={name!r} is the name of a baseline; choose another one."
        raise ValueError(msg)
    prediction = read_prediction(pred)
    for argument, adata in (("real", real), ("control", control), ("train", train)):
        if adata is not None:
            refuse_predicted(adata, argument)

    level, own_key = prediction.control, prediction.pert_key
    pert_key = own_key if pert_key is None else pert_key
    keys = [context_key] if isinstance(context_key, str) else list(context_key)
    genes = [str(g) for g in pred.var_names]
    read = partial(read_cells, genes=genes, context_keys=keys)
    registry = Registry.from_adata(real)
    predicted = read(pred, "pred", registry=registry, pert_key=own_key)
    measured = read(real, "real", registry=registry, pert_key=pert_key)
    held = read(control, "control", registry=Registry.from_adata(control), pert_key=pert_key)
    controls = require_level(held, "control", pert_key, level)
    wanted = sorted(set(predicted.perturbations) - {level})
    in_real = np.isin(measured.perturbations, wanted)
    measured = measured.at(in_real)
    targets = _targets(predicted, measured, common_contexts(predicted, measured, controls))
    trained = None if train is None else read(train, "train", registry=Registry.from_adata(train), pert_key=pert_key)
    features = feature_table(pert_features, trained, control=level)
    if train is not None and trained is not None:
        perturbed = np.isin(trained.perturbations, wanted)
        warn_of_overlap(real.obs_names[in_real], train.obs_names[perturbed], what="perturbed cells")
    known = Trained.of(trained, control=level, features=features)

    scores: dict[tuple[str, str], _Scores] = {}
    for context, names in targets.items():
        control_mean = mean_of(controls.at(controls.contexts == context).expression)
        before = control_mean[None, :]
        effects = _effects(measured, context, names) - before
        hidden = [[genes.index(part) for part in target.split(SEPARATOR) if part in genes] for target in names]
        guesses = {
            name: _Guess.of(_effects(predicted, context, names) - before),
            **_baselines(known, control_mean, names, features),
        }
        for model, guess in guesses.items():
            scores[model, context] = guess.score(effects, hidden)
        scores[CEILING, context] = _ceiling(measured, context, names, before, hidden, seed=seed)
    table = _table(scores, targets, models=models, n_boot=n_boot, seed=seed)
    write_result(pred, DISCRIMINATION, table)
    return table


class _Guess(NamedTuple):
    """Predicted effects of the perturbations of one context; zero, with a reason, where there is none."""

    effects: np.ndarray  # (n_perturbations, n_genes)
    reasons: list[str]

    @classmethod
    def of(cls, effects: np.ndarray) -> _Guess:
        return cls(effects, [_NO_DIRECTION] * len(effects))

    def score(self, real: np.ndarray, hidden: list[list[int]]) -> _Scores:
        """Score the effects that there are."""
        values = metrics.discrimination_score(self.effects, real, excluded=hidden)
        reasons = [
            "" if np.isfinite(value) else reason or _NO_DIRECTION
            for value, reason in zip(values, self.reasons, strict=True)
        ]
        return _Scores(values, reasons)


def _targets(predicted: Cells, measured: Cells, contexts: Sequence[str]) -> dict[str, list[str]]:
    """Perturbations, of every context that has two, that are both predicted and measured there."""
    both = sorted(set(predicted.by_group()) & set(measured.by_group()))
    found = {context: [name for name, where in both if where == context] for context in contexts}
    enough = {context: names for context, names in found.items() if len(names) > 1}
    if not enough:
        most = max(found.values(), key=len)
        msg = (
            "Telling perturbations apart needs two or more in a context, predicted and measured; the most is "
            f"{len(most)} ({', '.join(most)}). Predict several: st.predict(target=[...])."
        )
        raise ValueError(msg)
    return enough


def _effects(cells: Cells, context: str, names: Sequence[str]) -> np.ndarray:
    """Mean cell of every perturbation in one context, ``(n_perturbations, n_genes)``."""
    here = cells.at(cells.contexts == context)
    groups = here.by_group()
    return np.array([mean_of(here.expression[groups[name, context]]) for name in names])


def _baselines(
    train: Trained, control_mean: np.ndarray, names: Sequence[str], features: PerturbationTable | None
) -> dict[str, _Guess]:
    """Effects that the baselines predict for the perturbations of one context."""
    n, nothing = len(names), np.zeros((len(names), len(control_mean)))
    none = _Guess(nothing, [_NEEDS_TRAIN] * n)
    guesses = {NO_CHANGE: _Guess.of(nothing), MEAN_EFFECT: none, MEAN_SHIFT: none, LINEAR: none}
    deltas = train.deltas
    if train.linear is None:
        return guesses
    own: dict[str, list[np.ndarray]] = {}
    for (name, _), delta in deltas.items():
        own.setdefault(name, []).append(delta)
    shifts = {name: np.mean(parts, axis=0) for name, parts in own.items()}
    guesses[MEAN_EFFECT] = _Guess.of(np.tile(np.mean(list(shifts.values()), axis=0), (n, 1)))
    lacking = ["" if name in shifts else f"train has no cell {name!r} in a context with controls" for name in names]
    guesses[MEAN_SHIFT] = _Guess(np.array([shifts.get(name, nothing[0]) for name in names]), lacking)
    linear, reasons = nothing.copy(), []
    for i, name in enumerate(names):
        try:
            row = None if features is None or name in train.linear.effects else features.encode([name])[0]
            linear[i] = train.linear.predict(control_mean, name, features=row)
            reasons.append("")
        except ValueError as error:
            reasons.append(f"{error} Give pert_features=." if features is None else str(error))
    guesses[LINEAR] = _Guess(linear, reasons)
    return guesses


def _ceiling(
    measured: Cells, context: str, names: Sequence[str], before: np.ndarray, hidden: list[list[int]], *, seed: int
) -> _Scores:
    """Score random halves of the measured cells against the others."""
    here = measured.at(measured.contexts == context)
    groups = [here.by_group()[name, context] for name in names]
    rng = np.random.default_rng(seed)
    collected = []
    for _ in range(_N_SPLITS):
        orders = [rng.permutation(rows) for rows in groups]
        halves = [
            np.array([mean_of(here.expression[part]) if len(part) else before[0] for part in parts]) - before
            for parts in ([o[: len(o) // 2] for o in orders], [o[len(o) // 2 :] for o in orders])
        ]
        collected.append(metrics.discrimination_score(halves[0], halves[1], excluded=hidden))
    values = np.mean(collected, axis=0)
    return _Scores(
        values,
        [
            "" if np.isfinite(value) else f"two halves need at least two measured cells; {name!r} has {len(rows)}"
            for value, name, rows in zip(values, names, groups, strict=True)
        ],
    )


def _table(
    scores: dict[tuple[str, str], _Scores],
    targets: dict[str, list[str]],
    *,
    models: Sequence[str],
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """Lay the scores out, with averages over perturbations, over contexts and over both."""
    rows: list[dict[str, object]] = []
    perturbations = sorted({name for names in targets.values() for name in names})
    ceilings: dict[str, float] = {}
    for model in reversed(models):  # the ceiling first, which the skills need
        own: list[dict[str, object]] = []
        by_name: dict[str, list[float]] = {name: [] for name in perturbations}
        why: dict[str, str] = {}
        for context, names in targets.items():
            found = scores[model, context]
            for name, value, reason in zip(names, found.values, found.reasons, strict=True):
                own.append(_row(model, context, name, float(value), reason))
                by_name[name].append(float(value))
                why[name] = why.get(name, "") or reason
            own.append(_average(model, context, found.values, found.reasons, ceilings, n_boot=n_boot, seed=seed))
        if list(targets) != [ALL_CONTEXTS]:
            means = {name: _mean_finite(values) for name, values in by_name.items()}
            values = np.array(list(means.values()))
            reasons = [
                f"without some contexts: {why[name]}" if why[name] and np.isfinite(value) else why[name]
                for name, value in means.items()
            ]
            own += [
                _row(model, ALL_CONTEXTS, name, value, reason)
                for (name, value), reason in zip(means.items(), reasons, strict=True)
            ]
            own.append(_average(model, ALL_CONTEXTS, values, reasons, ceilings, n_boot=n_boot, seed=seed))
        rows = own + rows
    return pd.DataFrame(rows)


def _row(model: str, context: str, perturbation: str, value: float, reason: str) -> dict[str, object]:
    row: dict[str, object] = {"model": model, "context": context, "perturbation": perturbation, "metric": _METRIC}
    row |= {"value": value, "skill": np.nan, "ci_low": np.nan, "ci_high": np.nan}
    return row | {"direction": "higher", "lowest": 0.0, "highest": 1.0, "reason": reason}


def _average(
    model: str,
    context: str,
    values: np.ndarray,
    reasons: Sequence[str],
    ceilings: dict[str, float],
    *,
    n_boot: int,
    seed: int,
) -> dict[str, object]:
    """Average one model over the perturbations that it has a score of; a ceiling is kept for the skills to come."""
    finite = np.isfinite(values)
    value = _mean_finite(values)
    if model == CEILING:
        ceilings[context] = value
    low, high = metrics.bootstrap_interval(values[finite], n_boot=n_boot, seed=seed)
    missing = [reason for value, reason in zip(values, reasons, strict=True) if not np.isfinite(value)]
    if finite.all():
        reason = ""
    elif finite.any():
        reason = f"without {(~finite).sum()} of {len(values)} perturbations: {missing[0]}"
    else:
        reason = "; ".join(list(dict.fromkeys(missing))[:3])
    skill = float(metrics.skill(value, floor=0.5, ceiling=ceilings[context]))
    averages = {"skill": skill, "ci_low": low, "ci_high": high}
    return _row(model, context, ALL_PERTURBATIONS, value, reason) | averages


def _mean_finite(values: Sequence[float] | np.ndarray) -> float:
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    return float(finite.mean()) if len(finite) else np.nan
