"""Embeddings that others computed: arrays of ``adata.obsm``, validated and read as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData


def read_embedding(adata: AnnData, key: str, *, width: int | None = None) -> np.ndarray:
    """Read ``adata.obsm[key]``: dense, sparse or a DataFrame.

    Parameters
    ----------
    adata
        Annotated data.
    key
        Which embedding.
    width
        Columns it must have; any number from 2 by default.

    Returns
    -------
    float32 ``(n_cells, n_columns)``.

    Raises
    ------
    TypeError
        The values are not numbers.
    KeyError
        There is no such embedding; near names are suggested.
    ValueError
        It is not two-dimensional, has under 2 columns or another number than wanted, or is not finite.
    """
    what = f"adata.obsm[{key!r}]"
    if key not in adata.obsm:
        msg = f"{what} does not exist. {did_you_mean(key, adata.obsm)}"
        raise KeyError(msg)
    stored = adata.obsm[key]
    if isinstance(stored, pd.DataFrame):
        stored = stored.to_numpy()
    values = stored.toarray() if sparse.issparse(stored) else np.asarray(stored)
    if values.ndim != 2 or values.shape[1] < 2:
        msg = f"{what} has the shape {values.shape}; an embedding has one row a cell and at least 2 columns."
        raise ValueError(msg)
    if width is not None and values.shape[1] != width:
        msg = f"{what} has {values.shape[1]} columns; the model was set up on {width}. Give the embedding of then."
        raise ValueError(msg)
    try:
        if np.iscomplexobj(values):
            msg_0 = "complex numbers"
            raise TypeError(msg_0)
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
    except (TypeError, ValueError) as error:
        msg = f"{what} must hold numbers ({error})."
        raise TypeError(msg) from error
    bad = int((~np.isfinite(numbers)).any(axis=1).sum())
    if bad:
        msg = f"{what} is missing or infinite in {bad} of {len(numbers)} cells. Leave those out, or compute it anew."
        raise ValueError(msg)
    return numbers
