"""What an embedding knows: nearest-neighbour accuracy and linear probes, cross-validated or on cells held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

EXACT_UP_TO = 100_000
"""Cells up to which neighbours are searched exactly; above, pynndescent approximates them.

At 100,000 cells x 50 the blocked exact search of one fold takes a fifth of the time that pynndescent needs to build its
index, and nothing has to be compiled first; only beyond does its growth with the square of the cells tell.
"""


FEWEST_HELD_OUT = 5
"""Held-out cells that a class must have to be scored: fewer say nothing, yet would weigh as much as any class."""


class Score(NamedTuple):
    """A cross-validated score and what a predictor that ignores the embedding reaches."""

    value: float
    baseline: float


class HeldOutScore(NamedTuple):
    """A score on held-out cells, its bootstrap interval over them, and what ignoring the embedding reaches."""

    value: float
    low: float
    high: float
    baseline: float


def in_large_class(labels: ArrayLike, *, n_folds: int = 5) -> np.ndarray:
    """Tell which cells have a label that enough other cells share for `n_folds` stratified folds.

    Parameters
    ----------
    labels
        One label a cell, shape ``(n_cells,)``; missing ones (None, NaN) count as too rare.
    n_folds
        Members that a class must have at least, so that every fold holds one.

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
        One label a cell, shape ``(n_cells,)``.
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
) -> float:
    """Held-out accuracy of the majority vote among the nearest neighbours.

    Cells are split into stratified folds; each is labelled by its `n_neighbors` Euclidean neighbours among the cells of
    the other folds, a tie going to the class that sorts first. The value is the share of cells labelled right, 0 to 1.
    Cells without a label, or of a class with fewer than `n_folds` cells, are left out (:func:`in_large_class`).

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``.
    labels
        One label a cell, shape ``(n_cells,)``.
    n_neighbors
        Neighbours that vote.
    n_folds
        Stratified folds.
    seed
        Of the folds and of the approximate search.
    search
        ``"exact"`` compares all pairs in blocks, ``"approximate"`` uses pynndescent, ``"auto"`` is exact up to
        100,000 cells.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, fewer than two classes have `n_folds` cells, or a fold leaves fewer than
        `n_neighbors` cells to vote.
    """
    codes, kept = _class_codes(labels, n_folds=n_folds)
    cells = _checked_embedding(x, kept)[kept]
    n_voters = len(cells) - -(-len(cells) // n_folds)
    if n_voters < n_neighbors:
        raise ValueError(
            f"n_neighbors={n_neighbors} needs as many cells outside a fold; {len(cells)} labelled cells in {n_folds} "
            f"folds leave {n_voters}. Use a smaller n_neighbors."
        )
    exact = len(cells) <= EXACT_UP_TO if search == "auto" else search == "exact"
    right = 0
    for fit, held_out in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(cells, codes):
        neighbors = (
            _exact_neighbors(cells[fit], cells[held_out], n_neighbors)
            if exact
            else _approximate_neighbors(cells[fit], cells[held_out], n_neighbors, seed=seed)
        )
        right += int(np.sum(_majority_vote(codes[fit][neighbors]) == codes[held_out]))
    return right / len(cells)


def categorical_probe(x: ArrayLike, labels: ArrayLike, *, n_folds: int = 5, seed: int = 0) -> Score:
    """Cross-validated accuracy of a logistic regression on the embedding, beside the commonest class.

    Multinomial, L2 penalty with C = 1 on features standardised inside the fold, stratified folds. `value` is the share
    of held-out cells named right, `baseline` the share of the commonest class; both lie between 0 and 1. Cells without
    a label, or of a class with fewer than `n_folds` cells, are left out (:func:`in_large_class`).

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``.
    labels
        One category a cell, shape ``(n_cells,)``.
    n_folds
        Stratified folds.
    seed
        Of the folds.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, or fewer than two classes have `n_folds` cells.
    """
    codes, kept = _class_codes(labels, n_folds=n_folds)
    cells = _checked_embedding(x, kept)[kept]
    right = 0
    for fit, held_out in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(cells, codes):
        probe = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3, max_iter=1000))
        right += int(np.sum(probe.fit(cells[fit], codes[fit]).predict(cells[held_out]) == codes[held_out]))
    return Score(right / len(cells), majority_share(labels, n_folds=n_folds))


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
        One number a cell, shape ``(n_cells,)``.
    n_folds
        Random folds.
    seed
        Of the folds.

    Raises
    ------
    ValueError
        If shapes differ, `x` is not finite, there are fewer cells with a value than folds, or all values are equal.
    """
    y = np.asarray(values, dtype=np.float64)
    kept = np.isfinite(y)
    cells, y = _checked_embedding(x, kept)[kept], y[kept]
    if len(y) < n_folds:
        raise ValueError(f"{len(y)} cells have a value; {n_folds} folds need at least {n_folds}.")
    if np.ptp(y) == 0:
        raise ValueError(f"All {len(y)} cells have the value {y[0]:g}: there is nothing to predict.")
    residual = total = 0.0
    for fit, held_out in KFold(n_folds, shuffle=True, random_state=seed).split(cells):
        probe = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(cells[fit], y[fit])
        residual += float(np.sum((y[held_out] - probe.predict(cells[held_out])) ** 2))
        total += float(np.sum((y[held_out] - y[fit].mean()) ** 2))
    return Score(1.0 - residual / total, 0.0)


def held_out_categorical_probe(
    x_train: ArrayLike,
    labels_train: ArrayLike,
    x_test: ArrayLike,
    labels_test: ArrayLike,
    *,
    level: float = 0.99,
    n_boot: int = 2000,
    seed: int = 0,
) -> HeldOutScore:
    """Balanced accuracy on held-out cells of a logistic regression that was fitted on others.

    Multinomial, L2 penalty with C = 1, classes weighted inversely to their size, features standardised by the cells
    of the fit. `value` is the mean over classes of the share of their held-out cells named right, so that a rare class
    counts as much as a common one; always naming one class, the commonest or any other, reaches one over the number of
    classes (`baseline`). Classes with fewer than 5 held-out cells are not scored.

    Parameters
    ----------
    x_train, labels_train
        Embedding ``(n_train, n_dims)`` and category ``(n_train,)`` of the cells of the fit.
    x_test, labels_test
        The same of held-out cells.
    level
        Share of the bootstrap samples, drawn from the held-out cells of every class, that lie in the interval.
    n_boot
        Bootstrap samples.
    seed
        Of the samples.

    Raises
    ------
    ValueError
        If shapes differ, an embedding is not finite, fewer than two classes have 5 held-out cells, or one that does
        has no cell in the fit.
    """
    train, known = np.asarray(labels_train, dtype=object).astype(str), np.asarray(labels_test, dtype=object).astype(str)
    names, sizes = np.unique(known, return_counts=True)
    scored = [str(name) for name in names[sizes >= FEWEST_HELD_OUT]]
    if len(scored) < 2:
        found = ", ".join(f"'{name}' ({size})" for name, size in zip(names, sizes, strict=True))
        raise ValueError(f"two classes with {FEWEST_HELD_OUT} held-out cells each are needed; found {found or 'none'}")
    absent = sorted(set(scored) - set(train))
    if absent:
        raise ValueError(f"no cell of the fit is of the class {absent[0]!r}")
    fit, held_out = _checked_pair(x_train, x_test, len(train), len(known))
    probe = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-3, max_iter=1000, class_weight="balanced"))
    right = probe.fit(fit, train).predict(held_out) == known
    n = np.array([np.sum(known == name) for name in scored])
    k = np.array([np.sum(right[known == name]) for name in scored])
    # To draw n cells of a class with replacement and count those that are right is to draw from a binomial.
    samples = (np.random.default_rng(seed).binomial(n, k / n, size=(n_boot, len(n))) / n).mean(axis=1)
    return HeldOutScore(float((k / n).mean()), *_interval(samples, level), 1 / len(scored))


def held_out_continuous_probe(
    x_train: ArrayLike,
    values_train: ArrayLike,
    x_test: ArrayLike,
    values_test: ArrayLike,
    *,
    level: float = 0.99,
    n_boot: int = 2000,
    seed: int = 0,
) -> HeldOutScore:
    """R2 on held-out cells of a ridge regression that was fitted on others.

    Features are standardised by the cells of the fit, and its penalty is chosen by leave-one-out among them. `value`
    is ``1 - sum (y - prediction)^2 / sum (y - mean of the fitted cells)^2`` over held-out cells: answering with the
    mean is exactly 0 (`baseline`), a perfect probe 1, and one worse than the mean negative.

    Parameters
    ----------
    x_train, values_train
        Embedding ``(n_train, n_dims)`` and number ``(n_train,)`` of the cells of the fit.
    x_test, values_test
        The same of held-out cells.
    level, n_boot, seed
        As in :func:`held_out_categorical_probe`; samples are drawn from all held-out cells.

    Raises
    ------
    ValueError
        If shapes differ, an embedding is not finite, or the numbers of the fit or of the held-out cells are all equal.
    """
    train, known = np.asarray(values_train, dtype=np.float64), np.asarray(values_test, dtype=np.float64)
    fit, held_out = _checked_pair(x_train, x_test, len(train), len(known))
    for values, what in ((train, "the fit"), (known, "those held out")):
        if len(values) < 2 or np.ptp(values) == 0:
            raise ValueError(f"two different values are needed among the cells of {what}; {len(values)} cells have one")
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))).fit(fit, train)
    residual = (known - probe.predict(held_out)) ** 2
    total = (known - train.mean()) ** 2
    rng = np.random.default_rng(seed)
    samples = np.empty(n_boot)
    for i in range(n_boot):
        drawn = rng.integers(len(known), size=len(known))
        samples[i] = 1 - residual[drawn].sum() / total[drawn].sum()
    return HeldOutScore(float(1 - residual.sum() / total.sum()), *_interval(samples, level), 0.0)


def held_out_knn_accuracy(
    x_train: ArrayLike,
    labels_train: ArrayLike,
    x_test: ArrayLike,
    labels_test: ArrayLike,
    *,
    n_neighbors: int = 10,
    level: float = 0.99,
    n_boot: int = 2000,
    seed: int = 0,
) -> HeldOutScore:
    """Share of held-out cells whose nearest neighbours among other cells vote for their label.

    Parameters
    ----------
    x_train, labels_train
        Embedding ``(n_train, n_dims)`` and label ``(n_train,)`` of the cells that vote.
    x_test, labels_test
        The same of held-out cells.
    n_neighbors
        Euclidean neighbours that vote, a tie going to the class that sorts first; fewer where fewer cells vote.
    level, n_boot, seed
        As in :func:`held_out_categorical_probe`; samples are drawn from all held-out cells.

    Returns
    -------
    The score; its `baseline` is the share of the voters' commonest class among the held-out cells.

    Raises
    ------
    ValueError
        If shapes differ, an embedding is not finite, or there is no cell to vote or to be held out.
    """
    names, train = np.unique(np.asarray(labels_train, dtype=object).astype(str), return_inverse=True)
    known = np.asarray(labels_test, dtype=object).astype(str)
    fit, held_out = _checked_pair(x_train, x_test, len(train), len(known))
    n_neighbors = min(n_neighbors, len(train))
    neighbors = (
        _exact_neighbors(fit, held_out, n_neighbors)
        if len(fit) <= EXACT_UP_TO
        else _approximate_neighbors(fit, held_out, n_neighbors, seed=seed)
    )
    right = names[_majority_vote(train[neighbors])] == known
    n = len(known)
    samples = np.random.default_rng(seed).binomial(n, right.mean(), size=n_boot) / n
    commonest = names[np.bincount(train).argmax()]
    return HeldOutScore(float(right.mean()), *_interval(samples, level), float(np.mean(known == commonest)))


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked_pair(x_train: ArrayLike, x_test: ArrayLike, n_train: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Check the embeddings of the cells of a fit and of those held out against the number of their labels."""
    return _checked_embedding(x_train, np.ones(n_train)), _checked_embedding(x_test, np.ones(n_test))


