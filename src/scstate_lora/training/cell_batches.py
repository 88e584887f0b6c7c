"""Batches of cells for the SE network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.data import fields
from scstate_lora.training.batches import take

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse

    from scstate_lora.data.tokens import Tokenizer


class CellBatches:
    """Batches of tokenised cells with expression targets, for the SE network.

    Parameters
    ----------
    x
        log1p expression without library-size scaling, CSR ``(n_cells, n_genes)``.
    seeds
        Seed of every cell's sentence, ``(n_cells,)``.
    rows
        Cells to draw from.
    tokenizer
        Turns expression into sentences; says which genes the network knows, and under which index.
    batch_size
        Cells a batch; fewer when there are fewer.
    n_targets
        Genes whose expression is asked for, the same for all cells of a batch: half drawn at random, half in
        proportion to their mean expression.
    seed
        Seed of the order and of the targets.
    steps_per_epoch
        Batches an epoch; a pass over the cells by default.
    extra
        Further arrays ``(n_cells, ...)``, or dicts of such, that travel with the cells.
    withhold
        What stands for "unknown" in each of ``extra["covariates"]``, and the chance of each value to be replaced by it;
        None to leave all as they are.
    """

    def __init__(
        self,
        x: sparse.csr_matrix,
        seeds: np.ndarray,
        rows: np.ndarray,
        *,
        tokenizer: Tokenizer,
        batch_size: int,
        n_targets: int,
        seed: int,
        steps_per_epoch: int | None = None,
        extra: Mapping[str, Any] | None = None,
        withhold: tuple[Mapping[str, int | float], float] | None = None,
    ) -> None:
        self.x = x
        self.seeds = seeds
        self.rows = rows
        self.tokenizer = tokenizer
        self.known = np.flatnonzero(tokenizer.vocabulary >= 0)  # columns
        self.batch_size = min(batch_size, len(rows))
        self.n_targets = min(n_targets, len(self.known))
        self.seed = seed
        self.extra = dict(extra or {})
        self.withhold = withhold
        self.n_batches = len(rows) // self.batch_size
        self.steps_per_epoch = steps_per_epoch or self.n_batches
        mean = np.asarray(x[rows].mean(axis=0)).ravel()[self.known]
        share = mean / mean.sum() if mean.any() else np.full(len(mean), 1 / len(mean))
        self.gene_weights = 0.5 / len(mean) + 0.5 * share

    def __getitem__(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.n_batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)  # one pass over the cells
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, epoch, position])
        cells = self.x[chosen]
        sentences = self.tokenizer(cells, self.seeds[chosen])
        targets = self.known[rng.choice(len(self.known), size=self.n_targets, replace=False, p=self.gene_weights)]
        wanted = cells[:, targets].toarray()  # (batch, n_targets)
        depth = wanted.sum(1) / np.maximum((wanted > 0).sum(1), 1)
        extra = take(self.extra, chosen)
        if self.withhold is not None:
            extra["covariates"] = fields.withhold(extra["covariates"], *self.withhold, rng)
        return {
            "genes": sentences.genes,
            "values": sentences.values,
            "target_genes": self.tokenizer.vocabulary[targets],
            "targets": wanted,
            "read_depth": depth.astype(np.float32),
            **extra,
        }
