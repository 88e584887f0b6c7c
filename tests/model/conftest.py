from __future__ import annotations

import hashlib
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl

COMPACT = {"n_steps": 20, "d_model": 16, "d_hid": 32, "n_layers": 1, "n_heads": 2, "output_dim": 16, "n_tokens": 33}


@pytest.fixture(autouse=True)
def _quiet():
    logger = logging.getLogger("scstate_lora")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def wound():
    """Simulated wound of 700 cells x 200 genes. Not to be changed."""
    simulated = ssl.datasets.wound_healing(700, n_genes=200, seed=0)
    obs = simulated.obs[["condition", "timepoint", "time_days", "cell_type", "mouse_id"]]
    return ad.AnnData(simulated.X, obs=obs, var=pd.DataFrame(index=simulated.var_names))


@pytest.fixture
def adata(wound):
    """A fresh copy of the wound."""
    return wound.copy()


@pytest.fixture(scope="session")
def setup():
    """Arguments of setup_anndata that fit the wound."""
    return {
        "covariate_keys": ["condition", "timepoint"],
        "pert_key": "condition",
        "control": "sham",
        "cell_type_key": "cell_type",
        "context_keys": ["cell_type"],
    }


@pytest.fixture(scope="session")
def make_se():
    """Make a small LoRACovariateSE of an AnnData that was set up."""
    return lambda adata, **kwargs: ssl.LoRACovariateSE(
        adata, **{"compact": COMPACT, "conditioning": {"n_steps": 3}, **kwargs}
    )


@pytest.fixture(scope="session")
def make_st():
    """Make a small STTransition of an AnnData that was set up."""
    small = {"hidden": 16, "n_layers": 1, "n_heads": 2}
    return lambda adata, model=None, **kwargs: ssl.STTransition(adata, model={**small, **(model or {})}, **kwargs)


@pytest.fixture(scope="session")
def trained(wound, setup, make_se, make_st):
    """An AnnData with both models trained on it. Not to be changed."""
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se, st = make_se(adata), make_st(adata)
    se.train(max_epochs=2, accelerator="cpu", progress_bar=False)
    st.train(max_epochs=2, accelerator="cpu", progress_bar=False)
    return adata, se, st


@pytest.fixture(scope="session")
def fingerprint():
    """Hash a matrix, or all parameters and buffers of a network."""

    def of(thing):
        if hasattr(thing, "state_dict"):
            parts = [(k, v.numpy()) for k, v in sorted(thing.state_dict().items())]
        elif sparse.issparse(thing):
            parts = [("data", thing.data), ("indices", thing.indices), ("indptr", thing.indptr)]
        else:
            parts = [("dense", np.asarray(thing))]
        digest = hashlib.sha256()
        for name, values in parts:
            digest.update(f"{name}{values.shape}{values.dtype}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    return of
