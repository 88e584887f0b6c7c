"""What simple methods achieve on the cells that a classifier left out, so that its own scores mean something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.novelty import logit_energy, novelty_check
from scstate_lora.training.annotation.expression_model import fit_expression_model
from scstate_lora.training.annotation.linear_start import fit_linear_start

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.config import LinearStartConfig
    from scstate_lora.inference.left_out_cells import LeftOutCells
    from scstate_lora.metrics.novelty import NoveltyCheck
    from scstate_lora.training.annotation.folds import Folds

MAJORITY, PLAIN, BALANCED, NEIGHBOURS = (
    "majority",
    "logistic regression",
    "logistic regression, balanced",
    "kNN, 15 neighbours",
)
_N_NEIGHBOURS = 15
_MOST = 5000
_MOST_TO_CHECK = 3000
FEW = 5
"""Types with fewer cells do not enter macro scores."""


def baseline_labels(x: sparse.csr_matrix, classes: np.ndarray, folds: Folds) -> dict[str, np.ndarray]:
    """Predict the class of every left-out cell by simple methods, as a reader would run them.

    Logistic regression is that of scikit-learn (C = 1) on the 2,000 genes of largest variance of log values, clipped at
    10 standard deviations; neighbours are those on 50 principal components of the same genes. Fits take 5,000 cells at
    most, evenly spread.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``.
    classes
        ``(n_cells,)``.
    folds
        Which cells are left out together.

    Returns
    -------
    Classes ``(n_cells,)`` by method; -1 for cells that were never left out.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    methods = (MAJORITY, NEIGHBOURS, PLAIN, BALANCED)
    found = {name: np.full(len(classes), -1, dtype=np.int64) for name in methods}
    for inside, outside in folds:
        if not len(outside):
            continue
        rows = inside[np.unique(np.linspace(0, len(inside) - 1, min(_MOST, len(inside))).astype(np.int64))]
        names, codes = np.unique(classes[rows], return_inverse=True)
        found[MAJORITY][outside] = names[np.bincount(codes).argmax()]
        if len(names) < 2:
            continue
        allowed = codes[:, None] == np.arange(len(names))
        for name, weight in ((PLAIN, "none"), (BALANCED, "balanced")):
            start = fit_linear_start(x[rows], allowed, penalty=1.0, clip=10.0, class_weight=weight)  # type: ignore[arg-type]  # one of the three
            found[name][outside] = names[start.logits(x[outside]).argmax(axis=1)]
        features, new = start.features(x[rows]), start.features(x[outside])
        pca = PCA(min(50, min(features.shape) - 1), svd_solver="randomized", random_state=0).fit(features)
        nearest = KNeighborsClassifier(min(_N_NEIGHBOURS, len(rows))).fit(pca.transform(features), codes)
        found[NEIGHBOURS][outside] = names[nearest.predict(pca.transform(new))]
    return found


def check_unknown(
    x: sparse.csr_matrix,
    classes: np.ndarray,
    folds: Folds,
    left_out: LeftOutCells,
    *,
    config: LinearStartConfig,
) -> dict[int, NoveltyCheck]:
    """Leave every class out of training in turn, and see how well the cells of the first fold that have it stand out.

    By expression alone; of 3,000 cells at most, evenly spread.

    Parameters
    ----------
    x, classes, folds
        As in :func:`baseline_labels`.
    left_out
        Gives what is usual for known cells.
    config
        Options of the linear start.

    Returns
    -------
    Checks by class, of those with at least 5 cells in the first fold and without it.
    """
    inside, outside = (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(_MOST_TO_CHECK, len(rows))).astype(np.int64))]
        for rows in folds.rows(0)
    )
    scale = left_out.novelty()
    checks = {}
    for left in np.unique(classes[inside]):
        kept = inside[classes[inside] != left]
        names, codes = np.unique(classes[kept], return_inverse=True)
        is_new = classes[outside] == left
        known = is_new | np.isin(classes[outside], names)
        if len(names) < 2 or min(len(inside) - len(kept), is_new.sum(), (known & ~is_new).sum()) < FEW:
            continue
        allowed = codes[:, None] == np.arange(len(names))
        model = fit_expression_model(x[kept], allowed, config=config, class_weight="balanced")
        logits, distance = model(x[outside[known]])
        checks[int(left)] = novelty_check(scale.score(logit_energy(logits), distance), is_new[known])
    return checks
