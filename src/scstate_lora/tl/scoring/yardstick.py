"""The baseline at which the skill is 0: the best one on training cells that were left out, metric by metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from scstate_lora.metrics import goodness
from scstate_lora.metrics.baselines import BASELINES, MEAN_SHIFT
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.scoring.case import MeasuredCase, Scores, scored_metrics
from scstate_lora.tl.scoring.cells import Cells, GroupedCells
from scstate_lora.tl.scoring.controls import FEWEST, ContextControls, hidden_names
from scstate_lora.tl.scoring.panel import Panel, score_one
from scstate_lora.tl.scoring.predictors import baseline_predictors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scstate_lora.tl.scoring.training import Training

LeftOut = Literal["contexts", "perturbations", "cells"]
N_FOLDS = 5
N_GROUPS = 16
"""Perturbations in contexts, at most, that the choice is made on."""
MOST_CELLS = 200
"""Cells of each kind that are drawn of such a group."""
_FEWEST_MEASURED = 5


class Yardstick(NamedTuple):
    """How the baselines rank on training cells."""

    ranking: Mapping[str, Sequence[str]]
    """Baselines by metric, the best first."""
    left_out: LeftOut | None
    """What was left out; None if nothing could be, and the order is fixed: the mean shift first."""


def default_order() -> list[str]:
    """Order of the baselines where training cells cannot decide: the mean shift, then as they are listed."""
    names = [name for name, baseline in BASELINES.items() if baseline.cells is not None]
    return sorted(names, key=lambda name: name != MEAN_SHIFT)


def undecided() -> Yardstick:
    """Return the fixed order for every metric."""
    return Yardstick(dict.fromkeys(scored_metrics(), default_order()), None)


@dataclass(frozen=True)
class Yardsticks:
    """Chooses a yardstick as the scored cells ask for it; each choice is made once.

    What is scored decides what is left out of training. A context without training cells of the perturbation: whole
    contexts. A perturbation that training lacks: perturbations. Other cells of a perturbation and context that training
    has: cells. Where training cannot leave that out, the next kind takes its place.

    Parameters
    ----------
    training
        The training cells.
    hidden_genes
        Of every perturbation the positions of the genes that it acts on.
    seed
        Seed of the groups and cells that are drawn.
    """

    training: Training
    hidden_genes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0

    def of(self, pairs: Iterable[tuple[str, str]]) -> Yardstick:
        """Choose for perturbations in contexts that are scored: as most of them ask for."""
        known = set(self.training.pairs)
        names = {name for name, _ in known}
        kinds = ["cells" if p in known else "contexts" if p[0] in names else "perturbations" for p in pairs]
        order: tuple[LeftOut, ...] = ("perturbations", "contexts", "cells")
        wanted = max(order, key=kinds.count)
        for kind in sorted(order, key=lambda k: k != wanted):
            yardstick = getattr(self, f"_{kind}")
            if yardstick is not None:
                return yardstick
        return undecided()

    @cached_property
    def _contexts(self) -> Yardstick | None:
        by_context: dict[str, list[tuple[str, str]]] = {}
        for pair in self._usable:
            by_context.setdefault(pair[1], []).append(pair)
        folds = [[pair for pair in self.training.pairs if pair[1] == where] for where in by_context]
        return self._decide("contexts", folds, list(by_context.values())) if len(folds) > 1 else None

    @cached_property
    def _perturbations(self) -> Yardstick | None:
        names = sorted({name for name, _ in self._usable})
        if len(names) < 2:
            return None
        order = np.random.default_rng(self.seed).permutation(len(names))
        parts = [{names[i] for i in order[fold::N_FOLDS]} for fold in range(min(N_FOLDS, len(names)))]
        return self._decide(
            "perturbations",
            [[pair for pair in self.training.pairs if pair[0] in part] for part in parts],
            [[pair for pair in self._usable if pair[0] in part] for part in parts],
        )

    @cached_property
    def _cells(self) -> Yardstick | None:
        cells = self.training.cells
        if cells is None or not self._usable:
            return None
        half = np.random.default_rng(self.seed).random(len(cells.names)) < 0.5
        half |= cells.perturbations == self.training.control
        groups = [pair for pair in self._drawn([self._usable], N_GROUPS)[0] if pair in self._usable]
        scores = self._scores(groups)
        panels = self._panels(groups)
        self._add(scores, panels, self.training.at(half), groups, measured=cells.at(~half))
        return Yardstick(_ranking(scores, panels), "cells")

    @cached_property
    def _usable(self) -> list[tuple[str, str]]:
        """Perturbations in contexts of training with enough cells of either kind."""
        sizes, control = self.training.sizes, self.training.control
        return [
            (name, where)
            for name, where in self.training.pairs
            if sizes[name, where] >= _FEWEST_MEASURED and sizes[control, where] >= FEWEST
        ]

    def _decide(
        self, kind: LeftOut, hidden: Sequence[Sequence[tuple[str, str]]], scored: Sequence[Sequence[tuple[str, str]]]
    ) -> Yardstick:
        drawn = self._drawn(scored, max(1, N_GROUPS // len(scored)))
        groups = [pair for group in drawn for pair in group]
        scores, panels = self._scores(groups), self._panels(groups)
        assert self.training.cells is not None  # there are groups of them
        for fold, pairs in zip(hidden, drawn, strict=True):
            self._add(scores, panels, self.training.without_groups(set(fold)), pairs, measured=self.training.cells)
        return Yardstick(_ranking(scores, panels), kind)

    def _drawn(self, groups: Sequence[Sequence[tuple[str, str]]], most: int) -> list[list[tuple[str, str]]]:
        rng = np.random.default_rng(self.seed)
        chosen = [sorted(rng.permutation(len(group))[:most]) for group in groups][:N_GROUPS]
        rows = [[group[i] for i in rows] for group, rows in zip(groups, chosen, strict=False)]
        return rows + [[] for _ in range(len(groups) - len(rows))]

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        targets, contexts = ([*dict.fromkeys(pair[i] for pair in pairs)] for i in (0, 1))
        return Scores(default_order(), list(scored_metrics()), targets, contexts)

    def _panels(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Panel]:
        """Draw control cells of every context, for all folds the same."""
        assert self.training.cells is not None  # there are groups of them
        cells = self.training.cells._replace(depth=None)
        rng = np.random.default_rng(self.seed)
        panels = {}
        for context in sorted({where for _, where in pairs}):
            mask = np.zeros(len(cells.names), dtype=bool)
            mask[_some(cells, (self.training.control, context), rng)] = True
            control = ContextControls.of(cells.at(mask), context, seed=self.seed, n_splits=1)
            targets = [target for target, where in pairs if where == context]
            panels[context] = Panel(
                control, targets, hidden_genes=self.hidden_genes, has_replicate=False, seed=self.seed
            )
        return panels

    def _add(
        self,
        scores: Scores,
        panels: Mapping[str, Panel],
        training: Training,
        pairs: Sequence[tuple[str, str]],
        *,
        measured: Cells,
    ) -> None:
        """Score the baselines on some groups of training cells."""
        rng = np.random.default_rng(self.seed)
        predictors, grouped = baseline_predictors(training), GroupedCells(measured)
        for context in sorted({where for _, where in pairs}):
            panel = panels[context]
            control = panel.control
            hidden = [hidden_names([control], half) for half in range(len(control.halves))]
            for target in (name for name, where in pairs if where == context):
                own = grouped.rows(target, context)
                if len(own) < 2:
                    continue
                case = MeasuredCase(control, grouped.dense(own[rng.permutation(len(own))[:MOST_CELLS]]), seed=self.seed)
                tested = panel.case(target, case)
                for name, predictor in predictors.items():
                    score_one(scores, case, tested, name, partial(predictor.predict, target, control, hidden))


def _some(cells: Cells, key: tuple[str, str], rng: np.random.Generator) -> np.ndarray:
    rows = np.flatnonzero((cells.perturbations == key[0]) & (cells.contexts == key[1]))
    return rows[rng.permutation(len(rows))[:MOST_CELLS]]


def _ranking(scores: Scores, panels: Mapping[str, Panel]) -> dict[str, list[str]]:
    """Rank the baselines by their mean over groups; without a score, one is as good as the worst of the others."""
    for panel in panels.values():
        panel.score(scores)
    ranking = {}
    for k, name in enumerate(scores.metrics):
        good = goodness(scores.value[:, k].reshape(len(scores.models), -1), direction=METRICS[name].direction)
        good = good[:, np.isfinite(good).any(axis=0)]
        known = np.isfinite(good).any(axis=1)
        filled = np.where(np.isfinite(good), good, np.min(np.where(np.isfinite(good), good, np.inf), axis=0))
        mean = filled.mean(axis=1) if good.shape[1] else np.zeros(len(scores.models))
        order = np.lexsort((-mean, ~known))  # stable: the first of equal ones stays first
        ranking[name] = [scores.models[i] for i in order]
    return ranking
