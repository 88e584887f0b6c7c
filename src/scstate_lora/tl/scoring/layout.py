"""The table of scores of cells: single rows, averages with intervals, skill, and whether each metric is usable here."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora.metrics.baselines import CEILING, MEAN_EFFECT, NO_CHANGE
from scstate_lora.metrics.effect_panels import NO_EFFECT
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.scoring.table import (
    ALL,
    CALIBRATION_COLUMNS,
    NO_RANGE,
    SCORE_COLUMNS,
    intervals,
    reason_of_average,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora.tl.scoring.case import Scores
    from scstate_lora.tl.scoring.table import Counting
    from scstate_lora.tl.scoring.yardstick import Yardstick

_MOST_REASONS = 3


class _Marks(NamedTuple):
    """Scores of one metric in all cases, ``(n_targets, n_contexts)``, larger being better."""

    good: np.ndarray
    sd: np.ndarray
    size: np.ndarray
    """Denominators of scores that are ratios, whose numerators the others are; 1 of others."""

    @property
    def single(self) -> _Marks:
        """The ratios; NaN where there is nothing to divide by."""
        size = np.where(self.size > 0, self.size, np.nan)
        return _Marks(self.good / size, self.sd / size, np.ones_like(size))


class _Calibration(NamedTuple):
    """What the rows of one metric share, whatever the model."""

    single: _Marks
    """Scores of the yardstick of every perturbation."""
    overall: _Marks
    """Scores of the yardstick of all perturbations."""
    columns: dict[str, np.ndarray]


class Layout:
    """Lays out the scores of all models by perturbation and context.

    Parameters
    ----------
    scores
        The scores.
    counts
        Number of control and of measured cells, ``(n_targets, n_contexts, 2)``; no measured ones where not scored.
    duplicate
        Name of the positive control among the scores.
    counting
        Which contexts count in averages, and with what weight.
    n_boot, seed
        Bootstrap samples and their seed.
    """

    def __init__(
        self, scores: Scores, counts: np.ndarray, *, duplicate: str, counting: Counting, n_boot: int, seed: int
    ) -> None:
        self.scores, self.counts, self.duplicate = scores, counts, duplicate
        self.n_boot, self.seed = n_boot, seed
        self.n_targets, self.n_contexts = counts.shape[:2]
        self.is_scored = counts[..., 1] > 0
        self.weights = np.zeros(self.is_scored.shape)
        self.too_few: list[dict[str, str]] = []
        for t, numbers in enumerate(counts):
            self.weights[t], few = weights_of(scores.contexts, [(int(n), int(m)) for n, m in numbers], counting)
            self.too_few.append(few)
        self.weights *= self.is_scored
        self.over_contexts = list(scores.contexts) != [ALL]
        self.over_targets = self.n_targets > 1

    def table(self, models: Sequence[str], yardstick: Yardstick | None) -> pd.DataFrame:
        """Make the table.

        Parameters
        ----------
        models
            Names of those that have rows.
        yardstick
            How baselines rank on training cells; without it there is no skill.
        """
        blocks: list[dict[str, np.ndarray]] = []
        shared = {name: self._calibration(k, name, yardstick) for k, name in enumerate(self.scores.metrics)}
        for model in models:
            for k, name in enumerate(self.scores.metrics):
                block = self._values(self.scores.models.index(model), k)
                block |= self._skill(model, k, name, shared[name]) | self._constants
                block |= {"model": self._filled(model), "metric": self._filled(name)}
                block |= {key: self._filled(value) for key, value in METRICS[name].columns().items()}
                blocks.append(block | shared[name].columns)
        order = self._order_of(len(blocks))
        joined = {key: np.concatenate([block[key] for block in blocks])[order] for key in blocks[0]}
        names = ["model", "context", "perturbation", "metric"]
        return pd.DataFrame(joined)[[*names, *SCORE_COLUMNS, *CALIBRATION_COLUMNS]]

    # Every column of a block has the single rows first and then the averages; the table shows them in another order.

    @cached_property
    def _single(self) -> tuple[np.ndarray, np.ndarray]:
        """Perturbation and context of every single row."""
        targets, contexts = np.nonzero(self.is_scored)
        return targets, contexts

    @cached_property
    def _averages(self) -> list[tuple[int | None, int | None]]:
        """Perturbation and context of every average; None is all of them."""
        rows: list[tuple[int | None, int | None]] = []
        if self.over_contexts:
            rows += [(t, None) for t in range(self.n_targets)]
        if self.over_targets:
            rows += [(None, c) for c in range(self.n_contexts)]
        return rows + ([(None, None)] if self.over_contexts and self.over_targets else [])

    @property
    def _n_rows(self) -> int:
        return len(self._single[0]) + len(self._averages)

    def _order_of(self, n_blocks: int) -> np.ndarray:
        rows = [*zip(*self._single, strict=True), *self._averages]
        last = (self.n_targets, self.n_contexts)
        keys = [[most if i is None else i for i, most in zip(row, last, strict=True)] for row in rows]
        order = np.lexsort(np.array(keys).T[::-1])
        return (np.arange(n_blocks)[:, None] * len(rows) + order).ravel()

    def _filled(self, value: object) -> np.ndarray:
        return np.full(self._n_rows, value, dtype=object if isinstance(value, str) else None)

    @cached_property
    def _constants(self) -> dict[str, np.ndarray]:
        """Columns that all models and metrics share."""
        targets, contexts = self._single
        names = np.array([*self.scores.targets, ALL], dtype=object)
        where = np.array([*self.scores.contexts, ALL], dtype=object)
        arrays = (self.counts[..., 0], self.counts[..., 1], self.weights)
        n_control, n_measured, weight = (list(numbers[targets, contexts]) for numbers in arrays)
        for t, c in self._averages:
            columns = slice(None) if c is None else slice(c, c + 1)
            rows = slice(None) if t is None else slice(t, t + 1)
            # The perturbations of a context share its controls, and each counts once in their average.
            n_control.append((self.counts[rows, columns, 0] * self.is_scored[rows, columns]).max(axis=0).sum())
            n_measured.append(self.counts[rows, columns, 1].sum())
            weights = self.weights[rows, columns]
            weight.append((weights > 0).any(axis=1).sum() if t is None else weights.sum())
        cases = [*zip(targets, contexts, strict=True), *self._averages]
        return {
            "n_control": np.array(n_control, dtype=int),
            "n_measured": np.array(n_measured, dtype=int),
            "weight": np.array(weight, dtype=float),
            "perturbation": names[[len(names) - 1 if t is None else t for t, _ in cases]],
            "context": where[[len(where) - 1 if c is None else c for _, c in cases]],
        }

    def _shares(self, counts: np.ndarray) -> np.ndarray:
        """Share of every case in every average over those that count, ``(n_averages, n_targets, n_contexts)``."""
        weights = self.weights * counts
        with np.errstate(invalid="ignore"):
            by_target = np.nan_to_num(weights / weights.sum(axis=1, keepdims=True))
            by_context = np.nan_to_num((weights > 0) / (weights > 0).sum(axis=0, keepdims=True))
        shares = np.zeros((len(self._averages), *weights.shape))
        for i, (t, c) in enumerate(self._averages):
            if t is not None:
                shares[i, t] = by_target[t]
            elif c is not None:
                shares[i, :, c] = by_context[:, c]
            else:
                shares[i] = by_target / max(1, int((weights > 0).any(axis=1).sum()))
        return shares

    def _average(self, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Average over cases; NaN where none counts."""
        known = shares.sum(axis=(1, 2)) > 0
        return np.where(known, np.einsum("rtc,tc->r", shares, np.nan_to_num(values)), np.nan)

    def _average_sd(self, sds: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Compute the standard deviation of averages of independent scores; NaN where none varies over the halves."""
        variance = np.einsum("rtc,tc->r", np.square(shares), np.square(np.nan_to_num(sds)))
        varies = np.einsum("rtc,tc->r", shares, np.isfinite(sds).astype(float)) > 0
        return np.where(varies, np.sqrt(variance), np.nan)

    def _values(self, m: int, k: int) -> dict[str, np.ndarray]:
        """Values with intervals and reasons."""
        values, sds, reasons = (array[m, k] for array in (self.scores.value, self.scores.sd, self.scores.reason))
        sizes = self.scores.size[m, k]
        counts = np.isfinite(values) & (self.weights > 0)
        shares = self._shares(counts)
        averages = _Marks(self._average(values, shares), self._average_sd(sds, shares), self._average(sizes, shares))
        single = _Marks(values[self._single], sds[self._single], sizes[self._single])
        low, high = np.full((2, self._n_rows), np.nan)
        start = len(self._single[0])
        how = {"n_boot": self.n_boot, "seed": self.seed}
        if self.over_contexts:
            rows = slice(start, start + self.n_targets)
            low[rows], high[rows] = intervals(values, self.weights, sizes=sizes, **how)
        if self.over_targets:
            rows = slice(self._n_rows - self.n_contexts - self.over_contexts, self._n_rows - self.over_contexts)
            low[rows], high[rows] = intervals(values.T, (self.weights > 0).T.astype(float), sizes=sizes.T, **how)
            if self.over_contexts:
                each, of_each = (array[None, : self.n_targets] for array in (averages.good, averages.size))
                (low[-1],), (high[-1],) = intervals(each, np.ones_like(each), sizes=of_each, **how)
        why = np.array([*reasons[self._single], *self._reasons(values, reasons)], dtype=object)
        found = [np.concatenate(columns) for columns in zip(single.single[:2], averages.single[:2], strict=True)]
        is_empty = np.isnan(found[0]) & np.isfinite(np.concatenate([single.good, averages.good]))
        why[is_empty] = NO_EFFECT
        return {"value": found[0], "split_sd": found[1], "ci_low": low, "ci_high": high, "reason": why}

    def _reasons(self, values: np.ndarray, reasons: np.ndarray) -> list[str]:
        """Say which scores each average lacks, or why there is none."""
        found = []
        for t, c in self._averages:
            if t is not None:
                rows = np.flatnonzero(self.is_scored[t])
                names = [self.scores.contexts[i] for i in rows]
                few = {name: why for name, why in self.too_few[t].items() if name in names}
                missing = few or (reasons[t, rows] != "").any()
                found.append(reason_of_average(values[t, rows], reasons[t, rows], names, few) if missing else "")
            else:
                found.append(self._reason_over_targets(values, reasons, c))
        return found

    def _reason_over_targets(self, values: np.ndarray, reasons: np.ndarray, context: int | None) -> str:
        columns = range(self.n_contexts) if context is None else [context]
        n_missing, n_cases, why = 0, 0, []
        for t in range(self.n_targets):
            for c in columns:
                if not self.is_scored[t, c]:
                    continue
                n_cases += 1
                reason = self.too_few[t].get(self.scores.contexts[c], str(reasons[t, c]))
                if reason:
                    n_missing += 1
                    why.append(reason)
        counted = np.isfinite(values[:, list(columns)]) & (self.weights[:, list(columns)] > 0)
        if counted.any():
            kind = "perturbations" if context is not None else "perturbations in contexts"
            return f"without {n_missing} of {n_cases} {kind}: {why[0]}" if n_missing else ""
        return "; ".join(list(dict.fromkeys(why))[:_MOST_REASONS])

    def _marks(self, model: str, k: int, name: str) -> _Marks:
        values, sds, sizes = (array[k] for array in self.scores.of(model))
        return _Marks(metrics.goodness(values, direction=METRICS[name].direction), sds, sizes)

    def _floor(self, k: int, name: str, yardstick: Yardstick | None) -> tuple[_Marks, _Marks, list[str]]:
        """Scores of the yardstick of every perturbation, of that of all, and their names in the order of the rows.

        It is the best one on training cells among those that predict most of the cases that are scored.
        """
        if yardstick is None:
            empty = _Marks(*np.full((3, *self.weights.shape), np.nan))
            return empty, empty, [""] * (self.n_targets + 1)
        ranking = [model for model in yardstick.ranking[name] if model in self.scores.models]
        marks = [self._marks(model, k, name) for model in ranking]
        known = np.array([np.isfinite(mark.good) for mark in marks])
        best = np.argmax(known.sum(axis=2), axis=0)  # the first of those with most
        overall = int(np.argmax(known.sum(axis=(1, 2))))
        single = _Marks(*(np.array([marks[b][i][t] for t, b in enumerate(best)]) for i in range(3)))
        has_any = np.asarray(known.any(axis=(0, 2)))
        names = [ranking[b] if any_ else "" for b, any_ in zip(best, has_any, strict=True)]
        return single, marks[overall], [*names, ranking[overall] if has_any.any() else ""]

    def _calibration(self, k: int, name: str, yardstick: Yardstick | None) -> _Calibration:
        """Find the yardstick, and whether the metric is usable."""
        single, overall, names = self._floor(k, name, yardstick)
        of_rows = [*zip(*self._single, strict=True), *self._averages]
        columns = {}
        columns["yardstick"] = np.array([names[-1 if t is None else t] for t, _ in of_rows], dtype=object)
        nothing = self._marks(NO_CHANGE, k, name)
        if np.isfinite(METRICS[name].nothing):
            undefined = metrics.goodness(METRICS[name].nothing, direction=METRICS[name].direction)
            nothing = nothing._replace(good=np.where(np.isfinite(nothing.good), nothing.good, undefined))
        columns["baseline_saturation"], _ = self._placed(
            (single, overall), (nothing, nothing), self._marks(CEILING, k, name)
        )
        mean, duplicate = (self._marks(model, k, name).single.good for model in (MEAN_EFFECT, self.duplicate))
        dynamic = metrics.dynamic_range_fraction(duplicate, mean, perfect=METRICS[name].perfect)
        shares = self._shares(np.isfinite(dynamic) & (self.weights > 0))
        columns["dynamic_range"] = np.concatenate([dynamic[self._single], self._average(dynamic, shares)])
        return _Calibration(single, overall, columns)

    def _skill(self, model: str, k: int, name: str, shared: _Calibration) -> dict[str, np.ndarray]:
        own = self._marks(model, k, name)
        floors = (shared.single, shared.overall)
        skill, is_flat = self._placed((own, own), floors, self._marks(CEILING, k, name))
        return {"skill": skill, "skill_reason": np.where(is_flat, NO_RANGE, "").astype(object)}

    def _placed(
        self, own: tuple[_Marks, _Marks], floor: tuple[_Marks, _Marks], top: _Marks
    ) -> tuple[np.ndarray, np.ndarray]:
        """Place scores between floor and top, 0 to 1, in every row; and whether that range is within its noise.

        Of a pair the first is for rows of single perturbations, the second for averages over them. An average is over
        the cases that count and in which all three have a score.
        """
        placed = [tuple(array[self._single] for array in _place(own[0].single.good, floor[0].single, top.single))]
        of_one = np.array([t is not None for t, _ in self._averages], dtype=bool)
        for which, rows in ((0, of_one), (1, ~of_one)):
            shared = np.isfinite([own[which].good, floor[which].good, top.good]).all(axis=0) & (self.weights > 0)
            shares = self._shares(shared)[rows]
            model, low, high = (
                _Marks(*(self._average(array, shares) for array in mark))._replace(sd=self._average_sd(mark.sd, shares))
                for mark in (own[which], floor[which], top)
            )
            placed.append(_place(model.single.good, low.single, high.single))
        skill, is_flat = (np.concatenate(columns) for columns in zip(*placed, strict=True))
        return skill, is_flat


def _place(good: np.ndarray, floor: _Marks, top: _Marks) -> tuple[np.ndarray, np.ndarray]:
    noise = np.sqrt(np.nansum(np.square([floor.sd, top.sd]), axis=0))
    skill = metrics.skill(good, floor=floor.good, ceiling=top.good, noise=noise)
    return skill, np.isnan(skill) & np.isfinite([good, floor.good, top.good]).all(axis=0)
