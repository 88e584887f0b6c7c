"""Principal components of expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sklearn.decomposition import PCA


def sparse_pca(shape: tuple[int, int], n_components: int, *, seed: int = 0) -> PCA:
    """Return a PCA to fit, which centres implicitly, so that a sparse matrix stays sparse.

    Parameters
    ----------
    shape
        Shape of the matrix that it will be fitted to, ``(n_cells, n_genes)``.
    n_components
        Components, fewer if there are not as many cells or genes; at least one.
    seed
        Seed of the solver.
    """
    from sklearn.decomposition import PCA

    return PCA(max(1, min(n_components, min(shape) - 1)), svd_solver="arpack", random_state=seed)
