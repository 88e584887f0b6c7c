from __future__ import annotations

import copy
import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from scstate_lora.nn.lora import (
    SE_TARGETS,
    active_adapter,
    adapter_names,
    adapter_state,
    adapters_off,
    add_lora,
    delete_adapter,
    is_merged,
    load_adapter_state,
    merge,
    set_adapter,
    split_adapters,
    train_adapters_only,
    unmerge,
)
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

CONFIG = SEConfig(token_dim=6, d_model=8, n_layers=2, n_heads=2, d_hid=12, output_dim=8, n_tokens=5, dropout=0.3)


def _base() -> SEEncoder:
    torch.manual_seed(0)
    return SEEncoder(CONFIG, torch.randn(15, CONFIG.token_dim)).eval()


def _add(module: SEEncoder, name: str = "default", **options: Any) -> None:
    add_lora(module, name, **{"r": 2, "alpha": 4, "dropout": 0.2, "targets": ("q", "v"), **options})


def _adapted(base: SEEncoder, targets: tuple[str, ...] = ("q", "v"), **options: Any) -> SEEncoder:
    adapted = copy.deepcopy(base)
    _add(adapted, targets=targets, **options)
    return adapted.eval()


def _sentences() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(15, (6, 4), generator=generator), 10 * torch.rand(6, 5, generator=generator)


def _adapters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if "lora_" in name}


