"""Cell sets: control and perturbed cells of one context, drawn for training and laid out for prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

import numpy as np
import pandas as pd

from scstate_lora.data.fields import withhold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse


class SetBatch(TypedDict):
    """One training batch of the State Transition model. What a run does not need is not in it."""

    control: np.ndarray
    """Control cells, log1p expression or an embedding, float32 ``(n_sets, n_cells, n_inputs)``."""
    target: np.ndarray
    """Perturbed cells of the same contexts, float32 ``(n_sets, n_cells, n_inputs)``."""
    pert: np.ndarray
    """What describes each set's perturbation, float32 ``(n_sets, pert_dim)``."""
    covariates: dict[str, np.ndarray]
    """Covariates of the control cells, ``(n_sets, n_cells)`` each."""
    target_genes: NotRequired[np.ndarray]
    """log1p expression of the perturbed cells where ``target`` is their embedding, ``(n_sets, n_cells, n_genes)``."""
    velocity: NotRequired[np.ndarray]
    """RNA velocity of the control cells, ``(n_sets, n_cells, n_inputs)``, NaN where unknown."""
    velocity_confidence: NotRequired[np.ndarray]
    """Its confidence, ``(n_sets, n_cells)``."""
    batch_codes: NotRequired[np.ndarray]
    """Rows of the control cells in the network's table of batches, an input, int64 ``(n_sets, n_cells)``."""
    batch_labels: NotRequired[np.ndarray]
    """Batch to recognise in each set, the most frequent of its control cells, int64 ``(n_sets,)``; -1 if unknown."""


@dataclass(frozen=True)
class SetData:
    """What is known of every cell, from which sets are drawn.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, float32 ``(n_cells, n_columns)``.
    perts
        What describes the perturbation of each code, float32 ``(n_codes, pert_dim)``.
    covariates
        Encoded covariates, ``(n_cells,)`` each.
    genes
        log1p expression where ``x`` is an embedding and expression is decoded from it.
    velocity, velocity_confidence
        RNA velocity in the space of ``x``, ``(n_cells, n_columns)``, and its confidence, ``(n_cells,)``.
    batch_codes
        Rows of the cells in the network's table of batches, which it reads, int64 ``(n_cells,)``.
    batch_labels
        Batches of the cells that the network's batch token learns to recognise, int64 ``(n_cells,)``; -1 for an unknown
        one.
    """

    x: sparse.csr_matrix | np.ndarray
    perts: np.ndarray
    covariates: dict[str, np.ndarray]
    genes: sparse.csr_matrix | None = None
    velocity: np.ndarray | None = None
    velocity_confidence: np.ndarray | None = None
    batch_codes: np.ndarray | None = None
    batch_labels: np.ndarray | None = None

    def batch(self, control: np.ndarray, target: np.ndarray, codes: np.ndarray) -> SetBatch:
        """Lay out sets of cells, all rows ``(n_sets, n_cells)``, with the code of each one's perturbation."""
        made = SetBatch(
            control=dense(self.x, control),
            target=dense(self.x, target),
            pert=self.perts[codes],
            covariates={name: values[control] for name, values in self.covariates.items()},
        )
        if self.batch_codes is not None:
            made["batch_codes"] = self.batch_codes[control]
        if self.genes is not None:
            made["target_genes"] = dense(self.genes, target)
        if self.velocity is not None:
            made["velocity"] = self.velocity[control]
        if self.velocity_confidence is not None:
            made["velocity_confidence"] = self.velocity_confidence[control]
        if self.batch_labels is not None:
            labels = [_most_frequent(labels) for labels in self.batch_labels[control]]
            made["batch_labels"] = np.array(labels, dtype=np.int64)
        return made


def _most_frequent(labels: np.ndarray) -> int:
    known = labels[labels >= 0]
    return int(np.bincount(known).argmax()) if len(known) else -1


def dense(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Take cells, ``(*rows.shape, n_columns)``."""
    taken = x[rows.ravel()]
    return (taken if isinstance(taken, np.ndarray) else taken.toarray()).reshape(*rows.shape, x.shape[1])


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
    data
        What is known of every cell.
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
        data: SetData,
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
        self.data = data
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
        batch = self.data.batch(control, target, np.array([g.pert for g in chosen]))
        batch["covariates"] = withhold(batch["covariates"], self.unknown, self.withheld, rng)
        return batch

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(rows, size=self.set_len, replace=len(rows) < self.set_len)


class WholeGroups:
    """Every group once, as one set, for validation: up to ``set_len`` control and perturbed cells, the same each time.

    Parameters
    ----------
    data, groups, set_len, seed
        As in :class:`SetSampler`.
    """

    def __init__(self, data: SetData, groups: list[Group], *, set_len: int, seed: int) -> None:
        self.data = data
        self.groups = groups
        self.set_len = set_len
        self.seed = seed
        self.steps_per_epoch = len(groups)

    def __getitem__(self, index: int) -> SetBatch:
        group = self.groups[index]
        rng = np.random.default_rng([self.seed, index])
        control = rng.permutation(group.control)[: self.set_len]
        target = rng.permutation(group.perturbed)[: self.set_len]
        return self.data.batch(control[None], target[None], np.array([group.pert]))


def windows(rows: np.ndarray, set_len: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Split cells into sets of nearly equal size, at most ``set_len`` each, in random order, every cell once."""
    n_windows = max(1, -(-len(rows) // set_len))
    return np.array_split(rng.permutation(rows), n_windows)
