"""The training cells that baselines learn from, with or without some of them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.baselines import NO_TRAINING, TrainingMeans
from scstate_lora.tl.scoring.cells import mean_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scstate_lora.data.perturbations import PerturbationTable
    from scstate_lora.tl.scoring.cells import Cells


class Training:
    """Means of training cells; all empty without cells.

    Parameters
    ----------
    cells
        Training cells; None without.
    control
        Control level of the perturbation.
    pert_features
        Features of perturbations, for the linear baseline.

    Raises
    ------
    ValueError
        If `pert_features` lacks a perturbation of the cells.
    """

    def __init__(self, cells: Cells | None, *, control: str, pert_features: PerturbationTable | None = None) -> None:
        self.cells, self.control, self._features = cells, control, pert_features
        self._whole: Training | None = None
        groups = {} if cells is None else cells.groups()
        sizes = {key: len(rows) for key, rows in groups.items()}
        means = {} if cells is None else {key: mean_of(cells.expression[rows]) for key, rows in groups.items()}
        self._set(means, sizes)

    def _set(self, groups: dict[tuple[str, str], np.ndarray], sizes: dict[tuple[str, str], int]) -> None:
        self.groups, self.sizes = groups, sizes
        self.means = NO_TRAINING
        self._without: dict[frozenset[str], TrainingMeans] = {}
        if self.cells is None:
            return
        features = None if self._features is None else self._features.encode
        self.means = TrainingMeans.fit(self._context_means(groups), groups, control=self.control, features=features)
        is_control = self.cells.perturbations == self.control
        self._row = {str(self.cells.names[i]): i for i in np.flatnonzero(is_control)}

    @cached_property
    def relative(self) -> TrainingMeans:
        """Means of expm1 of the expression: what one profile for all cells is in counts. Without linear baseline."""
        groups = self._relative_groups
        controls = {context: mean for (name, context), mean in groups.items() if name == self.control}
        perturbed = {key: mean for key, mean in groups.items() if key[0] != self.control}
        return TrainingMeans(self._context_means(groups), controls, perturbed)

    @cached_property
    def _relative_groups(self) -> dict[tuple[str, str], np.ndarray]:
        if self._whole is not None:
            return {key: mean for key, mean in self._whole._relative_groups.items() if key in self.groups}
        if self.cells is None:
            return {}
        relative = self.cells.expression.copy()
        np.expm1(relative.data, out=relative.data)
        return {key: mean_of(relative[rows]) for key, rows in self.cells.groups().items()}

    def _context_means(self, groups: Mapping[tuple[str, str], np.ndarray]) -> dict[str, np.ndarray]:
        """Mean of all cells of every context, given those of every perturbation there."""
        totals: dict[str, np.ndarray] = {}
        n_cells: dict[str, int] = {}
        for (name, context), mean in groups.items():
            n = self.sizes[name, context]
            totals[context] = totals.get(context, 0.0) + n * mean
            n_cells[context] = n_cells.get(context, 0) + n
        return {context: totals[context] / n for context, n in sorted(n_cells.items())}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Perturbations and contexts with perturbed and control cells."""
        return sorted(self.means.deltas)

    def without_groups(self, hidden: Collection[tuple[str, str]]) -> Training:
        """Training that never saw some perturbations in some contexts; the cells are kept, the means are not."""
        part = Training(None, control=self.control)
        part.cells, part._features, part._whole = self.cells, self._features, self
        part._set(
            {key: mean for key, mean in self.groups.items() if key not in hidden},
            {key: n for key, n in self.sizes.items() if key not in hidden},
        )
        return part

    def at(self, rows: np.ndarray) -> Training:
        """Training on the cells of a boolean mask."""
        assert self.cells is not None  # the mask is of them
        return Training(self.cells.at(rows), control=self.control, pert_features=self._features)

    def without(self, hidden: frozenset[str]) -> TrainingMeans:
        """Means of all training cells but some control cells, by name.

        A measured change against control cells shares their noise with every change that was learned from them.
        """
        if hidden not in self._without:
            rows = sorted(self._row[name] for name in hidden if name in self._row) if self.cells is not None else []
            self._without[hidden] = self._beside_others(np.array(rows)) if rows else self.means
        return self._without[hidden]

    def shares_noise(self, controls: Cells) -> int:
        """Count the control cells that training saw beside perturbed cells of their contexts."""
        if self.cells is None:
            return 0
        trained = {context for _, context in self.means.deltas}
        return sum(
            context in trained and str(name) in self._row
            for context, name in zip(controls.contexts, controls.names, strict=True)
        )

    def _beside_others(self, hidden: np.ndarray) -> TrainingMeans:
        """Compute the means again where control cells are hidden, by their rows."""
        assert self.cells is not None  # it has the hidden rows
        contexts, controls = {}, {}
        totals = self._context_means(self.groups)
        n_cells: dict[str, int] = {}
        for (_, context), n in self.sizes.items():
            n_cells[context] = n_cells.get(context, 0) + n
        for context in sorted(set(self.cells.contexts[hidden])):
            rows = hidden[self.cells.contexts[hidden] == context]
            gone = np.asarray(self.cells.expression[rows].sum(axis=0, dtype=np.float64)).ravel()
            own = self.control, context
            whole = ((totals[context], n_cells[context]), (self.groups[own], self.sizes[own]))
            contexts[context], controls[context] = (
                (mean * n - gone) / (n - len(rows)) if n > len(rows) else None for mean, n in whole
            )
        return self.means.beside(contexts, controls)
