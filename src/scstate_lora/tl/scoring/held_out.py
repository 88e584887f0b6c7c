"""The held-out cells of one experiment, against which predictions for its control cells are scored."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.data import log_expression
from scstate_lora.data.contexts import join_labels
from scstate_lora.tl.scoring.cell_scores import score_cells
from scstate_lora.tl.scoring.cells import Cells, GroupedCells, common_contexts
from scstate_lora.tl.scoring.controls import pair
from scstate_lora.tl.scoring.inputs import check_genes, check_name, features_of
from scstate_lora.tl.scoring.predictors import PredictedCells
from scstate_lora.tl.scoring.table import EQUAL, Counting
from scstate_lora.tl.scoring.training import Training
from scstate_lora.tl.scoring.yardstick import Yardsticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.data.bound import BoundData
    from scstate_lora.tl.scoring.predictors import Predictor

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
        return Cells(self.bound.logged_genes(self.genes), self.contexts, self.bound.perturbations, names)

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
        return Yardsticks(self.training)

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
        return np.asarray(np.where(np.isin(self.contexts, chosen), unseen, bound.is_control))

    def is_held_out(self, target: str) -> np.ndarray:
        """Find the test cells of a perturbation, a mask."""
        return np.asarray((self.bound.split == "test") & (self.bound.perturbations == target))

    def is_control(self, target: str) -> np.ndarray:
        """Find the control cells in use in the contexts of a perturbation's test cells, a mask."""
        tested = self.contexts[self.is_held_out(target)]
        return np.asarray(self.controls_in_use & np.isin(self.contexts, tested))

    def rows_of(self, predicted: AnnData) -> np.ndarray:
        """Find the control cell of each predicted cell, positions ``(n_predicted,)``."""
        return self.bound.adata.obs_names.get_indexer(predicted.obs["control_cell"])

    def scored_part(self, predicted: AnnData, target: str) -> AnnData:
        """Take the predicted cells and genes that are scored."""
        return predicted[self.is_control(target)[self.rows_of(predicted)], self.genes]

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Expression of some cells, float32 ``(n, n_genes)``."""
        return self.cells.expression[rows].toarray()

    def score(
        self,
        target: str,
        predicted: AnnData | None = None,
        *,
        name: str = "model",
        with_baselines: bool = True,
        counting: Counting = EQUAL,
        n_boot: int = 1000,
    ) -> pd.DataFrame:
        """Score predicted cells of a perturbation against its test cells, and the baselines.

        Parameters
        ----------
        target
            The perturbation.
        predicted
            Cells predicted for control cells of this experiment; None scores the baselines alone.
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
        Table as :func:`scstate_lora.tl.evaluate_perturbation` returns it.

        Raises
        ------
        ValueError
            If no test cell has the perturbation, or their contexts have no predicted or no control cells.
        KeyError
            If a scored gene is missing from the cells.
        """
        check_name(name)
        if not self.is_held_out(target).any():
            msg = "no cell of it was held out."
            raise ValueError(msg)
        measured = self.cells.at(self.is_held_out(target))
        controls = self.cells.at(self.is_control(target))
        predictors: dict[str, Predictor] = {}
        if predicted is not None:
            part = self.scored_part(predicted, target)
            own = self.rows_of(part)
            perturbations = np.full(part.n_obs, target, dtype=object)
            cells = Cells(log_expression(part), self.contexts[own], perturbations, self.cells.names[own])
            cells, controls = pair(cells, {"adata": controls})
            predictors[name] = PredictedCells(GroupedCells(cells))
        return score_cells(
            predictors,
            measured,
            controls,
            {context: [target] for context in common_contexts(controls, measured)},
            training=self.training if with_baselines else None,
            yardsticks=self.yardsticks if with_baselines else None,
            counting=counting,
            n_boot=n_boot,
        )
