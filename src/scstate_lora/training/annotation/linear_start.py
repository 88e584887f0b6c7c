"""The linear start of a classifier: a multinomial logistic regression on log expression, kept as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse
from scipy.special import log_softmax, logsumexp

from scstate_lora._utils import listed, warn_user

if TYPE_CHECKING:
    from collections.abc import Mapping

ClassWeight = Literal["balanced", "root", "none"]
_BLOCK = 8192  # cells that are made dense at once where only their logits are wanted


@dataclass(frozen=True)
class LinearStart:
    """A fitted logistic regression; its logits are ``clip((x[:, genes] - mean) / sd) @ coef.T + intercept``.

    Plain arrays, so that it is saved as tensors and computed by numpy and torch alike.

    Parameters
    ----------
    genes
        Positions of the genes in use among those it was fitted to, int64 ``(n_used,)``.
    mean, sd
        Of their log values over the fitted cells, float32 ``(n_used,)``; the sd of a constant gene is 1.
    coef
        Weights on standardised values, float32 ``(n_classes, n_used)``.
    intercept
        float32 ``(n_classes,)``.
    clip
        Bound of standardised values, in standard deviations, float32 ``()``.
    class_logits
        Mean logits of the fitted cells of each class, float32 ``(n_classes, n_classes)``, a row a class: what
        :func:`~scstate_lora.inference.composition_shift.composition_shift` compares new cells with.
    """

    genes: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    clip: np.ndarray
    class_logits: np.ndarray

    def features(self, x: sparse.csr_matrix | np.ndarray, *, measured: np.ndarray | None = None) -> np.ndarray:
        """Standardise and clip log values of cells.

        Parameters
        ----------
        x
            log1p expression, ``(n_cells, n_genes)``, with the genes of the fit in their order.
        measured
            Which genes these cells have, bool ``(n_genes,)``; a gene without a value counts as average, not as zero.

        Returns
        -------
        float32 ``(n_cells, n_used)``, dense.
        """
        values = _dense(x[:, self.genes])
        values -= self.mean
        values /= self.sd
        np.clip(values, -self.clip, self.clip, out=values)
        if measured is not None:
            values[:, ~measured[self.genes]] = 0
        return values

    def logits(self, x: sparse.csr_matrix | np.ndarray, *, measured: np.ndarray | None = None) -> np.ndarray:
        """Compute the logits of cells, float32 ``(n_cells, n_classes)``; parameters as in :meth:`features`."""
        blocks = [
            self.features(x[start : start + _BLOCK], measured=measured) @ self.coef.T + self.intercept
            for start in range(0, x.shape[0], _BLOCK)
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.intercept)), dtype=np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, ready to be saved as tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LinearStart:
        """Rebuild from what :meth:`arrays` returned.

        Raises
        ------
        ValueError
            If an array is missing, or one is not known.
        """
        known = {field.name for field in fields(cls)}
        if set(arrays) != known:
            absent, extra = sorted(known - set(arrays)), sorted(set(arrays) - known)
            msg = (
                f"The arrays of a linear start are {listed(sorted(known), limit=len(known))}; "
                f"missing: {listed(absent) or 'none'}, not known: {listed(extra) or 'none'}."
            )
            raise ValueError(msg)
        return cls(**{name: np.asarray(array) for name, array in arrays.items()})


def fit_linear_start(
    x: sparse.csr_matrix | np.ndarray,
    allowed: np.ndarray,
    *,
    n_top_genes: int = 2000,
    clip: float = 3.0,
    penalty: float = 10.0,
    class_weight: ClassWeight = "balanced",
    max_iter: int = 500,
) -> LinearStart:
    """Fit a multinomial logistic regression with an L2 penalty to log expression.

    Genes are those of largest variance of log values; they are standardised and clipped, so that a gene that a new
    batch shows far more of cannot decide alone. A coarse label enters as what it says: the probability of a cell with
    it is the sum over the classes that it leaves open. The result is deterministic.

    Minimises ``sum_i w_i (-log sum_{k allowed for i} p_ik) + penalty / 2 * sum coef^2``. The penalty of 10 (C = 0.1 in
    scikit-learn's terms) lies on a plateau: between 1 and 100 the accuracy on batches that were left out hardly moves.

    Parameters
    ----------
    x
        log1p expression of the training cells, ``(n_cells, n_genes)``.
    allowed
        Classes that each cell's label leaves open, bool ``(n_cells, n_classes)``; a single one for a fine label.
    n_top_genes
        Number of genes; all where there are fewer.
    clip
        Bound of standardised values, in standard deviations.
    penalty
        Weight of half the squared coefficients against the summed loss; larger is smoother.
    class_weight
        ``"balanced"``: cells of every class weigh the same together; ``"root"``: by the root of their number;
        ``"none"``: all cells weigh the same. A cell with a coarse label counts in equal parts for its classes.
    max_iter
        Steps of L-BFGS; fewer where it has converged, a warning where it has not.

    Raises
    ------
    ValueError
        If shapes differ, a cell has no class, a class no cell, or there are fewer than two classes.
    """
    from scipy.optimize import minimize

    allowed = _checked(x, allowed)
    genes, mean, sd = top_genes(x, n_top_genes)
    n_classes = allowed.shape[1]
    start = LinearStart(
        genes=genes,
        mean=mean,
        sd=sd,
        coef=np.zeros((n_classes, len(genes)), dtype=np.float32),
        intercept=np.zeros(n_classes, dtype=np.float32),
        clip=np.asarray(clip, dtype=np.float32),
        class_logits=np.zeros((n_classes, n_classes), dtype=np.float32),
    )
    features = start.features(x)  # (n_cells, n_used)
    weights = cell_weights(allowed, class_weight)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        coef, intercept = _unpacked(parameters, n_classes)
        value, residual = _loss(features, allowed, weights, coef, intercept)
        slope = (residual.T.astype(np.float32) @ features).astype(np.float64) + penalty / weights.sum() * coef
        value += penalty / weights.sum() / 2 * float(np.sum(coef**2))
        return value, np.concatenate([slope.ravel(), residual.sum(0)])

    found = minimize(
        loss,
        np.zeros(n_classes * (len(genes) + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "gtol": 1e-5, "ftol": 1e-10, "maxls": 50},
    )
    if found.nit >= max_iter:
        warn_user(f"The linear start has not converged after {max_iter} steps. Raise max_iter= or penalty=.")
    coef, intercept = _unpacked(found.x, n_classes)
    logits = _logits(features, coef, intercept)
    class_logits = _class_means(logits, allowed)
    return LinearStart(
        genes=genes,
        mean=mean,
        sd=sd,
        coef=coef.astype(np.float32),
        intercept=intercept.astype(np.float32),
        clip=start.clip,
        class_logits=class_logits.astype(np.float32),
    )


def _checked(x: sparse.csr_matrix | np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the allowed classes as bool, after looking at what a user may have got wrong."""
    classes = np.asarray(allowed, dtype=bool)
    if classes.ndim != 2 or len(classes) != x.shape[0] or classes.shape[1] < 2:
        msg = (
            f"allowed has shape {np.shape(allowed)}; for {x.shape[0]} cells it must be ({x.shape[0]}, n_classes), with "
            "two classes or more."
        )
        raise ValueError(msg)
    if not classes.any(axis=1).all():
        n = int((~classes.any(axis=1)).sum())
        msg = f"{n} of {len(classes)} cells have no class. Leave cells without a label out of the fit."
        raise ValueError(msg)
    if not classes.any(axis=0).all():
        none = np.flatnonzero(~classes.any(axis=0)).tolist()
        msg = f"No cell is of class {listed(none, form=str)}. Leave classes without cells out: nothing tells of them."
        raise ValueError(msg)
    return classes


def top_genes(x: Any, n_top_genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, means and standard deviations ``(n_used,)`` of the genes of largest variance, in gene order."""
    n_cells = x.shape[0]
    squares = x.multiply(x) if sparse.issparse(x) else np.square(x, dtype=np.float64)
    mean = np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / n_cells
    variance = np.maximum(np.asarray(squares.sum(axis=0, dtype=np.float64)).ravel() / n_cells - mean**2, 0)
    genes = np.sort(np.argsort(-variance, kind="stable")[:n_top_genes]).astype(np.int64)
    sd = np.sqrt(variance[genes])
    return genes, mean[genes].astype(np.float32), np.where(sd > 0, sd, 1).astype(np.float32)


def cell_weights(allowed: np.ndarray, class_weight: ClassWeight) -> np.ndarray:
    """Weight of every cell ``(n_cells,)``, their mean 1."""
    shares = allowed / allowed.sum(axis=1, keepdims=True)
    n_of_class = shares.sum(axis=0)
    power = {"balanced": 1.0, "root": 0.5, "none": 0.0}[class_weight]
    weights = shares @ (n_of_class**-power)
    return weights / weights.mean()


def _loss(
    features: np.ndarray, allowed: np.ndarray, weights: np.ndarray, coef: np.ndarray, intercept: np.ndarray
) -> tuple[float, np.ndarray]:
    """Weighted mean loss without penalty, and its slope by the logits ``(n_cells, n_classes)``."""
    log_p = log_softmax(_logits(features, coef, intercept), axis=1)
    log_open, share = _shares(log_p, allowed)
    scale = weights / weights.sum()
    return -float(scale @ log_open), (np.exp(log_p) - share) * scale[:, None]


def _shares(log_p: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probability of what each label leaves open ``(n_cells,)``, and how it divides among the classes."""
    within = np.where(allowed, log_p, -np.inf)
    total = logsumexp(within, axis=1)
    return total, np.exp(within - total[:, None])


def _class_means(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Mean logits of the cells of each class ``(n_classes, n_classes)``; coarse labels by how they divide."""
    _, share = _shares(log_softmax(logits, axis=1), allowed)
    return (share.T @ logits) / share.sum(axis=0)[:, None]


def _logits(features: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    return (features @ coef.T.astype(np.float32)).astype(np.float64) + intercept


def _unpacked(parameters: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients ``(n_classes, n_used)`` and intercepts ``(n_classes,)`` from one vector."""
    return parameters[:-n_classes].reshape(n_classes, -1), parameters[-n_classes:]


def _dense(x: Any) -> np.ndarray:
    return np.array(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)
