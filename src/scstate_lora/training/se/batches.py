"""Batches of cells for LoRACovariateSE: cells of one type under two conditions, each moved to the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.data.fields import withhold
from scstate_lora.inference.arrays import take
from scstate_lora.training.se.cell_batches import ExpressionTargets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse

    from scstate_lora.data.tokens import Tokenizer

_KEYS = frozenset(
    {"base", "covariates", "own", "moved", "labels", "side", "moved_side", "context", "batches"}
    | {"target_genes", "targets", "read_depth"}
)
# Sides per batch: groups of cells of one type and condition.
_SIDES = 8
_LARGEST_SIDE = 16


@dataclass(frozen=True)
class SECells:
    """An experiment's cells, as training needs them.

    Parameters
    ----------
    base
        Base embedding without adapters, ``(n_cells, embedding_dim)``.
    covariates
        Encoded, ``(n_cells,)`` each.
    unknown
        Code or value for "unknown" in each of them.
    fixed
        Covariates that stay the same when a cell is moved to another condition: the batch.
    labels
        Labels of the contrastive term, ``(n_cells,)``.
    types
        Cell types, within which cells are moved, ``(n_cells,)``.
    conditions
        Combination of the covariates without the fixed ones, ``(n_cells,)``.
    batches
        Batch of every cell, -1 if unknown, ``(n_cells,)``; None without batches.
    x
        log1p expression without library-size scaling, CSR ``(n_cells, n_genes)``; None for a base that reads none.
    seeds
        Seeds of the sentences, ``(n_cells,)``.
    tokenizer
        Turns expression into sentences; None without an SE network.
    """

    base: np.ndarray
    covariates: dict[str, np.ndarray]
    unknown: Mapping[str, int | float]
    fixed: frozenset[str]
    labels: np.ndarray
    types: np.ndarray
    conditions: np.ndarray
    batches: np.ndarray | None = None
    x: sparse.csr_matrix | None = None
    seeds: np.ndarray | None = None
    tokenizer: Tokenizer | None = None


class SEBatches:
    """Batches of cells in pairs of sides: cells of one type, each side of one combination of covariates.

    An epoch is one pass over the cells. Its order places a few cells of a type and combination next to as many of the
    same type and another combination, drawn at random. A batch can thus compare cells moved to the other side's
    covariates with the cells measured there.

    Parameters
    ----------
    cells
        The experiment.
    rows
        Cells to draw from.
    batch_size
        Cells per batch; at most as many as ``rows``.
    n_targets
        Genes to predict, see :class:`~scstate_lora.training.se.cell_batches.ExpressionTargets`; 0 for none.
    sentences
        Whether the network reads sentences; otherwise the base embedding takes their place.
    withheld
        Share of a cell's covariates that are replaced by "unknown", each independently.
    seed
        Seed of the order, the genes, the moves and the withheld covariates.
    """

    def __init__(
        self,
        cells: SECells,
        rows: np.ndarray,
        *,
        batch_size: int,
        n_targets: int,
        sentences: bool,
        withheld: float,
        seed: int,
    ) -> None:
        self.cells = cells
        self.batch_size = min(batch_size, len(rows))
        self.side_len = int(np.clip(self.batch_size // _SIDES, 2, _LARGEST_SIDE))
        self.sentences = sentences
        # Several processes share the network's input; its embeddings are gathered, and the loss covers all cells.
        self.shared = _KEYS if sentences else _KEYS - {"base"}
        self.withheld = withheld
        self.seed = seed
        self.targets = None
        if n_targets and cells.x is not None and cells.tokenizer is not None:
            self.targets = ExpressionTargets(cells.x, rows, cells.tokenizer.vocabulary, n_targets)
        self.groups = _grouped(rows, cells.types, cells.conditions)
        self.steps_per_epoch = len(rows) // self.batch_size
        self._ordered: tuple[int, np.ndarray, np.ndarray] | None = None

    def __getitem__(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.steps_per_epoch)
        window = slice(position * self.batch_size, (position + 1) * self.batch_size)
        order, side = (array[window] for array in self._order(epoch))
        rng = np.random.default_rng([self.seed, epoch, position])
        cells = self.cells
        own = take(cells.covariates, order)
        partner = _partners(side, rng)
        side = np.unique(side, return_inverse=True)[1]  # numbered within the batch
        batch: dict[str, Any] = {
            "base": cells.base[order],
            "covariates": withhold(own, cells.unknown, self.withheld, rng),
            "own": own,
            "moved": {name: v if name in cells.fixed else v[partner] for name, v in own.items()},
            "labels": cells.labels[order],
            "side": side,
            "moved_side": np.where(partner == np.arange(len(side)), -1, side[partner]),  # -1: not moved
        }
        if cells.batches is not None:
            batch["context"] = np.unique([cells.types[order], cells.conditions[order]], axis=1, return_inverse=True)[1]
            batch["batches"] = cells.batches[order]
        if self.sentences and cells.tokenizer is not None and cells.x is not None and cells.seeds is not None:
            sentences = cells.tokenizer(cells.x[order], cells.seeds[order])
            batch |= {"genes": sentences.genes, "values": sentences.values}
        if self.targets is not None and cells.x is not None:
            batch |= self.targets.draw(cells.x[order], rng)
        return batch

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of an epoch's cells, and the side of each; sides 2 p and 2 p + 1 are a pair."""
        if self._ordered is not None and self._ordered[0] == epoch:
            return self._ordered[1:]
        rng = np.random.default_rng([self.seed, epoch])
        pairs: list[list[np.ndarray]] = []
        for groups in self.groups:
            pairs += _pair(groups, self.side_len, rng)
        shuffled = [pairs[i] for i in rng.permutation(len(pairs))]
        sides = [(2 * p + s, rows) for p, pair in enumerate(shuffled) for s, rows in enumerate(pair)]
        order = np.concatenate([rows for _, rows in sides])
        self._ordered = epoch, order, np.repeat([s for s, _ in sides], [len(rows) for _, rows in sides])
        return self._ordered[1:]


