"""Counts of predicted cells, drawn so that their zeros and their spread are those of measured cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scstate_lora._constants import TARGET_SUM

if TYPE_CHECKING:
    from collections.abc import Iterator

_CELLS, _GENES = 1000, 512  # per block, so that memory is bounded
# Overdispersion is estimated as if this much squared expectation had been seen at the overdispersion of all genes.
_PRIOR_WEIGHT = 10.0
_LEAST_DISPERSION = 0.01
# Share of the added molecules that fall evenly on the cells, which measured cells that respond strongly are nearer to.
_EVEN = 0.25


def draw_counts(
    controls: sparse.csr_matrix,
    library_sizes: np.ndarray,
    predicted: np.ndarray,
    contexts: np.ndarray,
    *,
    seed: int,
    target_sum: float = TARGET_SUM,
) -> sparse.csr_matrix:
    """Change the counts of control cells so that their mean log1p expression becomes the predicted one.

    Every gene of a context has a fold change. Where it falls, each molecule of a control cell is kept with the fold
    change as its probability (binomial thinning). Where it rises, molecules are added: their number is Poisson, with a
    rate drawn from the gamma distribution that the control cell's own count leaves for its expression. If the counts of
    the control cells are gamma-Poisson, then those of the drawn cells are, too, with the same dispersion, and a cell
    keeps what sets it apart. The fold change is the one at which the drawn cells have the predicted mean.

    Parameters
    ----------
    controls
        Counts of the control cells over the predicted genes, ``(n_cells, n_genes)``.
    library_sizes
        Counts of each control cell over all genes, ``(n_cells,)``.
    predicted
        Predicted cells, log1p of counts per `target_sum`, ``(n_cells, n_genes)``. The means of their contexts are used.
    contexts
        Context of each cell, ``(n_cells,)``.
    seed
        Seed of the draws.
    target_sum
        Sum of the counts of a cell before log1p.

    Returns
    -------
    Whole numbers, float32 CSR ``(n_cells, n_genes)``.
    """
    rng = np.random.default_rng(seed)
    blocks, order = [], []
    for rows in _blocks_of_cells(contexts):
        cells = sparse.csc_matrix(controls[rows])
        sizes = np.maximum(library_sizes[rows].astype(np.float64), 1)
        means = predicted[rows].mean(axis=0, dtype=np.float64)
        parts = [
            _draw(
                cells[:, start : start + _GENES].toarray(),
                sizes,
                means[start : start + _GENES],
                rng,
                target_sum=target_sum,
            )
            for start in range(0, cells.shape[1], _GENES)
        ]
        blocks.append(sparse.csr_matrix(sparse.hstack(parts)))
        order.append(rows)
    drawn = sparse.csr_matrix(sparse.vstack(blocks))
    return drawn[np.argsort(np.concatenate(order))]


def _blocks_of_cells(contexts: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of the cells of one context, in parts of nearly equal size."""
    for context in np.unique(contexts.astype(str)):
        members = np.flatnonzero(contexts.astype(str) == context)
        yield from np.array_split(members, -(-len(members) // _CELLS))


def _draw(
    counts: np.ndarray, sizes: np.ndarray, means: np.ndarray, rng: np.random.Generator, *, target_sum: float
) -> sparse.csr_matrix:
    """Draw the cells of one context, ``(n_cells, n_genes)``.

    Parameters
    ----------
    counts
        Of the control cells, ``(n_cells, n_genes)``.
    sizes
        Their library sizes, ``(n_cells,)``.
    means
        Mean log1p expression that the drawn cells are to have, ``(n_genes,)``.
    target_sum
        Sum of the counts of a cell before log1p.
    """
    n_cells, n_genes = counts.shape
    per_count = target_sum / sizes
    # A gene that no control cell expresses has the mean of half a molecule in one of them.
    present = np.maximum(np.log1p(counts * per_count[:, None]).mean(axis=0), np.log1p(per_count).mean() / 2 / n_cells)
    fold = np.expm1(np.maximum(means, 0)) / np.expm1(present)  # about: the mean of logarithms is none of the mean
    largest = 1 + np.maximum(0, 2 * fold - 1.6)
    surplus = rng.poisson(_expected(counts, sizes, rng) * (largest - 1))
    # Each molecule appears at a fold change of its own: the cell's own ones below 1, surplus ones up to the largest.
    own_in, surplus_in = (np.repeat(np.arange(n.size), n.ravel().astype(np.int64)) for n in (counts, surplus))
    entry = np.concatenate([own_in, surplus_in])  # row * n_genes + column
    appears = rng.random(len(entry))
    appears[len(own_in) :] = 1 + appears[len(own_in) :] * (largest - 1)[surplus_in % n_genes]
    order = np.lexsort((appears, entry))
    entry, appears = entry[order], appears[order]
    first = np.searchsorted(entry, entry)  # of the same entry
    nth = np.arange(len(entry)) - first  # molecules of the entry that are there already
    scale = per_count[entry // n_genes]
    gain = np.log1p(scale * (nth + 1)) - np.log1p(scale * nth)
    # In order of appearance, the molecules of a gene are taken until its mean is reached.
    gene = entry % n_genes
    order = np.lexsort((appears, gene))
    entry, gene, gain = entry[order], gene[order], gain[order]
    total = np.cumsum(gain)
    before = np.concatenate([[0.0], total])[np.searchsorted(gene, gene)]
    taken = total - before - gain / 2 < n_cells * means[gene]
    drawn = np.bincount(entry[taken], minlength=counts.size).reshape(counts.shape)
    return sparse.csr_matrix(drawn.astype(np.float32))


def _expected(counts: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the expected counts of cells from what their counts tell, ``(n_cells, n_genes)``.

    The prior is a gamma distribution; its overdispersion is estimated by moments, gene by gene, and drawn towards that
    of all genes as far as a gene has few counts.
    """
    rate = np.maximum(counts.sum(axis=0), 0.5) / sizes.sum()  # (n_genes,)
    expected = sizes[:, None] * rate
    excess = (np.square(counts - expected) - expected).sum(axis=0)
    squares = np.square(expected).sum(axis=0)
    common = max(float(excess.sum() / squares.sum()), _LEAST_DISPERSION)
    dispersion = (excess + _PRIOR_WEIGHT * common) / (squares + _PRIOR_WEIGHT)
    dispersion = np.maximum(dispersion, _LEAST_DISPERSION)
    drawn = rng.gamma(1 / dispersion + counts) / (1 / (dispersion * rate) + sizes[:, None])
    return sizes[:, None] * ((1 - _EVEN) * drawn + _EVEN * rate)
