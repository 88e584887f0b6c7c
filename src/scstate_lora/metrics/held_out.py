"""Scores of held-out cells by probes that were fitted to the embedding of training cells, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scstate_lora.metrics.embedding import checked_embedding
from scstate_lora.metrics.neighbors import majority_vote, nearest_cells
from scstate_lora.metrics.probed_labels import ProbedLabels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FEWEST_HELD_OUT = 5
"""Held-out cells that a class needs to be scored: a smaller class says little, yet would weigh as much as others."""

_PENALTIES = (1e-3, 3e-2, 1.0)


class HeldOutScore(NamedTuple):
    """A score on held-out cells, its bootstrap interval over them, and the score of ignoring the embedding."""

    value: float
    low: float
    high: float
    baseline: float


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
    """Balanced accuracy on held-out cells of a logistic regression that was fitted to training cells.

    Multinomial, classes weighted inversely to their size, features standardised by the training cells. The L2 penalty
    is the best of C = 0.001, 0.03 and 1 on a third of those cells: a single C would overfit wide embeddings of few
    cells, or underfit narrow ones. `value` is the mean over classes of the share of their held-out cells classified
    correctly, so that a rare class counts as much as a common one; answering with one class throughout reaches one over
    the number of classes (`baseline`). Classes with fewer than 5 held-out cells are not scored.

    Parameters
    ----------
    x_train, labels_train
        Embedding ``(n_train, n_dims)`` and category ``(n_train,)`` of the training cells.
    x_test, labels_test
        Embedding ``(n_test, n_dims)`` and category ``(n_test,)`` of the held-out cells.
    level
        Share of the bootstrap samples, drawn from the held-out cells of every class, that lie in the interval.
    n_boot
        Bootstrap samples.
    seed
        Seed of the samples, and of the choice of cells that select the penalty.

    Raises
    ------
    ValueError
        If shapes differ, an embedding is not finite, fewer than two classes have 5 held-out cells, or one of these has
        no training cell.
    """
    return balanced_accuracy(
        held_out_labels(x_train, labels_train, x_test, labels_test, seed=seed), level=level, n_boot=n_boot, seed=seed
    )


def held_out_labels(
    x_train: ArrayLike, labels_train: ArrayLike, x_test: ArrayLike, labels_test: ArrayLike, *, seed: int = 0
) -> ProbedLabels:
    """Labels that the logistic regression of :func:`held_out_categorical_probe` gives the held-out cells.

    Parameters
    ----------
    x_train, labels_train, x_test, labels_test
        As there.
    seed
        Seed of the choice of cells that select the penalty.

    Raises
    ------
    ValueError
        As there.
    """
    train, known = np.asarray(labels_train, dtype=object).astype(str), np.asarray(labels_test, dtype=object).astype(str)
    names, sizes = np.unique(known, return_counts=True)
    scored = [str(name) for name in names[sizes >= FEWEST_HELD_OUT]]
    if len(scored) < 2:
        sizes_text = ", ".join(f"'{name}' ({size})" for name, size in zip(names, sizes, strict=True))
        msg = f"two classes with {FEWEST_HELD_OUT} held-out cells each are needed; found {sizes_text or 'none'}"
        raise ValueError(msg)
    absent = sorted(set(scored) - set(train))
    if absent:
        msg = f"no training cell is of the class {absent[0]!r}"
        raise ValueError(msg)
    fit, held_out = _checked_pair(x_train, x_test, len(train), len(known))
    probe = _balanced_logistic(_best_c(fit, train, seed=seed)).fit(fit, train)
    shares = probe.predict_proba(held_out)
    return ProbedLabels(known, probe.classes_[shares.argmax(axis=1)], shares.max(axis=1))


def balanced_accuracy(found: ProbedLabels, *, level: float = 0.99, n_boot: int = 2000, seed: int = 0) -> HeldOutScore:
    """Mean over the classes of the share of cells that got the right label, with its bootstrap interval.

    Parameters
    ----------
    found
        Labels of :func:`held_out_labels`. Classes with fewer than 5 cells are not scored.
    level, n_boot, seed
        As in :func:`held_out_categorical_probe`.
    """
    known, right = found.true, found.true == found.predicted
    names, sizes = np.unique(known, return_counts=True)
    scored = names[sizes >= FEWEST_HELD_OUT]
    n = np.array([np.sum(known == name) for name in scored])
    k = np.array([np.sum(right[known == name]) for name in scored])
    # Drawing n cells of a class with replacement and counting the correct ones is a binomial draw.
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
    """R2 on held-out cells of a ridge regression that was fitted to training cells.

    Features are standardised by the training cells, and the penalty is chosen by leave-one-out among them. `value` is
    ``1 - sum (y - prediction)^2 / sum (y - mean of the training cells)^2`` over held-out cells: answering with the mean
    is exactly 0 (`baseline`), a perfect probe 1, and one worse than the mean negative.

    Parameters
    ----------
    x_train, values_train
        Embedding ``(n_train, n_dims)`` and number ``(n_train,)`` of the training cells.
    x_test, values_test
        Embedding ``(n_test, n_dims)`` and number ``(n_test,)`` of the held-out cells.
    level, n_boot, seed
        As in :func:`held_out_categorical_probe`; samples are drawn from all held-out cells.

    Raises
    ------
    ValueError
        If shapes differ, an embedding is not finite, or the numbers of either set of cells are all equal.
    """
    train, known = np.asarray(values_train, dtype=np.float64), np.asarray(values_test, dtype=np.float64)
    fit, held_out = _checked_pair(x_train, x_test, len(train), len(known))
    for values, cells in ((train, "training cells"), (known, "held-out cells")):
        if len(values) < 2 or np.ptp(values) == 0:
            msg = f"two different values are needed among the {cells}; {len(values)} cells have one"
            raise ValueError(msg)
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
    """Share of held-out cells whose nearest neighbours among the training cells vote for their label.

    Parameters
    ----------
    x_train, labels_train
        Embedding ``(n_train, n_dims)`` and label ``(n_train,)`` of the training cells.
    x_test, labels_test
        Embedding ``(n_test, n_dims)`` and label ``(n_test,)`` of the held-out cells.
    n_neighbors
        Euclidean neighbours that vote, at most all training cells; a tie goes to the class that sorts first.
    level, n_boot, seed
        As in :func:`held_out_categorical_probe`; samples are drawn from all held-out cells.

    Returns
    -------
    The score; its `baseline` is the share of the training cells' commonest class among the held-out cells.

    Raises
    ------
    ValueError
        If shapes differ, an embedding is not finite, or there is no training or no held-out cell.
    """
    names, train = np.unique(np.asarray(labels_train, dtype=object).astype(str), return_inverse=True)
    known = np.asarray(labels_test, dtype=object).astype(str)
    fit, held_out = _checked_pair(x_train, x_test, len(train), len(known))
    neighbors = nearest_cells(fit, held_out, min(n_neighbors, len(train)), seed=seed)
    right = names[majority_vote(train[neighbors])] == known
    n = len(known)
    samples = np.random.default_rng(seed).binomial(n, right.mean(), size=n_boot) / n
    commonest = names[np.bincount(train).argmax()]
    return HeldOutScore(float(right.mean()), *_interval(samples, level), float(np.mean(known == commonest)))


def _balanced_logistic(c: float) -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=c, solver="newton-cg", tol=1e-3, max_iter=1000, class_weight="balanced")
    )


def _best_c(x: np.ndarray, labels: np.ndarray, *, seed: int) -> float:
    """Choose the penalty that does best on a third of the cells, fitted to the others; the strongest of equals."""
    codes = np.unique(labels, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    is_judge = np.zeros(len(codes), dtype=bool)
    is_judge[order[2::3]] = True  # every third cell of a class
    judged = np.unique(codes[is_judge])
    if len(judged) < 2 or len(np.unique(codes[~is_judge])) < 2:
        return _PENALTIES[-1]  # too few cells to choose
    scores = []
    for c in _PENALTIES:
        right = _balanced_logistic(c).fit(x[~is_judge], codes[~is_judge]).predict(x[is_judge]) == codes[is_judge]
        scores.append(np.mean([right[codes[is_judge] == code].mean() for code in judged]))
    return _PENALTIES[int(np.argmax(scores))]


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked_pair(x_train: ArrayLike, x_test: ArrayLike, n_train: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Check the embeddings of training and held-out cells against the numbers of their labels."""
    return checked_embedding(x_train, n_train), checked_embedding(x_test, n_test)
