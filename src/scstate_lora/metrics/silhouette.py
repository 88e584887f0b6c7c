"""Silhouettes of cells by type and by batch, in blocks: nothing as large as cells times cells is held in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_TILE = 768
"""Rows of a block: its square of distances in single precision stays in a processor's cache."""


def silhouette_samples(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Silhouette of every cell :cite:p:`rousseeuw1987`, by Euclidean distance.

    ``(b - a) / max(a, b)``, where a is the mean distance to the other cells of the own group and b that to the cells of
    the nearest other group: 1 if groups are compact and far apart, 0 if they overlap, negative if a cell is nearer to
    another group. A cell that is alone in its group has 0.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``, finite.
    codes
        Number of every cell's group, ``(n_cells,)``, from 0 on, none of them empty.

    Returns
    -------
    Silhouettes ``(n_cells,)`` in double precision, -1 to 1.

    Raises
    ------
    ValueError
        If all cells are of one group.
    """
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        msg = "a silhouette needs two groups of cells; all cells are of one"
        raise ValueError(msg)
    to_group = distance_sums(x, codes)
    cells = np.arange(len(codes))
    within = to_group[cells, codes] / np.maximum(sizes[codes] - 1, 1)
    to_group /= sizes
    to_group[cells, codes] = np.inf
    return _contrast(within, to_group.min(axis=1), is_alone=sizes[codes] == 1)


def cosine_silhouette_samples(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Silhouette of every cell by cosine distance, b being the mean distance to the cells of all other groups.

    The mean cosine distance to a group is 1 minus the product with the mean unit vector of its cells, so that the work
    grows with the cells, not with their square.

    Parameters
    ----------
    x, codes
        As in :func:`silhouette_samples`.

    Raises
    ------
    ValueError
        If all cells are of one group, or all coordinates of a cell are 0, which has no direction.
    """
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        msg = "a silhouette needs two groups of cells; all cells are of one"
        raise ValueError(msg)
    norm = np.linalg.norm(x.astype(np.float64), axis=1)
    if (norm == 0).any():
        msg = f"a cosine distance needs a direction; the embedding is 0 in all dimensions for {(norm == 0).sum()} cells"
        raise ValueError(msg)
    unit = x / norm[:, None]
    sums = np.stack([unit[codes == group].sum(axis=0) for group in range(len(sizes))])
    own = (unit * sums[codes]).sum(axis=1)
    n_own = sizes[codes]
    within = (n_own - own) / np.maximum(n_own - 1, 1)
    n_others = len(codes) - n_own
    others = (n_others - (unit @ sums.sum(axis=0) - own)) / n_others
    return _contrast(within, others, is_alone=n_own == 1)


def batch_silhouette(
    x: np.ndarray,
    label_codes: np.ndarray,
    batch_codes: np.ndarray,
    *,
    samples: Callable[[np.ndarray, np.ndarray], np.ndarray] = silhouette_samples,
) -> float:
    """1 minus the mean absolute silhouette of batches within each cell type, averaged over types.

    With :func:`silhouette_samples` it is the batch ASW of scIB :cite:p:`luecken2022`, with
    :func:`cosine_silhouette_samples` BRAS :cite:p:`rautenstrauch2025`. 1: batches overlap; 0: they are apart.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``, finite.
    label_codes, batch_codes
        Numbers of every cell's type and batch, ``(n_cells,)``.
    samples
        Silhouette of every cell, from an embedding and the numbers of groups.

    Raises
    ------
    ValueError
        If no type has cells of two batches.
    """
    scores = []
    for label in np.unique(label_codes):
        is_type = label_codes == label
        batches, codes = np.unique(batch_codes[is_type], return_inverse=True)
        if 1 < len(batches) < len(codes):
            scores.append(1 - np.abs(samples(x[is_type], codes)).mean())
    if not scores:
        msg = "no cell type has cells of two batches"
        raise ValueError(msg)
    return float(np.mean(scores))


class _Tile(NamedTuple):
    """Rows ``start`` to ``stop`` of the sorted cells, all of one group."""

    group: int
    start: int
    stop: int


def distance_sums(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Sum the Euclidean distances of every cell to the cells of every group.

    Each pair of cells is looked at once, block by block. A block's cells are taken relative to the mean of one of its
    groups before distances are made from products, so that single precision suffices however far from 0 cells lie.

    Parameters
    ----------
    x, codes
        As in :func:`silhouette_samples`.

    Returns
    -------
    Sums ``(n_cells, n_groups)`` in double precision.
    """
    order = np.argsort(codes, kind="stable")
    cells = np.ascontiguousarray(x[order], dtype=np.float32)
    bounds = np.searchsorted(codes[order], np.arange(codes.max() + 2))
    means = np.stack([cells[a:b].mean(axis=0) for a, b in pairwise(bounds)])
    tiles = [
        _Tile(group, start, min(start + _TILE, int(bounds[group + 1])))
        for group in range(len(means))
        for start in range(int(bounds[group]), int(bounds[group + 1]), _TILE)
    ]
    sums = np.zeros((len(cells), len(means)))
    for rows, columns, of_rows, of_columns in _in_threads(
        lambda pair: _tile_sums(cells, means[pair[1].group], *pair), combinations_with_replacement(tiles, 2)
    ):
        sums[rows.start : rows.stop, columns.group] += of_rows
        if rows != columns:
            sums[columns.start : columns.stop, rows.group] += of_columns
    unsorted = np.empty_like(sums)
    unsorted[order] = sums
    return unsorted


def _tile_sums(
    cells: np.ndarray, center: np.ndarray, rows: _Tile, columns: _Tile
) -> tuple[_Tile, _Tile, np.ndarray, np.ndarray]:
    """Sum the distances between two blocks of cells, ``(n_rows, n_columns)``, over either side."""
    a = cells[rows.start : rows.stop] - center
    b = cells[columns.start : columns.stop] - center
    # |a|^2 - 2 a b + |b|^2 as one product of matrices
    left = np.column_stack([-2 * a, np.einsum("ij,ij->i", a, a), np.ones(len(a), dtype=np.float32)])
    right = np.column_stack([b, np.ones(len(b), dtype=np.float32), np.einsum("ij,ij->i", b, b)])
    distance = left @ right.T
    np.maximum(distance, 0, out=distance)
    np.sqrt(distance, out=distance)
    if rows == columns:
        np.fill_diagonal(distance, 0)
    # Products add in several lanes, more precisely than a plain sum over rows.
    return rows, columns, distance @ np.ones(len(b), np.float32), np.ones(len(a), np.float32) @ distance


def _in_threads(work: Callable, tasks: Iterable) -> Iterable:
    """Work on tasks side by side, one thread of BLAS each; results come in the order of the tasks."""
    n_threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    with threadpool_limits(limits=1, user_api="blas"):
        if n_threads == 1:
            yield from map(work, tasks)
            return
        with ThreadPoolExecutor(n_threads) as pool:
            yield from pool.map(work, tasks)


def _contrast(within: np.ndarray, others: np.ndarray, *, is_alone: np.ndarray) -> np.ndarray:
    """Return ``(b - a) / max(a, b)``, 0 where both are 0 or the cell is alone."""
    largest = np.maximum(within, others)
    contrast = np.divide(others - within, largest, out=np.zeros_like(others), where=largest > 0)
    contrast[is_alone] = 0
    return contrast
