from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scstate_lora.nn.backbones import Backbone, BackboneConfig, make_backbone
from scstate_lora.nn.lora import (
    active_adapter,
    adapter_names,
    adapter_state,
    adapters_off,
    add_lora,
    delete_adapter,
    load_adapter_state,
    merge,
    set_adapter,
    split_adapters,
    train_adapters_only,
    unmerge,
)

HIDDEN, N_LAYERS = 16, 2
# Where adapters belong: on the attention, not on the feed-forward's layer of the same name.
LAYERS = {
    "gpt2": {"qkv": "h.{}.attn.c_attn", "out": "h.{}.attn.c_proj"},
    "llama": {
        "q": "layers.{}.self_attn.q_proj",
        "k": "layers.{}.self_attn.k_proj",
        "v": "layers.{}.self_attn.v_proj",
        "out": "layers.{}.self_attn.o_proj",
    },
    "bert": {
        "q": "layer.{}.attention.self.query",
        "k": "layer.{}.attention.self.key",
        "v": "layer.{}.attention.self.value",
        "out": "layer.{}.attention.output.dense",
    },
}
each_kind = pytest.mark.parametrize("kind", list(LAYERS))


def _base(kind: Any) -> Backbone:
    torch.manual_seed(0)
    # Heads of LLaMA that together are wider than the representation, so that no projection is square.
    backbone = make_backbone(BackboneConfig(kind, HIDDEN, N_LAYERS, 4, head_dim=6 if kind == "llama" else None))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return backbone.eval()


def _adapted(base: Backbone, name: str = "default", **options: Any) -> Backbone:
    """Copy with adapters that do something."""
    adapted = copy.deepcopy(base)
    add_lora(adapted, name, **{"r": 3, "alpha": 6, "dropout": 0.2, **options})
    _move_b(adapted, name)
    return adapted


