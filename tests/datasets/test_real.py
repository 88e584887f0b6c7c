from __future__ import annotations

import numpy as np
from scipy import sparse

from scstate_lora.datasets import pbmc68k


def test_pbmc68k_is_log_normalised_expression() -> None:
    adata = pbmc68k()
    assert adata.shape == (700, 765)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert adata.X.data.min() > 0
    assert adata.X.data.max() < np.log1p(1e4)
    assert adata.raw is None
    assert adata.obs["bulk_labels"].nunique() == 10
    assert adata.obsm["X_umap"].shape == (700, 2)


def test_pbmc68k_is_a_fresh_copy_each_time(tmp_path) -> None:
    first = pbmc68k()
    first.X.data[:] = 0
    second = pbmc68k()
    assert second.X.data.max() > 0
    second.write_h5ad(tmp_path / "pbmc.h5ad")
