"""Options of LoRA adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scstate_lora.config.options import Options


class LoraConfig(Options):
    """LoRA adapters on the SE encoder."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """Scale: W = W0 + (alpha / r) B A."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the adapter, while training."""
    targets: tuple[Literal["q", "k", "v", "out", "linear1", "linear2"], ...] = Field(default=("q", "v"), min_length=1)
    """Which linear layers carry an adapter."""
