"""From an AnnData to validated arrays: registry, covariates, scale, splits, tokens and cell sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora.data.bound import BoundData
from scstate_lora.data.registry import Registry
from scstate_lora.data.results import REGISTRY, is_predicted, read_result
from scstate_lora.data.stream import read_matrix

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

__all__ = ["Registry", "log_expression"]


def log_expression(adata: AnnData) -> sparse.csr_matrix:
    """Compute log1p of counts per 10,000 for an AnnData that was set up or that holds predicted cells.

    Returns
    -------
    float32 CSR matrix of shape ``(n_cells, n_genes)``, with the registered genes in order, or the predicted genes.

    Raises
    ------
    KeyError
        If the AnnData was neither set up nor predicted.
    """
    if is_predicted(adata) and read_result(adata, REGISTRY) is None:
        return read_matrix(adata)
    return BoundData(Registry.from_adata(adata), adata).logged
