"""The log1p expression of cells that were set up, predicted, or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.data import Registry, log_expression, log_predicted
from scstate_lora.data.matrix import log_normalize
from scstate_lora.data.results import REGISTRY, is_predicted, read_result
from scstate_lora.data.stream import read_matrix

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse


def logged(adata: AnnData) -> sparse.csr_matrix:
    """Take log1p of counts per 10,000 where the values are counts, else the values as they are.

    Cells that were set up or predicted are on the scale of the models. float32 CSR by ``adata.var_names``.
    """
    if is_predicted(adata):
        return log_predicted(adata)
    if read_result(adata, REGISTRY) is not None and len(Registry.from_adata(adata).var_names) == adata.n_vars:
        return log_expression(adata)
    matrix = read_matrix(adata)
    if matrix.nnz and (matrix.data == np.round(matrix.data)).all():
        return log_normalize(matrix, "counts", np.asarray(matrix.sum(axis=1)).ravel())
    return matrix
