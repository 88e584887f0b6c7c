"""The SE network against a slow, separate computation of the published forward pass in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import erf

from scstate_lora.io import to_arc_names
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

CONFIG = SEConfig(token_dim=7, d_model=12, n_layers=3, n_heads=3, d_hid=10, output_dim=9, n_tokens=6, dropout=0.2)
N_GENES = 20


def _encoder(seed: int = 0) -> SEEncoder:
    torch.manual_seed(seed)
    encoder = SEEncoder(CONFIG, 3 * torch.randn(N_GENES, CONFIG.token_dim))
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


def _slow_embedding(p: dict[str, np.ndarray], vectors: np.ndarray, genes: np.ndarray, values: np.ndarray) -> np.ndarray:
    tokens = [p["cls_token"][0], *(_unit(vectors[g]) for g in genes)]
    h = []
    for token, value in zip(tokens, values, strict=True):
        a = _linear(p, "count_encoder.0", np.array([value]))
        bins = _softmax(_linear(p, "count_encoder.2", np.where(a > 0, a, 0.01 * a)))
        h.append(_token(p, token) * math.sqrt(CONFIG.d_model) + bins @ p["bin_encoder.weight"])
    for i in range(CONFIG.n_layers):
        h = _layer(p, f"transformer_encoder.layers.{i}", h)
    return _unit(_linear(p, "decoder.1", _skip(p, "decoder.0", h[0])))


def _published(encoder: SEEncoder) -> dict[str, np.ndarray]:
    return {name: t.double().numpy() for name, t in to_arc_names(encoder.state_dict()).items()}


# ---- tests


def test_embedding_is_the_published_forward_pass() -> None:
    encoder = _encoder()
    genes, values = _sentences()
    p, vectors = _published(encoder), encoder.gene_tokens.double().numpy()
    with torch.no_grad():
        fast = encoder(genes, values).numpy()
    slow = np.stack([_slow_embedding(p, vectors, g, v) for g, v in zip(genes.numpy(), values.numpy(), strict=True)])
    assert fast.shape == (5, CONFIG.output_dim)
    assert np.abs(fast - slow).max() < 1e-5
    # Cells differ, so the agreement says something.
    assert np.abs(slow - slow[0]).max() > 1e-2


def test_expression_head_is_the_published_one() -> None:
    encoder = _encoder()
    generator = torch.Generator().manual_seed(2)
    cells = torch.randn(4, CONFIG.output_dim, generator=generator)
    depth = torch.rand(4, generator=generator)
    genes = torch.tensor([3, 0, 19, 3, 7])
    with torch.no_grad():
        fast = encoder.predict_expression(cells, genes, depth).numpy()
    p, vectors = _published(encoder), encoder.gene_tokens.double().numpy()
    slow = np.zeros((4, 5))
    for i in range(4):
        for j, gene in enumerate(genes.numpy()):
            pair = np.concatenate([_token(p, vectors[gene]), cells[i].double().numpy(), [depth[i].double().item()]])
            hidden = _skip(p, "binary_decoder.1", _skip(p, "binary_decoder.0", pair))
            slow[i, j] = _linear(p, "binary_decoder.2", hidden)[0]
    assert np.abs(fast - slow).max() < 1e-5
    assert slow.std() > 1e-2


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


def test_every_parameter_gets_gradient() -> None:
    encoder = _encoder().train()
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
