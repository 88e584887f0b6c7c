from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from scipy import sparse

from scstate_lora.config import ComputeOptions
from scstate_lora.data.reader import SentenceReader
from scstate_lora.data.tokens import Tokenizer, cell_seeds
from scstate_lora.inference import embed
from scstate_lora.inference.embed import condition_cells, embed_cells, embed_conditioned
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

SIZES = SEConfig(token_dim=6, d_model=8, n_layers=2, n_heads=2, d_hid=12, output_dim=10, n_tokens=9, dropout=0.5)
X = sparse.csr_matrix(
    np.random.default_rng(0).uniform(0, 2, (30, 15)) * (np.random.default_rng(1).random((30, 15)) < 0.4),
    dtype=np.float32,
)
NAMES = np.array([f"c{i}" for i in range(30)])


def _reader(rows=None, *, pad=True, n_tokens=9):
    rows = np.arange(30) if rows is None else rows
    x = X[rows]
    tokenizer = Tokenizer(np.arange(15), n_tokens, pad=pad)
    return SentenceReader(lambda start, stop: x[start:stop], tokenizer, cell_seeds(NAMES[rows], 0))


def _embed(encoder, read, **kwargs):
    return np.concatenate([block for _, block in embed_cells(encoder, read, **kwargs)])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SEEncoder(SIZES, torch.randn(15, SIZES.token_dim))


@pytest.fixture
def small_blocks(monkeypatch):
    """One batch per block."""
    monkeypatch.setattr(embed, "_BLOCK_TOKENS", 1)


@pytest.mark.slow  # many batch sizes
def test_a_cell_embeds_the_same_whatever_its_neighbours_and_batch_size(encoder, small_blocks):
    encoder.train()  # embedding is never done with dropout
    together = _embed(encoder, _reader())
    assert together.shape == (30, 10)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(_embed(encoder, _reader()), together)
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(_embed(encoder, _reader(order)), together[order], atol=1e-6)
    for batch_size, n_workers in ((7, 1), (1, 3), (30, 2), (200, 4)):
        options = ComputeOptions(batch_size=batch_size, n_workers=n_workers)
        np.testing.assert_allclose(_embed(encoder, _reader(), options=options), together, atol=1e-6)


def test_blocks_come_in_order_from_the_given_start(encoder, small_blocks):
    together = _embed(encoder, _reader())
    blocks = list(embed_cells(encoder, _reader(), options=ComputeOptions(batch_size=4, n_workers=3), start=9))
    assert [first for first, _ in blocks] == [9, 13, 17, 21, 25, 29]
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), together[9:], atol=1e-6)


def test_workers_read_at_most_one_block_ahead_each(encoder, small_blocks):
    read, requests = _reader(), []

    class Watched:
        def __len__(self):
            return len(read)

        def __call__(self, start, stop):
            requests.append((start, threading.current_thread() is threading.main_thread()))
            return read(start, stop)

    blocks = embed_cells(encoder, Watched(), options=ComputeOptions(batch_size=3, n_workers=2))
    requests.clear()
    next(blocks)
    for _ in range(100):  # two blocks are read ahead by other threads
        if len(requests) >= 4:
            break
        time.sleep(0.01)
    assert [start for start, _ in requests if start > 0] == [3, 6]
    assert not any(main for start, main in requests if start > 0)
    blocks.close()
    assert max(start for start, _ in requests) == 6


def test_an_error_while_reading_reaches_the_caller(encoder, small_blocks):
    read = _reader()

    def broken(start, stop):
        if start > 6:
            raise OSError("the disk is gone")
        return read.read(start, stop)

    reader = SentenceReader(broken, read.tokenizer, read.seeds)
    with pytest.raises(OSError, match="the disk is gone"):
        _embed(encoder, reader, options=ComputeOptions(batch_size=3))


def test_cells_by_length_equal_each_cell_alone_without_padding(encoder):
    encoder.eval()
    read = _reader(pad=False)
    together = _embed(encoder, read, by_length=True, options=ComputeOptions(batch_size=4))
    for i in range(30):
        genes, values, lengths = read(i, i + 1)
        n = int(lengths[0])
        with torch.no_grad():
            alone = encoder(torch.from_numpy(genes[:, :n]), torch.from_numpy(values[:, : n + 1]))
        np.testing.assert_allclose(together[i], alone[0].numpy(), atol=1e-6)
    assert np.abs(together - _embed(encoder, _reader())).max() > 1e-3


def _conditioned(encoder):
    specs = {"condition": CovariateSpec(2, 4), "day": CovariateSpec(None, 4)}
    return ConditionedSE(encoder, Conditioning(specs, SIZES.output_dim, hidden_dims=(8,)))


