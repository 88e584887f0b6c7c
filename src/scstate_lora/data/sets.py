"""Cell sets: control and perturbed cells of one context, drawn for training and laid out for prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import pandas as pd

from scstate_lora.data.fields import withhold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse


class SetBatch(TypedDict):
    """One training batch of the State Transition model."""

    control: np.ndarray
    """log1p expression of control cells, float32 ``(n_sets, n_cells, n_genes)``."""
    target: np.ndarray
    """log1p expression of perturbed cells of the same contexts, float32 ``(n_sets, n_cells, n_genes)``."""
    pert: np.ndarray
    """Perturbation code of each set, int64 ``(n_sets,)``."""
    covariates: dict[str, np.ndarray]
    """Covariates of the control cells, ``(n_sets, n_cells)`` each."""


@dataclass(frozen=True)
class Group:
    """Perturbed cells of one context, with the context's control cells.

    Parameters
    ----------
    context, pert
        Which context, and the code of the perturbation.
    control, perturbed
        Row indices.
    """

    context: str
    pert: int
    control: np.ndarray
    perturbed: np.ndarray


def make_groups(
    contexts: np.ndarray, perts: np.ndarray, control: int, cells: np.ndarray, *, min_cells: int
) -> list[Group]:
    """Pair the perturbed cells of every context with its control cells, sorted by context and perturbation.

    Parameters
    ----------
    contexts, perts
        Context and perturbation code of every cell, ``(n_cells,)``.
    control
        Code of the control.
    cells
        Which cells may be used, bool ``(n_cells,)``: those of one split.
    min_cells
        Groups with fewer control or perturbed cells are left out.
    """
    rows = np.flatnonzero(cells)
    found = pd.DataFrame({"context": contexts[rows], "pert": perts[rows], "row": rows})
    by_group = found.groupby(["context", "pert"], sort=True)["row"]
    members = {cast("tuple[str, int]", key): group.to_numpy() for key, group in by_group}
    groups = []
    for (context, pert), perturbed in members.items():
        controls = members.get((context, control), np.zeros(0, dtype=np.int64))
        if pert != control and min(len(controls), len(perturbed)) >= min_cells:
            groups.append(Group(str(context), int(pert), controls, perturbed))
    return groups


class SetSampler:
    """Draw batches of cell sets. Batch ``i`` depends on the seed and ``i`` alone.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``.
    covariates
        Encoded covariates of every cell, ``(n_cells,)`` each.
    groups
        From :func:`make_groups`; drawn with probability in proportion to the square root of their size, so that small
        cell types are not drowned.
    n_sets, set_len
        Sets a batch, cells a set. A group with fewer cells is drawn from with replacement.
    seed
        Seed of the draws.
    unknown
        What stands for "unknown" in each covariate: ``Registry.unknown()``.
    withheld
        Chance of each covariate of each control cell to be replaced by "unknown".
    steps_per_epoch
        Batches an epoch.

    Raises
    ------
    ValueError
        There is no group to draw from.
    """

    def __init__(
        self,
        x: sparse.csr_matrix,
        covariates: dict[str, np.ndarray],
        groups: list[Group],
        *,
        n_sets: int,
        set_len: int,
        seed: int,
        unknown: Mapping[str, int | float],
        withheld: float = 0.1,
        steps_per_epoch: int = 20,
    ) -> None:
        if not groups:
            msg = (
                "There is no group of control and perturbed cells to draw sets from; the split table counts the cells. "
                "Hold out fewer cells, or compare within coarser contexts: context_keys=[...]."
            )
            raise ValueError(msg)
        self.x = x
        self.covariates = covariates
        self.groups = groups
        self.n_sets = n_sets
        self.set_len = set_len
        self.seed = seed
        self.unknown = unknown
        self.withheld = withheld
        self.steps_per_epoch = steps_per_epoch
        weights = np.sqrt([len(g.perturbed) for g in groups])
        self.weights = weights / weights.sum()

    def __getitem__(self, index: int) -> SetBatch:
        rng = np.random.default_rng([self.seed, index])
        chosen = [self.groups[i] for i in rng.choice(len(self.groups), size=self.n_sets, p=self.weights)]
        control = np.stack([self._draw(g.control, rng) for g in chosen])  # (n_sets, set_len)
        target = np.stack([self._draw(g.perturbed, rng) for g in chosen])
        covariates = {name: values[control] for name, values in self.covariates.items()}
        return SetBatch(
            control=self._expression(control),
            target=self._expression(target),
            pert=np.array([g.pert for g in chosen], dtype=np.int64),
            covariates=withhold(covariates, self.unknown, self.withheld, rng),
        )

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(rows, size=self.set_len, replace=len(rows) < self.set_len)

    def _expression(self, rows: np.ndarray) -> np.ndarray:
        return self.x[rows.ravel()].toarray().reshape(*rows.shape, self.x.shape[1])


class WholeGroups:
    """Every group once, as one set, for validation: up to ``set_len`` control and perturbed cells, the same each time.

    Parameters
    ----------
    x, covariates, groups, set_len, seed
        As in :class:`SetSampler`.
    """

    def __init__(
        self,
        x: sparse.csr_matrix,
        covariates: dict[str, np.ndarray],
        groups: list[Group],
        *,
        set_len: int,
        seed: int,
    ) -> None:
        self.x = x
        self.covariates = covariates
        self.groups = groups
        self.set_len = set_len
        self.seed = seed
        self.steps_per_epoch = len(groups)

    def __getitem__(self, index: int) -> SetBatch:
        group = self.groups[index]
        rng = np.random.default_rng([self.seed, index])
        control = rng.permutation(group.control)[: self.set_len]
        target = rng.permutation(group.perturbed)[: self.set_len]
        return SetBatch(
            control=self.x[control].toarray()[None],
            target=self.x[target].toarray()[None],
            pert=np.array([group.pert], dtype=np.int64),
            covariates={name: values[control][None] for name, values in self.covariates.items()},
        )


def windows(rows: np.ndarray, set_len: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Split cells into sets of nearly equal size, at most ``set_len`` each, in random order, every cell once."""
    n_windows = max(1, -(-len(rows) // set_len))
    return np.array_split(rng.permutation(rows), n_windows)
