"""The split that a model keeps: of every cell by name, whatever becomes of the AnnData it was made on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from scstate_lora.data.split_column import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike

    from scstate_lora.data.bound import BoundData


def hash_names(names: Iterable[str]) -> np.ndarray:
    """Hash names of cells, uint64 ``(n_cells,)``; the same on every machine."""
    return pd.util.hash_array(np.asarray([str(name) for name in names], dtype=object), categorize=False)


@dataclass(frozen=True)
class ModelSplit:
    """Split and perturbation of the cells of a model.

    Parameters
    ----------
    cells
        Hashes of the cells' names, uint64 ``(n_cells,)``.
    splits
        Position of each cell's split in ``SPLITS``, int8 ``(n_cells,)``.
    perts
        Position of each cell's perturbation in the registry, int32 ``(n_cells,)``; -1 without.
    """

    cells: np.ndarray
    splits: np.ndarray
    perts: np.ndarray

    @classmethod
    def of(cls, bound: BoundData) -> Self:
        """Read the split of registered cells."""
        splits = pd.Index(SPLITS).get_indexer(pd.Index(bound.split)).astype(np.int8)
        perts = np.full(len(bound), -1, dtype=np.int32)
        if bound.registry.pert_key in bound.obs:
            perts = pd.Index(bound.registry.perturbations).get_indexer(pd.Index(bound.perturbations)).astype(np.int32)
        return cls(hash_names(bound.adata.obs_names), splits, perts)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Self:
        """Rebuild it from :meth:`arrays`, or from what a file made of them."""
        cells, splits, perts = (np.asarray(arrays[name]) for name in ("cells", "splits", "perts"))
        return cls(cells.view(np.uint64), splits, perts)

    def arrays(self) -> dict[str, np.ndarray]:
        """Give its arrays in types that any file stores."""
        return {"cells": self.cells.view(np.int64), "splits": self.splits, "perts": self.perts}

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def fingerprint(self) -> str:
        """Equal for equal cells with an equal split, in whatever order."""
        order = np.argsort(self.cells, kind="stable")
        return hashlib.sha256(self.cells[order].tobytes() + self.splits[order].tobytes()).hexdigest()

    def of_cells(self, cells: np.ndarray) -> np.ndarray:
        """Look cells up by the hashes of their names, int8 ``(n,)``; -1 for unknown ones."""
        rows = pd.Index(self.cells).get_indexer(pd.Index(cells))
        return np.where(rows < 0, -1, self.splits[rows]).astype(np.int8)

    def extended(self, other: Self) -> Self:
        """Add the cells of another split that this one does not know."""
        is_new = self.of_cells(other.cells) < 0
        if not is_new.any():
            return self
        joined = [np.concatenate([old, new[is_new]]) for old, new in zip(self._all(), other._all(), strict=True)]
        return type(self)(*joined)

    def training_cells(self, perts: Sequence[int] | None = None) -> np.ndarray:
        """Hashes of the training cells, of all or of some perturbations, sorted, uint64 ``(n,)``."""
        is_chosen = self.splits == SPLITS.index("train")
        if perts is not None:
            is_chosen &= np.isin(self.perts, list(perts))
        return np.sort(self.cells[is_chosen])

    def held_out_among(self, cells: np.ndarray) -> int:
        """Count the cells that do not train, but are among some hashes."""
        return int(np.isin(self.cells[self.splits != SPLITS.index("train")], cells).sum())

    def _all(self) -> tuple[np.ndarray, ...]:
        return self.cells, self.splits, self.perts
