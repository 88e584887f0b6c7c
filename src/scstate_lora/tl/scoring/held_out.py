"""The held-out cells of one experiment, against which predictions for its control cells are scored."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora.data import log_expression
from scstate_lora.data.contexts import join_labels
from scstate_lora.tl.scoring.cell_scores import score_cells
from scstate_lora.tl.scoring.cells import Cells, GroupedCells, common_contexts, is_among
from scstate_lora.tl.scoring.controls import pair
from scstate_lora.tl.scoring.inputs import (
    check_genes,
    check_name,
    features_of,
    measured_depth,
    own_genes,
    predicted_depth,
)
from scstate_lora.tl.scoring.predictors import PredictedCells
from scstate_lora.tl.scoring.table import EQUAL, Counting
from scstate_lora.tl.scoring.training import Training
from scstate_lora.tl.scoring.yardstick import Yardsticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.data.bound import BoundData
    from scstate_lora.tl.scoring.controls import ContextControls
    from scstate_lora.tl.scoring.predictors import Predicted, Predictor

_ENOUGH_UNSEEN = 20


class HeldOutCells:
    """The cells of one experiment, read once, with the test cells that predictions are scored against.

    Parameters
    ----------
    bound
        All cells, with their split.
    genes
        Genes that are scored.
    context_keys
        Columns that define a context; without any, all cells are one.
    pert_features
        Features of perturbations for the linear baseline.

    Raises
    ------
    KeyError
        If a column is missing.
    """

    def __init__(
        self,
        bound: BoundData,
        *,
        genes: Sequence[str],
        context_keys: Sequence[str],
        pert_features: pd.DataFrame | None = None,
    ) -> None:
        self.bound = bound
        self.genes = list(genes)
        self.pert_features = pert_features
        self.contexts = join_labels([bound.labels(key) for key in context_keys], len(bound))

    @cached_property
    def cells(self) -> Cells:
        """All cells over the scored genes; a KeyError if one is missing."""
        check_genes(self.genes, self.bound.registry.var_names, "adata")
        names = np.array(self.bound.names, dtype=object)
        logged, depth = self.bound.logged_genes(self.genes), measured_depth(self.bound)
        return Cells(logged, self.contexts, self.bound.perturbations, names, depth)

    @cached_property
    def training(self) -> Training:
        """The training cells, from which the baselines learn."""
        trained = self.cells.at(self.bound.split == "train")
        control = str(self.bound.registry.control)
        features = features_of(self.pert_features, trained.perturbations, control=control)
        return Training(trained, control=control, pert_features=features)

    @cached_property
    def yardsticks(self) -> Yardsticks:
        """Chooses the baselines at which the skill is 0, once for all targets."""
        names = sorted({target for target, _ in self.training.pairs})
        return Yardsticks(self.training, own_genes(names, self.genes))

    @cached_property
    def controls_in_use(self) -> np.ndarray:
        """Control cells that scores use, a mask.

        Where perturbed cells of a context were trained on, the change that was learned there contains the noise of the
        training controls. So of such a context those controls are used that training did not see, if there are 20.
        """
        bound = self.bound
        trained_on = np.unique(self.contexts[(bound.split == "train") & ~bound.is_control])
        unseen = bound.is_control & (bound.split != "train")
        contexts, counts = np.unique(self.contexts[unseen], return_counts=True)
        chosen = np.intersect1d(trained_on, contexts[counts >= _ENOUGH_UNSEEN])
        return np.asarray(np.where(is_among(self.contexts, chosen), unseen, bound.is_control))

    def is_held_out(self, target: str) -> np.ndarray:
        """Find the test cells of a perturbation, a mask."""
        return np.asarray((self.bound.split == "test") & (self.bound.perturbations == target))

    def is_control(self, target: str) -> np.ndarray:
        """Find the control cells in use in the contexts of a perturbation's test cells, a mask."""
        tested = self.contexts[self.is_held_out(target)]
        return np.asarray(self.controls_in_use & is_among(self.contexts, tested))

    def rows_of(self, predicted: AnnData) -> np.ndarray:
        """Find the control cell of each predicted cell, positions ``(n_predicted,)``."""
        return self.bound.adata.obs_names.get_indexer(predicted.obs["control_cell"])

    def scored_part(self, predicted: AnnData, target: str) -> AnnData:
        """Take the predicted cells and genes that are scored."""
        return predicted[self.is_control(target)[self.rows_of(predicted)], self.genes]

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Expression of some cells, float32 ``(n, n_genes)``."""
        return self.cells.expression[rows].toarray()

    def score_all(
        self,
        targets: Sequence[str],
        read: Callable[[str], AnnData] | None,
        *,
        name: str = "model",
        with_baselines: bool = True,
        counting: Counting = EQUAL,
        n_boot: int = 1000,
    ) -> pd.DataFrame:
        """Score predicted cells of perturbations against their test cells, with one prediction in memory at a time.

        Parameters
        ----------
        targets
            The perturbations, each with test cells.
        read
            Returns the cells predicted for a perturbation, from the same control cells for all; None scores the
            baselines alone.
        name
            Name of the model.
        with_baselines
            Whether to score the baselines and the ceiling. The skill is NaN without them.
        counting
            Which contexts count in the average, and with what weight.
        n_boot
            Bootstrap samples behind the intervals.

        Returns
        -------
        Table as :func:`scstate_lora.tl.evaluate_perturbation` returns it. A perturbation whose contexts have no control
        cells has no rows.

        Raises
        ------
        ValueError
            If no test cell has one of the perturbations, or their contexts have no predicted or no control cells.
        KeyError
            If a scored gene is missing from the cells.
        """
        check_name(name)
        if not all(self.is_held_out(target).any() for target in targets):
            msg = "no cell of it was held out."
            raise ValueError(msg)
        measured = self.cells.at(np.logical_or.reduce([self.is_held_out(target) for target in targets]))
        controls = self.cells.at(np.logical_or.reduce([self.is_control(target) for target in targets]))
        predictors: dict[str, Predictor] = {}
        has_counts = False
        if read is not None:
            first = self.cells_of(read(targets[0]), controls.names)
            _, controls = pair(first, {"adata": controls})
            predictors[name] = _PredictedForControls(self, read)
            has_counts = first.depth is not None
        if not has_counts:
            measured, controls = (cells._replace(depth=None) for cells in (measured, controls))
        groups = measured.groups()
        pairs = {
            context: [target for target in sorted(targets) if (target, context) in groups]
            for context in common_contexts(controls, measured)
        }
        return score_cells(
            predictors,
            measured,
            controls,
            pairs,
            training=self.training,
            has_baselines=with_baselines,
            yardsticks=self.yardsticks if with_baselines else None,
            counting=counting,
            hidden_genes=own_genes(targets, self.genes),
            n_boot=n_boot,
        )

    def cells_of(self, predicted: AnnData, controls: np.ndarray, *, target: str = "") -> Cells:
        """Take the scored genes of the cells that were predicted from some control cells, by name."""
        rows = self.rows_of(predicted)
        is_scored = is_among(self.cells.names[rows], controls)
        own = rows[is_scored]
        perturbations = np.full(len(own), target, dtype=object)
        expression, depth = log_expression(predicted[is_scored, self.genes]), predicted_depth(predicted)
        depth = None if depth is None else depth[is_scored]
        return Cells(expression, self.contexts[own], perturbations, self.cells.names[own], depth)


class _PredictedForControls(NamedTuple):
    """Predictions of one or more perturbations for the control cells, each read when it is asked for."""

    cells: HeldOutCells
    read: Callable[[str], AnnData]

    def predict(self, target: str, control: ContextControls, hidden: Sequence[frozenset[str]]) -> Predicted:
        """Take the cells that were predicted from the control cells of a context."""
        cells = self.cells.cells_of(self.read(target), control.names, target=target)
        return PredictedCells(GroupedCells(cells)).predict(target, control, hidden)