def _grouped(rows: np.ndarray, types: np.ndarray, conditions: np.ndarray) -> list[list[np.ndarray]]:
    """Cells of every type, by combination of covariates."""
    ordered = rows[np.lexsort((conditions[rows], types[rows]))]
    new_type = np.diff(types[ordered]) != 0
    new_group = new_type | (np.diff(conditions[ordered]) != 0)
    groups = np.split(ordered, np.flatnonzero(new_group) + 1)
    starts_type = np.concatenate([[True], new_type[new_group]])
    grouped: list[list[np.ndarray]] = []
    for group, starts in zip(groups, starts_type, strict=True):
        if starts:
            grouped.append([])
        grouped[-1].append(group)
    return grouped


def _pair(groups: list[np.ndarray], side_len: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Cut groups into sides of at most ``side_len`` and pair sides of different groups; leftovers stay unpaired."""
    sides: dict[int, list[np.ndarray]] = {}
    for number, rows in enumerate(groups):
        shuffled = rng.permutation(rows)
        sides[number] = np.array_split(shuffled, -(-len(rows) // side_len))
    pairs: list[list[np.ndarray]] = []
    while len(sides) > 1:
        # In proportion to the cells left, so that large groups are not left over.
        left = np.array([len(stack) for stack in sides.values()], dtype=np.float64)
        first, second = rng.choice(list(sides), size=2, replace=False, p=left / left.sum())
        pairs.append([sides[first].pop(), sides[second].pop()])
        sides = {number: stack for number, stack in sides.items() if stack}
    pairs += [[rows] for stack in sides.values() for rows in stack]
    return pairs


def _partners(side: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw for every cell a partner from the other side of its pair; itself if that side is not in the batch."""
    partner = np.arange(len(side))
    for number in np.unique(side):
        others = np.flatnonzero(side == (number ^ 1))
        if len(others):
            members = np.flatnonzero(side == number)
            partner[members] = rng.choice(others, size=len(members), replace=len(members) > len(others))
    return partner