def _move_b(module: nn.Module, name: str | None = None) -> None:
    """Give the adapters of one name, or all, something to do."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in _adapters(module).items():
            if f"lora_B.{name or ''}" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif f"lora_magnitude_vector.{name or ''}" in key:
                parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))


def _two(base: SEEncoder) -> SEEncoder:
    """Adapters ``near`` on Q and V, and ``far`` of another rank on K and the feed-forward of the last layer; moved."""
    adapted = copy.deepcopy(base)
    _add(adapted, "near")
    _add(adapted, "far", r=3, targets=("k", "linear1"), layers=(-1, None))
    _move_b(adapted)
    return adapted


@torch.no_grad()
def _embed(module: SEEncoder) -> torch.Tensor:
    return module(*_sentences())


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


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    plain, scaled = (_adapted(_base(), use_rslora=rslora) for rslora in (False, True))
    _move_b(plain)
    with torch.no_grad():  # 4 / 2 times this is 4 / sqrt(2) times that
        for a, b in zip(_adapters(plain).items(), _adapters(scaled).items(), strict=True):
            b[1].copy_(a[1] * (math.sqrt(2) / 2 if "lora_B" in a[0] else 1))
    assert (_embed(plain) - _embed(_base())).abs().max() > 1e-3
    assert torch.allclose(_embed(scaled), _embed(plain), atol=1e-6)


def test_dora_starts_as_no_change_and_trains_all_its_tensors_with_dropout() -> None:
    base = _base()
    adapted = _adapted(base, targets=tuple(SE_TARGETS), use_dora=True)
    assert (_embed(adapted) - _embed(base)).abs().max() < 1e-6
    _move_b(adapted)
    assert torch.equal(_embed(adapted), _embed(adapted))
    train_adapters_only(adapted)
    assert not torch.equal(_embed(adapted), _embed(adapted))
    (adapted(*_sentences()) * torch.arange(8.0)).sum().backward()
    adapters = _adapters(adapted)
    assert len(adapters) == 3 * len(SE_TARGETS) * CONFIG.n_layers
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (None, {0, 1}),
        ((0, 1), {0}),
        ((1, 2), {1}),
        ((-1, None), {1}),
        ((-2, -1), {0}),
        ((0, -1), {0}),
        ((0, 2), {0, 1}),
    ],
)
def test_layers_are_a_half_open_range(layers: tuple[int, int | None] | None, numbers: set[int]) -> None:
    adapted = _adapted(_base(), layers=layers)
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in _adapters(adapted)} == numbers


@pytest.mark.parametrize("layers", [(0, 3), (2, None), (-3, None), (1, 1), (1, -1), (0, -2)])
def test_layers_beyond_the_network_raises(layers: tuple[int, int | None]) -> None:
    base = _base()
    message = re.escape(f"LoRA layers=({layers[0]}, {layers[1]}) is not a range of this network's layers") + ".*0 to 1"
    with pytest.raises(ValueError, match=message):
        _add(base, layers=layers)
    assert not _adapters(base)


def test_new_adapters_are_in_eval_where_the_network_is() -> None:
    base = _base()
    _add(base)
    _add(base, "second", targets=("linear1",))
    assert not any(child.training for child in base.modules())


def test_only_the_active_adapter_computes_and_trains() -> None:
    base = _base()
    adapted = _two(base)
    assert adapter_names(adapted) == ["near", "far"]
    assert active_adapter(adapted) == "far"  # the one that was added last
    outputs = {}
    for name in ("near", "far", "near"):
        set_adapter(adapted, name)
        assert active_adapter(adapted) == name
        own = {key for key in _adapters(adapted) if f".{name}." in key}
        assert {key for key, p in adapted.named_parameters() if p.requires_grad} == own
        if name in outputs:
            assert torch.equal(_embed(adapted), outputs[name])
        outputs[name] = _embed(adapted)
        alone = copy.deepcopy(base)
        _add(alone, name, **({} if name == "near" else {"r": 3, "targets": ("k", "linear1"), "layers": (-1, None)}))
        load_adapter_state(alone, name, adapter_state(adapted, name))
        assert torch.equal(_embed(alone), outputs[name])  # as if the other were not there
    assert not torch.equal(outputs["near"], outputs["far"])
    with torch.no_grad(), adapters_off(adapted):
        assert torch.equal(_embed(adapted), _embed(base))


def test_training_one_adapter_leaves_the_other() -> None:
    adapted = _two(_base())
    set_adapter(adapted, "near")
    train_adapters_only(adapted)
    training = {key for key, child in adapted.named_modules() if child.training}
    assert len(training) == 2 * CONFIG.n_layers
    assert all(key.endswith("lora_dropout.near") for key in training)
    before = {key: p.clone() for key, p in adapted.named_parameters()}
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.1, weight_decay=0.1)
    (adapted(*_sentences()) * torch.arange(8.0)).sum().backward()
    optimizer.step()
    moved = {key for key, p in adapted.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {key for key in before if ".near." in key}


def test_adding_a_second_adapter_leaves_the_first_and_does_not_warn() -> None:
    adapted = _adapted(_base())
    _move_b(adapted)
    before, output = copy.deepcopy(adapter_state(adapted, "default")), _embed(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _add(adapted, "second", r=3, targets=("v", "out"), use_dora=True)
        set_adapter(adapted, "default")
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter_state(adapted, "default").items())
    assert torch.equal(_embed(adapted), output)


def test_deleted_adapters_leave_no_trace() -> None:
    base = _base()
    adapted = _two(base)
    set_adapter(adapted, "near")
    output = _embed(adapted)
    delete_adapter(adapted, "far")
    assert adapter_names(adapted) == ["near"]
    assert not any("far" in name for name in adapted.state_dict())
    assert type(adapted.transformer_encoder.layers[1].linear1) is nn.Linear
    assert torch.equal(_embed(adapted), output)
    delete_adapter(adapted, "near")
    assert (adapter_names(adapted), active_adapter(adapted)) == ([], None)
    assert adapted.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(_embed(adapted), _embed(base))
    _add(adapted, "near")  # the name is free again
    assert torch.equal(_embed(adapted), _embed(base))


def test_a_shared_layer_keeps_the_adapter_that_stays() -> None:
    adapted = _adapted(_base(), use_dora=True)
    _move_b(adapted)
    expected = _embed(adapted)
    _add(adapted, "second", targets=("q",), use_dora=True)
    set_adapter(adapted, "default")
    delete_adapter(adapted, "second")
    assert torch.equal(_embed(adapted), expected)
    assert adapter_state(adapted, "default").keys() == {k.replace(".default.", ".") for k in _adapters(adapted)}


def test_deleting_the_active_one_of_several_raises() -> None:
    adapted = _two(_base())
    with pytest.raises(ValueError, match=r"'far' is the active one\. Activate another first, set_adapter: \['near'\]"):
        delete_adapter(adapted, "far")
    assert adapter_names(adapted) == ["near", "far"]


@pytest.mark.parametrize("act", [set_adapter, delete_adapter, adapter_state])
def test_unknown_adapter_suggests_near_ones_raises(act: Any) -> None:
    with pytest.raises(KeyError, match=r"no adapter 'nera'\. Did you mean 'near'"):
        act(_two(_base()), "nera")


@pytest.mark.parametrize("name", ["a.b", "", "a/b", "keys", "training", "_modules"])
def test_name_that_cannot_be_a_file_or_an_attribute_raises(name: str) -> None:
    base = _base()
    with pytest.raises(ValueError, match=r"cannot be an adapter's name\. Use letters"):
        _add(base, name)
    assert not _adapters(base)


@pytest.mark.parametrize("name", ["layers", "q_proj", "lora_A", "weight", "default"])
def test_name_that_is_also_a_part_of_the_network(name: str) -> None:
    base = _base()
    adapted = copy.deepcopy(base)
    _add(adapted, "first")
    _add(adapted, name, targets=("q",))
    _move_b(adapted)
    assert {k for k, p in adapted.named_parameters() if p.requires_grad} == {
        k for k in _adapters(adapted) if f".{name}.weight" in k
    }
    assert torch.equal(split_adapters(adapted.state_dict())[0]["cls_token"], base.cls_token)
    assert split_adapters(adapted.state_dict())[0].keys() == base.state_dict().keys()
    with adapters_off(adapted):
        assert torch.equal(_embed(adapted), _embed(base))


def test_tensors_of_an_adapter_are_no_targets_though_called_like_one() -> None:
    adapted = _adapted(_base(), name="linear1")
    _add(adapted, "second", targets=("linear1",))
    assert {key.split(".lora_")[0] for key in adapter_state(adapted, "second")} == {
        f"transformer_encoder.layers.{i}.linear1" for i in range(CONFIG.n_layers)
    }
    assert sum(".linear1.weight" in key for key in _adapters(adapted)) == 4 * CONFIG.n_layers


def test_name_that_is_taken_raises() -> None:
    adapted = _adapted(_base())
    with pytest.raises(ValueError, match=r"An adapter 'default' exists already\. .*delete_adapter"):
        _add(adapted)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_load_under_another_name(dora: bool) -> None:
    first, second = (_adapted(_base(), name=name, use_dora=dora) for name in ("first", "second"))
    _move_b(first)
    state = {key: tensor.clone() for key, tensor in adapter_state(first, "first").items()}
    assert "transformer_encoder.layers.0.self_attn.q_proj.lora_A.weight" in state
    assert not any("first" in key for key in state)
    load_adapter_state(second, "second", state)
    assert torch.equal(_embed(second), _embed(first))


def test_adapters_that_do_not_fit_raises_and_copies_nothing() -> None:
    adapted = _adapted(_base(), targets=("q",))
    before = copy.deepcopy(adapter_state(adapted, "default"))
    key = "transformer_encoder.layers.{}.self_attn.{}_proj.lora_A.weight"
    state = {name: tensor + 1 for name, tensor in before.items() if name != key.format(0, "q")}
    state |= {key.format(1, "q"): torch.zeros(3, 8), key.format(0, "v"): torch.zeros(2, 8)}
    with pytest.raises(ValueError, match="the adapter 'default', nothing was loaded") as raised:
        load_adapter_state(adapted, "default", state)
    for problem in (
        f"missing: {key.format(0, 'q')} (2, 8)",
        f"unexpected: {key.format(0, 'v')} (2, 8)",
        f"shape: {key.format(1, 'q')} is (3, 8), expected (2, 8)",
    ):
        assert problem in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(adapted, "default").items())


def test_copies_and_state_dicts_hold_all_adapters() -> None:
    adapted = _two(_base())
    set_adapter(adapted, "near")
    duplicate = copy.deepcopy(adapted)
    assert (adapter_names(duplicate), active_adapter(duplicate)) == (["near", "far"], "near")
    assert torch.equal(_embed(duplicate), _embed(adapted))
    with torch.no_grad():
        next(iter(_adapters(duplicate).values())).add_(1)  # and shares none of them
    assert not torch.equal(_embed(duplicate), _embed(adapted))
    duplicate.load_state_dict(adapted.state_dict())
    for name in ("near", "far"):
        set_adapter(adapted, name)
        set_adapter(duplicate, name)
        assert torch.equal(_embed(duplicate), _embed(adapted))


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True, "r": 3}, {"layers": (1, None), "targets": ("linear2",)}]
)
def test_merged_equals_unmerged_and_leaves_the_base(options: dict[str, Any]) -> None:
    base = _base()
    adapted = _adapted(base, **{"targets": tuple(SE_TARGETS), **options})
    _move_b(adapted)
    state = split_adapters(adapted.state_dict())[0]
    kept, version = state.copy(), {name: tensor._version for name, tensor in state.items()}
    unmerged = _embed(adapted)
    merge(adapted)
    assert is_merged(adapted)
    merged = _embed(adapted)
    assert not torch.equal(merged, unmerged)  # it is computed in another way
    assert (merged - unmerged).abs().max() < 1e-5
    assert (merged - _embed(base)).abs().max() > 1e-3
    with adapters_off(adapted):
        assert torch.equal(_embed(adapted), _embed(base))
    assert torch.equal(_embed(adapted), merged)
    for _ in range(2):  # merged, and not any more
        state = split_adapters(adapted.state_dict())[0]
        assert state.keys() == base.state_dict().keys()
        for name, tensor in state.items():
            assert (tensor.data_ptr(), tensor._version) == (kept[name].data_ptr(), version[name])
            assert torch.equal(tensor, base.state_dict()[name])
        unmerge(adapted)
    assert not is_merged(adapted)
    assert torch.equal(_embed(adapted), unmerged)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == set(_adapters(adapted))


def test_merging_twice_is_merging_once_and_copies_stay_merged() -> None:
    adapted = _two(_base())
    unmerge(adapted)  # nothing to do
    merge(adapted)
    merged = _embed(adapted)
    merge(adapted)
    assert torch.equal(_embed(adapted), merged)
    duplicate = copy.deepcopy(adapted)
    assert is_merged(duplicate)
    unmerge(duplicate)
    assert is_merged(adapted)
    assert torch.equal(_embed(adapted), merged)


def test_merges_the_active_adapter_only() -> None:
    adapted = _two(_base())
    for name in ("near", "far"):
        set_adapter(adapted, name)
        expected = _embed(adapted)
        merge(adapted)
        assert torch.allclose(_embed(adapted), expected, atol=1e-5)
        unmerge(adapted)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_merged_in_full_precision_and_rounded_once(dtype: torch.dtype, dora: bool) -> None:
    adapted = _base().to(dtype)
    _add(adapted, targets=("q",), use_dora=dora)
    _move_b(adapted)
    assert all(p.dtype == torch.float32 for p in _adapters(adapted).values())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):  # as little as where it is called from
        merge(adapted)
    layer = adapted.transformer_encoder.layers[0].self_attn.q_proj
    weight = (
        layer.base_layer.weight.double()
        + 2 * layer.lora_B.default.weight.double() @ layer.lora_A.default.weight.double()
    )
    if dora:
        weight *= (layer.lora_magnitude_vector.default.weight.double() / weight.norm(dim=1))[:, None]
    assert layer.merged_weight.dtype == dtype
    half_a_step = torch.finfo(dtype).eps / 2 * 1.001  # and float32's own rounding before it
    assert torch.allclose(layer.merged_weight.double(), weight, rtol=half_a_step, atol=1e-7)
    assert not layer.merged_weight.is_inference()


def test_merged_adapters_follow_the_network_to_another_type() -> None:
    adapted = _adapted(_base())
    _move_b(adapted)
    expected = _embed(adapted)
    merge(adapted)
    assert all(
        layer.self_attn.q_proj.merged_weight.dtype == torch.float64
        for layer in copy.deepcopy(adapted).double().transformer_encoder.layers
    )
    assert torch.allclose(_embed(adapted), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (train_adapters_only, "train"),
        (lambda m: m.train(), "train"),
        (lambda m: _add(m, "more"), "add adapters"),
        (lambda m: set_adapter(m, "near"), "switch adapters"),
        (lambda m: delete_adapter(m, "near"), "delete adapters"),
        (lambda m: load_adapter_state(m, "near", adapter_state(m, "near")), "load adapters"),
    ],
)
def test_while_merged_raises(act: Any, what: str) -> None:
    adapted = _two(_base())
    merge(adapted)
    merged = _embed(adapted)
    with pytest.raises(ValueError, match=f"merged into the weights: cannot {what} now. Unmerge them first, unmerge"):
        act(adapted)
    adapted.eval()
    assert torch.equal(_embed(adapted), merged)
    unmerge(adapted)
    act(adapted)


def test_nothing_to_merge_raises() -> None:
    with pytest.raises(ValueError, match=r"No active adapters to merge; existing ones: \[\]"):
        merge(_base())
    adapted = _two(_base())
    set_adapter(adapted, None)
    with pytest.raises(ValueError, match=r"existing ones: \['near', 'far'\]"):
        merge(adapted)


def test_no_adapter_is_active_until_one_is_again() -> None:
    base = _base()
    adapted = _two(base)
    before = _embed(adapted)
    set_adapter(adapted, None)
    assert active_adapter(adapted) is None
    assert not any(p.requires_grad for p in adapted.parameters())
    train_adapters_only(adapted)
    assert not any(child.training for child in adapted.modules())
    with adapters_off(adapted):
        pass
    assert torch.equal(_embed(adapted), _embed(base))
    delete_adapter(adapted, "near")  # any can be deleted
    set_adapter(adapted, "far")
    assert torch.equal(_embed(adapted), before)


def test_broken_adapters_are_not_merged_raises() -> None:
    adapted = _adapted(_base())
    with torch.no_grad():
        _adapters(adapted)["transformer_encoder.layers.1.self_attn.v_proj.lora_B.default.weight"][0, 0] = torch.nan
    with pytest.raises(
        ValueError, match=r"'default' gives weights that are not finite, in \S*layers\.1\.self_attn\.v_proj\."
    ):
        merge(adapted)
    assert not is_merged(adapted)


def test_adapters_off_leaves_what_was_frozen_or_off() -> None:
    base = _base()
    adapted = _two(base)
    set_adapter(adapted, "near")
    adapted.requires_grad_(False)
    with adapters_off(adapted):
        with adapters_off(adapted):
            pass
        assert torch.equal(_embed(adapted), _embed(base))
    assert not torch.equal(_embed(adapted), _embed(base))
    assert not any(p.requires_grad for p in adapted.parameters())
    assert active_adapter(adapted) == "near"
