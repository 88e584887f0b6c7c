"""Scores of embeddings, held-out cells against the training cells, and distances between groups of cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scstate_lora.metrics import energy_distance, mean_distance

if TYPE_CHECKING:
    from collections.abc import Callable

    Distance = Callable[[np.ndarray, np.ndarray], float]

MAX_CELLS = 1000  # of a side of an E-distance
MIN_CELLS = 10  # of a group whose cells are compared, or whose mean is taken
HALVINGS = 5


def knn_accuracy(x: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_neighbors: int = 10) -> float:
    """Share of the held-out cells whose label is that of most of their nearest training cells."""
    voters = KNeighborsClassifier(min(n_neighbors, int((~test).sum()))).fit(x[~test], labels[~test])
    return float(voters.score(x[test], labels[test]))


def majority_share(labels: np.ndarray, test: np.ndarray) -> float:
    """Share of the held-out cells that have the training cells' commonest label."""
    names, counts = np.unique(labels[~test], return_counts=True)
    return float(np.mean(labels[test] == names[np.argmax(counts)]))


def probe(x: np.ndarray, values: np.ndarray, test: np.ndarray) -> float:
    """Linear probe fitted on training cells: accuracy of labels (logistic), R2 of floating-point numbers (ridge)."""
    number = np.issubdtype(values.dtype, np.floating)
    model = Ridge() if number else LogisticRegression(max_iter=2000, tol=1e-3)
    return float(make_pipeline(StandardScaler(), model).fit(x[~test], values[~test]).score(x[test], values[test]))


def label_silhouette(x: np.ndarray, labels: np.ndarray, test: np.ndarray) -> float:
    """Mean silhouette of the held-out cells by label, brought to 0 ... 1 as scib-metrics does."""
    return (float(silhouette_score(x[test], labels[test])) + 1) / 2


def ilisi(x: np.ndarray, batches: np.ndarray, test: np.ndarray, *, n_neighbors: int = 90) -> float:
    """How many batches a held-out cell has among its nearest training cells: 0 (one) to 1 (all alike).

    The median over cells of the inverse Simpson index, with Gaussian weights of perplexity ``n_neighbors / 3``, less 1,
    over the number of batches less 1: iLISI as scib-metrics scales it, and equal to its numbers to 1e-6.
    """
    names, codes = np.unique(batches, return_inverse=True)
    n_neighbors = min(n_neighbors, int((~test).sum()) // 3)
    distances, neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(x[~test]).kneighbors(x[test])
    weights = _perplexity_weights(distances, math.log(n_neighbors / 3))
    of_batch = np.stack([(weights * (codes[~test][neighbors] == b)).sum(1) for b in range(len(names))], axis=1)
    return float((np.median(1 / (of_batch**2).sum(1)) - 1) / (len(names) - 1))


def _perplexity_weights(distances: np.ndarray, entropy: float, *, n_steps: int = 50) -> np.ndarray:
    """Weights ``exp(-beta d)`` that sum to 1, beta of every row such that their entropy is the one asked for."""
    distances = distances - distances.min(axis=1, keepdims=True)
    low, high = np.zeros(len(distances)), np.full(len(distances), np.inf)
    beta = np.ones(len(distances))
    for _ in range(n_steps):
        weights = np.exp(-distances * beta[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
        flat = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1) > entropy
        low, high = np.where(flat, beta, low), np.where(flat, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + high) / 2)
    return weights


def e_distance(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> float:
    """E-distance 2 E|x-y| - E|x-x'| - E|y-y'|, diagonal counted, of at most 1000 cells a side."""
    return float(energy_distance(*_at_most(x, y, seed=seed)))


def e_distance_unbiased(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> float:
    """E-distance without the diagonal: about 0, or a little less, for samples of one population of whatever sizes."""
    x, y = _at_most(x, y, seed=seed)
    within = sum(mean_distance(a) * len(a) / (len(a) - 1) for a in (x, y))
    return float(2 * mean_distance(x, y) - within)


def _at_most(*sides: np.ndarray, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [a if len(a) <= MAX_CELLS else a[rng.choice(len(a), MAX_CELLS, replace=False)] for a in sides]


def distance_of_means(x: np.ndarray, y: np.ndarray) -> float:
    """Euclidean distance of the mean cells."""
    return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))


def gap_of_means(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Euclidean distance of the mean cells, less what it comes to by chance in samples of these sizes."""
    chance = sum(float(a.var(axis=0, ddof=1).sum()) / len(a) for a in (x, y))
    return float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)) - chance


def half_against_half(x: np.ndarray, distance: Distance = e_distance, *, seed: int = 0) -> float:
    """Distance of a random half of the cells to the other half, mean of five halvings."""
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(x)), 2) for _ in range(HALVINGS)]
    return float(np.mean([distance(x[a], x[b]) for a, b in halves]))


def decoder(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a ridge regression from one embedding to another, its penalty chosen on the cells given."""
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 7))).fit(x, y)
    return model.predict
