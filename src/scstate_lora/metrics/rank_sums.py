"""Wilcoxon's rank-sum test of many sets of cells against one set of controls, gene by gene, on sparse counts."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numba
import numpy as np
from scipy.special import ndtr

from scstate_lora.metrics.counts import CountGroups

MILLION = 1e6
_VALUES_PER_BLOCK = 20_000_000  # values of one block of genes, 4 bytes each


class RankSums(NamedTuple):
    """Tests of one set of cells, float64 ``(n_genes,)`` each."""

    mean: np.ndarray
    """Mean over the cells of the counts per million."""
    u: np.ndarray
    """Mann-Whitney's U of the set: pairs of a cell and a control in which it is higher, ties counting half."""
    p_value: np.ndarray
    """Two-sided, by the normal approximation with corrections for ties and continuity; 1 where all cells are equal."""


class SortedControls(NamedTuple):
    """The counts per million of the control cells, sorted once for all tests against them."""

    genes: np.ndarray
    """Positions of the tested genes, ascending, ``(n_genes,)``."""
    values: np.ndarray
    """Those above zero, gene by gene and sorted within each, float32."""
    starts: np.ndarray
    """Where each gene starts in `values`, and the end, ``(n_genes + 1,)``."""
    ties: np.ndarray
    """Sum of t^3 - t over the ties above zero of each gene, ``(n_genes,)``."""
    n_cells: int

    @classmethod
    def of(cls, control: CountGroups, genes: np.ndarray) -> SortedControls:
        """Sort the control cells, one group, at the given genes."""
        column = np.full(control.cells.shape[1], -1, dtype=np.int64)
        column[genes] = np.arange(len(genes))
        n_values = np.bincount(control.cells.indices, minlength=len(column))[genes]
        starts = np.concatenate([[0], np.cumsum(n_values)])
        values = np.empty(starts[-1], dtype=np.float32)
        cells, scale = control.cells, _per_million(control.totals)
        _scatter(cells.data, cells.indices, cells.indptr, scale, column, starts[:-1].copy(), values)
        for start, stop in itertools.pairwise(starts):
            values[start:stop].sort()
        return cls(genes, values, starts, _ties(values, starts), cells.shape[0])

    def at(self, kept: np.ndarray) -> SortedControls:
        """Take some of the genes, by their positions among the tested ones, ascending."""
        parts = [self.values[self.starts[i] : self.starts[i + 1]] for i in kept]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(self.starts.dtype)
        values = np.concatenate([self.values[:0], *parts])
        return SortedControls(self.genes[kept], values, starts, self.ties[kept], self.n_cells)


def rank_sums(cells: np.ndarray, controls: SortedControls) -> RankSums:
    """Compare the counts per million of a set of cells with those of the control cells, gene by gene.

    As :func:`scipy.stats.mannwhitneyu` with ``method="asymptotic"``. Values that are equal in float32 are tied.

    Parameters
    ----------
    cells
        Counts over all genes, dense ``(n, n_all_genes)``.
    controls
        The control cells at the genes to test.
    """
    scale = _per_million(cells.sum(axis=1, dtype=np.float64))
    n_genes, n = len(controls.genes), len(cells)
    sums, u, tied = np.zeros((3, n_genes))
    width = max(1, _VALUES_PER_BLOCK // max(1, n))
    for start in range(0, n_genes, width):
        part = slice(start, start + width)
        genes = controls.genes[part]
        columns = np.empty((len(genes), n), dtype=np.float32)
        _columns(cells, scale, genes, columns, sums[part])
        columns.sort(axis=1)
        starts = controls.starts[start : start + len(genes) + 1]
        _rank_sorted(columns, controls.values, starts, controls.n_cells, controls.ties[part], u[part], tied[part])
    m = float(controls.n_cells)
    total = n + m
    variance = n * m / 12 * (total + 1 - tied / max(total * (total - 1), 1))
    distance = np.maximum(u, n * m - u) - n * m / 2 - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.minimum(2 * ndtr(-distance / np.sqrt(variance)), 1.0)
    return RankSums(sums / n, u, np.where(variance > 0, p, 1.0))


def mean_per_million(groups: CountGroups) -> np.ndarray:
    """Average counts per million over each group's cells, ``(n_groups, n_genes)``; a cell without counts has zeros."""
    scaled = groups.cells.astype(np.float64)
    scaled.data *= np.repeat(MILLION / np.where(groups.totals > 0, groups.totals, 1.0), np.diff(scaled.indptr))
    return CountGroups(scaled, groups.order, groups.starts).sums / groups.sizes[:, None]


def _per_million(totals: np.ndarray) -> np.ndarray:
    """Divisors of counts; a cell without counts keeps its zeros."""
    return np.where(totals > 0, totals, 1.0) / MILLION


@numba.njit(cache=True, nogil=True)
def _scatter(
    data: Any, indices: Any, indptr: Any, scale: Any, column: Any, position: Any, values: Any
) -> None:  # pragma: no cover  (compiled)
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            gene = column[indices[k]]
            if gene >= 0:
                values[position[gene]] = np.float64(data[k]) / scale[row]
                position[gene] += 1


@numba.njit(cache=True, nogil=True)
def _ties(values: Any, starts: Any) -> Any:  # pragma: no cover  (compiled)
    ties = np.zeros(len(starts) - 1)
    for gene in range(len(ties)):
        i = starts[gene]
        while i < starts[gene + 1]:
            j = i
            while j < starts[gene + 1] and values[j] == values[i]:
                j += 1
            ties[gene] += np.float64(j - i) ** 3 - (j - i)
            i = j
    return ties


@numba.njit(cache=True, nogil=True)
def _columns(cells: Any, scale: Any, genes: Any, columns: Any, sums: Any) -> None:  # pragma: no cover  (compiled)
    for i in range(len(cells)):
        for k in range(len(genes)):
            value = np.float64(cells[i, genes[k]]) / scale[i]
            columns[k, i] = value
            sums[k] += value


@numba.njit(cache=True, nogil=True)
def _rank_sorted(
    columns: Any, values: Any, starts: Any, n_control: Any, own_ties: Any, u: Any, tied: Any
) -> None:  # pragma: no cover  (compiled)
    n_cells = columns.shape[1]
    for gene in range(len(columns)):
        own = columns[gene]
        first, end = starts[gene], starts[gene + 1]
        n_zero = n_control - (end - first)
        i = 0
        while i < n_cells and own[i] == 0:
            i += 1
        both = np.float64(i + n_zero)
        higher, ties = 0.5 * i * n_zero, own_ties[gene] + both**3 - both
        below = first  # the first control that is not lower
        while i < n_cells:
            value = own[i]
            j = i + 1
            while j < n_cells and own[j] == value:
                j += 1
            step, top = 1, below
            while top < end and values[top] < value:
                below = top + 1
                top += step
                step *= 2
            top = min(top, end)
            while below < top:
                middle = (below + top) // 2
                if values[middle] < value:
                    below = middle + 1
                else:
                    top = middle
            above = below
            while above < end and values[above] == value:
                above += 1
            n, m = np.float64(j - i), np.float64(above - below)
            higher += n * (n_zero + (below - first) + 0.5 * m)
            ties += (n + m) ** 3 - (n + m) - (m**3 - m)
            i = j
        u[gene], tied[gene] = higher, ties
