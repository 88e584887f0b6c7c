from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import sparse

import scstate_lora as ssl
from tests.builders import QUICK, SMALL_SE, SMALL_ST
from tests.builders import wound as simulate


@pytest.fixture(scope="session")
def wound():
    """Simulated wound of 700 cells x 200 genes. Not to be changed."""
    return simulate(700)


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
        adata, **{"compact": SMALL_SE, "conditioning": {"n_steps": 3}, "lora": {}, **kwargs}
    )


@pytest.fixture(scope="session")
def make_st():
    """Make a small STTransition of an AnnData that was set up."""
    return lambda adata, model=None, **kwargs: ssl.STTransition(adata, model={**SMALL_ST, **(model or {})}, **kwargs)


@pytest.fixture(scope="session")
def trained(wound, setup, make_se, make_st):
    """An AnnData with both models trained on it. Not to be changed."""
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se, st = make_se(adata), make_st(adata)
    se.train(max_epochs=2, **QUICK)
    st.train(max_epochs=2, **QUICK)
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
