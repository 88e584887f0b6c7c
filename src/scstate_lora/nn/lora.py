"""LoRA adapters on the SE encoder's attention, by PEFT, injected in place."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

# Linear layers an adapter may sit on, by what a user calls them.
SE_TARGETS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "linear1": "linear1",
    "linear2": "linear2",
}


def add_lora(module: nn.Module, *, r: int, alpha: int, dropout: float, targets: tuple[str, ...]) -> None:
    """Put LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on an SE encoder and freeze everything else in it.

    ``W = W0 + (alpha / r) B A`` with B zero at first, so nothing changes until training.

    Parameters
    ----------
    module
        SE encoder, changed in place.
    r, alpha, dropout
        Rank, scale, and dropout before the adapter.
    targets
        Some of ``q``, ``k``, ``v``, ``out``, ``linear1``, ``linear2``.

    Raises
    ------
    ValueError
        If a target is none of these, or none is given.
    """
    unknown = [t for t in targets if t not in SE_TARGETS]
    if unknown or not targets:
        msg = f"LoRA targets {list(targets)}: {unknown or 'none given'}. Give at least one of {list(SE_TARGETS)}."
        raise ValueError(msg)
    suffixes = "|".join(SE_TARGETS[t].replace(".", r"\.") for t in targets)
    config = PeftLoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"transformer_encoder\.layers\.\d+\.({suffixes})",
    )
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = "lora_" in name


def train_adapters_only(module: nn.Module) -> None:
    """Put a frozen module with adapters in ``eval`` but for the adapters' dropout."""
    module.eval()
    for name, child in module.named_modules():
        if "lora_dropout" in name:
            child.train()


def split_adapters(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate a state dict into the base's tensors, under their names without adapters, and the adapters' tensors."""
    base = {k.replace(".base_layer.", "."): v for k, v in state.items() if "lora_" not in k}
    return base, {k: v for k, v in state.items() if "lora_" in k}


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Within this context the module computes what its frozen base does."""
    layers = [child for child in module.modules() if isinstance(child, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
