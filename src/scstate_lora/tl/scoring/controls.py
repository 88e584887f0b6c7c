"""The control cells that a prediction, the baselines and the ceiling are scored with, and their random halves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scstate_lora._logging import logger
from scstate_lora.metrics.changes import moments
from scstate_lora.metrics.perturbation import N_SPLITS, split_halves
from scstate_lora.metrics.set_pairs import MAX_CELLS
from scstate_lora.tl.scoring.cells import Cells, is_among

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scipy import sparse

    from scstate_lora.metrics.changes import Moments

FEWEST = 4  # control cells, so that each half has a variance


def pair(predicted: Cells, candidates: Mapping[str, Cells]) -> tuple[Cells, Cells]:
    """Take the control cells that were predicted from, and the cells predicted from them, context by context.

    Parameters
    ----------
    predicted
        Predicted cells.
    candidates
        Control cells by the argument that holds them. Those of the first are used; in a context where nothing was
        predicted from these, those of the next one.

    Returns
    -------
    The predicted cells that are scored, and the control cells that they were predicted from. A context without any is
    left out, with a warning.

    Raises
    ------
    ValueError
        If no predicted cell was predicted from a control cell of the candidates.
    """
    if len(predicted.names) and predicted.names[0] is None:
        return _all_controls(predicted, next(iter(candidates.items())))
    is_scored = np.zeros(len(predicted.names), dtype=bool)
    in_use: dict[str, list[np.ndarray]] = {argument: [] for argument in candidates}
    first = next(iter(candidates))
    absent, from_others = [], []
    for context in sorted(set(predicted.contexts)):
        own = predicted.contexts == context
        for argument, cells in candidates.items():
            rows = np.flatnonzero(cells.contexts == context)
            rows = rows[is_among(cells.names[rows], predicted.names[own])]
            if len(rows):
                in_use[argument].append(rows)
                is_scored |= own & is_among(predicted.names, cells.names[rows])
                from_others += [f"{context} (in {argument})"] if argument != first else []
                break
        else:
            absent.append(context)
    if not is_scored.any():
        raise ValueError(_not_present(predicted, candidates))
    if absent:
        logger.warning(
            "Not scored: %s. None of the control cells that were predicted from there is a control cell of %s.",
            ", ".join(absent),
            " or ".join(candidates),
        )
    if from_others:
        logger.info("Nothing was predicted from the control cells of %s in %s.", first, ", ".join(from_others))
    parts = [candidates[argument].at(_mask(rows, candidates[argument])) for argument, rows in in_use.items() if rows]
    controls = parts[0] if len(parts) == 1 else _joined(parts)
    n_left_out = int((~is_scored).sum())
    n_unused = int(is_among(candidates[first].contexts, predicted.contexts).sum()) - sum(map(len, in_use[first]))
    if n_left_out or n_unused:
        logger.info(
            "Model and baselines are scored from the same %d control cells. Left out are %d predicted cells of other "
            "controls, and %d control cells that nothing was predicted from.",
            len(controls.names),
            n_left_out,
            n_unused,
        )
    return predicted.at(is_scored), controls


def _all_controls(predicted: Cells, candidates: tuple[str, Cells]) -> tuple[Cells, Cells]:
    """Take all control cells of the predicted contexts, where nobody knows which were predicted from."""
    argument, controls = candidates
    logger.warning(
        "pred.obs['control_cell'] does not exist: which control cells were predicted from is unknown. The predicted "
        "change is taken against all of %s, whose noise the prediction may share.",
        argument,
    )
    has_controls = is_among(predicted.contexts, controls.contexts)
    if not has_controls.any():
        contexts = [sorted(set(cells.contexts))[:10] for cells in (predicted, controls)]
        msg = f"No context of pred has control cells in {argument}: pred has {contexts[0]}, {argument} {contexts[1]}."
        raise ValueError(msg)
    return predicted.at(has_controls), controls.at(is_among(controls.contexts, predicted.contexts))


def _mask(rows: Sequence[np.ndarray], cells: Cells) -> np.ndarray:
    mask = np.zeros(len(cells.names), dtype=bool)
    mask[np.concatenate(rows)] = True
    return mask


def _joined(parts: Sequence[Cells]) -> Cells:
    from scipy import sparse

    expression = sparse.vstack([cells.expression for cells in parts], format="csr")
    contexts, perturbations, names = (
        np.concatenate(columns) for columns in zip(*(cells[1:4] for cells in parts), strict=True)
    )
    depths = [cells.depth for cells in parts if cells.depth is not None]
    depth = np.concatenate(depths) if len(depths) == len(parts) else None
    return Cells(expression, contexts, perturbations, names, depth)


def _not_present(predicted: Cells, candidates: Mapping[str, Cells]) -> str:
    """Say why no predicted cell has its control cell: absent, or in another context."""
    first = str(predicted.names[0])
    holders = [argument for argument, cells in candidates.items() if is_among(predicted.names, cells.names).any()]
    if holders:
        return (
            f"pred was predicted from control cells of other contexts than it is in: pred.obs['control_cell'] is "
            f"{first!r} for a cell in {predicted.contexts[0]}. Predict each context from its own control cells, or "
            "give the context_key that both share."
        )
    return (
        f"No control cell that pred was predicted from (pred.obs['control_cell'], the first is {first!r}) is a control "
        f"cell of {' or '.join(candidates)}. Model and baselines are scored from the same control cells: give the "
        "cells that were predicted from as control."
    )


@dataclass(frozen=True, eq=False)
class ContextControls:
    """The control cells of one context, and their random halves.

    Parameters
    ----------
    context
        Name of the context.
    expression
        The cells, sparse ``(n, n_genes)``; they are made dense on use.
    names
        Name of each, ``(n,)``.
    halves
        Which cells each half has, bool ``(n_halves, n)``, without any half if the cells are too few.
    depth
        As of :class:`Cells`, ``(n,)``.
    """

    context: str
    expression: sparse.csr_matrix
    names: np.ndarray
    halves: np.ndarray
    depth: np.ndarray | None = None

    @classmethod
    def of(cls, controls: Cells, context: str, *, seed: int, n_splits: int = N_SPLITS) -> ContextControls:
        """Take the control cells of a context, and split them."""
        rows = np.flatnonzero(controls.contexts == context)
        halves = np.zeros((0, len(rows)), dtype=bool)
        if len(rows) >= FEWEST:
            halves = split_halves(len(rows), seed=seed, n_splits=n_splits)
        depth = None if controls.depth is None else controls.depth[rows]
        return cls(context, controls.expression[rows], controls.names[rows], halves, depth)

    @cached_property
    def source(self) -> ContextControls:
        """The cells that baselines predict from: at most 1,000, drawn of more."""
        n = len(self.names)
        if n <= MAX_CELLS:
            return self
        rows = np.sort(np.random.default_rng(0).choice(n, MAX_CELLS, replace=False))
        depth = None if self.depth is None else self.depth[rows]
        return ContextControls(self.context, self.expression[rows], self.names[rows], self.halves[:, rows], depth)

    @cached_property
    def cells(self) -> np.ndarray:
        """Dense float32 ``(n, n_genes)``."""
        return np.asarray(self.expression.toarray())

    @property
    def sets(self) -> np.ndarray:
        """All cells, and those of each half, bool ``(1 + n_halves, n)``."""
        return np.vstack([np.ones((1, len(self.names)), dtype=bool), self.halves])

    @cached_property
    def _all_moments(self) -> list[Moments]:
        return moments(self.cells, self.sets)

    @property
    def whole(self) -> Moments:
        """Moments of all cells."""
        return self._all_moments[0]

    @property
    def moments(self) -> list[Moments]:
        """Moments of every half."""
        return self._all_moments[1:]

    def halves_of(self, predicted_from: np.ndarray) -> np.ndarray:
        """Which predicted cells, given the names of their control cells, belong to each half."""
        position = {name: i for i, name in enumerate(self.names)}
        return self.halves[:, [position[name] for name in predicted_from]]


def other(half: int) -> int:
    """Position of the half that one leaves."""
    return half ^ 1


def hidden_names(controls: Sequence[ContextControls], half: int) -> frozenset[str]:
    """Names of the control cells of the other half, over all contexts."""
    parts = [c.names[c.halves[other(half)]] for c in controls if len(c.halves)]
    return frozenset(map(str, np.concatenate(parts))) if parts else frozenset()
