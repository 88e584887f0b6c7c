from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scstate_lora.config import CompactBaseConfig, TrainerOptions
from scstate_lora.data.matrix import log_normalize, log_raw
from scstate_lora.data.reader import SentenceReader
from scstate_lora.data.tokens import Tokenizer, cell_seeds
from scstate_lora.inference.embed import embed_cells
from scstate_lora.training.se.compact_base import fit_compact_base, gene_tokens

TINY = {"token_dim": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_hid": 32, "output_dim": 16, "n_tokens": 20}
OPTIONS = TrainerOptions(accelerator="cpu", progress_bar=False)


def _counts(n_cells, n_genes, seed=0):
    """Three cell types, each with genes of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_cells) % 3
    log_rate = rng.normal(0.5, 0.5, n_genes) + np.zeros((n_cells, n_genes))
    for i in range(3):
        log_rate[labels == i, i::6] += 1.5
    return sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32)), labels


def _fit(counts, rows=None, val=(), seed=0, **options):
    n = counts.shape[0]
    seeds = cell_seeds([f"c{i}" for i in range(n)], seed)
    x, logged = log_raw(counts, "counts"), log_normalize(counts, "counts")
    config = CompactBaseConfig(**{**TINY, "n_steps": 10, **options})
    rows = np.arange(n) if rows is None else rows
    encoder, history = fit_compact_base(
        x, logged, seeds, rows, np.array(val, dtype=int), config=config, options=OPTIONS, seed=seed
    )
    tokenizer = Tokenizer.of_columns(x.shape[1], n_tokens=encoder.config.n_tokens)
    read = SentenceReader(lambda start, stop: x[start:stop], tokenizer, seeds)
    return encoder, history, np.concatenate([block for _, block in embed_cells(encoder, read)])


def test_gene_tokens_are_the_loadings_of_the_standardised_expression():
    logged = log_normalize(_counts(40, 25)[0], "counts")
    tokens = gene_tokens(logged, 4)
    dense = logged.toarray().astype(np.float64)
    scaled = dense / dense.std(0)
    _, s, v = np.linalg.svd(scaled - scaled.mean(0), full_matrices=False)
    expected = (v[:4] * s[:4, None] / np.sqrt(39)).T
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(np.abs(tokens), np.abs(expected), atol=1e-4)


def test_embedding_tells_cell_types_apart_after_a_few_steps():
    counts, labels = _counts(150, 60)
    _, history, z = _fit(counts, np.arange(100), val=range(100, 120), n_steps=20)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    similarity = z @ z.T
    np.fill_diagonal(similarity, -np.inf)
    assert (labels[similarity.argmax(1)] == labels).mean() > 0.95
    assert set(history["phase"]) == {"train", "val"}
    assert {"expression", "readout"} <= set(history.columns)


@pytest.mark.parametrize(("n_steps", "n_epochs"), [(7, 7), (20, 10), (25, 5), (13, 1)])
def test_as_many_steps_are_taken_as_asked_for(n_steps, n_epochs):
    _, history, _ = _fit(_counts(30, 20)[0], n_steps=n_steps)
    assert len(history) == n_steps
    assert history["epoch"].max() + 1 == n_epochs


def test_cells_of_no_split_are_not_looked_at():
    counts, _ = _counts(60, 30)
    changed = counts.toarray()
    changed[50:] = 7 * changed[50:][:, ::-1] + 1
    rows, val = np.arange(40), range(40, 50)
    first, _, _ = _fit(counts, rows, val)
    second, _, _ = _fit(sparse.csr_matrix(changed), rows, val)
    assert torch.equal(first.gene_tokens, second.gene_tokens)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_seed_decides_and_the_random_state_is_left_alone():
    counts, _ = _counts(40, 30)
    before = torch.get_rng_state()
    first, second, other = _fit(counts)[2], _fit(counts)[2], _fit(counts, seed=1)[2]
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(20, 10), (3, 3), (3, 40), (40, 3)])
def test_tiny_data_works(shape):
    encoder, _, z = _fit(_counts(*shape)[0])
    assert encoder.config.token_dim == min(16, min(shape) - 1)
    assert encoder.config.n_tokens == min(20, shape[1] + 1)
    assert z.shape == (shape[0], 16)
    assert np.isfinite(z).all()


def test_absent_genes_copies_of_genes_and_empty_cells_work():
    counts = _counts(30, 20)[0].toarray()
    counts[:, 5] = 0
    counts[:, 6] = counts[:, 7]
    counts[:, 8:] = counts[:, :12]
    counts[3] = 0
    _, history, z = _fit(sparse.csr_matrix(counts))
    assert np.isfinite(z).all()
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("shape", [(2, 10), (10, 2)])
def test_too_few_cells_or_genes_raises(shape):
    with pytest.raises(
        ValueError, match=f"at least 3 training cells and 3 genes.*{shape[0]} training cells x {shape[1]}"
    ):
        _fit(_counts(*shape)[0])


def test_cells_without_differences_raises():
    with pytest.raises(ValueError, match="differ between cells"):
        _fit(sparse.csr_matrix(np.tile(np.arange(1, 11, dtype=np.float32), (20, 1))))


def test_sentences_are_as_long_as_19_of_20_training_cells_can_fill():
    counts, _ = _counts(80, 60)
    dense = counts.toarray()
    dense[:20, 12:] = 0  # shallow cells: at most 12 genes
    shallow = sparse.csr_matrix(dense)
    expressed = (dense[:60] > 0).sum(1)
    encoder, _, _ = _fit(shallow, np.arange(60), n_tokens=None)
    assert encoder.config.n_tokens == 1 + int(np.quantile(expressed, 0.05))
    assert _fit(shallow, np.arange(60), n_tokens=None, n_steps=1)[0].config.n_tokens == encoder.config.n_tokens
    wide = sparse.csr_matrix(np.ones((12, 400), dtype=np.float32) + np.eye(12, 400, dtype=np.float32))
    assert _fit(wide, n_tokens=None, n_steps=1)[0].config.n_tokens == 257
