"""Choice of device and precision; absent devices are refused before any work begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from scstate_lora.config import ComputeOptions

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """Choose a device by its PyTorch name, such as ``cuda:1``; None selects CUDA if available, else the CPU.

    Raises
    ------
    ValueError
        If the device is unknown or absent.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        msg = f"device={name!r} is unknown. Use 'cpu', 'cuda', 'cuda:1' or 'mps'."
        raise ValueError(msg)
    n = _count(kind)
    if int(number or 0) >= n:
        msg = f"device={name!r}, but PyTorch sees {n or 'no'} {kind} device(s) here. Leave it out, or use 'cpu'."
        raise ValueError(msg)
    return torch.device(name)


def check_accelerator(accelerator: str) -> None:
    """Raise a ValueError if an accelerator, by its Lightning name, is absent; TPUs are left to Lightning."""
    kinds = {"gpu": ("cuda", "mps"), "cuda": ("cuda",), "mps": ("mps",)}.get(accelerator)
    if kinds is not None and not any(map(_count, kinds)):
        msg = f"accelerator={accelerator!r}, but PyTorch sees no such device here. Use accelerator='auto' or 'cpu'."
        raise ValueError(msg)


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"cpu": 1, "mps": int(torch.backends.mps.is_available())}[kind]


def choose_precision(options: ComputeOptions, device: torch.device) -> str:
    """Choose the precision for a device."""
    return options.precision or ("bf16" if device.type == "cuda" else "fp32")


def autocast(options: ComputeOptions, device: torch.device) -> torch.autocast:
    """Make the autocast context for the chosen precision."""
    precision = choose_precision(options, device)
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")
