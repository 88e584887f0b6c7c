"""Models saved by version 0.1 before its first release load, and give what they gave then, for ever.

``tests/data/saved_0_1`` holds one directory per model, the 160 cells they were made on, and their embeddings and
predictions on one thread (``expected.npz``). Other versions of torch may round differently: 1e-5.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scstate_lora as ssl

SAVED = Path(__file__).parents[1] / "data" / "saved_0_1"


@pytest.fixture(scope="module")
def cells():
    return ad.read_h5ad(SAVED / "cells.h5ad")


@pytest.fixture(scope="module")
def expected():
    with np.load(SAVED / "expected.npz") as stored:
        return dict(stored)


def same(values, expected):
    np.testing.assert_allclose(np.asarray(values), expected, atol=1e-5)


def test_embedding_model_with_adapters_and_hyper_connections(cells, expected):
    se = ssl.LoRACovariateSE.load(SAVED / "se", adata=cells)
    assert se.active_adapter == "default"
    same(se.get_latent_representation(key_added=None), expected["se"])
    moved = se.get_latent_representation(covariates={"condition": "A", "day": 5.5}, key_added=None)
    same(moved, expected["se.moved"])
    se.set_adapter("second")
    same(se.get_latent_representation(key_added=None), expected["se.second"])


def test_embedding_model_on_an_embedding(cells, expected):
    se = ssl.LoRACovariateSE.load(SAVED / "se_obsm", adata=cells)
    same(se.get_latent_representation(key_added=None), expected["se_obsm"])


def test_base_alone(cells, expected):
    base = ssl.SEBase.load(SAVED / "base")
    same(ssl.tl.embed(cells, base, key_added=None), expected["se.base"])


def test_transition_model_with_adapters_and_hyper_connections(cells, expected):
    st = ssl.STTransition.load(SAVED / "st", adata=cells)
    same(st.predict(target=["A", "A+B"]).X, expected["st"])
    same(st.get_latent_representation(key_added=None), expected["st.latent"])


def test_transition_model_of_an_embedding_with_features_and_decoder(cells, expected):
    st = ssl.STTransition.load(SAVED / "st_features", adata=cells)
    predicted = st.predict(target="C")
    same(predicted.obsm["X_pca"], expected["st_features"])
    same(predicted.X, expected["st_features.genes"])
