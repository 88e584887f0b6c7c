"""Batches of labelled cells, as tokens for an encoder that is trained, or as embeddings while it is not yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from scstate_lora.training.annotation.heads import HeadCells


@dataclass(frozen=True)
class LabelledCells:
    """Labelled cells, as training of an encoder needs them.

    Parameters
    ----------
    tokens
        Returns the encoder's input for some of the rows, ``(n, ...)`` each by name.
    targets
        Start, goal and weight of every row by target, and the embedding by the encoder as it was.
    """

    tokens: Callable[[np.ndarray], dict[str, np.ndarray]]
    targets: dict[str, HeadCells]

    def batch(self, rows: np.ndarray, *, embedded: bool) -> dict[str, Any]:
        """Read a batch; `embedded` for embeddings in place of tokens."""
        cells = next(iter(self.targets.values()))
        batch: dict[str, Any] = {"embedding": cells.embedding[rows]} if embedded else {"tokens": self.tokens(rows)}
        for name in ("start", "goal", "weights"):
            batch[name] = {key: getattr(target, name)[rows] for key, target in self.targets.items()}
        return batch


class LabelledBatches:
    """Batches of labelled cells in random order.

    Parameters
    ----------
    cells
        The cells.
    rows
        Rows to draw from.
    batch_size
        Cells per batch; at most as many as `rows`.
    seed
        Seed of the order.
    steps_per_epoch
        Batches per epoch; by default one pass over the rows.
    frozen_epochs
        Epochs whose batches hold embeddings: the encoder is not trained in them.
    """

    def __init__(
        self,
        cells: LabelledCells,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        frozen_epochs: int = 0,
    ) -> None:
        self.cells, self.rows, self.seed = cells, rows, seed
        self.batch_size = min(batch_size, len(rows))
        self.n_batches = len(rows) // self.batch_size
        self.steps_per_epoch = steps_per_epoch or self.n_batches
        self.frozen_steps = frozen_epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.n_batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        drawn = order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.cells.batch(drawn, embedded=step < self.frozen_steps)


class LeftOutBatches:
    """All left-out cells in batches of nearly one size.

    Parameters
    ----------
    cells
        The cells.
    rows
        The left-out ones.
    batch_size
        Cells per batch, at most.
    """

    def __init__(self, cells: LabelledCells, rows: np.ndarray, *, batch_size: int) -> None:
        self.cells = cells
        self.parts = np.array_split(rows, -(-len(rows) // batch_size))
        self.steps_per_epoch = len(self.parts)

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self.cells.batch(self.parts[step % len(self.parts)], embedded=False)
        # Every cell counts alike, as in the choice of heads: a few cells of a rare label would decide otherwise.
        return {**batch, "weights": {key: np.sign(weights) for key, weights in batch["weights"].items()}}
