"""Run cells through an SE network in batches, without gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scstate_lora._utils import progress_bar
from scstate_lora.data.tokens import tokenize
from scstate_lora.training.batches import take, to_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scipy import sparse
    from torch import Tensor, nn

    from scstate_lora.nn.se_encoder import SEEncoder

_BATCH = 256


def embed_cells(
    encoder: SEEncoder,
    x: sparse.csr_matrix,
    seeds: np.ndarray,
    *,
    progress: str | None = None,
) -> np.ndarray:
    """Plain embedding of cells.

    Parameters
    ----------
    encoder
        SE network.
    x
        log1p expression without library-size scaling, CSR ``(n_cells, n_genes)``.
    seeds
        Seeds of the cells' sentences, ``(n_cells,)``.
    progress
        Title of a progress bar; None for none.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, rows of unit length.
    """
    return _in_batches(
        encoder, lambda batch: encoder(batch["genes"], batch["values"]), encoder.config.n_tokens, x, seeds, {}, progress
    )


def embed_conditioned(
    network: nn.Module,
    encoder: SEEncoder,
    x: sparse.csr_matrix,
    seeds: np.ndarray,
    covariates: Mapping[str, np.ndarray],
    *,
    progress: str | None = None,
) -> np.ndarray:
    """Conditioned embedding of cells; covariates are encoded, ``(n_cells,)`` each. The rest as in `embed_cells`."""

    def forward(batch: dict[str, Any]) -> Tensor:
        return network(batch["genes"], batch["values"], batch["covariates"])[1]

    extra = {"covariates": dict(covariates)}
    return _in_batches(network, forward, encoder.config.n_tokens, x, seeds, extra, progress)


def _in_batches(
    network: nn.Module,
    forward: Callable[[dict[str, Any]], Tensor],
    n_tokens: int,
    x: sparse.csr_matrix,
    seeds: np.ndarray,
    extra: dict[str, Any],
    progress: str | None,
) -> np.ndarray:
    network.eval()
    embedded = []
    starts = range(0, x.shape[0], _BATCH)
    with torch.inference_mode():
        for start in progress_bar(starts, desc=progress, unit="batch", disable=progress is None):
            rows = np.arange(start, min(start + _BATCH, x.shape[0]))
            genes, values = tokenize(x[rows], seeds[rows], n_tokens=n_tokens)
            batch = to_tensors({"genes": genes, "values": values, **take(extra, rows)})
            embedded.append(forward(batch).float().numpy())
    return np.concatenate(embedded)
