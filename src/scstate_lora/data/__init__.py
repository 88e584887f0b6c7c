"""From an AnnData to validated arrays: registry, covariates, scale, splits, tokens and cell sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora._constants import TARGET_SUM
from scstate_lora.data.bound import BoundData
from scstate_lora.data.matrix import log_normalize
from scstate_lora.data.registry import Registry
from scstate_lora.data.results import LIBRARY_SIZE, REGISTRY, is_predicted, read_prediction, read_result
from scstate_lora.data.stream import read_matrix

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

__all__ = ["Registry", "log_expression"]


def log_expression(adata: AnnData) -> sparse.csr_matrix:
    """Compute log1p expression, on the scale of the models, of cells that were set up or predicted.

    Returns
    -------
    float32 CSR matrix of shape ``(n_cells, n_genes)``, with the registered genes in order, or the predicted genes.

    Raises
    ------
    KeyError
        If the AnnData was neither set up nor predicted, or predicted counts lack their library sizes.
    """
    if is_predicted(adata) and read_result(adata, REGISTRY) is None:
        return log_predicted(adata)
    return BoundData(Registry.from_adata(adata), adata).logged


def log_predicted(adata: AnnData) -> sparse.csr_matrix:
    """As :func:`log_expression`, of predicted cells."""
    matrix, prediction = read_matrix(adata), read_prediction(adata)
    if prediction.scale != "counts":
        return matrix
    if LIBRARY_SIZE not in adata.obs:
        msg = f"pred.obs[{LIBRARY_SIZE!r}] does not exist: predicted counts are normalised by it. Keep it with them."
        raise KeyError(msg)
    target_sum = prediction.target_sum or TARGET_SUM
    return log_normalize(matrix, "counts", adata.obs[LIBRARY_SIZE].to_numpy(), target_sum=target_sum)
