"""kBET within cell types, on neighbours by diffusion: whether neighbourhoods have the batches of their cell type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.special import chdtrc
from threadpoolctl import threadpool_limits

from scstate_lora.metrics.neighbors import neighbor_graph

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEWEST_CELLS = 10
"""Cells that a type needs to be tested."""

_N_COMPONENTS = 100


def kbet_per_label(
    connectivities: csr_matrix, label_codes: np.ndarray, batch_codes: np.ndarray, *, alpha: float = 0.05
) -> float:
    """Share of cells whose neighbourhood has the batches of their cell type, averaged over types.

    The value of `scib_metrics.kbet_per_label` :cite:p:`buttner2018,luecken2022`: within every type cells are placed by
    diffusion maps, and a chi-squared test compares the batches of a cell's neighbours with those of the type; 1 means
    that no test rejects. Neighbours are searched exactly there, where scib-metrics approximates them, and ARPACK has
    one thread, which on this matrix is ten times as fast as two.

    Parameters
    ----------
    connectivities
        Symmetric graph of the cells, ``(n_cells, n_cells)``, as UMAP weighs neighbours.
    label_codes, batch_codes
        Numbers of every cell's type and batch, ``(n_cells,)``.
    alpha
        p-value below which a neighbourhood is rejected.

    Raises
    ------
    ValueError
        If no type has 10 cells of two batches.
    """
    scores = []
    n_components = _N_COMPONENTS
    for label in np.unique(label_codes):
        cells = np.flatnonzero(label_codes == label)
        batches = np.unique(batch_codes[cells], return_counts=True)[1]
        if len(cells) < FEWEST_CELLS or len(batches) == 1:
            continue
        n_neighbors = int(np.clip(batches.mean() // 4, 10, 70))
        graph = connectivities[cells][:, cells]
        n_parts, part = connected_components(graph, connection="strong")
        if n_parts > 1:  # diffusion does not reach the small parts
            is_kept = np.bincount(part)[part] >= 3 * n_neighbors
            if is_kept.mean() < 0.75:
                scores.append(0.0)
                continue
            graph, cells = graph[is_kept][:, is_kept], cells[is_kept]
        if len(cells) <= n_neighbors:
            continue
        # As in scib-metrics, a type of few cells also limits those after it.
        n_components = min(n_components, len(cells) - 1)
        rows, _ = neighbor_graph(diffusion_map(graph, n_components), n_neighbors + 1)
        scores.append(_acceptance(rows, np.unique(batch_codes[cells], return_inverse=True)[1], alpha=alpha))
    if not scores:
        msg = f"no cell type has {FEWEST_CELLS} cells of two batches"
        raise ValueError(msg)
    return float(np.mean(scores))


def _acceptance(neighbors: np.ndarray, batches: np.ndarray, *, alpha: float) -> float:
    """Share of cells whose neighbours ``(n_cells, n_neighbors)`` have the batches of all, by chi-squared tests."""
    shares = np.bincount(batches) / len(batches)
    expected = shares * neighbors.shape[1]
    observed = np.stack([(batches[neighbors] == batch).sum(axis=1) for batch in range(len(shares))], axis=1)
    p_values = chdtrc(len(shares) - 1, ((observed - expected) ** 2 / expected).sum(axis=1))
    return float((p_values >= alpha).mean())


def diffusion_map(connectivities: csr_matrix, n_components: int) -> np.ndarray:
    """Place cells so that Euclidean distances are diffusion distances, summed over all times.

    Parameters
    ----------
    connectivities
        Symmetric graph of the cells, ``(n_cells, n_cells)``, in one part.
    n_components
        Components, less than the cells.

    Returns
    -------
    Coordinates ``(n_cells, n_components)`` in single precision.
    """
    density = diags(1 / np.asarray(connectivities.sum(axis=0)).ravel())
    kernel = density @ connectivities @ density
    root = diags(1 / np.sqrt(np.asarray(kernel.sum(axis=0)).ravel()))
    with threadpool_limits(limits=1, user_api="blas"):  # ARPACK's vectors are too small for more
        values, vectors = eigsh((root @ kernel @ root).astype(np.float64), k=n_components, which="LM")
    values = values[::-1].astype(np.float32) + np.float32(1e-8)
    weights = np.divide(values, 1 - values, out=np.ones_like(values), where=values != 1)
    return vectors[:, ::-1].astype(np.float32) * weights