def _move_b(backbone: Backbone, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            if f"lora_B.{name}." in key:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def _adapters(backbone: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in backbone.named_parameters() if "lora_" in name}


def _carriers(backbone: nn.Module) -> set[str]:
    return {name.split(".lora_")[0] for name in _adapters(backbone)}


def _cells(n_cells: int = 6) -> torch.Tensor:
    return torch.randn(2, n_cells, HIDDEN, generator=torch.Generator().manual_seed(2))


def _loss(cells: torch.Tensor) -> torch.Tensor:
    return (cells * torch.randn(cells.shape, generator=torch.Generator().manual_seed(3))).sum()


@torch.no_grad()
def _mix(backbone: nn.Module) -> torch.Tensor:
    return backbone(_cells())


@each_kind
def test_adapters_sit_on_the_attention_only(kind: str) -> None:
    base = _base(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of a Conv1D that it was not told of
        adapted = _adapted(base)
    assert _carriers(adapted) == {layer.format(i) for layer in LAYERS[kind].values() for i in range(N_LAYERS)}
    for target, layer in LAYERS[kind].items():
        assert _carriers(_adapted(base, targets=(target,), layers=(-1, None))) == {layer.format(N_LAYERS - 1)}


@pytest.mark.parametrize("training", [False, True])
@each_kind
def test_starts_as_no_change(kind: str, training: bool) -> None:
    base = _base(kind)
    adapted = copy.deepcopy(base)
    add_lora(adapted, r=3, alpha=6, dropout=0.2)
    if training:
        train_adapters_only(adapted)
    assert torch.equal(_mix(adapted), _mix(base))


@each_kind
def test_every_adapter_tensor_gets_gradient_and_nothing_else_does(kind: str) -> None:
    adapted = _adapted(_base(kind))
    train_adapters_only(adapted)
    _loss(adapted(_cells())).backward()
    adapters = _adapters(adapted)
    assert len(adapters) == 2 * len(LAYERS[kind]) * N_LAYERS
    assert all(p.grad is not None and p.grad.abs().max() > 1e-4 for p in adapters.values())
    assert all(p.grad is None and not p.requires_grad for n, p in adapted.named_parameters() if n not in adapters)


@each_kind
def test_every_adapter_acts_in_eval(kind: str) -> None:
    base = _base(kind)
    adapted = _adapted(base)
    mixed = _mix(adapted)
    assert (mixed - _mix(base)).abs().max() > 0.1
    for name, parameter in _adapters(adapted).items():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.zero_()
            assert (_mix(adapted) - mixed).abs().max() > 1e-4, name
            parameter.copy_(before)
    with adapters_off(adapted):
        assert torch.equal(_mix(adapted), _mix(base))


@each_kind
def test_output_is_that_of_the_sum_of_weights(kind: str) -> None:
    base = _base(kind)
    adapted = _adapted(base)
    adapters, summed = _adapters(adapted), copy.deepcopy(base)
    with torch.no_grad():
        for where in _carriers(adapted):
            b, a = (adapters[f"{where}.lora_{part}.default.weight"] for part in "BA")
            change = 6 / 3 * b @ a
            layer = summed.get_submodule(where)
            layer.weight += change.T if isinstance(layer, Conv1D) else change
    assert (_mix(adapted) - _mix(summed)).abs().max() < 1e-5


@each_kind
def test_cells_in_another_order_are_mixed_the_same_with_adapters(kind: str) -> None:
    adapted, cells = _adapted(_base(kind)), _cells(n_cells=60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    for act in (lambda: None, lambda: merge(adapted)):
        act()
        with torch.no_grad():
            assert (adapted(cells[:, order]) - adapted(cells)[:, order]).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
@each_kind
def test_merged_equals_unmerged_and_leaves_the_base(kind: str, options: dict[str, Any]) -> None:
    base = _base(kind)
    adapted = _adapted(base, **options)
    if options.get("use_dora"):
        with torch.no_grad():
            for name, parameter in _adapters(adapted).items():
                if "magnitude" in name:
                    parameter.mul_(1 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(5)))
    unmerged = _mix(adapted)
    merge(adapted)
    merged = _mix(adapted)
    assert not torch.equal(merged, unmerged)  # it is computed in another way
    assert (merged - unmerged).abs().max() < 1e-5
    assert (merged - _mix(base)).abs().max() > 0.1
    state = split_adapters(adapted.state_dict())[0]
    assert state.keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in state.items())
    unmerge(adapted)
    assert torch.equal(_mix(adapted), unmerged)


@each_kind
def test_dora_starts_as_no_change_and_trains_all_its_tensors(kind: str) -> None:
    base = _base(kind)
    adapted = copy.deepcopy(base)
    add_lora(adapted, r=3, alpha=6, dropout=0.2, use_dora=True)
    assert (_mix(adapted) - _mix(base)).abs().max() < 1e-5
    _move_b(adapted)
    train_adapters_only(adapted)
    _loss(adapted(_cells())).backward()
    adapters = _adapters(adapted)
    assert len(adapters) == 3 * len(LAYERS[kind]) * N_LAYERS
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())


@each_kind
def test_merges_half_precision_in_full_and_rounds_once(kind: str) -> None:
    adapted = copy.deepcopy(_base(kind)).bfloat16()
    add_lora(adapted, r=3, alpha=6, dropout=0.0)
    _move_b(adapted)
    assert all(p.dtype == torch.float32 for p in _adapters(adapted).values())
    with torch.inference_mode():
        merge(adapted)
    layer = adapted.get_submodule(LAYERS[kind]["out"].format(0))
    stored = layer.base_layer.weight.double()
    weight = (stored.T if kind == "gpt2" else stored) + (
        2 * layer.lora_B.default.weight.double() @ layer.lora_A.default.weight.double()
    )
    assert layer.merged_weight.dtype == torch.bfloat16
    assert not layer.merged_weight.is_inference()
    half_a_step = torch.finfo(torch.bfloat16).eps / 2 * 1.001
    assert torch.allclose(layer.merged_weight.double(), weight, rtol=half_a_step, atol=1e-7)


