"""Nearest cells of an embedding, and the vote among their labels."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

EXACT_UP_TO = 100_000
"""Cells up to which neighbours are searched exactly; above, pynndescent approximates them.

At 100,000 cells x 50 the blocked exact search of one fold takes a fifth of the time that pynndescent needs to build its
index, and needs no compilation; only beyond that its growth with the square of the cells tells.
"""


def nearest_cells(
    cells: np.ndarray, query: np.ndarray, n_neighbors: int, *, is_exact: bool | None = None, seed: int = 0
) -> np.ndarray:
    """Find the nearest cells by Euclidean distance.

    Parameters
    ----------
    cells, query
        Embeddings of the cells to choose from and of those whose neighbours are searched, ``(n, n_dims)``.
    n_neighbors
        Neighbours per cell.
    is_exact
        Whether to compare all pairs, in blocks, rather than to use pynndescent, which misses a neighbour now and then;
        None: up to :data:`EXACT_UP_TO` cells.
    seed
        Seed of the approximate search.

    Returns
    -------
    Rows of `cells`, ``(n_query, n_neighbors)``.
    """
    if len(cells) <= EXACT_UP_TO if is_exact is None else is_exact:
        index = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(cells)
        return index.kneighbors(query, return_distance=False)
    from pynndescent import NNDescent  # compiles for up to a minute when first used on a machine

    index = NNDescent(cells, n_neighbors=max(30, n_neighbors), random_state=seed)
    return index.query(query, k=n_neighbors)[0]


def neighbor_graph(x: np.ndarray, n_neighbors: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest cells of every cell, the cell itself first, by Euclidean distance.

    All pairs are compared, in blocks, up to :data:`EXACT_UP_TO` cells; above, pynndescent approximates.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``, finite.
    n_neighbors
        Neighbours per cell, itself among them; at most all cells.
    seed
        Seed of the approximate search.

    Returns
    -------
    Rows of `x`, and their distances in single precision, both ``(n_cells, n_neighbors)`` and ascending.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    if len(x) <= EXACT_UP_TO:
        search = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(x)
        distances, rows = search.kneighbors(x)
    else:
        from pynndescent import NNDescent

        rows, distances = NNDescent(x, n_neighbors=n_neighbors, random_state=seed).neighbor_graph
    return _itself_first(rows.astype(np.int32), distances.astype(np.float32))


def _itself_first(rows: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put every cell first among its neighbours: rounding, or equal cells, may have it further down or leave it out."""
    itself = np.arange(len(rows))
    for cell in np.flatnonzero(rows[:, 0] != itself):
        place = np.flatnonzero(rows[cell] == cell)
        last = place[0] if place.size else rows.shape[1] - 1
        rows[cell, 1 : last + 1] = rows[cell, :last].copy()
        distances[cell, 1 : last + 1] = distances[cell, :last].copy()
    rows[:, 0], distances[:, 0] = itself, 0
    return rows, distances


def majority_vote(votes: np.ndarray) -> np.ndarray:
    """Return the commonest class of every row, the smallest of equals.

    Parameters
    ----------
    votes
        Numbers of classes, ``(n_cells, n_neighbors)``.
    """
    n_cells = len(votes)
    n_classes = int(votes.max()) + 1
    slot = votes + n_classes * np.arange(n_cells)[:, None]
    counts = np.bincount(slot.ravel(), minlength=n_cells * n_classes).reshape(n_cells, n_classes)
    return counts.argmax(axis=1)
