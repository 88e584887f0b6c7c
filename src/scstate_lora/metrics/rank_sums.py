"""Wilcoxon's rank-sum test of many sets of cells against one set of controls, gene by gene, on sparse counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from scipy.special import ndtr

from scstate_lora.metrics.counts import CountGroups, in_threads

if TYPE_CHECKING:
    from scipy import sparse

MILLION = 1e6
_VALUES_PER_BLOCK = 20_000_000  # values of one block of genes, 8 bytes each


class RankSums(NamedTuple):
    """Tests of every perturbation and gene, float64 ``(n_perturbations, n_genes)`` each."""

    mean: np.ndarray
    """Mean over the cells of the counts per million."""
    u: np.ndarray
    """Mann-Whitney's U of the perturbed cells: pairs with a control in which they are higher, ties counting half."""
    p_value: np.ndarray
    """Two-sided, by the normal approximation with corrections for ties and continuity; 1 where all cells are equal."""


def rank_sums(groups: CountGroups, control: CountGroups, genes: np.ndarray) -> RankSums:
    """Compare counts per million of each perturbation's cells with those of the control cells.

    As :func:`scipy.stats.mannwhitneyu` with ``method="asymptotic"``. The controls are sorted once per gene, and only
    counts above zero are looked at, so time grows with their number. Values that are equal in float32 are tied.

    Parameters
    ----------
    groups, control
        Perturbed cells, and control cells as one group.
    genes
        Positions of the genes to test, ascending, ``(n_genes,)``.
    """
    n_values = np.bincount(groups.cells.indices, minlength=groups.cells.shape[1])[genes]
    most = min(_VALUES_PER_BLOCK, 1 + int(n_values.sum()) // numba.get_num_threads())
    blocks = np.split(genes, 1 + np.flatnonzero(np.diff(np.cumsum(n_values) // most))) if len(genes) else []
    parts = in_threads(lambda block: _rank_block(groups, control, block), blocks)
    shape = (len(groups.sizes), len(genes))
    if not parts:
        return RankSums(*np.empty((3, *shape)))
    mean, u, tied = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    n, m = groups.sizes[:, None].astype(np.float64), float(control.sizes[0])
    total = n + m
    variance = n * m / 12 * (total + 1 - tied / np.maximum(total * (total - 1), 1))
    distance = np.maximum(u, n * m - u) - n * m / 2 - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.minimum(2 * ndtr(-distance / np.sqrt(variance)), 1.0)
    return RankSums(mean, u, np.where(variance > 0, p, 1.0))


def mean_per_million(groups: CountGroups) -> np.ndarray:
    """Average counts per million over each group's cells, ``(n_groups, n_genes)``; a cell without counts has zeros."""
    scaled = groups.cells.astype(np.float64)
    scaled.data *= np.repeat(MILLION / np.where(groups.totals > 0, groups.totals, 1.0), np.diff(scaled.indptr))
    return CountGroups(scaled, groups.order, groups.starts).sums / groups.sizes[:, None]


def _rank_block(groups: CountGroups, control: CountGroups, genes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, U and sum of t^3 - t over ties, each ``(n_perturbations, len(genes))``."""
    shape = (len(genes), len(groups.sizes))
    sums, u, tied = np.zeros((3, *shape))
    values, owners, starts = _by_gene(groups, genes, sums)
    others, _, other_starts = _by_gene(control, genes, np.zeros((len(genes), 1)))
    _rank_genes(values, owners, starts, groups.sizes, others, other_starts, control.sizes[0], u, tied)
    return (sums / groups.sizes).T, u.T, tied.T


def _by_gene(groups: CountGroups, genes: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the counts per million above zero by gene and then by perturbation, with the perturbations."""
    cells: sparse.csr_matrix = groups.cells
    column = np.full(cells.shape[1], -1, dtype=np.int32)
    column[genes] = np.arange(len(genes), dtype=np.int32)
    n_values = np.bincount(cells.indices, minlength=cells.shape[1])[genes]
    starts = np.concatenate([[0], np.cumsum(n_values)])
    values, owners = np.empty(starts[-1], dtype=np.float32), np.empty(starts[-1], dtype=np.int32)
    scale = np.where(groups.totals > 0, groups.totals, 1.0) / MILLION
    row = groups.order, groups.owners, scale
    _scatter(cells.data, cells.indices, cells.indptr, *row, column, starts[:-1].copy(), values, owners, sums)
    return values, owners, starts


@numba.njit(cache=True, nogil=True)
def _scatter(
    data: Any,
    indices: Any,
    indptr: Any,
    order: Any,
    row_owner: Any,
    scale: Any,
    column: Any,
    position: Any,
    values: Any,
    owners: Any,
    sums: Any,
) -> None:  # pragma: no cover  (compiled)
    for i in range(len(order)):
        row, owner = order[i], row_owner[i]
        for k in range(indptr[row], indptr[row + 1]):
            gene = column[indices[k]]
            if gene < 0:
                continue
            value = np.float64(data[k]) / scale[row]
            to = position[gene]
            values[to] = value
            owners[to] = owner
            sums[gene, owner] += value
            position[gene] = to + 1


@numba.njit(cache=True, nogil=True)
def _rank_genes(
    values: Any,
    owners: Any,
    starts: Any,
    sizes: Any,
    others: Any,
    other_starts: Any,
    n_control: Any,
    u: Any,
    tied: Any,
) -> None:  # pragma: no cover  (compiled)
    for gene in range(len(starts) - 1):
        control = np.sort(others[other_starts[gene] : other_starts[gene + 1]])
        n_zero = n_control - len(control)
        own_ties, i = 0.0, 0
        while i < len(control):
            j = i
            while j < len(control) and control[j] == control[i]:
                j += 1
            own_ties += np.float64(j - i) ** 3 - (j - i)
            i = j
        start, stop = starts[gene], starts[gene + 1]
        for group in range(len(sizes)):
            end = start
            while end < stop and owners[end] == group:
                end += 1
            high = np.sort(values[start:end])
            zeros = sizes[group] - len(high)
            both = np.float64(zeros + n_zero)
            higher, ties = 0.5 * zeros * n_zero, own_ties + both**3 - both
            i, below = 0, 0
            while i < len(high):
                j = i
                while j < len(high) and high[j] == high[i]:
                    j += 1
                top = len(control)
                while below < top:  # the first control that is not lower
                    middle = (below + top) // 2
                    if control[middle] < high[i]:
                        below = middle + 1
                    else:
                        top = middle
                above = below
                while above < len(control) and control[above] == high[i]:
                    above += 1
                n, m = np.float64(j - i), np.float64(above - below)
                higher += n * (n_zero + below + 0.5 * m)
                ties += (n + m) ** 3 - (n + m) - (m**3 - m)
                i = j
            u[gene, group], tied[gene, group] = higher, ties
            start = end
