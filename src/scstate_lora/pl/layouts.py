"""Layouts of cells in two dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray


def umap_layout(array: NDArray[np.floating]) -> NDArray[np.float32]:
    """Lay out cells by UMAP: 15 neighbours, a fixed seed, the same picture every time.

    Parameters
    ----------
    array
        Embedding, ``(n_cells, n_dimensions)``.

    Returns
    -------
    Two coordinates per cell, ``(n_cells, 2)``.
    """
    import anndata
    import scanpy as sc

    array = np.ascontiguousarray(array, dtype=np.float32)
    bare = anndata.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(array)).astype(str)), obsm={"X_basis": array})
    sc.pp.neighbors(bare, n_neighbors=min(15, len(array) - 1), use_rep="X_basis", random_state=0)
    # Spectral initialisation needs many more cells than dimensions; for fewer, a seeded random one does as well.
    # 200 rounds converge; the default of 500 for small data only takes longer.
    sc.tl.umap(bare, random_state=0, init_pos="spectral" if len(array) > 50 else "random", maxiter=200)
    return np.asarray(bare.obsm["X_umap"], dtype=np.float32)
