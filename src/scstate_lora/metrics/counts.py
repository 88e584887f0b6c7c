"""Counts of cells by perturbation: what the metrics on counts start from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import numba
import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike

_Result = TypeVar("_Result")

Counts: TypeAlias = np.ndarray | sparse.spmatrix | sparse.sparray
"""Counts of cells ``(n_cells, n_genes)``, dense or sparse."""


@dataclass(frozen=True, eq=False)
class CountGroups:
    """Cells with counts, and which perturbation each has.

    Parameters
    ----------
    cells
        Counts, CSR ``(n_cells, n_genes)`` without explicit zeros.
    order
        Rows of `cells`, those of one perturbation side by side, ``(n_cells,)``.
    starts
        Where each perturbation starts in `order`, and the end, ``(n_perturbations + 1,)``.
    """

    cells: sparse.csr_matrix
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def one(cls, cells: Counts, *, name: str) -> Self:
        """Take all cells as one group, for instance the controls."""
        return cls.of(cells, np.zeros(cells.shape[0], dtype=np.int64), name=name)

    @classmethod
    def of(cls, cells: Counts, perturbation: ArrayLike, *, name: str = "cells") -> Self:
        """Group cells ``(n_cells, n_genes)`` by their perturbation, numbers from 0 on ``(n_cells,)``.

        Raises
        ------
        ValueError
            If there are no cells, a count is negative or not finite, there is not one perturbation per cell, or a
            number below the largest has no cell.
        """
        counts = checked_counts(cells, name)
        codes = np.asarray(perturbation)
        if codes.shape != (counts.shape[0],) or not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0:
            msg = (
                f"The perturbations of {name} must be whole numbers from 0 on, one per cell ({counts.shape[0]}); "
                f"found {codes.dtype} of shape {codes.shape}."
            )
            raise ValueError(msg)
        sizes = np.bincount(codes)
        if not sizes.all():
            msg = f"Perturbation {int(np.argmin(sizes))} has no cell in {name}; number those present from 0 on."
            raise ValueError(msg)
        return cls(counts, np.argsort(codes, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))

    @property
    def sizes(self) -> np.ndarray:
        """Cells of each perturbation, ``(n_perturbations,)``."""
        return np.diff(self.starts)

    @property
    def owners(self) -> np.ndarray:
        """Perturbation of each cell in the order of `order`, int32 ``(n_cells,)``."""
        return np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)

    @cached_property
    def totals(self) -> np.ndarray:
        """Counts of each cell over all genes, float64 ``(n_cells,)``."""
        return np.asarray(self.cells.sum(axis=1, dtype=np.float64)).ravel()

    @cached_property
    def sums(self) -> np.ndarray:
        """Counts of each perturbation and gene, summed over the cells, float64 ``(n_perturbations, n_genes)``."""
        n_cells = len(self.order)
        member = sparse.csr_matrix((np.ones(n_cells), self.order, self.starts), shape=(len(self.sizes), n_cells))
        return np.asarray((member @ self.cells).todense(), dtype=np.float64)


def checked_counts(cells: Counts, name: str) -> sparse.csr_matrix:
    """Return counts as CSR ``(n_cells, n_genes)``; a ValueError if there are none, or one is negative or not finite."""
    counts = sparse.csr_matrix(cells)
    if counts.dtype not in (np.float32, np.float64):
        counts = counts.astype(np.float64)
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    if counts.ndim != 2 or not counts.shape[0] or not counts.shape[1]:
        msg = f"{name} must have shape (n_cells, n_genes) and at least one cell; its shape is {counts.shape}."
        raise ValueError(msg)
    if not np.isfinite(counts.data).all() or (counts.data < 0).any():
        msg = f"{name} must be raw counts, but a number is negative or not finite. Give counts, not centred values."
        raise ValueError(msg)
    if counts.nnz and not counts.data.all():
        counts = counts.copy()
        counts.eliminate_zeros()
    return counts


def same_genes(*groups: tuple[str, sparse.csr_matrix]) -> None:
    """Check that all have the same number of genes."""
    (first, counts), *others = groups
    for name, other in others:
        if other.shape[1] != counts.shape[1]:
            msg = f"{first} has {counts.shape[1]} genes and {name} has {other.shape[1]}; they must be the same genes."
            raise ValueError(msg)


def checked_targets(targets: ArrayLike | None, n_perturbations: int, n_genes: int) -> np.ndarray:
    """Return the genes that each perturbation acts on, ``(n_perturbations, n_positions)``, -1 for none.

    Parameters
    ----------
    targets
        Positions of the genes, ``(n_perturbations,)`` or ``(n_perturbations, n_positions)``; None has none anywhere.
    n_perturbations, n_genes
        Numbers of either.

    Raises
    ------
    ValueError
        If there is not a position, or a row of them, for each perturbation, or one is no gene.
    """
    if targets is None:
        return np.full((n_perturbations, 1), -1)
    positions = np.asarray(targets)
    if positions.ndim == 1:
        positions = positions[:, None]
    if (
        positions.ndim != 2
        or len(positions) != n_perturbations
        or not np.issubdtype(positions.dtype, np.integer)
        or (positions.size and not -1 <= positions.min() <= positions.max() < n_genes)
    ):
        msg = (
            f"targets must hold, for each of the {n_perturbations} perturbations, the position among the {n_genes} "
            f"genes of the one that it acts on, or -1; found {positions.dtype} of shape {np.shape(targets)}."
        )
        raise ValueError(msg)
    return positions


def in_threads(function: Callable[[Any], _Result], parts: Iterable[Any]) -> list[_Result]:
    """Call a function that releases the interpreter's lock on every part, on as many threads as numba may use."""
    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        return list(pool.map(function, parts))
