"""The training cells that baselines learn from, with or without some of their control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.baselines import NO_TRAINING, TrainingMeans
from scstate_lora.tl.scoring.cells import mean_of

if TYPE_CHECKING:
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
        self.means = NO_TRAINING
        self._without: dict[frozenset[str], TrainingMeans] = {}
        self._cells = cells
        if cells is None:
            return
        features = None if pert_features is None else pert_features.encode
        self.means = TrainingMeans.fit(cells.means(), cells.group_means(), control=control, features=features)
        self._is_control = cells.perturbations == control
        self._row = {str(cells.names[i]): i for i in np.flatnonzero(self._is_control)}

    def without(self, hidden: frozenset[str]) -> TrainingMeans:
        """Means of all training cells but some control cells, by name.

        A measured change against control cells shares their noise with every change that was learned from them.
        """
        if hidden not in self._without:
            rows = [self._row[name] for name in hidden if name in self._row] if self._cells is not None else []
            self._without[hidden] = self._beside_others(np.array(rows)) if rows else self.means
        return self._without[hidden]

    def shares_noise(self, controls: Cells) -> int:
        """Count the control cells that training saw beside perturbed cells of their contexts."""
        if self._cells is None:
            return 0
        trained = {context for _, context in self.means.deltas}
        return sum(
            context in trained and str(name) in self._row
            for context, name in zip(controls.contexts, controls.names, strict=True)
        )

    def _beside_others(self, hidden: np.ndarray) -> TrainingMeans:
        assert self._cells is not None  # it has the hidden rows
        cells = self._cells
        is_left = np.ones(len(cells.contexts), dtype=bool)
        is_left[hidden] = False

        def mean(rows: np.ndarray) -> np.ndarray | None:
            return mean_of(cells.expression[np.flatnonzero(rows)]) if rows.any() else None

        contexts, controls = {}, {}
        for context in sorted(set(cells.contexts[hidden])):
            own = cells.contexts == context
            controls[context] = mean(own & is_left & self._is_control)
            # The mean of all cells of a context changes by the hidden ones alone.
            n_all, n_hidden = int(own.sum()), int((own & ~is_left).sum())
            total = (
                self.means.contexts[context] * n_all
                - np.asarray(cells.expression[np.flatnonzero(own & ~is_left)].sum(axis=0, dtype=np.float64)).ravel()
            )
            contexts[context] = total / (n_all - n_hidden) if n_all > n_hidden else None
        return self.means.beside(contexts, controls)
