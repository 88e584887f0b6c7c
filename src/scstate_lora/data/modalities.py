"""Columns from elsewhere in a MuData: from its other modalities, or from the MuData itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import obs_column
from scstate_lora.data.genes import unique_names
from scstate_lora.data.labels import as_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


class SharedColumn(NamedTuple):
    """Values from elsewhere in a MuData, in the order of one modality's cells."""

    values: pd.Series
    """One value per cell, missing for cells absent from the source; of a type that an h5ad file can store."""
    is_variable: bool
    """Whether the values come from a variable rather than from a column of ``obs``."""


def find_column(mdata: MuData, adata: AnnData, key: str, *, allow_variables: bool) -> SharedColumn | None:
    """Find a column for one modality elsewhere in a MuData.

    ``"prot:donor"`` is the column ``donor`` of ``mdata["prot"].obs`` or, failing that, the values of the variable
    ``donor`` in ``mdata["prot"].X``. A plain key absent from ``adata.obs`` is a column of ``mdata.obs``. Cells are
    matched by name.

    Parameters
    ----------
    mdata, adata
        The MuData, and the modality that is set up.
    key
        The key the user gave.
    allow_variables
        Whether the key may name a variable.

    Returns
    -------
    The column, or None if the key names a column of ``adata.obs``, or no column at all.

    Raises
    ------
    KeyError
        If the modality does not exist, or has neither a column nor a variable with this name; the message suggests
        similar names.
    ValueError
        If cell or variable names are not unique, or the modalities share no cell.
    """
    modality = next((name for name in mdata.mod if key.startswith(f"{name}:")), None)
    if modality is not None:
        other, name = mdata.mod[modality], key[len(modality) + 1 :]
        if name in other.obs or (allow_variables and name in other.var_names):
            source = f"mdata[{modality!r}]"
            unique_names(other.obs_names, f"{source}.obs_names", f"{source}.obs_names_make_unique()")
            is_variable = name not in other.obs
            column = _variable(other, modality, name) if is_variable else obs_column(other, name, allow_missing=True)
            return SharedColumn(_aligned(column, adata.obs_names, source), is_variable)
    if key in adata.obs:
        return None
    if key in mdata.obs:
        column = obs_column(mdata, key, allow_missing=True)
        return SharedColumn(_aligned(column, adata.obs_names, "mdata.obs"), is_variable=False)
    if modality is not None:
        available = [*other.obs.columns, *(other.var_names if allow_variables else [])]
        problem = f"mdata[{modality!r}].obs has no column {name!r}" + ", nor var_names this name" * allow_variables
        msg = f"{key!r}: {problem}. {did_you_mean(name, available)}"
        raise KeyError(msg)
    if ":" in key:
        prefix = key.partition(":")[0]
        msg = f"{key!r}: the MuData has no modality {prefix!r}. {did_you_mean(prefix, mdata.mod)}"
        raise KeyError(msg)
    return None


def _variable(other: AnnData, modality: str, name: str) -> pd.Series:
    """Read the values of one variable from ``X``."""
    positions = np.flatnonzero(other.var_names == name)
    if len(positions) > 1:
        msg = f"mdata[{modality!r}].var_names holds {name!r} {len(positions)} times. Make the names unique."
        raise ValueError(msg)
    values: Any = other[:, positions].X
    if values is None:
        msg = f"mdata[{modality!r}].X is empty, so the variable {name!r} has no values. Put them in a column of obs."
        raise ValueError(msg)
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    return pd.Series(dense.ravel(), index=other.obs_names, dtype=np.float64)


def _aligned(column: pd.Series, cells: pd.Index, source: str) -> pd.Series:
    """Reorder values to match other cells, in a type that an h5ad file can store together with missing values."""
    if not cells.isin(column.index).any():
        msg = (
            f"{source} has none of the {len(cells)} cells: its cell names look like {column.index[0]!r}, but those of "
            f"the modality to set up look like {cells[0]!r}. Use the same obs_names in all modalities."
        )
        raise ValueError(msg)
    aligned = column.reindex(cells).infer_objects()
    if aligned.dtype == object or isinstance(aligned.dtype, pd.StringDtype):
        aligned = as_labels(aligned).where(aligned.notna(), None).astype("category")
    return aligned
