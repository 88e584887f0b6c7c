"""Scores of all perturbations of one context together, and of counts: predictions, a replicate, a nearly right one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.changes import FDR
from scstate_lora.metrics.de_tables import DETable
from scstate_lora.metrics.effect_panels import FEWEST_GENES, EffectPanel
from scstate_lora.metrics.profiles import CountProfiles
from scstate_lora.metrics.registry import METRICS
from scstate_lora.metrics.usability import interpolated_duplicate
from scstate_lora.tl.scoring.case import Score, absent, attempt, over_splits
from scstate_lora.tl.scoring.controls import other
from scstate_lora.tl.scoring.count_sides import N_HALVES, CountReferences, dense_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from scstate_lora.metrics.registry import Metric
    from scstate_lora.tl.scoring.case import MeasuredCase, Scores
    from scstate_lora.tl.scoring.controls import ContextControls
    from scstate_lora.tl.scoring.count_sides import CountReference, CountSide
    from scstate_lora.tl.scoring.predictors import Predicted

FEW = "two halves need at least two measured cells and four control cells"
NO_PREDICTION = "there is no prediction of it"
_ROUNDING = 1e-6  # of the profile, below which an effect is rounding


def table_metrics() -> dict[str, Metric]:
    """Metrics of differential expression, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.table is not None}


def panel_metrics() -> dict[str, Metric]:
    """Metrics of all perturbations of a context together, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.panel is not None}


class _Rows:
    """Profiles and means of all perturbations by one model, and which have them."""

    def __init__(self, n: int, n_genes: int) -> None:
        self.expression, self.mean = np.zeros((2, n, n_genes), dtype=np.float32)
        self.noise = np.zeros(n)
        self.is_known = np.zeros(n, dtype=bool)
        self.is_hit = np.zeros(n, dtype=bool)

    def put(self, i: int, profile: CountProfiles, mean: np.ndarray) -> None:
        self.expression[i], self.noise[i], self.mean[i] = profile.expression[0], profile.noise[0], mean
        self.is_known[i] = True

    def profiles(self, rows: np.ndarray, control: np.ndarray) -> CountProfiles:
        """Profiles of some perturbations, of which those without any are the control cells'."""
        kept = self.expression[rows].astype(np.float64)
        kept[~self.is_known[rows]] = control
        unchanged = np.abs(kept - control) <= _ROUNDING * np.maximum(1.0, control)
        return CountProfiles(np.where(unchanged, control, kept), self.noise[rows])


