from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse


@pytest.fixture
def adata():
    """48 cells x 30 genes of counts: two cell types x sham and burn x three days, balanced."""
    rng = np.random.default_rng(0)
    n = 48
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.tile(["B", "T"], n // 2)),
            "condition": pd.Categorical(np.repeat(["sham", "burn"], n // 2)),
            "day": np.tile([10, 10, 14, 14, 19, 19], n // 6),
            "dose": rng.uniform(0, 5, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    counts = rng.poisson(1.5, (n, 30)).astype(np.float32)
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
