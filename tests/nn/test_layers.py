from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from scstate_lora.nn.layers import TransformerEncoder
from scstate_lora.nn.lora import SE_TARGETS, add_lora, train_adapters_only
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

CONFIG = SEConfig(token_dim=6, d_model=16, n_layers=4, n_heads=2, d_hid=32, output_dim=8, n_tokens=9, dropout=0.2)


def _stack(dropout: float = 0.0) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(16, 4, 2, 32, dropout)


def _tokens(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 9, 16, generator=torch.Generator().manual_seed(1))


def _adapted(**options: Any) -> SEEncoder:
    torch.manual_seed(0)
    encoder = SEEncoder(CONFIG, torch.randn(15, CONFIG.token_dim))
    add_lora(encoder, r=2, alpha=4, **{"dropout": 0.3, "targets": tuple(SE_TARGETS), **options})
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    train_adapters_only(encoder)
    return encoder


def _sentences() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(15, (3, 8), generator=generator), 10 * torch.rand(3, 9, generator=generator)


def _gradients(module: torch.nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    module.zero_grad()
    output = module(*inputs)
    (output * torch.arange(output.shape[-1])).sum().backward()
    return output.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_numbers_and_gradients(dropout: float) -> None:
    stack = _stack(dropout).train()
    output, gradients = _gradients(stack, _tokens())
    stack.gradient_checkpointing = True
    output_again, gradients_again = _gradients(stack, _tokens())
    assert torch.equal(output, output_again)
    assert gradients.keys() == gradients_again.keys() == dict(stack.named_parameters()).keys()
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)


@pytest.mark.parametrize("dora", [False, True])
def test_checkpointing_reaches_every_adapter_of_a_frozen_network_and_drops_the_same(dora: bool) -> None:
    encoder = _adapted(use_dora=dora)
    output, gradients = _gradients(encoder, *_sentences())
    encoder.transformer_encoder.gradient_checkpointing = True
    output_again, gradients_again = _gradients(encoder, *_sentences())
    assert torch.equal(output, output_again)
    assert gradients_again.keys() == {name for name, _ in encoder.named_parameters() if "lora_" in name}
    assert all(gradient.abs().max() > 0 for gradient in gradients_again.values())
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert not torch.equal(output, encoder(*_sentences()))  # the dropout does act


def test_checkpointing_reads_the_mask_and_the_kept_positions() -> None:
    stack = _stack()
    tokens, keep, mask = _tokens(), torch.tensor([0, -1]), torch.arange(9).expand(3, 9) < 6
    expected = stack(tokens, keep, mask)
    stack.gradient_checkpointing = True
    assert torch.equal(stack(tokens, keep, mask), expected)
    assert not torch.equal(stack(tokens, keep), expected)


def _held(stack: TransformerEncoder, tokens: torch.Tensor) -> int:
    """Bytes that a forward pass leaves allocated for the way back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        output = stack(tokens)
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.events())


def test_checkpointing_keeps_one_tensor_a_layer() -> None:
    stack, tokens = _stack(), _tokens(200)
    one = tokens.numel() * tokens.element_size()
    without = _held(stack, tokens)
    stack.gradient_checkpointing = True
    assert _held(stack, tokens) < 1.1 * CONFIG.n_layers * one < without / 5


def test_nothing_is_checkpointed_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("scstate_lora.nn.layers.checkpoint", refuse)
    stack = _stack()
    stack.gradient_checkpointing = True
    with torch.no_grad():
        stack(_tokens())
    stack.requires_grad_(False)(_tokens())
    with pytest.raises(AssertionError):
        stack(_tokens().requires_grad_())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_kept_below_the_lowest_adapter(checkpointing: bool) -> None:
    encoder = _adapted(layers=(2, None), targets=("q", "v"))
    encoder.transformer_encoder.gradient_checkpointing = checkpointing
    kept, asks = {}, {}

    def watch(number: int, layer: torch.nn.Module) -> None:
        forward = layer.forward

        def counted(*inputs: Any, **options: Any) -> torch.Tensor:
            saved = []
            with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
                output = forward(*inputs, **options)
            kept.setdefault(number, len(saved))
            asks[number] = output.requires_grad
            return output

        layer.forward = counted

    for number, layer in enumerate(encoder.transformer_encoder.layers):
        watch(number, layer)
    encoder(*_sentences()).sum().backward()
    assert [number for number in kept if kept[number]] == [2, 3]
    assert [number for number in asks if asks[number]] == [2, 3]


def test_a_copy_keeps_checkpointing() -> None:
    stack = _stack()
    stack.gradient_checkpointing = True
    assert copy.deepcopy(stack).gradient_checkpointing
    assert "gradient_checkpointing" not in " ".join(stack.state_dict())
