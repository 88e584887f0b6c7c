"""What a classifier knows from expression alone: its linear start, and how far a cell is from the known classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.metrics.novelty import ClassDistances, fit_class_distances
from scstate_lora.training.annotation.linear_start import LinearStart, fit_linear_start, top_genes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse

    from scstate_lora.config import LinearStartConfig

_N_COMPONENTS = 50
_MOST_FOR_PCA = 20_000
_BLOCK = 8192


@dataclass(frozen=True)
class ExpressionModel:
    """A linear start, and principal components of its genes in which distances to the classes are measured.

    Parameters
    ----------
    start
        Linear classifier, or linear regression with one output.
    center, components
        Of the principal components, ``(n_used,)`` and ``(n_components, n_used)``.
    distances
        Means of the classes in these components; None for a regression.
    """

    start: LinearStart
    center: np.ndarray
    components: np.ndarray
    distances: ClassDistances | None

    def __call__(
        self, x: sparse.csr_matrix | np.ndarray, *, measured: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute logits and distances of cells.

        Parameters
        ----------
        x
            log1p expression, ``(n_cells, n_genes)``.
        measured
            Genes that these cells have, bool ``(n_genes,)``.

        Returns
        -------
        Logits, float32 ``(n_cells, n_classes)``, and the distance to the closest class, ``(n_cells,)``; NaN for a
        regression.
        """
        logits, far = [], []
        for first in range(0, x.shape[0], _BLOCK):
            features = self.start.features(x[first : first + _BLOCK], measured=measured)
            logits.append(features @ self.start.coef.T + self.start.intercept)
            if self.distances is None:
                far.append(np.full(len(features), np.nan))
            else:
                far.append(self.distances.nearest((features - self.center) @ self.components.T))
        n_outputs = len(self.start.intercept)
        return np.concatenate(logits or [np.empty((0, n_outputs), np.float32)]), np.concatenate(far or [np.empty(0)])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, ready to be saved as tensors."""
        own = {"center": self.center, "components": self.components}
        if self.distances is not None:
            own |= {"class_means": self.distances.means, "whitening": self.distances.whitening}
        return {**{f"start.{name}": array for name, array in self.start.arrays().items()}, **own}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ExpressionModel:
        """Rebuild from what :meth:`arrays` returned."""
        start = {name.removeprefix("start."): a for name, a in arrays.items() if name.startswith("start.")}
        means = arrays.get("class_means")
        distances = None if means is None else ClassDistances(means, arrays["whitening"])
        return cls(LinearStart.from_arrays(start), arrays["center"], arrays["components"], distances)


def fit_expression_model(
    x: sparse.csr_matrix, allowed: np.ndarray, *, config: LinearStartConfig, class_weight: Any
) -> ExpressionModel:
    """Fit the linear start of a classifier, and the distances to its classes.

    Parameters
    ----------
    x
        log1p expression of the training cells, CSR ``(n_cells, n_genes)``.
    allowed
        Classes that each cell's label leaves open, bool ``(n_cells, n_classes)``; every class has a cell.
    config
        Options of the start.
    class_weight
        As in :func:`~scstate_lora.training.annotation.linear_start.fit_linear_start`.
    """
    options = {**config.model_dump(), "clip": config.clip or 3.0}
    start = fit_linear_start(x, allowed, class_weight=class_weight, **options)
    is_fine = allowed.sum(axis=1) == 1
    center, components = _components(start, x)
    features = start.features(x[is_fine]) if is_fine.any() else start.features(x)
    classes = allowed[is_fine].argmax(axis=1) if is_fine.any() else np.zeros(x.shape[0], dtype=np.int64)
    distances = fit_class_distances((features - center) @ components.T, classes)
    return ExpressionModel(start, center, components, distances)


def fit_regression_model(
    x: sparse.csr_matrix, values: np.ndarray, *, config: LinearStartConfig, alpha: float
) -> ExpressionModel:
    """Fit the linear start of a regression: ridge regression on the same genes as a classifier's.

    Parameters
    ----------
    x
        log1p expression of the training cells, CSR ``(n_cells, n_genes)``.
    values
        Standardised, ``(n_cells,)``.
    config
        Options of the start, of which the penalty is not used.
    alpha
        Penalty of the ridge regression.
    """
    from sklearn.linear_model import Ridge

    start = _without_weights(x, config)
    ridge = Ridge(alpha=alpha).fit(start.features(x), values)
    start = replace(
        start,
        coef=np.asarray(ridge.coef_, dtype=np.float32)[None],
        intercept=np.asarray([ridge.intercept_], dtype=np.float32),
    )
    return ExpressionModel(
        start, np.zeros(len(start.genes), np.float32), np.zeros((1, len(start.genes)), np.float32), None
    )


def choose_alpha(x: sparse.csr_matrix, values: np.ndarray, folds: Any, *, config: LinearStartConfig) -> float:
    """Choose the penalty of the ridge regression by the squared error on left-out cells."""
    from sklearn.linear_model import RidgeCV

    start = _without_weights(x, config)
    search = RidgeCV(alphas=np.logspace(1, 5, 9), cv=list(folds), scoring="neg_mean_squared_error")
    return float(search.fit(start.features(x), values).alpha_)


def _without_weights(x: sparse.csr_matrix, config: LinearStartConfig) -> LinearStart:
    genes, mean, sd = top_genes(x, config.n_top_genes)
    zero = np.zeros((1, len(genes)), dtype=np.float32)
    clip = np.asarray(config.clip or 3.0, dtype=np.float32)
    return LinearStart(genes, mean, sd, zero, np.zeros(1, np.float32), clip, np.zeros((1, 1), np.float32))


def _components(start: LinearStart, x: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Center and principal components of the standardised genes, of evenly spread cells where there are many."""
    from sklearn.decomposition import PCA

    rows = np.unique(np.linspace(0, x.shape[0] - 1, min(_MOST_FOR_PCA, x.shape[0])).astype(np.int64))
    features = start.features(x[rows])
    n = max(1, min(_N_COMPONENTS, min(features.shape) - 1))
    pca = PCA(n, svd_solver="randomized", random_state=0).fit(features)
    return pca.mean_.astype(np.float32), pca.components_.astype(np.float32)
