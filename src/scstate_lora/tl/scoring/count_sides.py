"""Sets of cells as counts: their profiles, and their differential expression against control cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from scstate_lora.metrics.de_tables import DEReference, DETable
from scstate_lora.metrics.profiles import CountProfiles, count_profiles, profile_of
from scstate_lora.metrics.set_pairs import is_one_profile

if TYPE_CHECKING:
    from scipy import sparse

    from scstate_lora.tl.scoring.controls import ContextControls

N_HALVES = 4
"""Halves of the measured cells, two splits, that scores of counts are replicated on."""
_WHOLE = 1e-3  # counts this near to a whole number are it: logs of float32 lose no more


class CountSide(NamedTuple):
    """A set of cells as scores of counts need it."""

    profile: CountProfiles
    """One row."""
    table: DETable | None
    """One row; None where no gene can be tested."""


@dataclass(frozen=True)
class CountReference:
    """Control cells that sets of cells are compared with.

    Parameters
    ----------
    profile
        Their profile, one row.
    tests
        Tests against them; None, and the reason in `few`, where no gene can be tested.
    few
        Why no gene can be tested.
    """

    profile: CountProfiles
    tests: DEReference | None
    few: str = ""

    @classmethod
    def of(cls, counts: sparse.csr_matrix) -> Self:
        """Prepare control cells, ``(n, n_genes)``."""
        profile = count_profiles(counts)
        try:
            return cls(profile, DEReference.of(counts))
        except ValueError as error:
            return cls(profile, None, str(error))

    def common(self, other: CountReference) -> tuple[CountReference, CountReference]:
        """Test only the genes that both can test."""
        if self.tests is None or other.tests is None:
            few = self.few or other.few
            return CountReference(self.profile, None, few), CountReference(other.profile, None, few)
        genes = np.intersect1d(self.tests.genes, other.tests.genes)
        if not len(genes):
            few = "no gene is expressed in both halves of the control cells"
            return CountReference(self.profile, None, few), CountReference(other.profile, None, few)
        return tuple(CountReference(one.profile, one.tests.at(genes)) for one in (self, other))  # type: ignore[return-value, union-attr]

    def side(self, counts: np.ndarray, *, most: int | None = None, seed: int = 0) -> CountSide:
        """Summarise and test a set of cells.

        Parameters
        ----------
        counts
            Dense counts, ``(n, n_genes)``.
        most
            Cells that are tested at most, drawn of more: a test of more cells calls more genes. None: all.
        seed
            Seed of the draw.
        """
        profile = profile_of(counts)
        if self.tests is None:
            return CountSide(profile, None)
        if most is not None and len(counts) > most:
            rows = np.sort(np.random.default_rng(seed).choice(len(counts), most, replace=False))
            counts = counts[rows]
        return CountSide(profile, self.tests.table(np.ascontiguousarray(counts)))


class CountReferences:
    """The control cells of a context as counts: all of them, and halves, in pairs that test the same genes.

    Parameters
    ----------
    control
        The control cells.
    n_halves
        Number of halves at most.
    """

    def __init__(self, control: ContextControls, *, n_halves: int = N_HALVES) -> None:
        counts = sparse_counts(control.expression, control.depth)
        self.whole = CountReference.of(counts)
        self.halves: list[CountReference] = []
        for i in range(0, min(n_halves, len(control.halves)), 2):
            one, rest = (CountReference.of(counts[np.flatnonzero(control.halves[i + k])]) for k in (0, 1))
            self.halves += one.common(rest)


def dense_counts(logged: np.ndarray, depth: np.ndarray | None) -> np.ndarray:
    """Turn log1p values to counts, float32 ``(n, n_genes)``.

    Parameters
    ----------
    logged
        Cells, ``(n, n_genes)``.
    depth
        Depth of each, as of :class:`~scstate_lora.tl.scoring.cells.Cells`. None: all cells have the same.
    """
    if is_one_profile(logged):
        return np.broadcast_to(np.exp(logged[0]) - 1, logged.shape)
    counts = np.exp(logged, dtype=np.float32)
    counts -= 1
    if depth is not None:
        counts *= depth[:, None].astype(np.float32)
        _snap(counts)
    return counts


def sparse_counts(logged: sparse.csr_matrix, depth: np.ndarray | None) -> sparse.csr_matrix:
    """As :func:`dense_counts`, of sparse cells."""
    counts = logged.copy()
    counts.data = np.exp(counts.data) - 1
    if depth is not None:
        counts.data *= np.repeat(depth.astype(np.float32), np.diff(counts.indptr))
        _snap(counts.data)
    return counts


def _snap(counts: np.ndarray) -> None:
    """Round what is a whole number but for the rounding of logs."""
    whole = np.rint(counts)
    np.copyto(counts, whole, where=np.abs(counts - whole) <= _WHOLE * np.maximum(1, whole * 1e-3))
