from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scstate_lora.nn.lora import SE_TARGETS, adapters_off, add_lora, split_adapters, train_adapters_only
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

CONFIG = SEConfig(token_dim=6, d_model=8, n_layers=2, n_heads=2, d_hid=12, output_dim=8, n_tokens=5, dropout=0.3)


def _base() -> SEEncoder:
    torch.manual_seed(0)
    return SEEncoder(CONFIG, torch.randn(15, CONFIG.token_dim)).eval()


def _adapted(base: SEEncoder, targets: tuple[str, ...] = ("q", "v"), dropout: float = 0.2) -> SEEncoder:
    adapted = copy.deepcopy(base)
    add_lora(adapted, r=2, alpha=4, dropout=dropout, targets=targets)
    return adapted.eval()


def _sentences() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(15, (6, 4), generator=generator), 10 * torch.rand(6, 5, generator=generator)


def _adapters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if "lora_" in name}


def _move_b(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in _adapters(module).items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_no_change(training: bool) -> None:
    base = _base()
    adapted = _adapted(base, targets=tuple(SE_TARGETS))
    if training:  # the base's own dropout stays off, and what the adapters' dropout acts on is multiplied by zero
        train_adapters_only(adapted)
    with torch.no_grad():
        assert torch.equal(adapted(*_sentences()), base(*_sentences()))


@pytest.mark.parametrize("target", list(SE_TARGETS))
def test_every_adapter_tensor_gets_gradient_and_acts_in_eval(target: str) -> None:
    base = _base()
    adapted = _adapted(base, (target,))
    _move_b(adapted)
    train_adapters_only(adapted)
    (adapted(*_sentences()) * torch.arange(8.0)).sum().backward()
    adapters = _adapters(adapted)
    assert len(adapters) == 2 * CONFIG.n_layers
    assert all(SE_TARGETS[target] in name for name in adapters)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())
    with torch.no_grad():
        adapted.eval()
        changed = adapted(*_sentences())
        assert (changed - base(*_sentences())).abs().max() > 1e-3
        # One layer's adapter alone is seen as well: none is bypassed.
        for parameter in adapters.values():
            before = parameter.clone()
            parameter.zero_()
            assert (adapted(*_sentences()) - changed).abs().max() > 1e-5
            parameter.copy_(before)


def test_output_is_that_of_the_sum_of_weights() -> None:
    base = _base()
    adapted = _adapted(base)
    _move_b(adapted)
    merged, adapters = copy.deepcopy(base), _adapters(adapted)
    with torch.no_grad():
        for i, layer in enumerate(merged.transformer_encoder.layers):
            for part in "qv":
                prefix = f"transformer_encoder.layers.{i}.self_attn.{part}_proj"
                a, b = adapters[f"{prefix}.lora_A.default.weight"], adapters[f"{prefix}.lora_B.default.weight"]
                getattr(layer.self_attn, f"{part}_proj").weight += 4 / 2 * b @ a
        assert torch.allclose(adapted(*_sentences()), merged(*_sentences()), atol=1e-6)


def test_only_adapters_train_and_the_base_stays() -> None:
    adapted = _adapted(_base())
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == set(_adapters(adapted))
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (adapted(*_sentences()) * torch.arange(8.0)).sum().backward()
        optimizer.step()
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name


def test_only_the_adapters_dropout_is_in_training_mode() -> None:
    adapted = _adapted(_base())
    adapted.train()
    train_adapters_only(adapted)
    training = [name for name, child in adapted.named_modules() if child.training]
    assert training
    assert all("lora_dropout" in name for name in training)
    assert sum(isinstance(c, nn.Dropout) and c.training for c in adapted.modules()) == 2 * CONFIG.n_layers
    _move_b(adapted)
    with torch.no_grad():
        assert not torch.equal(adapted(*_sentences()), adapted(*_sentences()))
        adapted.eval()
        assert torch.equal(adapted(*_sentences()), adapted(*_sentences()))


def test_split_gives_base_names_and_adapters() -> None:
    base = _base()
    adapted = _adapted(base, targets=tuple(SE_TARGETS))
    base_state, adapters = split_adapters(adapted.state_dict())
    assert base_state.keys() == base.state_dict().keys()
    assert all(torch.equal(base_state[name], t) for name, t in base.state_dict().items())
    assert adapters.keys() == _adapters(adapted).keys()


def test_adapters_off_is_the_base_and_on_again_after() -> None:
    base = _base()
    adapted = _adapted(base)
    _move_b(adapted)
    with torch.no_grad():
        before = adapted(*_sentences())
        with adapters_off(adapted):
            assert torch.equal(adapted(*_sentences()), base(*_sentences()))
        assert torch.equal(adapted(*_sentences()), before)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == set(_adapters(adapted))


@pytest.mark.parametrize("targets", [(), ("q", "query")])
def test_wrong_targets_raises(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"LoRA targets .* at least one of \['q', 'k', 'v', 'out', 'linear1'"):
        add_lora(_base(), r=2, alpha=4, dropout=0.0, targets=targets)