class Panel:
    """All perturbations of one context: what each needs until the last one is there, two rows of genes a model.

    Parameters
    ----------
    control
        The control cells.
    targets
        Perturbations that are measured in the context.
    hidden_genes
        Of each the positions of the genes that it acts on.
    has_replicate
        Whether halves of the measured cells are scored, too.
    centroid
        Mean over training perturbations of their mean expression in the context, ``(n_genes,)``; None without them.
    seed
        Seed of the cells that are tested of a large prediction.
    """

    def __init__(
        self,
        control: ContextControls,
        targets: Sequence[str],
        *,
        hidden_genes: Mapping[str, Sequence[int]],
        has_replicate: bool,
        centroid: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        self.control, self.targets, self.centroid, self.seed = control, list(targets), centroid, seed
        self.references = CountReferences(control, n_halves=N_HALVES if has_replicate else 0)
        n_genes = control.expression.shape[1]
        width = max([1, *(len(hidden_genes.get(target, ())) for target in targets)])
        self.hidden = np.full((len(targets), width), -1)
        for row, target in zip(self.hidden, targets, strict=True):
            genes = hidden_genes.get(target, ())
            row[: len(genes)] = genes
        self._new = partial(_Rows, len(targets), n_genes)
        self.measured = self._new()
        self.halves = [self._new() for _ in self.references.halves]
        self.duplicates = [self._new() for _ in self.references.halves[:2]]
        self.predicted: dict[str, _Rows] = {}
        self.reasons: dict[str, dict[str, str]] = {}

    def case(self, target: str, case: MeasuredCase, depth: np.ndarray | None = None) -> PanelCase:
        """Add the measured cells of a perturbation, with their depth."""
        return PanelCase(self, target, case, depth)

    def put(self, model: str, i: int, side: CountSide, mean: np.ndarray) -> None:
        """Add a prediction of the i-th perturbation."""
        self._rows_of(model).put(i, side.profile, mean)

    def copy(self, model: str, to: str, target: str) -> None:
        """Take the prediction of one model as that of another."""
        i, rows, others = self.targets.index(target), self.predicted[model], self._rows_of(to)
        for field in ("expression", "mean", "noise", "is_known"):
            getattr(others, field)[i] = getattr(rows, field)[i]

    def put_reason(self, model: str, target: str, reason: str) -> None:
        """Say why there is no prediction of a perturbation."""
        self._rows_of(model)
        self.reasons.setdefault(model, {})[target] = reason

    def _rows_of(self, model: str) -> _Rows:
        if model not in self.predicted:
            self.predicted[model] = self._new()
        return self.predicted[model]

    def score(self, scores: Scores, *, ceiling: str | None = None, duplicate: str | None = None) -> None:
        """Score all models, and under these names the replicate and the nearly right prediction."""
        for model, rows in self.predicted.items():
            part = self._part(rows, self.measured, self.references.whole, self.references.whole)
            self._put(scores, model, [part], self.reasons.get(model, {}))
        few = dict.fromkeys(self.targets, FEW)
        references = self.references.halves
        for name, sets in ((ceiling, self.halves), (duplicate, self.duplicates)):
            if name is not None:
                parts = [
                    self._part(rows, self.halves[other(i)], references[i], references[other(i)])
                    for i, rows in enumerate(sets)
                ]
                self._put(scores, name, parts, few, at_full_depth=name == ceiling)

    def _part(
        self, predicted: _Rows, measured: _Rows, predicted_control: CountReference, measured_control: CountReference
    ) -> tuple[EffectPanel, np.ndarray]:
        """Take the perturbations that are measured, with their positions."""
        rows = np.flatnonzero(measured.is_known)
        base, of_measured = (_stored(side.profile) for side in (predicted_control, measured_control))
        means = predicted.mean[rows].astype(np.float64)
        means[~predicted.is_known[rows]] = self.control.whole.mean
        panel = EffectPanel(
            predicted.profiles(rows, base.expression[0]),
            measured.profiles(rows, of_measured.expression[0]),
            base,
            of_measured,
            means,
            measured.mean[rows].astype(np.float64),
            self.hidden[rows],
            measured.is_hit[rows],
            predicted.is_known[rows],
            self.centroid,
        )
        return panel, rows

    def _put(
        self,
        scores: Scores,
        model: str,
        parts: Sequence[tuple[EffectPanel, np.ndarray]],
        reasons: Mapping[str, str],
        *,
        at_full_depth: bool = False,
    ) -> None:
        """Store the scores of a model, averaged over the halves."""
        for name, metric in panel_metrics().items():
            single: list[list[tuple[Score, float]]] = [[] for _ in self.targets]
            for panel, rows in parts:
                for i, score, size in _scores(metric, panel, rows):
                    single[i].append((score, size))
            for target, own in zip(self.targets, single, strict=True):
                score, size = Score(np.nan, reason=reasons.get(target, NO_PREDICTION)), 1.0
                if len(own) == 1 and np.isfinite(own[0][0].value) | (target not in reasons):
                    score, size = own[0]
                elif len(own) > 1:
                    score = over_splits([one for one, _ in own], metric if at_full_depth else None)
                    size = float(np.mean([size for one, size in own if np.isfinite(one.value)] or [1.0]))
                scores.put(model, target, self.control.context, {name: score})
                scores.put_size(model, name, target, self.control.context, size)


class PanelCase:
    """One perturbation of a panel.

    Parameters
    ----------
    panel
        The panel.
    target
        Name of the perturbation.
    case
        Its measured cells.
    depth
        Depth of each, as of :class:`~scstate_lora.tl.scoring.cells.Cells`.
    """

    def __init__(self, panel: Panel, target: str, case: MeasuredCase, depth: np.ndarray | None) -> None:
        self.panel, self.case, self.target = panel, case, target
        self.i = i = panel.targets.index(target)
        self.hidden = panel.hidden[i][panel.hidden[i] >= 0]
        self.counts = dense_counts(case.real, depth)
        self.side = panel.references.whole.side(self.counts)
        panel.measured.put(i, self.side.profile, case.whole.mean)
        panel.measured.is_hit[i] = self._is_hit(self.side)
        self.halves: list[CountSide] = []
        for mask, half, reference, rows in zip(
            case.sets, case.halves, panel.references.halves, panel.halves, strict=False
        ):
            side = reference.side(self.counts[mask])
            rows.put(i, side.profile, half.mean)
            rows.is_hit[i] = self._is_hit(side)
            self.halves.append(side)

    def score(self, model: str, predicted: Predicted) -> dict[str, Score]:
        """Add a prediction, and score its differential expression."""
        counts = predicted.relative
        if counts is None:
            counts = dense_counts(predicted.cells, predicted.depth)
        side = self.panel.references.whole.side(counts, most=len(self.case.real), seed=self.panel.seed)
        self.panel.put(model, self.i, side, predicted.moments.mean)
        return self._of_tables([(side.table, self.side.table)], self.panel.references.whole.few)

    def replicate(self) -> dict[str, Score]:
        """Score the differential expression of one half of the measured cells by the other."""
        tables = [side.table for side in self.halves]
        return self._of_tables([(table, tables[other(i)]) for i, table in enumerate(tables)], self._few())

    def nearly_right(self, uninformed: str, mean: np.ndarray) -> dict[str, Score]:
        """Add the interpolated duplicate, towards a prediction that knows no perturbation, and score its tables.

        Counts are multiplied gene by gene, as what is added to a log would make counts of all zeros.

        Parameters
        ----------
        uninformed
            Name of that prediction, which was scored.
        mean
            Its mean log1p cell, ``(n_genes,)``.
        """
        try:
            moves = self.case.moves(mean)
        except ValueError as error:
            return dict.fromkeys(table_metrics(), Score(np.nan, reason=str(error)))
        base = np.expm1(self.panel.predicted[uninformed].expression[self.i].astype(np.float64))
        pairs = []
        for i, (half, by) in enumerate(zip(self.halves, moves, strict=False)):
            if half.table is None:
                continue
            share = np.expm1(half.profile.expression[0])
            fdr = np.ones(len(share))
            fdr[half.table.genes] = half.table.fdr[0]
            is_there = share > 0
            factor = interpolated_duplicate(share, base, fdr)[is_there] / share[is_there]
            counts = self.counts[self.case.sets[i]]
            counts[:, is_there] *= factor.astype(np.float32)
            side = self.panel.references.halves[i].side(counts)
            self.panel.duplicates[i].put(self.i, side.profile, self.case.halves[i].mean + by)
            pairs.append((side.table, self.halves[other(i)].table))
        return self._of_tables(pairs, self._few())

    def _is_hit(self, side: CountSide) -> bool:
        if side.table is None:
            return False
        return int((self._shown(side.table).fdr < FDR).sum()) >= FEWEST_GENES

    def _shown(self, table: DETable) -> DETable:
        """Leave out the genes that the perturbation acts on."""
        if not len(self.hidden):
            return table
        kept = ~np.isin(table.genes, self.hidden)
        return DETable(table.genes[kept], *(column[:, kept] for column in table[1:]))

    def _few(self) -> str:
        if not self.halves:
            return FEW
        return self.panel.references.halves[0].few

    def _of_tables(self, pairs: Sequence[tuple[DETable | None, DETable | None]], few: str) -> dict[str, Score]:
        known = [(self._shown(a), self._shown(b)) for a, b in pairs if a is not None and b is not None]
        scores = {}
        for name, metric in table_metrics().items():
            assert metric.table is not None  # chosen by it
            single = [attempt(partial(metric.table, *pair)) for pair in known]
            if not single:
                scores[name] = Score(np.nan, reason=few)
            else:
                scores[name] = single[0] if len(single) == 1 else over_splits(single, None)
        return scores


def score_one(
    scores: Scores, case: MeasuredCase, tested: PanelCase, model: str, predict: Callable[[], Predicted]
) -> Predicted | None:
    """Score the prediction of a model by the metrics of its cells and tables; without one, say why of every metric."""
    where = model, tested.target, case.control.context
    try:
        predicted = predict()
    except ValueError as error:
        scores.put(*where, absent(str(error)))
        tested.panel.put_reason(model, tested.target, str(error))
        return None
    scores.put(*where, case.score(predicted) | tested.score(model, predicted))
    return predicted


def _stored(profile: CountProfiles) -> CountProfiles:
    """Round as the rows of perturbations are."""
    return CountProfiles(profile.expression.astype(np.float32).astype(np.float64), profile.noise)


def _scores(metric: Metric, panel: EffectPanel, rows: np.ndarray) -> Iterator[tuple[int, Score, float]]:
    """Score a panel: position of each perturbation, its score and its size."""
    assert metric.panel is not None  # chosen by it
    try:
        values, sizes, reason = metric.panel(panel)
    except ValueError as error:
        values, sizes, reason = np.full(len(rows), np.nan), np.ones(len(rows)), str(error)
    for k, i in enumerate(rows):
        missing = "" if np.isfinite(values[k]) else reason if panel.is_known[k] else NO_PREDICTION
        yield int(i), Score(float(values[k]), reason=missing), float(sizes[k])
