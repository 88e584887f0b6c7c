"""Precomputed embeddings: arrays in ``adata.obsm``, validated and read as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean, listed, warn_user
from scstate_lora.data.genes import unique_names
from scstate_lora.data.labels import label_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def embedding_columns(adata: AnnData, key: str) -> list[str] | None:
    """Read the names of the columns of ``adata.obsm[key]``; None if it is not a DataFrame.

    Raises
    ------
    ValueError
        If two columns have the same name.
    """
    stored = adata.obsm.get(key)
    if not isinstance(stored, pd.DataFrame):
        return None
    name = f"adata.obsm[{key!r}]"
    return unique_names([label_of(c) for c in stored.columns], f"{name}.columns", "rename or drop all but one")


def read_embedding(
    adata: AnnData, key: str, *, width: int | None = None, columns: Sequence[str] | None = None
) -> np.ndarray:
    """Read ``adata.obsm[key]``, which may be dense, sparse or a DataFrame.

    Parameters
    ----------
    adata
        Annotated data.
    key
        Key of the embedding.
    width
        Required number of columns; by default, any number from 2.
    columns
        Names of the required columns, in order: those of a DataFrame are matched by name, and further ones are left
        out. By default all columns are read as they are.

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
        If it is not two-dimensional, has fewer than 2 columns or not ``width`` of them, lacks one of ``columns``, or
        is not finite.

    Warns
    -----
    UserWarning
        If ``columns`` are given and the embedding has no names, so that they are taken by position.
    """
    name = f"adata.obsm[{key!r}]"
    if key not in adata.obsm:
        msg = f"{name} does not exist. {did_you_mean(key, adata.obsm)}"
        raise KeyError(msg)
    stored, own = adata.obsm[key], embedding_columns(adata, key)
    if own is not None:
        stored = stored.to_numpy() if columns is None else take_columns_by_name(stored, columns, name=name)
    values = stored.toarray() if sparse.issparse(stored) else np.asarray(stored)
    if values.ndim != 2 or values.shape[1] < 2:
        msg = f"{name} has the shape {values.shape}; an embedding has one row per cell and at least 2 columns."
        raise ValueError(msg)
    if width is not None and values.shape[1] != width:
        msg = f"{name} has {values.shape[1]} columns; the model was set up on {width}. Compute the same embedding here."
        raise ValueError(msg)
    if columns is not None and own is None:
        warn_user(
            f"{name} has no names of columns, but the model was set up on {listed(columns)}: its columns are taken by "
            "position. Give a DataFrame to have them matched by name."
        )
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


def take_columns_by_name(table: pd.DataFrame, columns: Sequence[str], *, name: str) -> np.ndarray:
    """Take columns of a table by name, in the requested order.

    Parameters
    ----------
    table
        One row per cell.
    columns
        Names of the columns.
    name
        Name of the table in messages.

    Raises
    ------
    ValueError
        If a column is absent.
    """
    own = [label_of(column) for column in table.columns]
    absent = [column for column in columns if column not in own]
    if absent:
        msg = (
            f"{name} lacks {len(absent)} of the {len(columns)} columns that the model was set up on: "
            f"{listed(absent)}. It has {listed(own)}. Compute the same embedding here, with the same columns."
        )
        raise ValueError(msg)
    return table.iloc[:, [own.index(column) for column in columns]].to_numpy()
