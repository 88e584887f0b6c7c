"""Training of heads alone, on embeddings that are computed once; how long is chosen on cells that were left out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scstate_lora._tensors import in_float32
from scstate_lora.losses.labels import label_loss
from scstate_lora.nn.classifier import ResidualHeads

if TYPE_CHECKING:
    from scstate_lora.config import HeadConfig
    from scstate_lora.training.annotation.folds import Folds

_BATCH = 256
_BLOCK = 8192
_SHARES = (1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True)
class HeadCells:
    """Cells as heads see them.

    Parameters
    ----------
    embedding
        float32 ``(n_cells, dim)``.
    start
        Outputs of the linear start as it is for cells that it was not fitted to, float32 ``(n_cells, n_outputs)``.
    goal
        Classes that are left open, bool ``(n_cells, n_outputs)``, or standardised numbers, float32 ``(n_cells,)``.
    weights
        Weight of every cell, float32 ``(n_cells,)``.
    """

    embedding: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: np.ndarray) -> HeadCells:
        """Select cells."""
        return HeadCells(self.embedding[rows], self.start[rows], self.goal[rows], self.weights[rows])

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all four as tensors."""
        return tuple(map(torch.from_numpy, (self.embedding, self.start, self.goal, self.weights)))


class HeadTrials(NamedTuple):
    """Heads that were trained without each fold, after several numbers of steps."""

    steps: tuple[int, ...]
    """Numbers of steps."""
    added: np.ndarray
    """What is added to the start of each left-out cell, float32 ``(n_numbers, n_cells, n_outputs)``."""
    added_inside: list[np.ndarray]
    """What each fold's heads add to the cells they were trained on, ``(n_numbers, n_inside, n_outputs)`` each."""
    states: list[list[dict[str, torch.Tensor]]]
    """Weights of each fold's heads after each number."""


@in_float32()
def make_heads(cells: HeadCells, config: HeadConfig, *, seed: int) -> ResidualHeads:
    """Make new heads for cells, whose embedding they standardise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = ResidualHeads(
            cells.embedding.shape[1],
            cells.start.shape[1],
            hidden_dim=config.hidden_dim,
            dropout=config.dropout,
            n_members=config.n_members,
        )
    heads.standardise(torch.from_numpy(cells.embedding))
    return heads


def try_heads(cells: HeadCells, folds: Folds, config: HeadConfig, *, lr: float, seed: int) -> HeadTrials:
    """Train heads without each fold in turn, and see after several numbers of steps what they add to it.

    Parameters
    ----------
    cells
        The labelled cells.
    folds
        Which of them are left out together.
    config
        Sizes and the largest number of steps.
    lr, seed
        Learning rate; seed of initialisation and batches.
    """
    steps = tuple(sorted({round(config.n_steps * share) for share in _SHARES}))
    added = np.zeros((len(steps), *cells.start.shape), dtype=np.float32)
    states: list[list[dict[str, torch.Tensor]]] = []
    added_inside: list[np.ndarray] = []
    for inside, outside in folds:
        part = cells.take(inside)
        heads = make_heads(part, config, seed=seed)
        optimiser = _optimiser(heads, lr)
        states.append([])
        added_inside.append(np.empty((len(steps), *part.start.shape), dtype=np.float32))
        for number, (first, last) in enumerate(pairwise((0, *steps))):
            _train(heads, optimiser, part, first, last, seed=seed)
            added[number, outside] = added_by(heads, cells.embedding[outside])
            added_inside[-1][number] = added_by(heads, part.embedding)
            states[-1].append({name: tensor.clone() for name, tensor in heads.state_dict().items()})
    return HeadTrials(steps, added, added_inside, states)


@in_float32()
def train_heads(heads: ResidualHeads, cells: HeadCells, n_steps: int, *, lr: float, seed: int) -> None:
    """Train heads in place for a number of steps."""
    _train(heads, _optimiser(heads, lr), cells, 0, n_steps, seed=seed)


def scale_heads(heads: ResidualHeads, strength: float) -> None:
    """Multiply what heads add by a number."""
    with torch.no_grad():
        heads.last.mul_(strength)
        heads.last_bias.mul_(strength)


def added_by(heads: ResidualHeads, embedding: np.ndarray) -> np.ndarray:
    """Compute the mean of what the heads add to cells, float32 ``(n_cells, n_outputs)``."""
    with torch.inference_mode():
        parts = [heads(block).mean(0) for block in torch.from_numpy(embedding).split(_BLOCK)]
        return torch.cat(parts).numpy()


def _optimiser(heads: ResidualHeads, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=0.01, fused=True)


@in_float32()
def _train(
    heads: ResidualHeads, optimiser: torch.optim.Optimizer, cells: HeadCells, first: int, last: int, *, seed: int
) -> None:
    """Do the steps from `first` to `last`; batch and dropout of each depend on seed and step alone."""
    embedding, start, goal, weights = cells.tensors()
    heads.train()
    with torch.random.fork_rng():
        for step in range(first, last):
            # torch.manual_seed() takes longer than the step.
            torch.default_generator.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
            rows = torch.randint(len(cells), (min(_BATCH, len(cells)),))
            losses = label_loss(start[rows] + heads(embedding[rows]), goal[rows])  # (M, n)
            loss = (losses * weights[rows]).mean(1).sum()  # members do not know each other
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    heads.eval()
