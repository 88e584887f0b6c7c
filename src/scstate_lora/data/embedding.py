"""Precomputed embeddings: arrays in ``adata.obsm``, validated and read as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData


def read_embedding(adata: AnnData, key: str, *, width: int | None = None) -> np.ndarray:
    """Read ``adata.obsm[key]``, which may be dense, sparse or a DataFrame.

    Parameters
    ----------
    adata
        Annotated data.
    key
        Key of the embedding.
    width
        Required number of columns; by default, any number from 2.

    Returns
    -------
    float32 array of shape ``(n_cells, n_columns)``.

    Raises
    ------
    TypeError
        If the values are not numbers.
    KeyError
        If the embedding does not exist; the message suggests similar names.
    ValueError
        If it is not two-dimensional, has fewer than 2 columns or not ``width`` of them, or is not finite.
    """
    name = f"adata.obsm[{key!r}]"
    if key not in adata.obsm:
        msg = f"{name} does not exist. {did_you_mean(key, adata.obsm)}"
        raise KeyError(msg)
    stored = adata.obsm[key]
    if isinstance(stored, pd.DataFrame):
        stored = stored.to_numpy()
    values = stored.toarray() if sparse.issparse(stored) else np.asarray(stored)
    if values.ndim != 2 or values.shape[1] < 2:
        msg = f"{name} has the shape {values.shape}; an embedding has one row per cell and at least 2 columns."
        raise ValueError(msg)
    if width is not None and values.shape[1] != width:
        msg = f"{name} has {values.shape[1]} columns; the model was set up on {width}. Compute the same embedding here."
        raise ValueError(msg)
    try:
        if np.iscomplexobj(values):
            msg = "complex numbers"
            raise TypeError(msg)
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
    except (TypeError, ValueError) as error:
        msg = f"{name} must hold numbers ({error})."
        raise TypeError(msg) from error
    n_invalid = int((~np.isfinite(numbers)).any(axis=1).sum())
    if n_invalid:
        msg = f"{name} is missing or infinite in {n_invalid} of {len(numbers)} cells. Drop them, or compute it again."
        raise ValueError(msg)
    return numbers
