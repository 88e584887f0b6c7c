"""Files of random counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = 0.9


def write_cells(path: Path, *, n_cells: int, n_genes: int, n_expressed: int) -> None:
    """Write an ``.h5ad`` of random counts over ``GENE0``, ``GENE1``, ... in random order.

    Parameters
    ----------
    path
        Where.
    n_cells, n_genes
        Its shape.
    n_expressed
        Genes that a cell expresses, on average. Many counts are equal, and one in a cell is high, so that arc-state
        takes it for counts.
    """
    rng = np.random.default_rng(0)
    n_drawn = int(n_expressed / _KEPT)
    starts = np.arange(n_drawn + 1) * n_genes // n_drawn  # one gene from each stretch, so none twice
    blocks = [
        _block(rng, starts, min(1_000, n_cells - first), n_genes=n_genes, n_drawn=n_drawn)
        for first in range(0, n_cells, 1_000)
    ]
    genes = [f"GENE{i}" for i in rng.permutation(n_genes)]
    adata = ad.AnnData(
        sparse.csr_matrix(sparse.vstack(blocks, format="csr")),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=genes),
    )
    adata.write_h5ad(path)


def _block(rng: np.random.Generator, starts: np.ndarray, n: int, *, n_genes: int, n_drawn: int) -> sparse.csr_matrix:
    columns = starts[:-1] + (rng.random((n, n_drawn)) * np.diff(starts)).astype(np.int64)
    counts = (1 + rng.poisson(rng.gamma(0.5, 4.0, size=columns.shape))).astype(np.float32)
    counts[:, 0] = rng.integers(100, 200, n)
    kept = rng.random(columns.shape) < _KEPT
    kept[:, 0] = True
    ends = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return sparse.csr_matrix((counts[kept], columns[kept], ends), shape=(n, n_genes))
