"""Columns from elsewhere in a MuData: of its other modalities, or of the MuData itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import as_labels, obs_column
from scstate_lora.data.genes import unique_names

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


class Borrowed(NamedTuple):
    """Values from elsewhere in a MuData, in the order of one modality's cells."""

    values: pd.Series
    """One value a cell, missing where the cell is not there; as an h5ad file can hold them."""
    is_variable: bool
    """Whether they are those of a variable and not a column of ``obs``."""


def borrow(mdata: MuData, adata: AnnData, key: str, *, variables: bool) -> Borrowed | None:
    """Find what a key means that is not, or not only, a column of the modality's own ``obs``.

    ``"prot:donor"`` is the column ``donor`` of ``mdata["prot"].obs``, or else the values of the variable ``donor`` in
    ``mdata["prot"].X``. A plain key that ``adata.obs`` lacks is a column of ``mdata.obs``. Cells are matched by name.

    Parameters
    ----------
    mdata, adata
        All modalities, and the one that is set up.
    key
        What the user wrote.
    variables
        Whether a variable will do.

    Returns
    -------
    None where the key means a column of ``adata.obs``, or nothing.

    Raises
    ------
    KeyError
        There is no such modality, or it has neither such a column nor such a variable; near names are suggested.
    ValueError
        Names of cells or of the variable are not unique, or the modalities share no cell.
    """
    modality = next((name for name in mdata.mod if key.startswith(f"{name}:")), None)
    if modality is not None:
        other, name = mdata.mod[modality], key[len(modality) + 1 :]
        if name in other.obs or (variables and name in other.var_names):
            where = f"mdata[{modality!r}]"
            unique_names(other.obs_names, f"{where}.obs_names", f"{where}.obs_names_make_unique()")
            is_variable = name not in other.obs
            column = _variable(other, modality, name) if is_variable else obs_column(other, name, allow_missing=True)
            return Borrowed(_aligned(column, adata.obs_names, where), is_variable)
    if key in adata.obs:
        return None
    if key in mdata.obs:
        column = obs_column(mdata, key, allow_missing=True)
        return Borrowed(_aligned(column, adata.obs_names, "mdata.obs"), is_variable=False)
    if modality is not None:
        known = [*other.obs.columns, *(other.var_names if variables else [])]
        missing = f"mdata[{modality!r}].obs has no column {name!r}" + (", and var_names no such name" * variables)
        msg = f"{key!r}: {missing}. {did_you_mean(name, known)}"
        raise KeyError(msg)
    if ":" in key:
        prefix = key.partition(":")[0]
        msg = f"{key!r}: the MuData has no modality {prefix!r}. {did_you_mean(prefix, mdata.mod)}"
        raise KeyError(msg)
    return None


def _variable(other: AnnData, modality: str, name: str) -> pd.Series:
    """Values of one variable in ``X``."""
    positions = np.flatnonzero(other.var_names == name)
    if len(positions) > 1:
        msg = f"mdata[{modality!r}].var_names holds {name!r} {len(positions)} times. Make the names unique."
        raise ValueError(msg)
    values: Any = other[:, positions].X
    if values is None:
        msg = f"mdata[{modality!r}].X is empty, so the variable {name!r} has no values. Copy them to obs."
        raise ValueError(msg)
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    return pd.Series(dense.ravel(), index=other.obs_names, dtype=np.float64)


def _aligned(column: pd.Series, cells: pd.Index, where: str) -> pd.Series:
    """Bring values to the order of other cells, and to a type that an h5ad file can hold with missing ones."""
    if not cells.isin(column.index).any():
        msg = (
            f"{where} has none of the {len(cells)} cells: its names are like {column.index[0]!r}, those to be set up "
            f"like {cells[0]!r}. Bring obs_names of all modalities to the same form."
        )
        raise ValueError(msg)
    aligned = column.reindex(cells).infer_objects()
    if aligned.dtype == object or isinstance(aligned.dtype, pd.StringDtype):
        aligned = as_labels(aligned).where(aligned.notna(), None).astype("category")
    return aligned
