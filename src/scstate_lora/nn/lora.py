"""LoRA adapters injected into a transformer with PEFT: several by name, of which one is active, merged or not."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from scstate_lora._tensors import compare_tensors
from scstate_lora._utils import did_you_mean
from scstate_lora.nn.lora_layer import AdaptedLinear, while_merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from scstate_lora.nn.backbones import Backbone
    from scstate_lora.nn.rank_encoder import RankEncoder
    from scstate_lora.nn.se_encoder import SEEncoder

# Linear layers of a block that can carry an adapter, by the name that users give.
SE_TARGETS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "linear1": "linear1",
    "linear2": "linear2",
}
GPT2_TARGETS = {"qkv": "attn.c_attn", "out": "attn.c_proj"}  # one layer makes all three
LLAMA_TARGETS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
}
BERT_TARGETS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
}
_ARCHITECTURES = {
    "transformer_encoder.layers": SE_TARGETS,
    "h": GPT2_TARGETS,
    "layers": LLAMA_TARGETS,
    "layer": BERT_TARGETS,
}
"""Attribute that holds the blocks of each architecture, and their layers."""
_RECORD = "peft_config"
"""Attribute in which PEFT keeps the options of a network's adapters, by name."""


def add_lora(
    module: SEEncoder | RankEncoder | Backbone,
    name: str = "default",
    *,
    r: int,
    alpha: int,
    dropout: float,
    targets: tuple[str, ...] | None = None,
    layers: tuple[int, int | None] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> None:
    """Put LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on a transformer and freeze all its other parameters.

    ``W = W0 + (alpha / r) B A`` with B zero at first, so nothing changes until training. The new adapters become
    active; existing ones are kept, frozen.

    Parameters
    ----------
    module
        SE encoder, rank encoder, or a backbone of :mod:`~scstate_lora.nn.backbones`; changed in place.
    name
        Name of the adapters: letters, digits, ``-`` and ``_``.
    r, alpha, dropout
        Rank, scale, and dropout before the adapter.
    targets
        Any of ``q``, ``k``, ``v`` and ``out``; in an encoder also ``linear1`` and ``linear2``; in GPT-2, which
        computes queries, keys and values in one layer, ``qkv`` and ``out``. None: all.
    layers
        First layer, and the one after the last, as in a slice: ``(8, 12)``; ``(-4, None)`` for the last four. None:
        all.
    use_rslora
        Scale by ``alpha / sqrt(r)`` (Kalajdzievski 2023, arXiv:2312.03732).
    use_dora
        Train the norm of each row of the weight separately (Liu et al. 2024, DoRA, arXiv:2402.09353).

    Raises
    ------
    ValueError
        If a target is unknown or none is given, the network has no such layers, the name is taken or not allowed, or
        adapters are merged.
    TypeError
        If the module is not such a transformer.
    """
    _refuse_merged(module, "add adapters")
    _check_name(module, name)
    where, known = _architecture(module)
    targets = tuple(known) if targets is None else targets
    unknown = [t for t in targets if t not in known]
    if unknown or not targets:
        msg = f"LoRA targets {list(targets)}: {unknown or 'none given'}. Give at least one of {list(known)}."
        raise ValueError(msg)
    blocks = cast("nn.ModuleList", module.get_submodule(where))
    numbers = "|".join(map(str, _layer_numbers(layers, len(blocks))))
    suffixes = "|".join(re.escape(known[t]) for t in targets)
    config = PeftLoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        # The whole path, not its end: in GPT-2 and BERT the last layers of feed-forward and attention share a name.
        # A block may lie one level deeper, inside a wrapper.
        target_modules=rf"{re.escape(where)}\.({numbers})\.(\w+\.)?({suffixes})",
        fan_in_fan_out=known is GPT2_TARGETS,  # its Conv1D stores the weight transposed
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    # PEFT's documented way to use a custom layer.
    config._register_custom_module({nn.Linear: AdaptedLinear, Conv1D: AdaptedLinear})
    others = vars(module).pop(_RECORD, {})  # PEFT warns if a record exists
    inject_adapter_in_model(config, module, adapter_name=name)
    vars(module)[_RECORD] = {**others, name: config}
    # In full precision on a half-precision base, too: an optimiser's steps are too small for less.
    for _, layer in _adapted(module):
        for kind in layer.adapter_layer_names:
            if name in getattr(layer, kind):
                getattr(layer, kind)[name].float()
    module.requires_grad_(requires_grad=False)
    set_adapter(module, name)
    if not module.training:
        module.eval()  # the new layers, too


def adapter_names(module: nn.Module) -> list[str]:
    """Names of a transformer's adapters, in the order they were added."""
    return list(vars(module).get(_RECORD, {}))


def active_adapter(module: nn.Module) -> str | None:
    """Name of the adapters that take part in the forward pass; None if none do."""
    names = {name for _, layer in _adapted(module) for name in layer.active_adapters}
    return names.pop() if names else None


def set_adapter(module: nn.Module, name: str | None) -> None:
    """Activate and unfreeze the adapters of one name, or none; all others are inactive and frozen.

    Parameters
    ----------
    module
        SE encoder or backbone.
    name
        One of :func:`adapter_names`, or None.

    Raises
    ------
    KeyError
        If no adapter has this name.
    ValueError
        If adapters are merged.
    """
    if name is not None:
        _check_known(module, name)
    _refuse_merged(module, "switch adapters")
    for _, layer in _adapted(module):
        layer.set_adapter([] if name is None else [name])


def delete_adapter(module: nn.Module, name: str) -> None:
    """Remove the adapters of one name; a layer without any adapter is replaced by the base layer.

    Raises
    ------
    KeyError
        If no adapter has this name.
    ValueError
        If adapters are merged, or these are the active ones while others exist.
    """
    _check_known(module, name)
    _refuse_merged(module, "delete adapters")
    others = [other for other in adapter_names(module) if other != name]
    if others and name == active_adapter(module):
        msg = f"The adapter {name!r} is the active one. Activate another first, set_adapter: {others}."
        raise ValueError(msg)
    for where, layer in _adapted(module):
        if set(layer.lora_A) == {name}:
            parent, _, attribute = where.rpartition(".")
            setattr(module.get_submodule(parent), attribute, layer.base_layer)
        elif name in layer.lora_A:
            layer.delete_adapter(name)
    del vars(module)[_RECORD][name]


def adapter_state(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Tensors of the adapters of one name, shared with the network.

    Their names do not contain that of the adapter, so that stored adapters can be loaded under another:
    ``transformer_encoder.layers.0.self_attn.q_proj.lora_A.weight``.

    Raises
    ------
    KeyError
        If no adapter has this name.
    """
    _check_known(module, name)
    return {
        f"{where}.{kind}.{part}": parameter.detach()
        for where, layer in _adapted(module)
        for kind in layer.adapter_layer_names
        if name in getattr(layer, kind)
        for part, parameter in getattr(layer, kind)[name].named_parameters()
    }


def load_adapter_state(module: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into adapters that were added with the same rank, targets and layers.

    Parameters
    ----------
    module
        SE encoder or backbone.
    name
        One of :func:`adapter_names`.
    state
        Tensors as :func:`adapter_state` returned them, from adapters of any name.

    Raises
    ------
    KeyError
        If no adapter has this name.
    ValueError
        If a tensor is missing, unexpected or of another shape (all are named), or adapters are merged. Nothing is
        copied.
    """
    own = adapter_state(module, name)
    _refuse_merged(module, "load adapters")
    problems = compare_tensors(own, state)
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors do not fit the adapter {name!r}, nothing was loaded:\n  {listed}\n"
            "Add it with the rank, the targets and the layers that they were trained with."
        )
        raise ValueError(msg)
    for key, tensor in own.items():
        tensor.copy_(state[key])


def merge(module: nn.Module) -> None:
    """Merge the active adapters with the weights of the base, for faster embedding.

    The tensors of the base and the state dict do not change; merged weights take additional memory. Until
    :func:`unmerge`, adapters cannot be trained, switched, added, deleted or loaded.

    Raises
    ------
    ValueError
        If no adapters are active, or a merged weight is not finite.
    """
    name = active_adapter(module)
    if name is None:
        msg = f"No active adapters to merge; existing ones: {adapter_names(module)}. Use set_adapter, or add_lora."
        raise ValueError(msg)
    if is_merged(module):
        return
    layers = {where: layer for where, layer in _adapted(module) if name in layer.lora_A}
    for layer in layers.values():
        layer.merge()
    broken = [where for where, layer in layers.items() if not layer.merged_weight.isfinite().all()]
    if broken:
        unmerge(module)
        msg = f"The adapter {name!r} gives weights that are not finite, in {', '.join(broken)}. Train or load it again."
        raise ValueError(msg)


def unmerge(module: nn.Module) -> None:
    """Undo :func:`merge`: compute with the weights of the base and the adapters again, both unchanged."""
    for _, layer in _adapted(module):
        layer.unmerge()


def is_merged(module: nn.Module) -> bool:
    """Whether adapters are merged."""
    return any(layer.merged for _, layer in _adapted(module))


def train_adapters_only(module: nn.Module) -> None:
    """Put a frozen module with adapters in ``eval``, except for the dropout of the active adapters.

    Raises
    ------
    ValueError
        If the adapters are merged.
    """
    _refuse_merged(module, "train")
    module.eval()
    for _, layer in _adapted(module):
        for name in layer.active_adapters:
            if name in layer.lora_dropout:
                layer.lora_dropout[name].train()
                # PEFT's DoRA skips the dropout if the layer itself is in ``eval``.
                layer.training = name in layer.lora_magnitude_vector


def split_adapters(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the tensors of the base, by their names without adapters, and those of all adapters.

    Merging does not change the tensors of the base.
    """
    base = {k.replace(".base_layer.", "."): v for k, v in state.items() if "lora_" not in k}
    return base, {k: v for k, v in state.items() if "lora_" in k}


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within this context the module computes what its frozen base computes, merged or not."""
    layers = [(layer, layer.disable_adapters) for _, layer in _adapted(module)]
    # PEFT freezes and unfreezes parameters when it switches; each gets its state back.
    trainable = [(p, p.requires_grad) for layer, _ in layers for p in layer.parameters()]
    for layer, _ in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer, was_off in layers:
            layer.enable_adapters(enabled=not was_off)
        for parameter, was in trainable:
            parameter.requires_grad = was


def _adapted(module: nn.Module) -> list[tuple[str, Any]]:
    """List the layers that carry adapters, by name."""
    return [(where, child) for where, child in module.named_modules() if isinstance(child, AdaptedLinear)]


def _architecture(module: nn.Module) -> tuple[str, dict[str, str]]:
    """Attribute of a transformer that holds its blocks, and the layers of a block that can carry an adapter."""
    for where, targets in _ARCHITECTURES.items():
        if hasattr(module, where.split(".")[0]):
            return where, targets
    msg = (
        f"{type(module).__name__} has no blocks under any of {list(_ARCHITECTURES)}. Give an SE encoder or a backbone."
    )
    raise TypeError(msg)


def _layer_numbers(layers: tuple[int, int | None] | None, depth: int) -> range:
    """Resolve a half-open range of layers, which must neither be empty nor reach beyond the network."""
    start, stop = (0, None) if layers is None else layers
    first = start + depth if start < 0 else start
    end = depth if stop is None else stop + depth if stop < 0 else stop
    if not 0 <= first < end <= depth:
        msg = (
            f"LoRA layers=({start}, {stop}) is not a range of this network's layers, which are numbered 0 to "
            f"{depth - 1}. Give the first and the one after the last, at most {depth}; negative numbers count from "
            f"the end, and None as the second means up to the end: ({-min(2, depth)}, None)."
        )
        raise ValueError(msg)
    return range(first, end)


def _check_name(module: nn.Module, name: str) -> None:
    if name in adapter_names(module):
        msg = f"An adapter {name!r} exists already. Choose another name, or delete it first, delete_adapter."
        raise ValueError(msg)
    check_adapter_name(name)


def check_adapter_name(name: str) -> None:
    """Raise a ValueError unless adapters can have this name: it becomes part of a file name, and a key of a module."""
    # An attribute of ModuleDict cannot be a key of it.
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict(), name):
        msg = f"{name!r} cannot be an adapter's name. Use letters, digits, '-' and '_', such as 'day14' or 'my_lora'."
        raise ValueError(msg)


def _check_known(module: nn.Module, name: str) -> None:
    if name not in adapter_names(module):
        msg = f"There is no adapter {name!r}. {did_you_mean(name, adapter_names(module))}"
        raise KeyError(msg)


def _refuse_merged(module: nn.Module, action: str) -> None:
    if is_merged(module):
        raise ValueError(while_merged(action))
