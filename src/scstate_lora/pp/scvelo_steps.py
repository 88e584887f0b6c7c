"""RNA velocity by scVelo, on copies: the user's own AnnData is never passed to it."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scstate_lora._constants import TARGET_SUM

if TYPE_CHECKING:
    from collections.abc import Iterator

FEWEST_GENES = 10
LEAST_R2 = 0.01
"""scVelo's own threshold, which it lowers silently if fewer than two genes reach it."""

VELOCITY = "velocity"


class Fit(NamedTuple):
    """Velocities of the genes with a fit.

    Attributes
    ----------
    velocity
        float32 ``(n_cells, n_genes)``, NaN for genes without a fit.
    n_fitted
        Genes with a fit.
    """

    velocity: np.ndarray
    n_fitted: int


def import_scvelo() -> Any:
    """Import scVelo without the deprecation warnings of its dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scvelo
    return scvelo


@contextmanager
def quiet_scvelo() -> Iterator[Any]:
    """Keep scVelo's messages and its changes of warning filters to itself."""
    scvelo = import_scvelo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in dependencies, and 0 / 0, which is handled below
        before = scvelo.settings.verbosity
        scvelo.settings.verbosity = 0
        try:
            yield scvelo
        finally:
            scvelo.settings.verbosity = before


def shared_counts(spliced: sparse.csr_matrix, unspliced: sparse.csr_matrix) -> np.ndarray:
    """Sum the spliced and unspliced counts of each gene over the cells with both, ``(n_genes,)``."""
    both = (spliced > 0).multiply(unspliced > 0)
    return np.asarray(both.multiply(spliced + unspliced).sum(axis=0)).ravel()


def working_copy(
    spliced: sparse.csr_matrix, unspliced: sparse.csr_matrix, obs_names: pd.Index, var_names: pd.Index
) -> AnnData:
    """Bring counts ``(n_cells, n_genes)`` to a common depth: 10,000 spliced counts per cell, unspliced in proportion.

    Each layer is scaled by its own totals, because the unspliced share of a cell is largely technical.
    ``X`` is log1p of the spliced layer.
    """
    totals = [np.asarray(layer.sum(axis=1)).ravel() for layer in (spliced, unspliced)]
    ratio = np.median(totals[1][totals[1] > 0]) / np.median(totals[0][totals[0] > 0])
    scaled = [
        _scaled(layer, total, target)
        for layer, total, target in zip(
            (spliced, unspliced), totals, (TARGET_SUM, TARGET_SUM * float(ratio)), strict=True
        )
    ]
    work = AnnData(
        X=scaled[0].log1p(),
        obs=pd.DataFrame(index=obs_names.astype(str)),
        var=pd.DataFrame(index=var_names.astype(str)),
        layers={"spliced": scaled[0], "unspliced": scaled[1]},
    )
    work.var_names_make_unique()
    work.obs_names_make_unique()
    return work


def _scaled(counts: sparse.csr_matrix, totals: np.ndarray, target: float) -> sparse.csr_matrix:
    factors = np.divide(target, totals, out=np.zeros(len(totals)), where=totals > 0)
    return sparse.csr_matrix(sparse.diags(factors) @ counts, dtype=np.float32)


def select_genes(work: AnnData, eligible: np.ndarray, n_top_genes: int | None) -> np.ndarray:
    """Select the most variable of the eligible genes, or all of them if there are fewer: bool ``(n_genes,)``."""
    import scanpy as sc

    chosen = eligible.copy()
    if n_top_genes is not None and n_top_genes < eligible.sum():
        part = AnnData(X=work.X[:, eligible], var=work.var[eligible])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bins of one gene, and pandas' deprecations
            sc.pp.highly_variable_genes(part, n_top_genes=n_top_genes, flavor="seurat")
        # By rank: scanpy itself selects more genes if several share the last place.
        ranked = part.var["dispersions_norm"].fillna(-np.inf).argsort(kind="stable")[::-1]
        chosen[np.flatnonzero(eligible)[ranked[n_top_genes:]]] = False
    return chosen


