"""Scores of predicted effects of many perturbations by how well they tell these apart, beside baselines and ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora import metrics
from scstate_lora.metrics.baselines import BASELINES, CEILING, Case
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.scoring.controls import FEWEST, ContextControls, hidden_names, other
from scstate_lora.tl.scoring.table import (
    ALL,
    SCORE_COLUMNS,
    average,
    average_sd,
    mean,
    reason_of_average,
    skill,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scstate_lora.metrics.baselines import Baseline
    from scstate_lora.tl.scoring.cells import Cells
    from scstate_lora.tl.scoring.table import Counting
    from scstate_lora.tl.scoring.training import Training

METRIC = "discrimination"
CHANCE = 0.5
_NO_DIRECTION = "the predicted effect is zero and has no direction"


class EffectScores(NamedTuple):
    """Scores of the perturbations of one context by one model."""

    values: np.ndarray
    """``(n_perturbations,)``."""
    sds: np.ndarray
    """Standard deviation of each over the random halves, ``(n_perturbations,)``."""
    reasons: list[str]
    """Why each value is NaN, else empty."""


class _Mean(NamedTuple):
    """An average and its standard deviation over the random halves."""

    value: float
    sd: float


def score_effects(
    predicted: Cells,
    measured: Cells,
    controls: Cells,
    targets: Mapping[str, Sequence[str]],
    *,
    name: str,
    training: Training,
    hidden_genes: Mapping[str, Sequence[int]],
    counting: Counting,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a model's effects, the baselines' and those of half of the measured cells.

    Parameters
    ----------
    predicted, measured, controls
        Predicted and measured cells under the perturbations, and the control cells that all effects are against.
    targets
        Perturbations by context, each predicted and measured there.
    name
        Name of the model.
    training
        Training cells that the baselines learn from.
    hidden_genes
        Of every perturbation the positions of genes that its score must not see.
    counting
        Which perturbations count in averages, and with what weight over contexts.
    n_boot
        Bootstrap samples of perturbations behind the interval of an average.
    seed
        Seed of the random halves and the bootstrap.

    Returns
    -------
    Table as :func:`scstate_lora.tl.discrimination` returns it.
    """
    baselines = {key: b for key, b in BASELINES.items() if b.effect is not None}
    split = {context: ContextControls.of(controls, context, seed=seed) for context in targets}
    hidden = [hidden_names(list(split.values()), half) for half in range(max(len(c.halves) for c in split.values()))]
    scores: dict[tuple[str, str], EffectScores] = {}
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for context, names in targets.items():
        case = _Case.of(split[context], measured, names, [hidden_genes[target] for target in names])
        counts |= {(context, target): (len(case.control.names), n) for target, n in zip(names, case.sizes, strict=True)}
        scores[name, context] = case.score(partial(_predicted_means, predicted, case))
        for key, baseline in baselines.items():
            scores[key, context] = case.score(partial(_baseline_means, baseline, training, hidden, case))
        scores[CEILING, context] = case.ceiling(seed)
    models = [name, *baselines, CEILING]
    return _table(scores, targets, counts, models=models, counting=counting, n_boot=n_boot, seed=seed)


