"""Cell sets: control and perturbed cells of one context, sampled for training and arranged for prediction."""

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
    """One training batch of the State Transition model. Optional fields are absent if the run does not use them."""

    control: np.ndarray
    """Control cells: log1p expression or an embedding, float32 ``(n_sets, n_cells, n_inputs)``."""
    target: np.ndarray
    """Perturbed cells of the same contexts, float32 ``(n_sets, n_cells, n_inputs)``."""
    pert: np.ndarray
    """Perturbation vector of each set, float32 ``(n_sets, pert_dim)``."""
    covariates: dict[str, np.ndarray]
    """Encoded covariates of the control cells, each ``(n_sets, n_cells)``."""
    target_genes: NotRequired[np.ndarray]
    """log1p expression of the perturbed cells if ``target`` is their embedding, ``(n_sets, n_cells, n_genes)``."""
    velocity: NotRequired[np.ndarray]
    """RNA velocity of the control cells, ``(n_sets, n_cells, n_inputs)``; NaN if unknown."""
    velocity_confidence: NotRequired[np.ndarray]
    """Confidence of the velocity, ``(n_sets, n_cells)``."""
    batch_codes: NotRequired[np.ndarray]
    """Batches of the control cells as network input, rows of its batch table, int64 ``(n_sets, n_cells)``."""
    batch_labels: NotRequired[np.ndarray]
    """Batch to predict for each set, the most frequent of its control cells, int64 ``(n_sets,)``; -1 if unknown."""


@dataclass(frozen=True)
class SetData:
    """All cells from which sets are sampled.

    Parameters
    ----------
    x
        log1p expression, CSR ``(n_cells, n_genes)``, or an embedding, float32 ``(n_cells, n_columns)``.
    perts
        Perturbation vector of each perturbation code, float32 ``(n_codes, pert_dim)``.
    covariates
        Encoded covariates, each ``(n_cells,)``.
    genes
        log1p expression, if ``x`` is an embedding from which expression is decoded.
    further
        log1p expression of genes that the network does not read, CSR ``(n_cells, n_further)``.
    velocity, velocity_confidence
        RNA velocity in the space of ``x``, ``(n_cells, n_columns)``, and its confidence, ``(n_cells,)``.
    batch_codes
        Batches of the cells as network input, rows of its batch table, int64 ``(n_cells,)``.
    batch_labels
        Batches that the network's batch token learns to predict, int64 ``(n_cells,)``; -1 if unknown.
    """

    x: sparse.csr_matrix | np.ndarray
    perts: np.ndarray
    covariates: dict[str, np.ndarray]
    genes: sparse.csr_matrix | None = None
    further: sparse.csr_matrix | None = None
    velocity: np.ndarray | None = None
    velocity_confidence: np.ndarray | None = None
    batch_codes: np.ndarray | None = None
    batch_labels: np.ndarray | None = None

    def batch(self, control: np.ndarray, target: np.ndarray, codes: np.ndarray) -> SetBatch:
        """Arrange sets of cells.

        Parameters
        ----------
        control, target
            Row indices of the cells, ``(n_sets, n_cells)``.
        codes
            Perturbation code of each set, ``(n_sets,)``.
        """
        batch = SetBatch(
            control=dense(self.x, control),
            target=dense(self.x, target),
            pert=self.perts[codes],
            covariates={name: values[control] for name, values in self.covariates.items()},
        )
        if self.batch_codes is not None:
            batch["batch_codes"] = self.batch_codes[control]
        if self.genes is not None:
            batch["target_genes"] = dense(self.genes, target)
        if self.velocity is not None:
            batch["velocity"] = self.velocity[control]
        if self.velocity_confidence is not None:
            batch["velocity_confidence"] = self.velocity_confidence[control]
        if self.batch_labels is not None:
            labels = [_most_frequent(labels) for labels in self.batch_labels[control]]
            batch["batch_labels"] = np.array(labels, dtype=np.int64)
        return batch


def _most_frequent(labels: np.ndarray) -> int:
    labels = labels[labels >= 0]  # -1: unknown
    return int(np.bincount(labels).argmax()) if len(labels) else -1


def dense(x: sparse.csr_matrix | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Take rows as a dense array, ``(*rows.shape, n_columns)``."""
    taken = x[rows.ravel()]
    return (taken if isinstance(taken, np.ndarray) else taken.toarray()).reshape(*rows.shape, x.shape[1])


@dataclass(frozen=True)
class Group:
    """Cells of one context under one perturbation, with the context's control cells.

    Parameters
    ----------
    context, pert
        Name of the context, and code of the perturbation.
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
    """Pair perturbed cells with the control cells of their context; groups are sorted by context and perturbation.

    Parameters
    ----------
    contexts, perts
        Context and perturbation code of every cell, ``(n_cells,)``.
    control
        Code of the control.
    cells
        Cells to use, bool ``(n_cells,)``, for example those of one split.
    min_cells
        Groups with fewer control or perturbed cells are left out.
    """
    rows = np.flatnonzero(cells)
    table = pd.DataFrame({"context": contexts[rows], "pert": perts[rows], "row": rows})
    by_group = table.groupby(["context", "pert"], sort=True)["row"]
    members = {cast("tuple[str, int]", key): group.to_numpy() for key, group in by_group}
    groups = []
    for (context, pert), perturbed in members.items():
        controls = members.get((context, control), np.zeros(0, dtype=np.int64))
        if pert != control and min(len(controls), len(perturbed)) >= min_cells:
            groups.append(Group(str(context), int(pert), controls, perturbed))
    return groups


class SetSampler:
    """Sample batches of cell sets. Batch ``i`` depends only on the seed and ``i``.

    Parameters
    ----------
    data
        All cells.
    groups
        Groups from :func:`make_groups`, sampled in proportion to the square root of their size, so that small cell
        types are not swamped.
    n_sets, set_len
        Sets per batch, and cells per set. Groups with fewer cells are sampled with replacement.
    seed
        Random seed.
    unknown
        Encoding of "unknown" for each covariate: :meth:`Registry.unknown`.
    withheld
        Probability of replacing each covariate of each control cell by "unknown".
    steps_per_epoch
        Batches per epoch.

    Raises
    ------
    ValueError
        If ``groups`` is empty.
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
                "No context has enough control and perturbed cells to sample sets from; the split table lists the "
                "counts. Hold out fewer cells, or use coarser contexts: context_keys=[...]."
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
        groups = [self.groups[i] for i in rng.choice(len(self.groups), size=self.n_sets, p=self.weights)]
        control = np.stack([self._draw(g.control, rng) for g in groups])  # (n_sets, set_len)
        target = np.stack([self._draw(g.perturbed, rng) for g in groups])
        batch = self.data.batch(control, target, np.array([g.pert for g in groups]))
        batch["covariates"] = withhold(batch["covariates"], self.unknown, self.withheld, rng)
        return batch

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(rows, size=self.set_len, replace=len(rows) < self.set_len)


class WholeGroups:
    """Each group once, as one set, for validation: a fixed sample of up to ``set_len`` control and perturbed cells.

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
    """Divide cells at random into sets of nearly equal size, at most ``set_len`` cells each; every cell occurs once."""
    n_windows = max(1, -(-len(rows) // set_len))
    return np.array_split(rng.permutation(rows), n_windows)
