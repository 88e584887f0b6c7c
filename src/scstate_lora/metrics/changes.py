"""Changes of mean expression against control cells, of whole sets of cells and of random halves of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from scstate_lora.metrics.perturbation import checked_cells, pearson_delta

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FDR = 0.05
_GENES_PER_BLOCK = 512
_CONSTANT = 1e-14  # largest squared standard error of a gene that is constant on both sides
_NORMAL_QUANTILE = 1.9599  # a little under the |t| that has p = FDR with any number of cells


class Moments(NamedTuple):
    """Number of cells, and mean and sample variance of every gene, float64 ``(n_genes,)``; one cell has variance 0."""

    n_cells: int
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, cells: np.ndarray) -> Self:
        """Compute those of all cells ``(n, n_genes)``."""
        return cls(*moments(cells, np.ones((1, len(cells)), dtype=bool))[0])


def moments(cells: np.ndarray, sets: np.ndarray) -> list[Moments]:
    """Compute the moments of several sets of the same cells at once, as products of matrices.

    Parameters
    ----------
    cells
        Cells, shape ``(n, n_genes)``.
    sets
        Which cells each set has, bool ``(n_sets, n)``, one or more each.

    Returns
    -------
    Moments of each set.
    """
    sizes = sets.sum(axis=1)
    weights = sets / sizes[:, None]
    means, variances = np.empty((2, len(sets), cells.shape[1]))
    for start in range(0, cells.shape[1], _GENES_PER_BLOCK):
        genes = slice(start, start + _GENES_PER_BLOCK)
        block = cells[:, genes].astype(np.float64)
        center = block.mean(axis=0)
        block -= center  # squares of uncentred values would lose precision
        means[:, genes] = weights @ block
        variances[:, genes] = weights @ np.square(block) - np.square(means[:, genes])
        means[:, genes] += center
    variances = np.maximum(variances, 0.0) * (sizes / np.maximum(sizes - 1, 1))[:, None]
    return [Moments(int(n), mean, variance) for n, mean, variance in zip(sizes, means, variances, strict=True)]


class GeneChanges(NamedTuple):
    """Change of every gene against the control cells, arrays of shape ``(n_genes,)``."""

    delta: np.ndarray
    """Difference of the means."""
    t: np.ndarray
    """Welch's t; 0 for a gene without difference, infinite for one that differs and is constant on both sides."""
    fdr: np.ndarray
    """Two-sided p-values, adjusted over the genes by Benjamini and Hochberg."""


