"""Expression matrices: read from any AnnData, checked, their scale decided once, brought to log1p of CP10k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

Scale = Literal["counts", "log1p"]
SCALES: tuple[Scale, ...] = ("counts", "log1p")

# log1p of a library-size-normalised count cannot exceed log1p of the library size; e^20 is half a billion counts.
_LOG_MAX = 20.0
_WHOLE = "every value is a whole number"
_GIVEN = "as given by input_scale"


def read_matrix(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Read ``adata.X`` or a layer as a checked CSR matrix, without touching the input.

    Parameters
    ----------
    adata
        May be a view or backed; the matrix may be dense, CSR, CSC, of any integer or float type.
    layer
        Layer to read in place of ``adata.X``.

    Returns
    -------
    float32 matrix of shape ``(n_cells, n_genes)``, without stored zeros, column indices sorted.

    Raises
    ------
    KeyError
        The layer does not exist.
    TypeError
        The matrix is not numeric.
    ValueError
        The matrix is absent, empty, or holds NaN, infinite or negative values.
    """
    name = matrix_name(layer)
    if layer is not None and layer not in adata.layers:
        msg = f"{name} does not exist. {did_you_mean(layer, adata.layers.keys())}"
        raise KeyError(msg)
    check_not_empty(adata)
    stored: Any = adata.X if layer is None else adata.layers[layer]
    if stored is None:
        msg = f"{name} is None: there is no expression matrix. Put counts or log1p values there, or name a layer=."
        raise ValueError(msg)
    if hasattr(stored, "to_memory"):  # a backed sparse matrix
        stored = stored.to_memory()
    elif not sparse.issparse(stored):  # dense in memory, or a backed dense matrix
        stored = np.asarray(stored[:])
    if stored.dtype.kind not in "biuf":
        msg = f"{name} has dtype {stored.dtype}, expected numbers (any integer or float type)."
        raise TypeError(msg)
    matrix = sparse.csr_matrix(stored, dtype=np.float32, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    _check_values(matrix, name)
    return matrix


def check_not_empty(adata: AnnData) -> None:
    """Raise a ValueError for an AnnData without cells or without genes."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes. Give one with cells and genes."
        raise ValueError(msg)


def matrix_name(layer: str | None) -> str:
    """Name the matrix as a user would write it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _check_values(matrix: sparse.csr_matrix, name: str) -> None:
    values = matrix.data
    if np.isnan(values).any():
        msg = f"{name} holds {int(np.isnan(values).sum())} NaN values. Replace or remove them; zero means not detected."
        raise ValueError(msg)
    if np.isinf(values).any():
        msg = f"{name} holds {int(np.isinf(values).sum())} infinite values. Counts and log1p values are finite."
        raise ValueError(msg)
    if values.size and values.min() < 0:
        msg = (
            f"{name} holds negative values (smallest {values.min():.3g}): it looks scaled or residualised. Give counts "
            "or log1p values: a layer=, or adata.raw.to_adata() where the unscaled matrix was kept in .raw."
        )
        raise ValueError(msg)
    if values.size == 0:
        msg = f"{name} holds only zeros: nothing was measured in these cells. Check the cells, or name another layer=."
        raise ValueError(msg)


def resolve_scale(matrix: sparse.csr_matrix, input_scale: str | None, name: str) -> tuple[Scale, str]:
    """Decide from the whole matrix whether it holds counts or log1p values.

    Parameters
    ----------
    matrix
        Checked matrix of shape ``(n_cells, n_genes)``.
    input_scale
        ``"counts"``, ``"log1p"``, or None to decide from the values.
    name
        What to call the matrix in messages.

    Returns
    -------
    The scale, and a sentence that says why.

    Raises
    ------
    ValueError
        ``input_scale`` is unknown or contradicts the values, or the values are neither counts nor log1p.
    """
    values = matrix.data
    largest = float(values.max())
    whole = _whole(values)
    if input_scale is not None and input_scale not in SCALES:
        msg = f"input_scale={input_scale!r} is unknown. {did_you_mean(input_scale, SCALES)}"
        raise ValueError(msg)
    if input_scale == "log1p":
        if whole and largest > 1:
            msg = f"input_scale='log1p', but every value of {name} is a whole number (up to {largest:g}): use 'counts'."
            raise ValueError(msg)
        if largest > _LOG_MAX:
            msg = f"input_scale='log1p', but {name} reaches {largest:g}, and log1p values stay below {_LOG_MAX:g}."
            raise ValueError(msg)
        return "log1p", _GIVEN
    if input_scale == "counts":
        if not whole and largest <= _LOG_MAX and _constant_row_sums(matrix, log1p=True):
            msg = (
                f"input_scale='counts', but {name} is log1p of normalised counts (expm1 sums to the same number in "
                "every cell): use input_scale='log1p', or name the layer that holds the counts."
            )
            raise ValueError(msg)
        return "counts", f"{_GIVEN}; {_WHOLE}" if whole else _GIVEN
    if whole:
        return "counts", f"{_WHOLE}, up to {largest:g}"
    if _constant_row_sums(matrix):
        msg = (
            f"{name} is neither counts nor log1p: fractional values up to {largest:g} that sum to the same number in "
            "every cell, so normalised but not log-transformed. Run sc.pp.log1p, or name the layer of the counts."
        )
        raise ValueError(msg)
    if largest <= _LOG_MAX:
        return "log1p", f"values are fractional and at most {largest:.3g}"
    return "counts", f"values are fractional, but reach {largest:g}, too large for log1p"


def check_scale(matrix: sparse.csr_matrix, scale: Scale, reason: str, name: str) -> None:
    """Refuse new data that is evidently of another scale than the data a model was set up on.

    Parameters
    ----------
    matrix, name
        The new data's matrix, and what to call it.
    scale, reason
        What :func:`resolve_scale` decided of the model's data.

    Raises
    ------
    ValueError
        Counts were registered and these are log1p values, or the reverse.
    """
    largest = float(matrix.data.max())
    whole = _whole(matrix.data)
    looks_counts = (whole and largest > 1) or largest > _LOG_MAX
    looks_log = not whole and largest <= _LOG_MAX
    # Fractional counts exist (ambient RNA removed), so log1p values are told from them only where all were whole.
    if (scale == "log1p" and looks_counts) or (scale == "counts" and looks_log and _WHOLE in reason):
        found = "counts" if looks_counts else "log1p values"
    elif scale == "counts" and _WHOLE in reason and not whole and _constant_row_sums(matrix):
        found = "normalised counts"
    else:
        return
    msg = (
        f"{name} looks like {found} (up to {largest:.3g}), but the model was set up on {scale} ({reason}). "
        f"Put {'raw counts' if scale == 'counts' else 'log1p values'} there."
    )
    raise ValueError(msg)


def _whole(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all())


def _constant_row_sums(matrix: sparse.csr_matrix, *, log1p: bool = False) -> bool:
    """Whether all cells with any expression have one total, as after normalisation; ``log1p``: undo a logarithm."""
    values = np.expm1(matrix.data, dtype=np.float64) if log1p else matrix.data.astype(np.float64)
    sums = np.add.reduceat(values, matrix.indptr[:-1][np.diff(matrix.indptr) > 0])
    return len(sums) > 1 and bool(sums.std() < 1e-3 * sums.mean())


def log_raw(matrix: sparse.csr_matrix, scale: Scale) -> sparse.csr_matrix:
    """Give the STATE embedding's input: log1p of counts without library-size scaling; log1p values as they are."""
    if scale == "log1p":
        return matrix
    logged = matrix.copy()
    np.log1p(logged.data, out=logged.data)
    return logged


def log_normalize(matrix: sparse.csr_matrix, scale: Scale, totals: np.ndarray | None = None) -> sparse.csr_matrix:
    """Turn counts into log1p of counts per 10,000; log1p values are kept as they are.

    Parameters
    ----------
    matrix
        Shape ``(n_cells, n_genes)``.
    scale
        What it holds.
    totals
        Counts of every cell ``(n_cells,)``, when the matrix is a subset of the genes. Cells without counts stay zero.

    Returns
    -------
    float32 CSR ``(n_cells, n_genes)``; the input itself where it is log1p already.
    """
    if scale == "log1p":
        return matrix
    if totals is None:
        totals = np.asarray(matrix.sum(axis=1)).ravel()
    factors = np.divide(TARGET_SUM, totals, out=np.zeros(len(totals)), where=totals > 0).astype(np.float32)
    normalized = matrix.copy()
    normalized.data *= np.repeat(factors, np.diff(matrix.indptr))
    np.log1p(normalized.data, out=normalized.data)
    return normalized
