"""Values of expression matrices: checks, the decision between counts and log1p, and log1p of CP10k."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Literal

import numpy as np

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from scipy import sparse

Scale = Literal["counts", "log1p"]
SCALES: tuple[Scale, ...] = ("counts", "log1p")

# log1p of a library-size-normalised count cannot exceed log1p of the library size; e^20 is half a billion counts.
_LOG_MAX = 20.0
# Bases of logarithms in use: the natural one, which is looked at in all cells, and others.
_BASES = (math.e, 2.0, 10.0)
_SAMPLED_EVERY = 8
# Relative error of the square of a float32 square root, with a margin.
_SQUARE_ERROR = 1e-6
# Stored in the registries of saved models, and searched there: these texts must not change.
_WHOLE = "every value is a whole number"
_BY_ARGUMENT = "as given by input_scale"


class UnusableValuesError(ValueError):
    """The values of a matrix are neither counts nor log1p values, or not those that are needed."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of a group of values; the sum of two describes both groups."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Compute the moments of the values of an array."""
        if not values.size:
            return cls()
        mean = float(values.mean(dtype=np.float64))
        return cls(values.size, mean, float(((values - mean) ** 2).sum()))

    def __add__(self, other: Moments) -> Moments:
        # Chan et al. 1979: differences of sums of squares would cancel for large, nearly equal numbers.
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.count / count
        return Moments(count, mean, self.squares + other.squares + step**2 * self.count * other.count / count)

    @property
    def constant(self) -> bool:
        """Whether the group has several values, all equal to within a thousandth."""
        return self.count > 1 and (self.squares / self.count) ** 0.5 < 1e-3 * self.mean


@dataclass(frozen=True)
class MatrixStats:
    """Summary of a matrix for the checks and the decision on its scale; summaries of parts add up to that of the whole.

    Parameters
    ----------
    n_cells
        Number of rows.
    n_stored
        Number of values other than zero, including NaN and infinite ones.
    n_nan, n_inf
        Numbers of NaN and infinite values.
    largest, smallest
        Largest and smallest finite value other than zero; ``-inf`` and ``inf`` if there is none.
    whole
        Whether every finite value is a whole number.
    checksum
        CRC-32 of values and positions, 0 unless requested; equal for two scans of one matrix in the same chunks.
    sums
        Moments of the sums of cells with fractional values; whole numbers are counts regardless of their sums.
    unlogged
        The same before log1p, if no value is too large to be a log1p value, by the base of the logarithm. For bases
        other than e of a sample of the cells, as for the next two.
    squared
        The same for the squares of the values.
    whole_squares
        Whether the square of every value is a whole number.
    """

    n_cells: int = 0
    n_stored: int = 0
    n_nan: int = 0
    n_inf: int = 0
    largest: float = -np.inf
    smallest: float = np.inf
    whole: bool = True
    checksum: int = 0
    sums: Moments = field(default_factory=Moments)
    unlogged: dict[float, Moments] = field(default_factory=lambda: dict.fromkeys(_BASES, Moments()))
    squared: Moments = field(default_factory=Moments)
    whole_squares: bool = True

    @classmethod
    def of(cls, matrix: sparse.csr_matrix, *, checksum: bool = False) -> MatrixStats:
        """Summarise a CSR matrix ``(n_cells, n_genes)`` without stored zeros."""
        stats = cls.of_rows(matrix.data, matrix.indptr)
        return replace(stats, checksum=_checksum(matrix)) if checksum else stats

    @classmethod
    def of_rows(cls, values: np.ndarray, ends: np.ndarray) -> MatrixStats:
        """Summarise the values of rows, given the offset of each row and the total, ``(n_rows + 1,)``."""
        n_cells, n_stored = len(ends) - 1, int(values.size)
        if n_stored == 0:
            return cls(n_cells=n_cells)
        n_nan = n_inf = 0
        present = values
        largest, smallest = float(values.max()), float(values.min())  # NaN if any value is
        if not (np.isfinite(largest) and np.isfinite(smallest)):
            finite = np.isfinite(values)
            n_nan = int(np.isnan(values).sum())
            n_inf = n_stored - int(finite.sum()) - n_nan
            present, values = values[finite], np.where(finite, values, 0)
            largest, smallest = float(present.max(initial=-np.inf)), float(present.min(initial=np.inf))
        is_whole = values == np.rint(values)
        whole = bool(is_whole.all())
        if whole:
            return cls(n_cells, n_stored, n_nan, n_inf, largest, smallest, whole)
        lengths = np.diff(ends)[np.diff(ends) > 0]
        starts = ends[:-1][np.diff(ends) > 0]
        fractional = ~np.logical_and.reduceat(is_whole, starts)
        sums = Moments.of(np.add.reduceat(values, starts, dtype=np.float64)[fractional])
        unlogged = dict.fromkeys(_BASES, Moments())
        if largest <= _LOG_MAX:
            unlogged[math.e] = Moments.of(np.add.reduceat(np.expm1(values), starts, dtype=np.float64)[fractional])
        step = min(_SAMPLED_EVERY, max(1, int(fractional.sum()) // 2))
        chosen = np.zeros(len(starts), dtype=bool)
        chosen[np.flatnonzero(fractional)[::step]] = True
        sample = values[np.repeat(chosen, lengths)].astype(np.float64)
        starts = np.cumsum(lengths[chosen]) - lengths[chosen]
        if largest <= _LOG_MAX:
            for base in _BASES[1:]:
                unlogged[base] = Moments.of(np.add.reduceat(np.expm1(sample * math.log(base)), starts))
        squares = sample**2
        return cls(
            n_cells,
            n_stored,
            n_nan,
            n_inf,
            largest,
            smallest,
            whole,
            sums=sums,
            unlogged=unlogged,
            squared=Moments.of(np.add.reduceat(squares, starts)),
            whole_squares=bool((np.abs(squares - np.rint(squares)) <= np.minimum(_SQUARE_ERROR * squares, 0.05)).all()),
        )

    def __add__(self, other: MatrixStats) -> MatrixStats:
        if not self.n_cells or not other.n_cells:
            return other if other.n_cells else self
        return MatrixStats(
            n_cells=self.n_cells + other.n_cells,
            n_stored=self.n_stored + other.n_stored,
            n_nan=self.n_nan + other.n_nan,
            n_inf=self.n_inf + other.n_inf,
            largest=max(self.largest, other.largest),
            smallest=min(self.smallest, other.smallest),
            whole=self.whole and other.whole,
            checksum=zlib.crc32(f"{self.checksum} {other.checksum}".encode()),
            sums=self.sums + other.sums,
            unlogged={base: self.unlogged[base] + other.unlogged[base] for base in _BASES},
            squared=self.squared + other.squared,
            whole_squares=self.whole_squares and other.whole_squares,
        )


def _checksum(matrix: sparse.csr_matrix) -> int:
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)
    return reduce(lambda checksum, part: zlib.crc32(part.data, checksum), map(np.ascontiguousarray, parts), 0)


def check_values(stats: MatrixStats, name: str) -> None:
    """Check that values can be counts or log1p values.

    Parameters
    ----------
    stats
        Summary of the whole matrix.
    name
        Name of the matrix in messages.

    Raises
    ------
    ValueError
        If values are NaN, infinite or negative, or if all are zero.
    """
    if stats.n_nan:
        msg = f"{name} holds {stats.n_nan} NaN values. Replace or remove them; zero means not detected."
        raise ValueError(msg)
    if stats.n_inf:
        msg = f"{name} holds {stats.n_inf} infinite values. Counts and log1p values are finite."
        raise ValueError(msg)
    if stats.smallest < 0:
        msg = (
            f"{name} holds negative values (smallest {stats.smallest:.3g}): it looks scaled or residualised. Give "
            "counts or log1p values, for example a layer=."
        )
        raise UnusableValuesError(msg)
    if stats.n_stored == 0:
        msg = f"{name} holds only zeros: nothing was measured in these cells. Check the cells, or give another layer=."
        raise ValueError(msg)


def resolve_scale(stats: MatrixStats, input_scale: str | None, name: str) -> tuple[Scale, str]:
    """Decide whether a whole matrix holds counts or log1p values.

    Parameters
    ----------
    stats
        Summary of the whole matrix, checked.
    input_scale
        ``"counts"``, ``"log1p"``, or None to decide from the values.
    name
        Name of the matrix in messages.

    Returns
    -------
    The scale, and the reason for the decision.

    Raises
    ------
    ValueError
        If ``input_scale`` is unknown or contradicts the values, or if the values are neither counts nor log1p.
    """
    largest, whole = stats.largest, stats.whole
    if input_scale is not None and input_scale not in SCALES:
        msg = f"input_scale={input_scale!r} is unknown. {did_you_mean(input_scale, SCALES)}"
        raise ValueError(msg)
    _check_not_roots(stats, name)
    if input_scale == "log1p":
        if whole and largest > 1:
            msg = f"input_scale='log1p', but every value of {name} is a whole number (up to {largest:g}): use 'counts'."
            raise ValueError(msg)
        if largest > _LOG_MAX:
            msg = f"input_scale='log1p', but {name} reaches {largest:g}, and log1p values stay below {_LOG_MAX:g}."
            raise ValueError(msg)
        return "log1p", _BY_ARGUMENT
    if input_scale == "counts":
        if not whole and any(sums.constant for sums in stats.unlogged.values()):
            msg = (
                f"input_scale='counts', but {name} is log1p of normalised counts (expm1 sums to the same number in "
                "every cell): use input_scale='log1p', or give the layer that holds the counts."
            )
            raise ValueError(msg)
        return "counts", f"{_BY_ARGUMENT}; {_WHOLE}" if whole else _BY_ARGUMENT
    if whole:
        return "counts", f"{_WHOLE}, up to {largest:g}"
    if stats.sums.constant:
        msg = (
            f"{name} is neither counts nor log1p: its values are fractional, up to {largest:g}, and sum to the same "
            "number in every cell, so it is normalised but not log-transformed. Run sc.pp.log1p, or give the layer "
            "that holds the counts."
        )
        raise UnusableValuesError(msg)
    if largest <= _LOG_MAX:
        return "log1p", f"values are fractional and at most {largest:.3g}"
    return "counts", f"values are fractional, but reach {largest:g}, too large for log1p"


def _check_not_roots(stats: MatrixStats, name: str) -> None:
    """Refuse square roots, of counts or of normalised counts."""
    if stats.whole or not (stats.whole_squares or stats.squared.constant):
        return
    evidence = "is a whole number" if stats.whole_squares else "sums to the same number in every cell"
    msg = (
        f"{name} is neither counts nor log1p: the square of its values {evidence}, so it is square-root-transformed "
        f"{'' if stats.whole_squares else 'or scaled to unit length '}instead. Give the counts, for example a layer=."
    )
    raise UnusableValuesError(msg)


def check_scale(stats: MatrixStats, scale: Scale, reason: str, name: str) -> None:
    """Check that new data are not evidently on a different scale from the data a model was set up on.

    Parameters
    ----------
    stats, name
        Summary of the new data's whole matrix, and its name in messages.
    scale, reason
        Scale of the model's data, and the reason, from :func:`resolve_scale`.

    Raises
    ------
    ValueError
        If counts were registered and these are log1p or normalised values, or the reverse.
    """
    _check_not_roots(stats, name)
    largest, whole = stats.largest, stats.whole
    looks_counts = (whole and largest > 1) or largest > _LOG_MAX
    looks_log = not whole and largest <= _LOG_MAX
    # Counts can be fractional (ambient RNA removed): log1p values are recognised only if the model's counts were whole.
    if (scale == "log1p" and looks_counts) or (scale == "counts" and looks_log and _WHOLE in reason):
        kind = "counts" if looks_counts else "log1p values"
    elif scale == "counts" and _WHOLE in reason and not whole and stats.sums.constant:
        kind = "normalised counts"
    else:
        return
    msg = (
        f"{name} looks like {kind} (up to {largest:.3g}), but the model was set up on {scale} ({reason}). "
        f"Give {'raw counts' if scale == 'counts' else 'log1p values'}."
    )
    raise UnusableValuesError(msg)


def log_raw(matrix: sparse.csr_matrix, scale: Scale) -> sparse.csr_matrix:
    """Compute log1p of counts without library-size scaling, the input of SE networks; log1p values are unchanged."""
    if scale == "log1p":
        return matrix
    logged = matrix.copy()
    np.log1p(logged.data, out=logged.data)
    return logged


def to_natural_log(matrix: sparse.csr_matrix, base: float) -> sparse.csr_matrix:
    """Convert log1p values in another base to natural ones; natural ones are unchanged."""
    return matrix if base == math.e else matrix.multiply(np.float32(math.log(base))).tocsr()


def rescale_log(matrix: sparse.csr_matrix, factor: float) -> sparse.csr_matrix:
    """Convert natural log1p values to those of counts that are larger by a factor; 1 changes nothing."""
    if factor == 1:
        return matrix
    rescaled = matrix.copy()
    rescaled.data = np.log1p(np.expm1(matrix.data.astype(np.float64)) * factor).astype(np.float32)
    return rescaled


def log_normalize(
    matrix: sparse.csr_matrix, scale: Scale, totals: np.ndarray | None = None, *, target_sum: float = TARGET_SUM
) -> sparse.csr_matrix:
    """Compute log1p of counts per `target_sum`; log1p values are unchanged.

    Parameters
    ----------
    matrix
        Shape ``(n_cells, n_genes)``.
    scale
        Scale of the matrix.
    totals
        Library size of every cell ``(n_cells,)``, if the matrix is a subset of the genes. Cells without counts stay
        zero.
    target_sum
        Sum that the counts of a cell are brought to.

    Returns
    -------
    float32 CSR ``(n_cells, n_genes)``; the input itself if it is already log1p.
    """
    if scale == "log1p":
        return matrix
    if totals is None:
        totals = np.asarray(matrix.sum(axis=1)).ravel()
    factors = np.divide(target_sum, totals, out=np.zeros(len(totals)), where=totals > 0).astype(np.float32)
    normalized = matrix.copy()
    normalized.data *= np.repeat(factors, np.diff(matrix.indptr))
    np.log1p(normalized.data, out=normalized.data)
    return normalized


def fingerprint(x: sparse.csr_matrix, *more: np.ndarray) -> int:
    """Compute a checksum of a matrix and further arrays, to detect that cells have changed."""
    total = zlib.crc32(repr(x.shape).encode())
    for array in (x.indptr, x.indices, x.data, *more):
        total = zlib.crc32(np.ascontiguousarray(array).data.cast("B"), total)
    return total