@dataclass(frozen=True, eq=False)
class Change:
    """A set of cells beside the control cells that its change is measured against.

    Parameters
    ----------
    cells, control
        Moments of either.
    """

    cells: Moments
    control: Moments

    @classmethod
    def of(cls, cells: ArrayLike, control: ArrayLike) -> Self:
        """Measure the change of cells ``(n, n_genes)`` against control cells ``(m, n_genes)``.

        Raises
        ------
        ValueError
            If they do not have the same genes, either has no cell, or a number is not finite.
        """
        sides = [checked_cells(cells, "cells"), checked_cells(control, "control")]
        if sides[0].shape[1] != sides[1].shape[1]:
            msg = f"cells have {sides[0].shape[1]} genes and control {sides[1].shape[1]}."
            raise ValueError(msg)
        return cls(*map(Moments.of, sides))

    @property
    def delta(self) -> np.ndarray:
        """Difference of the means, ``(n_genes,)``."""
        return self.cells.mean - self.control.mean

    @cached_property
    def by_size(self) -> np.ndarray:
        """Positions of the genes, the largest absolute change first; the earlier gene wins a tie."""
        return np.argsort(-np.abs(self.delta), kind="stable")

    @cached_property
    def moved(self) -> np.ndarray:
        """The delta, with 0 for a gene that only rounding moves: means of float32 cells are off by about 1e-7."""
        return np.where(np.abs(self.delta) <= 1e-6 * np.maximum(1.0, np.abs(self.control.mean)), 0.0, self.delta)

    @cached_property
    def _welch(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared standard error of every difference, and its degrees of freedom, 1 where the error is 0."""
        (n, _, variance), (m, _, other) = self.cells, self.control
        if min(n, m) < 2:
            msg = f"A t-test needs two cells on either side; there are {n} and {m}."
            raise ValueError(msg)
        part, rest = variance / n, other / m
        error = part + rest
        with np.errstate(divide="ignore", invalid="ignore"):
            degrees = error**2 / (part**2 / (n - 1) + rest**2 / (m - 1))
        return error, np.where(error <= _CONSTANT, 1.0, degrees)

    @cached_property
    def t(self) -> np.ndarray:
        """Welch's t of every gene, as :attr:`GeneChanges.t`; a ValueError if either side has fewer than two cells."""
        error, _ = self._welch
        with np.errstate(divide="ignore", invalid="ignore"):
            constant_t = np.where(self.moved == 0, 0.0, np.sign(self.moved) * np.inf)
            return np.where(error <= _CONSTANT, constant_t, self.delta / np.sqrt(error))

    @cached_property
    def genes(self) -> GeneChanges:
        """Welch's t-test of every gene; a ValueError if either side has fewer than two cells."""
        from scipy import stats

        p = self._p_values(slice(None))
        return GeneChanges(self.delta, self.t, np.asarray(stats.false_discovery_control(p)))

    @cached_property
    def significant(self) -> np.ndarray:
        """Positions of the genes whose ``genes.fdr`` is under 5 %; a ValueError as :attr:`genes`.

        A gene with p of 5 % or more is not among them, and no t-distribution gives a smaller p than the normal one: so
        most genes need no p-value, which is what takes the time.
        """
        candidates = np.flatnonzero(np.abs(self.t) >= _NORMAL_QUANTILE)
        p = self._p_values(candidates)
        order = np.argsort(p, kind="stable")
        adjusted = p[order] * (len(self.t) / np.arange(1, len(p) + 1))
        below = np.flatnonzero(adjusted < FDR)
        return np.sort(candidates[order[: below[-1] + 1]]) if len(below) else candidates[:0]

    def strongest(self, n_top: int) -> np.ndarray:
        """Positions of at most `n_top` significant genes (FDR under 5 %), the largest absolute change first."""
        return self._by_strength[:n_top]

    @cached_property
    def _by_strength(self) -> np.ndarray:
        """All of :meth:`strongest`."""
        return self.significant[np.argsort(-np.abs(self.delta[self.significant]), kind="stable")]

    @cached_property
    def weights(self) -> np.ndarray:
        """Weight of every gene by its evidence of a change, squared |t| up to 1; a ValueError without any."""
        t = np.abs(self.t)
        finite = t[np.isfinite(t)]
        largest = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
        weights = np.square(np.minimum(t, largest) / largest)
        if not weights.sum() > 0:
            msg = "No gene differs between the measured and the control cells: no gene has a weight."
            raise ValueError(msg)
        return weights

    def _p_values(self, genes: np.ndarray | slice) -> np.ndarray:
        """Two-sided p-values of Welch's test of some genes."""
        from scipy.special import stdtr

        return np.asarray(2 * stdtr(self._welch[1][genes], -np.abs(self.t[genes])))

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Welch's interval of every difference, lower and upper limit ``(n_genes,)``; a ValueError as :attr:`genes`."""
        from scipy.special import stdtrit

        error, degrees = self._welch
        half = stdtrit(degrees, 0.5 + level / 2) * np.sqrt(np.where(error <= _CONSTANT, 0.0, error))
        return self.delta - half, self.delta + half


def correlation_of(predicted: Change, measured: Change, *, n_top: int | None = None) -> float:
    """Correlate two changes, each against controls of its own, over all genes or those that change most when measured.

    Parameters
    ----------
    predicted, measured
        The changes.
    n_top
        Number of genes; None for all.

    Raises
    ------
    ValueError
        As :func:`scstate_lora.metrics.pearson_delta`, and if there are fewer genes.
    """
    if n_top is not None and len(measured.delta) < n_top:
        msg = f"The top {n_top} genes were requested, but there are only {len(measured.delta)}."
        raise ValueError(msg)
    genes = slice(None) if n_top is None else measured.by_size[:n_top]
    sides = (predicted.cells, measured.cells, predicted.control, measured.control)
    pred, real, control, real_control = (side.mean[genes] for side in sides)
    return pearson_delta(pred, real, control, real_control_mean=real_control)
