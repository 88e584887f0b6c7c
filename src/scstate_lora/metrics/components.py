"""Principal components of expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse
    from sklearn.decomposition import PCA


def sparse_pca(matrix: np.ndarray | sparse.csr_matrix, n_components: int, *, seed: int = 0) -> PCA:
    """Fit a PCA that centres implicitly, so that a sparse matrix stays sparse.

    Parameters
    ----------
    matrix
        ``(n_cells, n_genes)``.
    n_components
        Components, fewer if there are not as many cells or genes; at least one.
    seed
        Seed of the solver.
    """
    from sklearn.decomposition import PCA

    pca = PCA(max(1, min(n_components, min(matrix.shape) - 1)), svd_solver="arpack", random_state=seed)
    with threadpool_limits(limits=1, user_api="blas"):  # ARPACK is twice as fast with one thread
        return pca.fit(matrix)