def add_neighbors(work: AnnData, *, space: np.ndarray | None, n_pcs: int, n_neighbors: int, seed: int) -> None:
    """Find the nearest neighbours in `space`, by default a PCA of ``X``, and store them as scanpy does.

    All pairs are compared, in blocks: up to a hundred thousand cells this is faster than an index, and beyond that it
    takes no longer than scVelo's graph. scVelo uses only which cells are connected, so no weights are computed, and
    nothing has to be compiled for them.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    if space is None:
        n_components = max(1, min(n_pcs, min(work.shape) - 1))
        space = PCA(n_components, svd_solver="arpack", random_state=seed).fit_transform(work.X)
    search = NearestNeighbors(n_neighbors=n_neighbors - 1, algorithm="brute").fit(np.asarray(space, dtype=np.float32))
    distances = search.kneighbors_graph(mode="distance")
    linked = sparse.csr_matrix((np.ones_like(distances.data), distances.indices, distances.indptr), distances.shape)
    work.obsp["distances"], work.obsp["connectivities"] = distances, linked.maximum(linked.T)
    work.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": n_neighbors},
    }


def fit_velocity(work: AnnData, mode: str, *, n_jobs: int) -> Fit:
    """Fit the velocities of all genes of a working copy with neighbours.

    Raises
    ------
    RuntimeError
        If ``mode="dynamical"`` does not run with the installed versions.
    ValueError
        If no gene has a fit.
    """
    with quiet_scvelo() as scv:
        scv.pp.moments(work, n_pcs=None, n_neighbors=None)
        if mode == "dynamical":
            try:
                scv.tl.recover_dynamics(work, n_jobs=n_jobs, show_progress_bar=False)
                scv.tl.velocity(work, vkey=VELOCITY, mode=mode)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                installed = ", ".join(f"{name} {version(name)}" for name in ("scvelo", "numpy", "pandas"))
                msg = (
                    f"scVelo's dynamical model failed with {installed}: {type(error).__name__}: {error}. With pandas 3 "
                    "it is known not to run: install 'pandas<3', or use mode='stochastic' or mode='deterministic'."
                )
                raise RuntimeError(msg) from error
        else:
            # Without the second offset scVelo 0.3.4 makes a ragged array, which numpy refuses.
            scv.tl.velocity(work, vkey=VELOCITY, mode=mode, fit_offset2=mode == "stochastic")
    values = np.array(work.layers[VELOCITY], dtype=np.float32)
    fitted = np.isfinite(values).all(axis=0)
    if "velocity_genes" in work.var:  # absent if all are
        fitted &= work.var["velocity_genes"].to_numpy(dtype=bool)
    if "velocity_r2" in work.var:
        fitted &= work.var["velocity_r2"].to_numpy() > LEAST_R2
    if not fitted.any():
        msg = (
            f"In none of {work.n_vars} genes do unspliced counts follow the spliced ones: no velocity can be fitted. "
            "Check that layers= names the two layers in the order (spliced, unspliced)."
        )
        raise ValueError(msg)
    values[:, ~fitted] = np.nan
    return Fit(values, int(fitted.sum()))


def transitions(work: AnnData, values: np.ndarray, *, n_jobs: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Compute confidences and transition probabilities from velocities.

    Parameters
    ----------
    work
        Working copy with neighbours.
    values
        Velocities of its genes, ``(n_cells, n_genes)``; genes with a NaN are left out.
    n_jobs
        Number of processes.

    Returns
    -------
    Confidences ``(n_cells,)`` from 0 to 1, the mean correlation of a cell's velocity with its neighbours'; and scVelo's
    transition probabilities ``(n_cells, n_cells)`` over neighbours and their neighbours, proportional to
    exp(10 cos(velocity, difference of the cells)).
    """
    with quiet_scvelo() as scv:
        if "Ms" not in work.layers:
            scv.pp.moments(work, n_pcs=None, n_neighbors=None)
        work.layers[VELOCITY] = values
        work.var["velocity_genes"] = np.isfinite(values).all(axis=0)
        scv.tl.velocity_graph(work, vkey=VELOCITY, n_jobs=n_jobs, show_progress_bar=False)
        scv.tl.velocity_confidence(work, vkey=VELOCITY)
        matrix = scv.tl.transition_matrix(work, vkey=VELOCITY)
    confidence = np.nan_to_num(work.obs["velocity_confidence"].to_numpy(), nan=0.0).clip(0, 1)
    return confidence.astype(np.float32), sparse.csr_matrix(matrix)


def expected_displacement(matrix: sparse.csr_matrix, space: np.ndarray) -> np.ndarray:
    """Project transition probabilities to any space of the cells.

    The expected step of a cell, ``sum_j T_ij (x_j - x_i)``, minus the step if all of its possible targets were equally
    likely: an uneven density of neighbours is not a movement.

    Parameters
    ----------
    matrix
        Transition probabilities, ``(n_cells, n_cells)``; staying is no step.
    space
        Cells, ``(n_cells, n_dims)``.

    Returns
    -------
    float32 ``(n_cells, n_dims)``, in units of `space`; zero for a cell that stays.
    """
    steps = sparse.csr_matrix(matrix, dtype=np.float64, copy=True)
    steps.setdiag(0)
    steps.eliminate_zeros()
    x = np.asarray(space, dtype=np.float64)
    x = x - x.mean(axis=0)
    n_targets = np.diff(steps.indptr)
    leaving = np.asarray(steps.sum(axis=1)).ravel()
    steps.data -= np.repeat(np.divide(leaving, n_targets, out=np.zeros(len(x)), where=n_targets > 0), n_targets)
    # The remaining weights sum to zero in each row, so x_i itself drops out.
    return (steps @ x).astype(np.float32)
