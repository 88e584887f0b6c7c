"""Advice on ``adata.raw``, for data whose expression matrix is not what it holds."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import warn_user
from scstate_lora.data.matrix import MatrixStats, UnusableValuesError, check_values, resolve_scale
from scstate_lora.data.stream import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from scstate_lora.data.matrix import Scale

_COMPARED_CELLS = 100


@contextmanager
def raw_advised(adata: AnnData, *, scale: Scale | None = None) -> Iterator[None]:
    """Add to a refusal of the values of a matrix how to use ``adata.raw``, if that holds what is needed.

    Parameters
    ----------
    adata
        Cells, with or without ``raw``.
    scale
        Scale that is needed; None if both counts and log1p values can be used.
    """
    try:
        yield
    except UnusableValuesError as error:
        kind = _kind_of_raw(adata)
        if kind is None or scale not in (None, kind):
            raise
        msg = f"{error} {_advice(adata, kind)}"
        raise UnusableValuesError(msg) from error


def warn_of_raw(adata: AnnData) -> None:
    """Warn if ``adata.X`` passes as log1p values but is no function of the values in ``adata.raw``, cell by cell.

    Parameters
    ----------
    adata
        Cells whose ``X`` was taken for log1p values of an unknown target sum.
    """
    kind = _kind_of_raw(adata)
    if kind is None:
        return
    shared = pd.Index(adata.raw.var_names).get_indexer(adata.var_names)
    columns = np.flatnonzero(shared >= 0)
    rows = np.unique(np.linspace(0, adata.n_obs - 1, _COMPARED_CELLS, dtype=int))
    source = open_source(adata)
    values = sparse.vstack([source.read(row, row + 1) for row in rows]).tocsr()[:, columns].toarray()
    raw = _dense(adata.raw.X[rows])[:, shared[columns]]
    n_other = sum(not _is_function(x, of=r) for x, r in zip(values, raw, strict=True))
    if n_other > len(rows) / 2:
        warn_user(
            f"adata.X passes as log1p values, but is not the logarithm of adata.raw, nor any other function of it: "
            f"scaled, smoothed or corrected values are neither counts nor log1p. {_advice(adata, kind)}"
        )


def _is_function(values: np.ndarray, *, of: np.ndarray) -> bool:
    """Whether values rise with others, and are equal where those are."""
    order = np.argsort(of, kind="stable")
    rise, change = np.diff(of[order]), np.diff(values[order])
    tolerance = 1e-3 * max(float(np.abs(values).max(initial=0)), 1e-3)
    return bool((change[rise > 0] >= -tolerance).all() and (np.abs(change[rise == 0]) <= tolerance).all())


def _kind_of_raw(adata: AnnData) -> Scale | None:
    """Decide what ``adata.raw`` holds by its first cells; None without it, or if that is neither."""
    if adata.raw is None:
        return None
    matrix = sparse.csr_matrix(_dense(adata.raw.X[:_COMPARED_CELLS]))
    stats = MatrixStats.of(matrix)
    try:
        check_values(stats, "adata.raw")
        return resolve_scale(stats, None, "adata.raw")[0]
    except ValueError:
        return None


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float32)


def _advice(adata: AnnData, kind: str) -> str:
    name = "counts" if kind == "counts" else "log1p values"
    return (
        f"adata.raw holds {name} of {adata.raw.n_vars:,} genes: raw = adata.raw.to_adata() takes them, with obs and "
        "obsm. Use raw in place of adata, or write it to a file, raw.write_h5ad('raw.h5ad'), and use that."
    )