@each_kind
def test_gradients_are_the_same_where_blocks_are_computed_again(kind: str) -> None:
    plain, again = _adapted(_base(kind)), _adapted(_base(kind))
    again.gradient_checkpointing = True
    for backbone in (plain, again):
        train_adapters_only(backbone)
        torch.manual_seed(6)  # what is dropped
        _loss(backbone(_cells())).backward()  # the cells ask for no gradient
    for name, parameter in _adapters(plain).items():
        assert parameter.grad.abs().max() > 0
        assert torch.equal(_adapters(again)[name].grad, parameter.grad), name


@each_kind
def test_several_are_switched_stored_and_deleted(kind: str) -> None:
    base = _base(kind)
    near, far = _adapted(base, "near"), _adapted(base, "far", r=2, targets=("out",), layers=(0, 1))
    both = _adapted(near, "far", r=2, targets=("out",), layers=(0, 1))
    assert (adapter_names(both), active_adapter(both)) == (["near", "far"], "far")
    load_adapter_state(both, "far", adapter_state(far, "far"))
    for name, alone in {"near": near, "far": far, None: base}.items():
        set_adapter(both, name)
        assert torch.equal(_mix(both), _mix(alone))
        own = {key for key in _adapters(both) if name is not None and f".{name}." in key}
        assert {key for key, p in both.named_parameters() if p.requires_grad} == own
    state = adapter_state(near, "near")
    assert state.keys() == {f"{where}.lora_{part}.weight" for where in _carriers(near) for part in "AB"}
    delete_adapter(both, "near")
    delete_adapter(both, "far")
    assert [type(child) for child in both.modules()] == [type(child) for child in base.modules()]
    assert both.state_dict().keys() == base.state_dict().keys()


class _Wrapped(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.layer = block

    def forward(self, cells: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.layer(cells, **arguments)


@each_kind
def test_adapters_find_a_block_in_what_was_put_in_its_place(kind: str) -> None:
    base = _base(kind)
    wrapped = copy.deepcopy(base)
    wrapped.blocks[0] = _Wrapped(wrapped.blocks[0])
    adapted = _adapted(wrapped)
    assert _carriers(adapted) == {
        layer.format(place) for layer in LAYERS[kind].values() for place in ("0.layer", *range(1, N_LAYERS))
    }
    first_wrapped = _adapted(base)
    first_wrapped.blocks[0] = _Wrapped(first_wrapped.blocks[0])
    assert _carriers(first_wrapped) == _carriers(adapted)
    load_adapter_state(first_wrapped, "default", adapter_state(adapted, "default"))
    assert torch.equal(_mix(adapted), _mix(first_wrapped))


def test_the_rest_of_a_network_still_trains() -> None:
    network = nn.Sequential(nn.Linear(5, HIDDEN), _base("gpt2"), nn.Linear(HIDDEN, 5))
    cells = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(7))
    before = network(cells)
    add_lora(network[1], r=2, alpha=4, dropout=0.05)
    assert torch.equal(network(cells), before)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {f"{i}.{part}" for i in (0, 2) for part in ("weight", "bias")} | _adapters(network).keys()


@pytest.mark.parametrize(("kind", "known"), [("gpt2", "qkv"), ("bert", "q', 'k', 'v")])
def test_target_of_another_architecture_raises(kind: str, known: str) -> None:
    base = _base(kind)
    with pytest.raises(ValueError, match=rf"\['linear1'\]\. Give at least one of \['{known}', 'out'\]"):
        add_lora(base, r=2, alpha=4, dropout=0.0, targets=("out", "linear1"))
    assert not _adapters(base)


def test_no_transformer_raises() -> None:
    with pytest.raises(TypeError, match=r"Linear has no blocks under any of .*Give an SE encoder or a backbone"):
        add_lora(nn.Linear(2, 2), r=2, alpha=4, dropout=0.0)  # type: ignore[arg-type]  # any other module
