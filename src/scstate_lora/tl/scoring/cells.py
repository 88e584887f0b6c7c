"""Cells that scores are computed from, as arrays over the same genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora.tl.scoring.table import ALL

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scipy import sparse


class Cells(NamedTuple):
    """Cells of one kind: log1p expression over the scored genes, and what is known of each cell."""

    expression: sparse.csr_matrix
    contexts: np.ndarray
    perturbations: np.ndarray
    names: np.ndarray
    """Name of each cell; of a predicted cell, that of the control cell that it was predicted from, None if unknown."""
    depth: np.ndarray | None = None
    """What expm1 of each cell's expression is multiplied by to give its counts; None where they are not known."""

    def at(self, rows: np.ndarray) -> Cells:
        """Return the cells of a boolean mask."""
        fields = (self.contexts[rows], self.perturbations[rows], self.names[rows])
        return Cells(self.expression[np.flatnonzero(rows)], *fields, None if self.depth is None else self.depth[rows])

    def of(self, context: str) -> np.ndarray:
        """Dense float32 expression of one context, shape ``(n, n_genes)``."""
        return self.expression[np.flatnonzero(self.contexts == context)].toarray()

    def means(self) -> dict[str, np.ndarray]:
        """Mean cell of every context, float64 of shape ``(n_genes,)``."""
        return {
            context: mean_of(self.expression[np.flatnonzero(self.contexts == context)])
            for context in sorted(set(self.contexts))
        }

    def groups(self) -> dict[tuple[str, str], np.ndarray]:
        """Positions of the cells of every perturbation and context."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, key in enumerate(zip(self.perturbations, self.contexts, strict=True)):
            groups.setdefault(key, []).append(i)
        return {key: np.array(groups[key]) for key in sorted(groups)}

    def group_means(self) -> dict[tuple[str, str], np.ndarray]:
        """Mean cell of every perturbation and context, float64 of shape ``(n_genes,)``."""
        return {key: mean_of(self.expression[rows]) for key, rows in self.groups().items()}


class GroupedCells:
    """Cells with the positions of those of every perturbation and context.

    Parameters
    ----------
    cells
        The cells.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.groups = cells.groups()

    def rows(self, target: str, context: str) -> np.ndarray:
        """Positions of the cells of a perturbation in a context."""
        return self.groups.get((target, context), np.zeros(0, dtype=np.intp))

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Dense float32 expression of some cells, ``(n, n_genes)``."""
        return self.cells.expression[rows].toarray()

    def depth(self, rows: np.ndarray) -> np.ndarray | None:
        """Depth of some cells, if it is known."""
        return None if self.cells.depth is None else self.cells.depth[rows]


def is_among(values: np.ndarray, allowed: Collection[object] | np.ndarray) -> np.ndarray:
    """Which names are among others, bool ``(n,)``; by their hashes, as sorting names takes long."""
    return np.asarray(pd.Series(values, dtype=object).isin(set(allowed)))


def mean_of(expression: sparse.csr_matrix) -> np.ndarray:
    """Mean cell, float64 of shape ``(n_genes,)``."""
    return np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()


def common_contexts(predicted: Cells, perturbed: Cells) -> list[str]:
    """Contexts with predicted and measured perturbed cells, sorted.

    Raises
    ------
    ValueError
        If there is none, or one has the name of the average over contexts.
    """
    contexts = sorted(set(predicted.contexts) & set(perturbed.contexts))
    if not contexts:
        msg = (
            f"No context has both predicted and measured cells: pred has {sorted(set(predicted.contexts))[:10]}, "
            f"real has {sorted(set(perturbed.contexts))[:10]}."
        )
        raise ValueError(msg)
    if ALL in contexts and len(contexts) > 1:
        msg = f"A context is called {ALL!r}, the name of the average over contexts; rename it."
        raise ValueError(msg)
    return contexts


def shared_targets(predicted: Cells, measured: Cells, contexts: Sequence[str]) -> dict[str, list[str]]:
    """Perturbations both predicted and measured in a context, of every context with two or more.

    Raises
    ------
    ValueError
        If no context has two.
    """
    shared = sorted(set(predicted.groups()) & set(measured.groups()))
    by_context = {context: [name for name, where in shared if where == context] for context in contexts}
    enough = {context: names for context, names in by_context.items() if len(names) > 1}
    if not enough:
        most = max(by_context.values(), key=len)
        msg = (
            "Telling perturbations apart needs two or more in a context, predicted and measured; the most is "
            f"{len(most)} ({', '.join(most)}). Predict several: st.predict(target=[...])."
        )
        raise ValueError(msg)
    return enough
