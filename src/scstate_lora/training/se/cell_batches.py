"""Batches of cells for the self-supervised training of an SE network, and the genes whose expression it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.inference.arrays import take

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse

    from scstate_lora.data.tokens import Tokenizer


class ExpressionTargets:
    """Genes whose expression is to be predicted, the same for all cells of a batch.

    Half are drawn at random, half in proportion to their mean expression.

    Parameters
    ----------
    x
        log1p expression without library-size scaling, CSR ``(n_cells, n_genes)``.
    rows
        Cells whose mean expression sets the probabilities.
    vocabulary
        Index in the network's vocabulary of every column of `x`, -1 for an unknown gene.
    n_targets
        Number of genes; fewer if fewer are in the vocabulary.
    """

    def __init__(self, x: sparse.csr_matrix, rows: np.ndarray, vocabulary: np.ndarray, n_targets: int) -> None:
        self.vocabulary = vocabulary
        self.columns = np.flatnonzero(vocabulary >= 0)
        self.n_targets = min(n_targets, len(self.columns))
        mean = np.asarray(x[rows].mean(axis=0)).ravel()[self.columns]
        share = mean / mean.sum() if mean.any() else np.full(len(mean), 1 / len(mean))
        self.weights = 0.5 / len(mean) + 0.5 * share

    def draw(self, cells: sparse.csr_matrix, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw genes and read their expression.

        Parameters
        ----------
        cells
            As `x`, CSR ``(n, n_genes)``.
        rng
            Draws the genes.

        Returns
        -------
        ``target_genes (n_targets,)``, vocabulary indices; ``targets (n, n_targets)``; ``read_depth (n,)``, the mean
        expression of the genes that a cell expresses.
        """
        drawn = self.columns[rng.choice(len(self.columns), size=self.n_targets, replace=False, p=self.weights)]
        in_vocabulary = cells[:, self.columns]
        # Read depth over all genes; estimated from the few targets it would be noise the embedding has to correct.
        depth = np.asarray(in_vocabulary.sum(axis=1)).ravel() / np.maximum(np.diff(in_vocabulary.indptr), 1)
        return {
            "target_genes": self.vocabulary[drawn],
            "targets": cells[:, drawn].toarray(),
            "read_depth": depth.astype(np.float32),
        }


class CellBatches:
    """Batches of tokenised cells with expression targets.

    Parameters
    ----------
    x
        log1p expression without library-size scaling, CSR ``(n_cells, n_genes)``.
    seeds
        Seed of every cell's sentence, ``(n_cells,)``.
    rows
        Cells to draw from.
    tokenizer
        Turns expression into sentences; holds the vocabulary index of each gene.
    batch_size
        Cells per batch; at most as many as ``rows``.
    n_targets
        Number of genes to predict, see :class:`ExpressionTargets`.
    seed
        Seed of the order and of the targets.
    steps_per_epoch
        Batches per epoch; by default one pass over the cells.
    extra
        Further arrays ``(n_cells, ...)``, or dicts of such, to include in the batches.
    """

    shared = frozenset({"target_genes"})

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
    ) -> None:
        self.x = x
        self.seeds = seeds
        self.rows = rows
        self.tokenizer = tokenizer
        self.targets = ExpressionTargets(x, rows, tokenizer.vocabulary, n_targets)
        self.batch_size = min(batch_size, len(rows))
        self.seed = seed
        self.extra = dict(extra or {})
        self.n_batches = len(rows) // self.batch_size
        self.steps_per_epoch = steps_per_epoch or self.n_batches

    def __getitem__(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.n_batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)  # one pass over the cells
        drawn = order[position * self.batch_size : (position + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, epoch, position])
        cells = self.x[drawn]
        sentences = self.tokenizer(cells, self.seeds[drawn])
        return {
            "genes": sentences.genes,
            "values": sentences.values,
            **self.targets.draw(cells, rng),
            **take(self.extra, drawn),
        }
