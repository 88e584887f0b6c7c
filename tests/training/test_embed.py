from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scstate_lora.data.tokens import cell_seeds
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.training import embed
from scstate_lora.training.embed import embed_cells, embed_conditioned

SIZES = SEConfig(token_dim=6, d_model=8, n_layers=2, n_heads=2, d_hid=12, output_dim=10, n_tokens=9, dropout=0.5)


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix((rng.uniform(0, 2, (30, 15)) * (rng.random((30, 15)) < 0.4)).astype(np.float32))
    return x, cell_seeds([f"c{i}" for i in range(30)], 0)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SEEncoder(SIZES, torch.randn(15, SIZES.token_dim))


def test_a_cell_embeds_the_same_whatever_its_neighbours_and_the_batch(cells, encoder, monkeypatch):
    x, seeds = cells
    encoder.train()  # embedding is never done with dropout
    together = embed_cells(encoder, x, seeds)
    assert together.shape == (30, 10)
    assert together.dtype == np.float32
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(embed_cells(encoder, x[order], seeds[order]), together[order], atol=1e-6)
    monkeypatch.setattr(embed, "_BATCH", 7)
    np.testing.assert_allclose(embed_cells(encoder, x, seeds), together, atol=1e-6)


def test_conditioned_embedding_takes_each_cells_own_covariates(cells, encoder, monkeypatch):
    x, seeds = cells
    add_lora(encoder, r=2, alpha=4, dropout=0.5, targets=("q",))
    network = ConditionedSE(encoder, {"condition": 2, "day": None}, embed_dim=4).train()
    codes, days = np.arange(30) % 2, np.linspace(-1, 1, 30, dtype=np.float32)
    monkeypatch.setattr(embed, "_BATCH", 8)
    z = embed_conditioned(network, encoder, x, seeds, {"condition": codes, "day": days})
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    one = embed_conditioned(network, encoder, x[9], seeds[9:10], {"condition": codes[9:10], "day": days[9:10]})
    np.testing.assert_allclose(one[0], z[9], atol=1e-6)
    moved = embed_conditioned(network, encoder, x, seeds, {"condition": 1 - codes, "day": days})
    assert (np.abs(moved - z).max(1) > 1e-5).all()


def test_progress_is_shown_when_titled(cells, encoder, capsys):
    embed_cells(encoder, *cells)
    assert capsys.readouterr().err == ""
    embed_cells(encoder, *cells, progress="Embedding")
    assert "Embedding" in capsys.readouterr().err
