"""Real cells that ship with scanpy, so that nothing is downloaded."""

from __future__ import annotations

import anndata as ad
import numpy as np
from scipy import sparse


def pbmc68k() -> ad.AnnData:
    """700 human blood cells (PBMC) with ten labels, as log-normalised expression.

    The cells are scanpy's ``pbmc68k_reduced``. Its ``X`` is scaled, which does not suit a model of expression;
    here ``X`` is the log-normalised matrix that scanpy keeps in ``.raw``.

    Returns
    -------
    ``X`` CSR float32 ``(700, 765)``, log1p, never negative; ``obs`` as scanpy has it (``bulk_labels``, ``louvain``,
    ``phase``, quality numbers); ``obsm["X_umap"]``; ``uns["bulk_labels_colors"]``.

    Notes
    -----
    The 765 genes are a selection of the genes that the cells were normalised over, so a cell's total after ``expm1``
    is about 2,000 and varies between cells.

    References
    ----------
    Zheng et al., Massively parallel digital transcriptional profiling of single cells, Nature Communications 2017.
    """
    import scanpy as sc

    source = sc.datasets.pbmc68k_reduced()
    expression = sparse.csr_matrix(source.raw.X, dtype=np.float32)
    adata = ad.AnnData(X=expression, obs=source.obs.copy(), var=source.raw.var[[]].copy())
    adata.obsm["X_umap"] = np.asarray(source.obsm["X_umap"], dtype=np.float32)
    adata.uns["bulk_labels_colors"] = np.asarray(source.uns["bulk_labels_colors"], dtype=str)
    return adata
