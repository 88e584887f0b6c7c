"""Information in an embedding: held-out nearest-neighbour accuracy and cross-validated linear probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scstate_lora.metrics.neighbors import EXACT_UP_TO, majority_vote, nearest_cells
from scstate_lora.metrics.probed_labels import ProbedLabels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PCA = "PCA"
"""Name in tables of the reference for embeddings: principal components of log1p expression."""


class Score(NamedTuple):
    """A cross-validated score, and the score of a predictor that ignores the embedding."""

    value: float
    baseline: float


def in_large_class(labels: ArrayLike, *, n_folds: int = 5) -> np.ndarray:
    """Find the cells whose label has enough cells for `n_folds` stratified folds.

    Parameters
    ----------
    labels
        One label per cell, shape ``(n_cells,)``; missing ones (None, NaN) count as too rare.
    n_folds
        Cells that a class must have at least, so that every fold holds one.

    Returns
    -------
    Boolean array of shape ``(n_cells,)``.
    """
    codes, _ = pd.factorize(np.asarray(labels, dtype=object))
    sizes = np.bincount(codes[codes >= 0], minlength=1)
    return (codes >= 0) & (sizes[codes] >= n_folds)


def majority_share(labels: ArrayLike, *, n_folds: int = 5) -> float:
    """Accuracy of always answering the commonest class, among the cells that :func:`knn_accuracy` scores.

    Parameters
    ----------
    labels
        One label per cell, shape ``(n_cells,)``.
    n_folds
        As in :func:`in_large_class`.

    Raises
    ------
    ValueError
        If fewer than two classes have `n_folds` cells.
    """
    codes, _ = _class_codes(labels, n_folds=n_folds)
    return float(np.bincount(codes).max() / len(codes))


def knn_accuracy(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    n_neighbors: int = 10,
    n_folds: int = 5,
    seed: int = 0,
    search: Literal["auto", "exact", "approximate"] = "auto",
    neighbors: np.ndarray | None = None,
) -> float:
    """Held-out accuracy of the majority vote among the nearest neighbours.

    Cells are split into stratified folds; each is labelled by its `n_neighbors` Euclidean neighbours among the cells of
    the other folds, and a tie goes to the class that sorts first. The value is the share of correct labels, 0 to 1.
    Cells without a label, or of a class with fewer than `n_folds` cells, are left out (:func:`in_large_class`).

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``.
    labels
        One label per cell, shape ``(n_cells,)``.
    n_neighbors
        Neighbours that vote.
    n_folds
        Stratified folds.
    seed
        Seed of the folds and of the approximate search.
    search
        ``"exact"`` compares all pairs in blocks, ``"approximate"`` uses pynndescent, ``"auto"`` is exact up to
        100,000 cells.
    neighbors
        Rows of the nearest of all cells in `x` ``(n_cells, n_nearest)``, nearest first, if they are known: those
        outside the fold vote, and only the neighbours of cells that have too few of them are searched.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, fewer than two classes have `n_folds` cells, or fewer than `n_neighbors`
        cells lie outside a fold.
    """
    codes, is_scored = _class_codes(labels, n_folds=n_folds)
    cells = checked_embedding(x, len(is_scored))[is_scored]
    n_voters = len(cells) - -(-len(cells) // n_folds)
    if n_voters < n_neighbors:
        msg = (
            f"n_neighbors={n_neighbors} needs as many cells outside a fold; {len(cells)} labelled cells in {n_folds} "
            f"folds leave {n_voters}. Use a smaller n_neighbors."
        )
        raise ValueError(msg)
    is_exact = len(cells) <= EXACT_UP_TO if search == "auto" else search == "exact"
    n_correct = 0
    row_of = np.full(len(is_scored), -1)  # in `cells`; -1 is not scored
    row_of[is_scored] = np.arange(len(cells))
    known = None if neighbors is None else row_of[np.asarray(neighbors)[is_scored]]
    for fit, held_out in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(cells, codes):
        voters, is_open = np.empty((len(held_out), n_neighbors), dtype=np.int64), np.ones(len(held_out), dtype=bool)
        if known is not None:
            is_fit = np.zeros(len(cells) + 1, dtype=bool)  # the last one for -1
            is_fit[fit] = True
            voters, is_open = _first_allowed(known[held_out], is_fit[known[held_out]], n_neighbors)
        if is_open.any():
            found = nearest_cells(cells[fit], cells[held_out[is_open]], n_neighbors, is_exact=is_exact, seed=seed)
            voters[is_open] = fit[found]
        n_correct += int(np.sum(majority_vote(codes[voters]) == codes[held_out]))
    return n_correct / len(cells)


def _first_allowed(rows: np.ndarray, is_allowed: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `n` allowed entries of each row ``(n_rows, n)``, and the mask of rows that have fewer."""
    first = np.argsort(~is_allowed, axis=1, kind="stable")[:, :n]
    found = np.zeros((len(rows), n), dtype=np.int64)
    found[:, : first.shape[1]] = np.take_along_axis(rows, first, axis=1)
    return found, is_allowed.sum(axis=1) < n


