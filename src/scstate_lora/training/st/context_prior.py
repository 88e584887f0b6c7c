"""How the effect of a perturbation depends on the context: solved for before training, from the training groups."""

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
"""Widths of the kernel that are tried, in units of the mean squared distance of two contexts."""
_NOISES = (0.03, 0.1, 0.3, 1.0)
"""Shares of the noise that are tried: where few genes respond by much, less of it counts than in the mean gene."""
_REACHES = (0.0, 0.2)
"""What the squared distance of covariates counts for, that of expression being divided by the width; 0: nothing."""
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
        Of every training group: its context along these directions, what describes its perturbation, and its weights.
    width, slope, reach
        Of the kernel; share of a gene's deviation from the centre that it changes by; scale of the covariates in the
        kernel.
    note
        What was chosen, for the summary.
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

    def predict(self, control_means: np.ndarray, perts: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Shift beyond the common one, ``(n, n_inputs)``, for means of control cells, perturbations and covariates."""
        beyond = control_means - self.centre
        found = np.hstack([beyond @ self.basis, self.reach * places])
        kernel = _kernel(found, self.points, self.width) * (perts @ self.perts.T)
        return kernel @ self.alpha + self.slope * beyond


def fit_contexts(
    x: sparse.csr_matrix | np.ndarray,
    groups: list[Group],
    perts: np.ndarray,
    places: np.ndarray,
    folds: list[str],
) -> ContextFit:
    """Solve for how a shift depends on the context, by leaving cell types out.

    A Gaussian process for every gene (Rasmussen & Williams 2006) on what the groups' differences show beyond the common
    shift. All have one kernel. The noise of a gene follows from the cells' variance and number, and its signal rises
    with its common shift, because genes that respond by more respond more differently; how much so is estimated over
    all genes. The width of the kernel and the share of the noise, or to have no kernel at all, are what predicts the
    groups of one cell type best from those of all others.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, ``(n_cells, n_columns)``.
    groups
        Training groups.
    perts
        What describes the perturbation of each code, ``(n_codes, pert_dim)``.
    places
        Coordinates of each group's covariates, ``(n_groups, n_coordinates)``.
    folds
        The cell type of each group: what is left out together.
    """
    stats = group_statistics(x, groups)
    told = perts[[g.pert for g in groups]].astype(np.float64)  # (n_groups, pert_dim)
    names = np.array(folds)
    n_inputs, n_coordinates = stats.control.shape[1], places.shape[1]
    nothing = _nothing(n_inputs, told.shape[1], n_coordinates)
    if len(set(folds)) < _FEWEST_FOLDS or len(groups) > _MOST_GROUPS:
        why = "too few cell types to tell" if len(groups) <= _MOST_GROUPS else f"over {_MOST_GROUPS} groups"
        return replace(nothing, note=f"the same in all contexts: {why}")
    reaches = _REACHES if places.std(axis=0).any() else _REACHES[:1]
    choices = [None, *product(_WIDTHS, _NOISES, reaches)]
    errors: dict[tuple[float, float, float] | None, float] = dict.fromkeys(choices, 0.0)
    for fold in sorted(set(folds)):
        kept, left = names != fold, names == fold
        common = shifts_of(stats.delta[kept], told[kept])
        # Of a perturbation that only this fold has, nothing can be said.
        left &= np.array([((told[kept] != 0) & (row != 0)).any() for row in told])
        for choice in choices:
            fitted = nothing if choice is None else _solve(stats, told, places, kept, common, *choice)
            predicted = told[left] @ common + fitted.predict(stats.control[left], told[left], places[left])
            errors[choice] += float(np.square(predicted - stats.delta[left]).sum())
    best = min(errors, key=lambda choice: errors[choice])
    gain = 1 - errors[best] / errors[None] if errors[None] else 0.0
    if best is None or not gain > 0:
        return replace(nothing, note="the same in all contexts: types respond alike")
    everything = np.ones(len(groups), dtype=bool)
    fitted = _solve(stats, told, places, everything, shifts_of(stats.delta, told), *best)
    by = f"{len(groups)} contexts" + (" and their covariates" if fitted.reach else "")
    return replace(fitted, note=f"by {by}; left-out cell types predicted with {gain:.0%} less error")


def _solve(
    stats: GroupStatistics,
    told: np.ndarray,
    places: np.ndarray,
    kept: np.ndarray,
    common: np.ndarray,
    width: float,
    share: float,
    reach: float,
) -> ContextFit:
    """Solve for the weights of the groups that are kept."""
    control, perts = stats.control[kept], told[kept]
    shift = perts @ common
    residual = stats.delta[kept] - shift
    centre = control.mean(axis=0)
    beyond = control - centre
    squares = float(np.square(beyond).sum())
    slope = float((beyond * residual).sum() / squares) if squares > 0 else 0.0
    residual = residual - slope * beyond
    left, sizes, _ = np.linalg.svd(beyond.T, full_matrices=False)
    basis = left[:, sizes > 1e-6 * max(sizes.max(), 1e-12)]
    points = beyond @ basis
    apart = np.square(points[:, None] - points[None]).sum(-1)
    scale = width * max(float(apart[np.triu_indices(len(points), 1)].mean()), 1e-12)
    reach = float(np.sqrt(reach * scale))
    points = np.hstack([points, reach * places[kept]])
    ratios = share * _noise_to_signal(stats.noise[kept].mean(axis=0), residual, shift)  # (n_inputs,)
    # Groups of few cells count for less, by the same factor in every gene.
    noisiness = stats.noise[kept].sum(axis=1)
    strength = np.square(perts).sum(axis=1) * noisiness / max(float(noisiness.mean()), 1e-12)
    white = 1 / np.sqrt(np.maximum(strength, 1e-12))
    values, vectors = np.linalg.eigh(white[:, None] * _kernel(points, points, scale) * (perts @ perts.T) * white)
    within = vectors.T @ (white[:, None] * residual) / (values.clip(min=0)[:, None] + ratios)
    return ContextFit(centre, basis, points, perts, white[:, None] * (vectors @ within), scale, slope, reach, "")


def _noise_to_signal(noise: np.ndarray, residual: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Variance of the noise over that of the true differences between contexts, ``(n_inputs,)``."""
    squared = np.square(shift).mean(axis=0)
    design = np.stack([np.ones_like(squared), squared], axis=1)
    coefficients, _ = nnls(design, np.square(residual).mean(axis=0) - noise)
    signal = np.maximum(design @ coefficients, 0.02 * noise)
    return noise / np.maximum(signal, 1e-12)


def _kernel(points: np.ndarray, others: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-np.square(points[:, None] - others[None]).sum(-1) / width)


def _nothing(n_inputs: int, pert_dim: int, n_coordinates: int) -> ContextFit:
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