def _checked_embedding(x: ArrayLike, kept: np.ndarray) -> np.ndarray:
    """Return `x` as a matrix of floats with a row for each element of `kept`, or say what is wrong with it."""
    cells = np.asarray(x)
    if cells.ndim != 2 or not cells.size:
        raise ValueError(f"An embedding has shape (n_cells, n_dims), neither of them 0; this one has {cells.shape}.")
    if len(cells) != len(kept):
        raise ValueError(f"The embedding has {len(cells)} cells and there are {len(kept)} labels.")
    cells = cells.astype(np.result_type(cells.dtype, np.float32), copy=False)
    n_bad = int(np.sum(~np.isfinite(cells).all(axis=1)))
    if n_bad:
        raise ValueError(f"The embedding has NaN or infinite numbers in {n_bad} of {len(cells)} cells.")
    return cells


def _class_codes(labels: ArrayLike, *, n_folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the class number of every cell that is scored, classes sorted by name, and which cells those are."""
    kept = in_large_class(labels, n_folds=n_folds)
    everyone = np.asarray(labels, dtype=object)
    names, codes = np.unique(everyone[kept].astype(str), return_inverse=True)
    if len(names) < 2:
        sizes = ", ".join(f"{name!r} ({size})" for name, size in pd.Series(everyone).value_counts().items())
        raise ValueError(
            f"{n_folds} folds need two classes with at least {n_folds} cells each; found {sizes or 'none'}."
        )
    return codes, kept


def _majority_vote(votes: np.ndarray) -> np.ndarray:
    """Return the commonest class of every row of `votes`, shape ``(n_cells, n_neighbors)``."""
    n_cells = len(votes)
    n_classes = int(votes.max()) + 1
    slot = votes + n_classes * np.arange(n_cells)[:, None]
    counts = np.bincount(slot.ravel(), minlength=n_cells * n_classes).reshape(n_cells, n_classes)
    return counts.argmax(axis=1)


def _exact_neighbors(fit: np.ndarray, query: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Return the rows of `fit` nearest to every row of `query`, shape ``(n_query, n_neighbors)``, pairs in blocks."""
    index = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(fit)
    return index.kneighbors(query, return_distance=False)


def _approximate_neighbors(fit: np.ndarray, query: np.ndarray, n_neighbors: int, *, seed: int) -> np.ndarray:
    """As `_exact_neighbors`, by pynndescent, which misses a neighbour now and then."""
    from pynndescent import NNDescent  # compiles for up to a minute when first used on a machine

    index = NNDescent(fit, n_neighbors=max(30, n_neighbors), random_state=seed)
    return index.query(query, k=n_neighbors)[0]