def test_conditioned_embedding_uses_each_cells_own_covariates(encoder):
    add_lora(encoder, r=2, alpha=4, dropout=0.5, targets=("q",))
    network = _conditioned(encoder).train()
    codes, days = np.arange(30) % 2, np.linspace(-1, 1, 30, dtype=np.float32)
    options = ComputeOptions(batch_size=8)
    z = embed_conditioned(network, encoder, _reader(), {"condition": codes, "day": days}, options=options)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    covariates = {"condition": codes[9:10], "day": days[9:10]}
    np.testing.assert_allclose(embed_conditioned(network, encoder, _reader([9]), covariates)[0], z[9], atol=1e-6)
    moved = embed_conditioned(network, encoder, _reader(), {"condition": 1 - codes, "day": days})
    assert (np.abs(moved - z).max(1) > 1e-5).all()


def test_conditioning_a_base_embedding_equals_the_whole_network(encoder, monkeypatch):
    monkeypatch.setattr(embed, "_CONDITIONING_BATCH", 7)  # the last block is smaller
    network = _conditioned(encoder).train()
    covariates = {"condition": np.arange(30) % 2, "day": np.linspace(-1, 1, 30, dtype=np.float32)}
    covariates["day"][3] = np.nan  # unknown
    z = condition_cells(network, _embed(encoder, _reader()), covariates)
    assert z.shape == (30, 10)
    assert z.dtype == np.float32
    assert not network.training
    np.testing.assert_allclose(z, embed_conditioned(network, encoder, _reader(), covariates), atol=1e-6)
    without = condition_cells(ConditionedSE(None, network.conditioning), _embed(encoder, _reader()), covariates)
    np.testing.assert_array_equal(without, z)


def test_progress_is_shown_if_titled(encoder, capsys):
    _embed(encoder, _reader())
    assert capsys.readouterr().err == ""
    _embed(encoder, _reader(), progress="Embedding")
    shown = capsys.readouterr().err
    assert "Embedding" in shown
    assert "30/30" in shown
    assert "cells/s" in shown


def test_bfloat16_is_close_but_not_the_same(encoder):
    exact = _embed(encoder, _reader())
    rounded = _embed(encoder, _reader(), options=ComputeOptions(precision="bf16"))
    assert rounded.dtype == np.float32
    assert 1e-5 < np.abs(rounded - exact).max() < 0.1


@pytest.mark.slow
def test_compiled_network_gives_the_same_and_is_restored(encoder):
    exact = _embed(encoder, _reader())
    np.testing.assert_allclose(_embed(encoder, _reader(), options=ComputeOptions(compile=True)), exact, atol=1e-6)
    assert all(layer._compiled_call_impl is None for layer in encoder.transformer_encoder.layers)


def _short_of_memory(encoder, most):
    """Let the network run out of memory above a number of cells; return the list of batch sizes it receives."""
    batch_sizes = []

    def fail(_module, inputs):
        batch_sizes.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("no memory")

    encoder.register_forward_pre_hook(fail)
    return batch_sizes


def test_too_large_a_batch_is_halved_until_it_fits(encoder, caplog):
    exact = _embed(encoder, _reader())
    batch_sizes = _short_of_memory(encoder, 10)
    with caplog.at_level("WARNING", logger="scstate_lora"):
        np.testing.assert_allclose(_embed(encoder, _reader()), exact, atol=1e-6)
    assert max(batch_sizes) > 10
    assert batch_sizes[-1] <= 10


def test_a_requested_batch_size_that_does_not_fit_raises(encoder):
    _short_of_memory(encoder, 10)
    with pytest.raises(MemoryError, match=r"20 cells per batch do not fit .* Leave batch_size out"):
        _embed(encoder, _reader(), options=ComputeOptions(batch_size=20))


def test_a_gpu_too_small_for_one_cell_raises(encoder):
    _short_of_memory(encoder, 0)
    with pytest.raises(MemoryError, match=r"1 cells per batch do not fit .* n_tokens='expressed'"):
        _embed(encoder, _reader())


def test_automatic_batch_follows_the_free_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (32 * 2**30, 80 * 2**30))
    large = SEConfig(token_dim=8, d_model=2048, n_layers=1, n_heads=2, d_hid=2048, output_dim=8, n_tokens=2048)
    cuda = torch.device("cuda")
    batch_size = embed._batch_size(ComputeOptions(), large, cuda, 2048)
    assert 16 < batch_size < 256
    assert embed._batch_size(ComputeOptions(), large, cuda, 1024) in (2 * batch_size, 2 * batch_size + 1)
    assert embed._batch_size(ComputeOptions(batch_size=3), large, cuda, 2048) == 3
    assert embed._batch_size(ComputeOptions(), SIZES, cuda, 9) == 512
    assert embed._batch_size(ComputeOptions(), large, torch.device("cpu"), 10_000) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(encoder):
    exact = _embed(encoder, _reader(), options=ComputeOptions(device="cpu"))
    gpu = _embed(encoder, _reader(), options=ComputeOptions(device="cuda", precision="fp32"))
    np.testing.assert_allclose(gpu, exact, atol=1e-5)
    rounded = _embed(encoder, _reader(), options=ComputeOptions(device="cuda"))
    assert np.abs(rounded - exact).max() < 0.1