@dataclass(frozen=True)
class _Case:
    """One context: halves of its controls, the measured cells of its perturbations, and the genes to hide."""

    control: ContextControls
    halves: np.ndarray
    """Mean of each half of the control cells, ``(n_halves, n_genes)``."""
    names: Sequence[str]
    cells: Cells
    """Measured cells of the context."""
    rows: list[np.ndarray]
    """Those of each perturbation."""
    means: np.ndarray
    """``(n_perturbations, n_genes)``."""
    hidden_genes: Sequence[Sequence[int]]

    @classmethod
    def of(
        cls, control: ContextControls, measured: Cells, names: Sequence[str], hidden_genes: Sequence[Sequence[int]]
    ) -> _Case:
        cells = measured.at(measured.contexts == control.context)
        groups = cells.groups()
        rows = [groups[name, control.context] for name in names]
        halves = np.array([half.mean for half in control.moments])
        return cls(control, halves, names, cells, rows, _means(cells, _indicator(rows, len(cells.names))), hidden_genes)

    @property
    def sizes(self) -> list[int]:
        """Number of measured cells of each perturbation."""
        return [len(rows) for rows in self.rows]

    def score(self, means: Callable[[int], tuple[np.ndarray, Sequence[str]]]) -> EffectScores:
        """Score mean cells predicted from each half of the controls against effects measured with the other half.

        Of a half, `means` gives ``(n_perturbations, n_genes)``, that of the half where there is no prediction, and why.
        """
        single, reasons = [], [""] * len(self.names)
        for half, control in enumerate(self.halves):
            predicted, reasons = (list(part) for part in means(half))
            effects = _rounded(np.array(predicted) - control, control)
            single.append(self._discriminate(effects, self.means - self.halves[other(half)]))
        return self._averaged(single, [reason or _NO_DIRECTION for reason in reasons])

    def ceiling(self, seed: int) -> EffectScores:
        """Score random halves of the measured cells, with halves of the controls of their own, against the others."""
        rng = np.random.default_rng(seed)
        single = []
        for first in range(0, len(self.halves), 2):
            orders = [rng.permutation(rows) for rows in self.rows]
            sets = [o[: len(o) // 2] for o in orders], [o[len(o) // 2 :] for o in orders]
            one, rest = (
                _means(self.cells, _indicator(part, len(self.cells.names))) - self.halves[first + i]
                for i, part in enumerate(sets)
            )
            one[[not len(rows) for rows in sets[0]]] = 0  # a single cell has no half
            single += [self._discriminate(one, rest), self._discriminate(rest, one)]
        few = [
            f"two halves need at least two measured cells; {n!r} has {k}"
            for n, k in zip(self.names, self.sizes, strict=True)
        ]
        return self._averaged(single, few, incomplete=[size < 2 for size in self.sizes])

    def _discriminate(self, predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
        return metrics.discrimination_score(predicted, measured, excluded=self.hidden_genes)

    def _averaged(
        self, single: Sequence[np.ndarray], reasons: Sequence[str], incomplete: Sequence[bool] | None = None
    ) -> EffectScores:
        """Average over the splits and both directions of each."""
        n = len(self.names)
        if not single:
            few = f"two halves of the control cells need at least {FEWEST}; there are {len(self.control.names)}"
            return EffectScores(np.full(n, np.nan), np.full(n, np.nan), [few] * n)
        values = np.array(single).mean(axis=0)
        values = np.where(np.zeros(n, dtype=bool) if incomplete is None else incomplete, np.nan, values)
        sds = np.array(single).std(axis=0, ddof=1)
        return EffectScores(
            values, sds, ["" if np.isfinite(v) else why for v, why in zip(values, reasons, strict=True)]
        )


def _rounded(effects: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Set to zero what only rounding moves: means of float32 cells are off by about 1e-7."""
    return np.where(np.abs(effects) <= 1e-6 * np.maximum(1.0, np.abs(control)), 0.0, effects)


def _indicator(groups: Sequence[np.ndarray], n_cells: int) -> sparse.csr_matrix:
    """Matrix ``(n_groups, n_cells)`` that averages the cells at some rows; an empty group is zero."""
    rows = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    weights = np.concatenate([np.full(len(group), 1 / len(group)) for group in groups if len(group)])
    return sparse.csr_matrix((weights, (rows, np.concatenate(groups))), shape=(len(groups), n_cells))


def _means(cells: Cells, indicator: sparse.csr_matrix) -> np.ndarray:
    """Mean cell of every group, ``(n_groups, n_genes)``."""
    return np.asarray((indicator @ cells.expression).todense())


def _predicted_means(predicted: Cells, case: _Case, half: int) -> tuple[np.ndarray, list[str]]:
    """Mean of the cells that were predicted from one half of the controls, of every perturbation."""
    cells = predicted.at(predicted.contexts == case.control.context)
    is_unknown = len(cells.names) > 0 and cells.names[0] is None  # the predicted change is then against all controls
    of_half = np.ones(len(cells.names), dtype=bool) if is_unknown else case.control.halves_of(cells.names)[half]
    groups = [np.flatnonzero(of_half & (cells.perturbations == name)) for name in case.names]
    means = _means(cells, _indicator(groups, len(cells.names)))
    if is_unknown:
        means += case.halves[half] - case.control.whole.mean
    is_empty = [not len(group) for group in groups]
    means[is_empty] = case.halves[half]
    return means, ["no cell was predicted from one half of the controls" if empty else "" for empty in is_empty]


def _baseline_means(
    baseline: Baseline, training: Training, hidden: Sequence[frozenset[str]], case: _Case, half: int
) -> tuple[np.ndarray, list[str]]:
    """Mean cells that a baseline predicts from one half of the controls, having learned without the other."""
    assert baseline.effect is not None  # chosen by the caller
    control = case.halves[half]
    means, reasons = np.tile(control, (len(case.names), 1)), [""] * len(case.names)
    learned = training.without(hidden[half])
    for i, target in enumerate(case.names):
        try:
            means[i] += baseline.effect(control, Case(target, case.control.context, learned))
        except ValueError as error:
            reasons[i] = str(error)
    return means, reasons


def _table(
    scores: Mapping[tuple[str, str], EffectScores],
    targets: Mapping[str, Sequence[str]],
    counts: Mapping[tuple[str, str], tuple[int, int]],
    *,
    models: Sequence[str],
    counting: Counting,
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """Lay the scores out, with averages over perturbations, over contexts and over both."""
    perturbations = sorted({name for names in targets.values() for name in names})
    parts: dict[tuple[str, str], pd.DataFrame] = {}
    for model in models:
        frames = []
        for context, names in targets.items():
            weights, too_few = weights_of(names, [counts[context, name] for name in names], counting)
            frame = pd.DataFrame(scores[model, context]._asdict()).assign(context=context, perturbation=names)
            frame["n_control"], frame["n_measured"] = zip(*(counts[context, name] for name in names), strict=True)
            frame["weight"], frame["too_few"] = weights, [too_few.get(name, "") for name in names]
            frames.append(frame)
            parts[model, context] = frame
        if list(targets) != [ALL]:
            every = pd.concat(frames)
            by_name = every.groupby("perturbation")
            parts[model, ALL] = pd.DataFrame([_over_contexts(by_name.get_group(n), n) for n in perturbations])
    contexts = [*targets, *([ALL] if list(targets) != [ALL] else [])]
    ceilings = {context: _mean(parts[CEILING, context]) for context in contexts}
    rows = []
    for model in models:
        for context in contexts:
            part = parts[model, context]
            rows += [_row(model, context, record) for record in part.to_dict("records")]
            whole = _mean(part)
            own = {
                "perturbation": ALL,
                **average(part["values"].to_numpy(), weights=_counts(part), n_boot=n_boot, seed=seed),
                "split_sd": whole.sd,
                "n_control": int(part["n_control"].max()),
                "n_measured": int(part["n_measured"].sum()),
                "weight": float(_counts(part).sum()),
                "reason": _reason(part),
                **skill(whole.value, _Mean(CHANCE, np.nan), ceilings[context], direction="higher"),
            }
            rows.append(_row(model, context, own))
    return pd.DataFrame(rows)[["model", "context", "perturbation", "metric", *SCORE_COLUMNS]]


def _over_contexts(part: pd.DataFrame, perturbation: str) -> dict[str, object]:
    """Average the scores of a perturbation over the contexts that count."""
    values, sds, weights = (part[column].to_numpy(dtype=float) for column in ("values", "sds", "weight"))
    too_few = {row["context"]: row["too_few"] for row in part.to_dict("records") if row["too_few"]}
    return {
        "perturbation": perturbation,
        "values": mean(values, weights),
        "sds": average_sd(values, sds, weights),
        "reasons": reason_of_average(values, list(part["reasons"]), part["context"], too_few),
        "n_control": int(part["n_control"].sum()),
        "n_measured": int(part["n_measured"].sum()),
        "weight": float(weights.sum()),
        "too_few": "" if weights.any() else "; ".join(f"{name}: {why}" for name, why in too_few.items()),
    }


def _counts(part: pd.DataFrame) -> np.ndarray:
    """Weights of perturbations in their average: the same for all that count."""
    return (part["weight"].to_numpy() > 0).astype(np.float64)


def _mean(part: pd.DataFrame) -> _Mean:
    """Average over perturbations."""
    values, counts = part["values"].to_numpy(dtype=float), _counts(part)
    return _Mean(mean(values, counts), average_sd(values, part["sds"].to_numpy(dtype=float), counts))


def _row(model: str, context: str, score: Mapping[Any, object]) -> dict[str, object]:
    row = {"value": score.get("values"), "split_sd": score.get("sds"), "reason": score.get("reasons")}
    empty = {"skill": np.nan, "skill_reason": "", "ci_low": np.nan, "ci_high": np.nan}
    row |= empty | METRICS[METRIC].columns() | {"metric": METRIC}
    return row | dict(score) | {"model": model, "context": context}


def _reason(part: pd.DataFrame) -> str:
    """Say how many perturbations an average lacks, or why there is none."""
    why = [few or reason for few, reason in zip(part["too_few"], part["reasons"], strict=True)]
    counts = np.isfinite(part["values"].to_numpy(dtype=float)) & (_counts(part) > 0)
    missing = [reason for is_known, reason in zip(counts, why, strict=True) if not is_known]
    if counts.any() and missing:
        return f"without {len(missing)} of {len(part)} perturbations: {missing[0]}"
    return "; ".join(list(dict.fromkeys(missing))[:3])
