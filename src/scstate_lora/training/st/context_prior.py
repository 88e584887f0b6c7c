"""How the effect of a perturbation depends on the context: a Gaussian process, fitted before training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from scstate_lora.training.st.shift_prior import GroupStatistics, group_statistics, shifts_of

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.data.sets import Group

_WIDTHS = (1.0, 3.0, 10.0)
"""Kernel widths to try, in units of the mean squared distance between two contexts."""
_NOISE_SHARES = (0.03, 0.1, 0.3, 1.0)
"""Shares of the noise variance to try: if few genes respond strongly, less of it counts than in the mean gene."""
_COVARIATE_WEIGHTS = (0.0, 0.2)
"""Weights to try for the squared distance of covariates, relative to that of expression over the width."""
_MOST_GROUPS = 2000
_FEWEST_FOLDS = 3


@dataclass(frozen=True)
class ContextFit:
    """Numbers of a :class:`~scstate_lora.nn.context_shift.ContextShift`; without references it is zero everywhere.

    Parameters
    ----------
    centre
        Mean of the contexts' control cells, ``(n_inputs,)``.
    basis
        Directions in which contexts differ, ``(n_inputs, n_directions)``.
    points, perts, alpha
        Of every training group: its context along these directions, followed by its scaled covariates; its perturbation
        vector; and its dual weights. ``(n_groups, ...)``.
    width
        Width of the kernel: twice the squared length scale.
    slope
        Change per excess over the centre, the same for all genes.
    reach
        Scale of the covariates in the kernel.
    note
        Summary of the fit.
    noise_share
        Share of the noise variance that counts.
    """

    centre: np.ndarray
    basis: np.ndarray
    points: np.ndarray
    perts: np.ndarray
    alpha: np.ndarray
    width: float
    slope: float
    reach: float
    note: str
    noise_share: float = 1.0

    def extend(
        self, stats: GroupStatistics, pert_vectors: np.ndarray, common: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve for further columns by the same kernel: their centre, and their dual weights.

        Parameters
        ----------
        stats
            Of the training groups, over these columns.
        pert_vectors
            Perturbation vector of each group, ``(n_groups, pert_dim)``.
        common
            Their common shift, ``(pert_dim, n_columns)``.
        """
        centre = stats.control.mean(axis=0)
        if not len(self.points):
            return centre, np.zeros((0, len(centre)))
        shift = pert_vectors @ common
        residual = stats.delta - shift - self.slope * (stats.control - centre)
        return centre, _dual_weights(
            self.points, self.perts, stats.noise, residual, shift, width=self.width, noise_share=self.noise_share
        )

    def predict(self, control_means: np.ndarray, pert_vectors: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Compute the shift beyond the common one, ``(n, n_inputs)``.

        Parameters
        ----------
        control_means
            Means of the control cells, ``(n, n_inputs)``.
        pert_vectors
            Perturbation vectors, ``(n, pert_dim)``.
        coordinates
            Of the covariates, ``(n, n_coordinates)``.
        """
        excess = control_means - self.centre
        points = np.hstack([excess @ self.basis, self.reach * coordinates])
        kernel = _kernel(points, self.points, self.width) * (pert_vectors @ self.perts.T)
        return kernel @ self.alpha + self.slope * excess


def fit_contexts(
    x: sparse.csr_matrix | np.ndarray,
    groups: list[Group],
    perts: np.ndarray,
    coordinates: np.ndarray,
    folds: list[str],
) -> ContextFit:
    """Fit how a shift depends on the context, choosing the kernel by leaving cell types out.

    A Gaussian process for every gene (Rasmussen & Williams 2006) on the deviations of the groups' shifts from the
    common shift; all genes share one kernel. The noise variance of a gene follows from the variance and number of its
    cells. Its signal variance increases with its common shift, because genes that respond more strongly also respond
    more differently; how much so is estimated over all genes. The kernel's width and the share of the noise variance,
    or no kernel at all, are those that predict the groups of one cell type best from those of all others.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, ``(n_cells, n_columns)``.
    groups
        Training groups.
    perts
        Perturbation vector of each code, ``(n_codes, pert_dim)``.
    coordinates
        Of each group's covariates, ``(n_groups, n_coordinates)``.
    folds
        The cell type of each group; groups of one type are left out together.
    """
    stats = group_statistics(x, groups)
    pert_vectors = perts[[g.pert for g in groups]].astype(np.float64)  # (n_groups, pert_dim)
    types = np.array(folds)
    zero = _zero_fit(stats.control.shape[1], pert_vectors.shape[1], coordinates.shape[1])
    if len(set(folds)) < _FEWEST_FOLDS or len(groups) > _MOST_GROUPS:
        why = "too few cell types to tell" if len(groups) <= _MOST_GROUPS else f"over {_MOST_GROUPS} groups"
        return replace(zero, note=f"the same in all contexts: {why}")
    covariate_weights = _COVARIATE_WEIGHTS if coordinates.std(axis=0).any() else _COVARIATE_WEIGHTS[:1]
    choices = [None, *product(_WIDTHS, _NOISE_SHARES, covariate_weights)]
    errors: dict[tuple[float, float, float] | None, float] = dict.fromkeys(choices, 0.0)
    for fold in sorted(set(folds)):
        train, test = types != fold, types == fold
        common = shifts_of(stats.delta[train], pert_vectors[train])
        # A perturbation present in this fold alone cannot be predicted from the others.
        test &= np.array([((pert_vectors[train] != 0) & (row != 0)).any() for row in pert_vectors])
        for choice in choices:
            fit = zero if choice is None else _solve(stats, pert_vectors, coordinates, train, common, *choice)
            beyond_common = fit.predict(stats.control[test], pert_vectors[test], coordinates[test])
            predicted = pert_vectors[test] @ common + beyond_common
            errors[choice] += float(np.square(predicted - stats.delta[test]).sum())
    best = min(errors, key=lambda choice: errors[choice])
    gain = 1 - errors[best] / errors[None] if errors[None] else 0.0
    if best is None or not gain > 0:
        return replace(zero, note="the same in all contexts: types respond alike")
    everything = np.ones(len(groups), dtype=bool)
    fit = _solve(stats, pert_vectors, coordinates, everything, shifts_of(stats.delta, pert_vectors), *best)
    by = f"{len(groups)} contexts" + (" and their covariates" if fit.reach else "")
    return replace(fit, note=f"by {by}; left-out cell types predicted with {gain:.0%} less error")


def _solve(
    stats: GroupStatistics,
    pert_vectors: np.ndarray,
    coordinates: np.ndarray,
    train: np.ndarray,
    common: np.ndarray,
    width: float,
    noise_share: float,
    covariate_weight: float,
) -> ContextFit:
    """Solve for the dual weights of the groups that train, bool ``(n_groups,)``."""
    control, perts = stats.control[train], pert_vectors[train]
    shift = perts @ common
    residual = stats.delta[train] - shift
    centre = control.mean(axis=0)
    excess = control - centre
    squares = float(np.square(excess).sum())
    slope = float((excess * residual).sum() / squares) if squares > 0 else 0.0
    residual = residual - slope * excess
    left, sizes, _ = np.linalg.svd(excess.T, full_matrices=False)
    basis = left[:, sizes > 1e-6 * max(sizes.max(), 1e-12)]
    points = excess @ basis
    distances = np.square(points[:, None] - points[None]).sum(-1)
    scaled_width = width * max(float(distances[np.triu_indices(len(points), 1)].mean()), 1e-12)
    reach = float(np.sqrt(covariate_weight * scaled_width))
    points = np.hstack([points, reach * coordinates[train]])
    alpha = _dual_weights(
        points, perts, stats.noise[train], residual, shift, width=scaled_width, noise_share=noise_share
    )
    return ContextFit(centre, basis, points, perts, alpha, scaled_width, slope, reach, "", noise_share)


def _dual_weights(
    points: np.ndarray,
    perts: np.ndarray,
    noise: np.ndarray,
    residual: np.ndarray,
    shift: np.ndarray,
    *,
    width: float,
    noise_share: float,
) -> np.ndarray:
    """Solve for the dual weights of the groups, ``(n_groups, n_columns)``."""
    ratios = noise_share * _noise_to_signal(noise.mean(axis=0), residual, shift)  # (n_columns,)
    # Groups of few cells have more noise, by the same factor in every gene.
    noise_variance = noise.sum(axis=1)
    strength = np.square(perts).sum(axis=1) * noise_variance / max(float(noise_variance.mean()), 1e-12)
    white = 1 / np.sqrt(np.maximum(strength, 1e-12))
    kernel = _kernel(points, points, width)
    values, vectors = np.linalg.eigh(white[:, None] * kernel * (perts @ perts.T) * white)
    # (K + ratio I)^-1 residual for all genes at once, as they share the eigenvectors of K.
    dual = vectors.T @ (white[:, None] * residual) / (values.clip(min=0)[:, None] + ratios)
    return white[:, None] * (vectors @ dual)


def _noise_to_signal(noise_variance: np.ndarray, residual: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Ratio of the noise variance to the variance of the true differences between contexts, ``(n_inputs,)``."""
    squared = np.square(shift).mean(axis=0)
    design = np.stack([np.ones_like(squared), squared], axis=1)
    coefficients, _ = nnls(design, np.square(residual).mean(axis=0) - noise_variance)
    signal_variance = np.maximum(design @ coefficients, 0.02 * noise_variance)
    return noise_variance / np.maximum(signal_variance, 1e-12)


def _kernel(points: np.ndarray, others: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-np.square(points[:, None] - others[None]).sum(-1) / width)


def _zero_fit(n_inputs: int, pert_dim: int, n_coordinates: int) -> ContextFit:
    """Make a fit without references, which shifts nothing."""
    return ContextFit(
        centre=np.zeros(n_inputs),
        basis=np.zeros((n_inputs, 0)),
        points=np.zeros((0, n_coordinates)),
        perts=np.zeros((0, pert_dim)),
        alpha=np.zeros((0, n_inputs)),
        width=1.0,
        slope=0.0,
        reach=0.0,
        note="",
    )
