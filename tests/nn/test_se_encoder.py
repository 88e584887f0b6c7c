"""The SE network against a slow, separate computation of the published forward pass in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import erf

from scstate_lora.io import to_arc_names
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

CONFIG = SEConfig(token_dim=7, d_model=12, n_layers=3, n_heads=3, d_hid=10, output_dim=9, n_tokens=6, dropout=0.2)
N_GENES = 20
VARIANTS = {
    "plain": CONFIG,
    "dataset token": replace(CONFIG, dataset_correction=True),
    "no counts": replace(CONFIG, counts=False, dataset_correction=True),
    "no read depth": replace(CONFIG, rda=False),
    "nothing": replace(CONFIG, rda=False, counts=False),
}


def _encoder(config: SEConfig = CONFIG) -> SEEncoder:
    torch.manual_seed(0)
    encoder = SEEncoder(config, 3 * torch.randn(N_GENES, config.token_dim))
    with torch.no_grad():  # also norms and biases away from where they start
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def _sentences(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    genes = torch.randint(N_GENES, (n, CONFIG.n_tokens - 1), generator=generator)
    return genes, 10 * torch.rand(n, CONFIG.n_tokens, generator=generator)


# ---- the slow computation: one cell, one token, one head at a time, in float64, on the published tensors


def _linear(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def _norm(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def _skip(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(_linear(p, f"{name}.intermediate_dense", x), 0)
    return _norm(p, f"{name}.layer_norm", x + _linear(p, f"{name}.dense", hidden))


def _token(p: dict[str, np.ndarray], vector: np.ndarray) -> np.ndarray:
    x = _norm(p, "encoder.1", _linear(p, "encoder.0", vector))
    return x / (1 + np.exp(-x))


def _layer(p: dict[str, np.ndarray], name: str, h: list[np.ndarray]) -> list[np.ndarray]:
    """Every position of one post-norm layer."""
    d, size = CONFIG.d_model, CONFIG.d_model // CONFIG.n_heads
    qkv = [_linear(p, f"{name}.qkv_proj", token) for token in h]
    result = []
    for i, token in enumerate(h):
        attended = np.zeros(d)
        for head in range(CONFIG.n_heads):
            part = slice(head * size, (head + 1) * size)
            query = qkv[i][:d][part]
            scores = np.array([query @ other[d : 2 * d][part] / math.sqrt(size) for other in qkv])
            weights = _softmax(scores)
            attended[part] = sum(w * other[2 * d :][part] for w, other in zip(weights, qkv, strict=True))
        x = _norm(p, f"{name}.norm1", token + _linear(p, f"{name}.out_proj", attended))
        a = _linear(p, f"{name}.linear1", x)
        gelu = a * 0.5 * (1 + erf(a / math.sqrt(2)))
        result.append(_norm(p, f"{name}.norm2", x + _linear(p, f"{name}.linear2", gelu)))
    return result


def _slow_embedding(
    p: dict[str, np.ndarray], config: SEConfig, vectors: np.ndarray, genes: np.ndarray, values: np.ndarray
) -> np.ndarray:
    tokens = [p["cls_token"][0], *(_unit(vectors[g]) for g in genes)]
    if config.dataset_correction:
        tokens.append(p["dataset_token"][0])
    h = []
    for i, token in enumerate(tokens):
        vector = _token(p, token) * math.sqrt(config.d_model)
        if config.counts and i < len(values):
            a = _linear(p, "count_encoder.0", values[i : i + 1])
            bins = _softmax(_linear(p, "count_encoder.2", np.where(a > 0, a, 0.01 * a)))
            vector = vector + bins @ p["bin_encoder.weight"]
        h.append(vector)
    for i in range(config.n_layers):
        h = _layer(p, f"transformer_encoder.layers.{i}", h)
    decoded = [_linear(p, "decoder.1", _skip(p, "decoder.0", x)) for x in h]
    dataset = [_linear(p, "dataset_embedder", decoded[-1])] if config.dataset_correction else []
    return np.concatenate([_unit(decoded[0]), *dataset])


def _published(encoder: SEEncoder) -> dict[str, np.ndarray]:
    return {name: t.double().numpy() for name, t in to_arc_names(encoder.state_dict()).items()}


# ---- tests


@pytest.mark.parametrize("variant", VARIANTS)
def test_embedding_is_the_published_forward_pass(variant: str) -> None:
    config = VARIANTS[variant]
    encoder = _encoder(config)
    genes, values = _sentences()
    values[:, 2] = values[0, 0]  # equal values share their count vector
    p, vectors = _published(encoder), encoder.gene_tokens.double().numpy()
    with torch.no_grad():
        fast = encoder(genes, values).numpy()
    cells = zip(genes.numpy(), values.numpy(), strict=True)
    slow = np.stack([_slow_embedding(p, config, vectors, g, v) for g, v in cells])
    assert fast.shape == (5, config.embedding_dim)
    assert config.embedding_dim == config.output_dim + (10 if config.dataset_correction else 0)
    assert np.abs(fast - slow).max() < 1e-5
    # Cells differ, so the agreement says something.
    assert np.abs(slow - slow[0]).max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_expression_head_is_the_published_one(variant: str) -> None:
    config = VARIANTS[variant]
    encoder = _encoder(config)
    generator = torch.Generator().manual_seed(2)
    cells = torch.randn(4, config.embedding_dim, generator=generator)
    depth = torch.rand(4, generator=generator)
    genes = torch.tensor([3, 0, 19, 3, 7])
    with torch.no_grad():
        fast = encoder.predict_expression(cells, genes, depth).numpy()
    p, vectors = _published(encoder), encoder.gene_tokens.double().numpy()
    slow = np.zeros((4, 5))
    for i in range(4):
        cell, dataset = np.split(cells[i].double().numpy(), [config.output_dim])
        read_depth = [depth[i].double().item()] if config.rda else []
        for j, gene in enumerate(genes.numpy()):
            pair = np.concatenate([_token(p, vectors[gene]), cell, read_depth, dataset])
            hidden = _skip(p, "binary_decoder.1", _skip(p, "binary_decoder.0", pair))
            slow[i, j] = _linear(p, "binary_decoder.2", hidden)[0]
    assert np.abs(fast - slow).max() < 1e-5
    assert slow.std() > 1e-2


@pytest.mark.parametrize("variant", ["plain", "dataset token"])
def test_only_the_first_genes_are_read_where_lengths_are_given(variant: str) -> None:
    encoder = _encoder(VARIANTS[variant])
    genes, values = _sentences()
    lengths = torch.tensor([5, 3, 1, 0, 4])
    with torch.no_grad():
        masked = encoder(genes, values, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = encoder(genes[i : i + 1, :n], values[i : i + 1, : n + 1])
            assert torch.allclose(masked[i], alone[0], atol=1e-6)
        assert not torch.allclose(masked[1], encoder(genes, values)[1], atol=1e-3)


def test_table_of_tokens_is_made_once_and_anew_when_a_weight_changes() -> None:
    encoder = _encoder()
    genes, values = _sentences()
    with torch.inference_mode():
        first = encoder(genes, values)
        assert encoder.token_table() is encoder.token_table()
    table = encoder.token_table()  # with gradient it is made anew, as a part of the graph
    assert table.requires_grad
    encoder.requires_grad_(requires_grad=False)
    kept = encoder.token_table()
    assert kept is encoder.token_table()
    assert not kept.is_inference()  # made in inference mode, it could not be trained with
    assert torch.equal(kept, table.detach())
    with torch.no_grad():
        encoder.encoder[1].bias.add_(0.5)
        assert not torch.allclose(encoder(genes, values), first, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_table_is_made_anew_after_training_whatever_the_optimiser(*, fused: bool) -> None:
    """A fused optimiser leaves the version of a weight as it was."""
    encoder = _encoder().requires_grad_()
    with torch.no_grad():
        before = encoder.token_table().clone()
    optimiser = torch.optim.AdamW(encoder.encoder.parameters(), lr=0.1, fused=fused)
    encoder.token_table().square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        after = encoder.token_table()
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, encoder._encode_tokens())


def test_table_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = _encoder()
    whole = encoder.token_table()
    monkeypatch.setattr("scstate_lora.nn.se_encoder._CHUNK", 7)
    assert torch.allclose(encoder.token_table(), whole, atol=1e-6)


def test_last_layer_at_cls_only_equals_all_positions() -> None:
    stack = _encoder().transformer_encoder
    tokens = torch.randn(4, 6, CONFIG.d_model, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        everything = stack(tokens)
        some = stack(tokens, keep=torch.tensor([0, 4]))
    assert everything.shape == (4, 6, CONFIG.d_model)
    assert torch.allclose(some, everything[:, [0, 4]], atol=1e-6)


def test_embedding_ignores_the_order_of_genes_and_the_neighbours() -> None:
    encoder = _encoder()
    genes, values = _sentences()
    order = torch.tensor([2, 0, 4, 1, 3])
    with torch.no_grad():
        embedding = encoder(genes, values)
        shuffled = encoder(genes[:, order], torch.cat([values[:, :1], values[:, 1:][:, order]], dim=1))
        alone = encoder(genes[2:3], values[2:3])
    assert torch.allclose(embedding.norm(dim=1), torch.ones(5), atol=1e-6)
    assert torch.allclose(shuffled, embedding, atol=1e-6)
    assert torch.allclose(alone[0], embedding[2], atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    encoder = _encoder()
    genes, values = _sentences()
    with torch.no_grad():
        assert torch.equal(encoder(genes, values), encoder(genes, values))
        encoder.train()
        assert not torch.allclose(encoder(genes, values), encoder(genes, values), atol=1e-3)
        # Attention's own dropout too: with all others off, the layer is still random in training.
        layer = encoder.transformer_encoder.layers[0]
        layer.drop.p = 0.0
        tokens = torch.randn(2, 5, CONFIG.d_model)
        assert not torch.allclose(layer(tokens), layer(tokens), atol=1e-3)
        assert torch.equal(layer.eval()(tokens), layer(tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_gradient(variant: str) -> None:
    encoder = _encoder(VARIANTS[variant]).train()
    genes, values = _sentences()
    embedding = encoder(genes, values)
    encoder.predict_expression(embedding, torch.arange(4), torch.ones(5)).square().sum().backward()
    lost = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lost


def test_gene_tokens_are_no_parameter_and_not_stored() -> None:
    encoder = _encoder()
    assert "gene_tokens" not in encoder.state_dict()
    assert "gene_tokens" not in dict(encoder.named_parameters())
    assert "gene_tokens" in dict(encoder.named_buffers())


def test_config_survives_a_dict() -> None:
    assert SEConfig(**CONFIG.to_dict()) == CONFIG


def test_gene_tokens_of_another_width_raises() -> None:
    with pytest.raises(ValueError, match=r"shape \(20, 8\), expected \(n_genes, token_dim=7\)"):
        SEEncoder(CONFIG, torch.zeros(20, 8))


def test_heads_that_do_not_divide_the_width_raises() -> None:
    with pytest.raises(ValueError, match="width 12 is not divisible by the number of heads, 5"):
        SEEncoder(SEConfig(7, d_model=12, n_layers=1, n_heads=5, d_hid=4, output_dim=4, n_tokens=3), torch.zeros(2, 7))