def categorical_probe(x: ArrayLike, labels: ArrayLike, *, n_folds: int = 5, seed: int = 0) -> Score:
    """Cross-validated accuracy of a logistic regression on the embedding, beside the commonest class.

    Multinomial, L2 penalty with C = 1 on features standardised inside the fold, stratified folds. `value` is the share
    of held-out cells classified correctly, `baseline` the share of the commonest class; both lie between 0 and 1. Cells
    without a label, or of a class with fewer than `n_folds` cells, are left out (:func:`in_large_class`).

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``.
    labels
        One category per cell, shape ``(n_cells,)``.
    n_folds
        Stratified folds.
    seed
        Seed of the folds.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, or fewer than two classes have `n_folds` cells.
    """
    found = cross_validated_labels(x, labels, n_folds=n_folds, seed=seed)
    return Score(found.accuracy, majority_share(labels, n_folds=n_folds))


def cross_validated_labels(x: ArrayLike, labels: ArrayLike, *, n_folds: int = 5, seed: int = 0) -> ProbedLabels:
    """Labels that the logistic regressions of :func:`categorical_probe` give the cells of their held-out folds.

    Parameters
    ----------
    x, labels, n_folds, seed
        As there.

    Returns
    -------
    Codes of the classes, of all cells that are scored.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, or fewer than two classes have `n_folds` cells.
    """
    codes, is_scored = _class_codes(labels, n_folds=n_folds)
    cells = checked_embedding(x, len(is_scored))[is_scored]
    predicted, confidence = np.empty_like(codes), np.empty(len(codes))
    for fit, held_out in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(cells, codes):
        probe = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cg", tol=1e-3, max_iter=1000))
        shares = probe.fit(cells[fit], codes[fit]).predict_proba(cells[held_out])
        predicted[held_out], confidence[held_out] = probe.classes_[shares.argmax(axis=1)], shares.max(axis=1)
    return ProbedLabels(codes, predicted, confidence)


def continuous_probe(x: ArrayLike, values: ArrayLike, *, n_folds: int = 5, seed: int = 0) -> Score:
    """Cross-validated R2 of a ridge regression on the embedding, beside the mean.

    Ridge with alpha = 1 on features standardised inside the fold. The residuals of all held-out cells are pooled:
    ``1 - sum (y - prediction)^2 / sum (y - mean of the fitted cells)^2``, so that answering with the mean is exactly 0
    (`baseline`), a perfect probe 1, and one worse than the mean negative. Cells without a value are left out.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``.
    values
        One number per cell, shape ``(n_cells,)``.
    n_folds
        Random folds.
    seed
        Seed of the folds.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, there are fewer cells with a value than folds, or all values are equal.
    """
    y = np.asarray(values, dtype=np.float64)
    is_known = np.isfinite(y)
    cells, y = checked_embedding(x, len(y))[is_known], y[is_known]
    if len(y) < n_folds:
        msg = f"{len(y)} cells have a value; {n_folds} folds need at least {n_folds}."
        raise ValueError(msg)
    if np.ptp(y) == 0:
        msg = f"All {len(y)} cells have the value {y[0]:g}: there is nothing to predict."
        raise ValueError(msg)
    residual = total = 0.0
    for fit, held_out in KFold(n_folds, shuffle=True, random_state=seed).split(cells):
        probe = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(cells[fit], y[fit])
        residual += float(np.sum((y[held_out] - probe.predict(cells[held_out])) ** 2))
        total += float(np.sum((y[held_out] - y[fit].mean()) ** 2))
    return Score(1.0 - residual / total, 0.0)


def checked_embedding(x: ArrayLike, n_cells: int) -> np.ndarray:
    """Return an embedding as floats ``(n_cells, n_dims)``.

    Parameters
    ----------
    x
        The embedding.
    n_cells
        Rows that it must have.

    Raises
    ------
    ValueError
        If it has another shape, or a number is not finite.
    """
    cells = np.asarray(x)
    if cells.ndim != 2 or not cells.size:
        msg = f"An embedding has shape (n_cells, n_dims), neither of them 0; this one has {cells.shape}."
        raise ValueError(msg)
    if len(cells) != n_cells:
        msg = f"The embedding has {len(cells)} cells and there are {n_cells} labels."
        raise ValueError(msg)
    cells = cells.astype(np.result_type(cells.dtype, np.float32), copy=False)
    n_bad = int(np.sum(~np.isfinite(cells).all(axis=1)))
    if n_bad:
        msg = f"The embedding has NaN or infinite numbers in {n_bad} of {len(cells)} cells."
        raise ValueError(msg)
    return cells


def _class_codes(labels: ArrayLike, *, n_folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the class number of every scored cell, classes sorted by name, and the mask of the scored cells."""
    is_scored = in_large_class(labels, n_folds=n_folds)
    values = np.asarray(labels, dtype=object)
    names, codes = np.unique(values[is_scored].astype(str), return_inverse=True)
    if len(names) < 2:
        sizes = ", ".join(f"{name!r} ({size})" for name, size in pd.Series(values).value_counts().items())
        msg = f"{n_folds} folds need two classes with at least {n_folds} cells each; found {sizes or 'none'}."
        raise ValueError(msg)
    return codes, is_scored
