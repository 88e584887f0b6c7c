"""Sentences of genes in the order of their expression, the highest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

# The bits of positive float32 values sort like the values, and the first of the 32 is 0.
_VALUE_BITS = 31
_LARGEST = np.uint64(2**_VALUE_BITS - 1)


@dataclass(frozen=True)
class RankTokenizer:
    """Convert expression to sentences of genes by rank, as scModelForge and Geneformer do.

    Counts are divided by their sum over the genes in the vocabulary. The expressed genes follow in descending order;
    of equal ones, the first in the vocabulary comes first, so that a sentence does not depend on the order of the
    columns.

    Parameters
    ----------
    vocabulary
        Token id of every column of the data, int64 ``(n_columns,)``; -1 for a gene to leave out.
    n_tokens
        Length of the longest sentence, including the CLS token.
    cls_id
        Id of the token that begins every sentence; None: it begins with the first gene.
    pad_id
        Id of the token that fills up shorter sentences.
    target_sum
        Sum that the counts of a cell are brought to; None leaves them as they are.
    log
        Whether values are log1p of these.
    """

    vocabulary: np.ndarray
    n_tokens: int
    cls_id: int | None = 3
    pad_id: int = 0
    target_sum: float | None = 1e4
    log: bool = True

    def __call__(self, x: sparse.csr_matrix) -> dict[str, np.ndarray]:
        """Tokenise cells.

        Parameters
        ----------
        x
            Counts, or numbers proportional to them within a cell, not logarithms: CSR ``(n_cells, n_columns)``.

        Returns
        -------
        Arrays ``(n_cells, T)``, where ``T`` is the length of the longest sentence among these cells: ``genes``, int64
        token ids; ``mask``, bool, false for padding; ``values``, float32, 0 for CLS and padding. Without a CLS token, a
        cell without expression reads one token of padding.
        """
        row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        token = self.vocabulary[x.indices]
        kept = (token >= 0) & (x.data > 0)
        row, token, value = row[kept], token[kept], x.data[kept].astype(np.float32)
        row, token, value = self._sorted(row, token, self._normalized(row, value, x.shape[0]))
        n_first = int(self.cls_id is not None)
        lengths = np.bincount(row, minlength=x.shape[0])
        position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + n_first
        kept = position < self.n_tokens
        row, token, value, position = row[kept], token[kept], value[kept], position[kept]

        shape = (x.shape[0], int(min(self.n_tokens, max(1, n_first + lengths.max(initial=0)))))
        genes = np.full(shape, self.pad_id, dtype=np.int64)
        values = np.zeros(shape, dtype=np.float32)
        mask = np.zeros(shape, dtype=bool)
        genes[row, position], values[row, position], mask[row, position] = token, value, True
        mask[:, 0] = True
        if self.cls_id is not None:
            genes[:, 0] = self.cls_id
        return {"genes": genes, "mask": mask, "values": values}

    def _normalized(self, row: np.ndarray, value: np.ndarray, n_cells: int) -> np.ndarray:
        if self.target_sum is not None:
            totals = np.bincount(row, weights=value, minlength=n_cells).astype(np.float32)
            value = value * (np.float32(self.target_sum) / totals[row])
        return np.log1p(value) if self.log else value

    def _sorted(
        self, row: np.ndarray, token: np.ndarray, value: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sort entries by row, then descending value, then token: as one integer each, several times faster."""
        token_bits = max(1, int(self.vocabulary.max(initial=0)).bit_length())
        low, high = np.uint64(token_bits), np.uint64(token_bits + _VALUE_BITS)
        n_rows = 1 << (64 - token_bits - _VALUE_BITS)  # that an integer can number: thousands
        sorted_keys = []
        for first in range(0, int(row[-1]) + 1 if len(row) else 0, n_rows):
            part = slice(*np.searchsorted(row, (first, first + n_rows)))
            bits = _LARGEST - value[part].view(np.uint32).astype(np.uint64)
            key = ((row[part] - first).astype(np.uint64) << high) | (bits << low) | token[part].astype(np.uint64)
            key.sort()
            sorted_keys.append(key)
        key = np.concatenate(sorted_keys) if sorted_keys else np.empty(0, dtype=np.uint64)
        # Sorting keeps every entry in its row, so the rows are as before.
        bits = _LARGEST - ((key >> low) & _LARGEST)
        return row, (key & np.uint64((1 << token_bits) - 1)).astype(np.int64), bits.astype(np.uint32).view(np.float32)
