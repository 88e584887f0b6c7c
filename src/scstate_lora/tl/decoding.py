"""Expression from embeddings by a base's own decoder: `decode_expression`."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._constants import OBSM_STATE
from scstate_lora._utils import did_you_mean
from scstate_lora.config import ComputeOptions
from scstate_lora.data.results import DECODE_EXPRESSION, write_result
from scstate_lora.tl.plain_embedding import base_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scstate_lora.model import LoRACovariateSE, SEBase


def decode_expression(
    adata: AnnData,
    base: LoRACovariateSE | SEBase | str | Path,
    genes: Sequence[str],
    *,
    obsm_key: str = OBSM_STATE,
    read_depth: float = 4.0,
    device: str | None = None,
    precision: str | None = None,
    progress_bar: bool = True,
) -> AnnData:
    """Predict the expression of genes from embeddings, by the decoder of the base that made them.

    Parameters
    ----------
    adata
        Cells with an embedding, see :func:`embed`; they are only read.
    base
        The base of the embedding, as in :func:`embed`.
    genes
        Genes of the base's vocabulary; they need not be in `adata`.
    obsm_key
        Key of the embedding in ``adata.obsm``, ``(n_cells, embedding_dim)``.
    read_depth
        Mean (log1p) of the expressed genes among `genes` in the cell that is decoded. Arc's own tool takes 4.0. Without
        effect on a base whose decoder has no read depth.
    device, precision
        As in :func:`embed`.
    progress_bar
        Show a progress bar.

    Returns
    -------
    AnnData of the same cells, with their ``obs``, and the requested genes; ``X`` is float32 ``(n_cells, n_genes)``,
    log1p of counts without library-size scaling, as the decoder gives it: not clipped, so values slightly below zero
    occur.

    Raises
    ------
    TypeError
        If `base` is neither a model, a base nor a path, or `genes` is a string or not a list.
    KeyError
        If there is no such embedding, or a gene is not in the base's vocabulary.
    ValueError
        If the embedding has another width than the base's, or is not finite, `genes` is empty, or `read_depth` is not
        a positive number.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135.
    """
    from anndata import AnnData

    from scstate_lora.inference.embed import decode_cells

    if isinstance(genes, str) or not isinstance(genes, Sequence | np.ndarray | pd.Index | pd.Series):
        msg = f"genes must be a list of names, found {type(genes).__name__}: write genes=['ACTB', ...]."
        raise TypeError(msg)
    genes = [str(gene) for gene in genes]
    if not genes:
        msg = "genes is empty. Name at least one gene of the base's vocabulary."
        raise ValueError(msg)
    options = ComputeOptions.of_call({"device": device, "precision": precision}, function="decode_expression()")
    if not isinstance(read_depth, Real) or not 0 <= read_depth < np.inf:
        msg = f"read_depth={read_depth!r} must be a number, 0 or more: a mean of log1p values."
        raise ValueError(msg)
    if obsm_key not in adata.obsm:
        msg = f"adata.obsm[{obsm_key!r}] does not exist. {did_you_mean(obsm_key, adata.obsm.keys())}"
        raise KeyError(msg)
    base = base_of(base)
    embedding = np.asarray(adata.obsm[obsm_key], dtype=np.float32)
    config = base.encoder.config
    if embedding.ndim != 2 or embedding.shape[1] != config.embedding_dim:
        parts = f"{config.output_dim} of the cell" + (" and 10 of the data set" if config.dataset_correction else "")
        msg = (
            f"adata.obsm[{obsm_key!r}] has shape {embedding.shape}, but embeddings of {base.name} have "
            f"{config.embedding_dim} numbers ({parts}). Give the embedding that ssl.tl.embed made with this base."
        )
        raise ValueError(msg)
    if not np.isfinite(embedding).all():
        msg = f"adata.obsm[{obsm_key!r}] holds NaN or infinite values. Embed the cells again."
        raise ValueError(msg)
    position = {name: i for i, name in enumerate(base.genes)}
    unknown = [gene for gene in genes if gene not in position]
    if unknown:
        msg = (
            f"{len(unknown)} of {len(genes)} genes are not in the vocabulary of {base.name}: "
            f"{', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}. "
            f"{did_you_mean(unknown[0], base.genes, limit=3)}"
        )
        raise KeyError(msg)
    expression = decode_cells(
        base.encoder,
        embedding,
        np.array([position[gene] for gene in genes], dtype=np.int64),
        float(read_depth),
        options=options,
        progress="Decoding" if progress_bar else None,
    )
    decoded = AnnData(expression, obs=adata.obs.copy(), var=pd.DataFrame(index=pd.Index(genes)))
    record = {"base": base.name, "obsm_key": obsm_key, "read_depth": float(read_depth), "scale": "log1p"}
    write_result(decoded, DECODE_EXPRESSION, record)
    return decoded
