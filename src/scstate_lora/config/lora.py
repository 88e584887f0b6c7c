"""Options of LoRA adapters: what both models share, and the layers of each."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from scstate_lora.config.options import Options


class LoraOptions(Options):
    """Options of LoRA adapters that hold for any transformer."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """Scale: W = W0 + (alpha / r) B A."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the adapter, while training."""
    layers: tuple[int, int | None] | None = None
    """Which layers of the network carry adapters: the first, and the one after the last, as in a slice: (8, 12);
    (-4, None) for the last four. None: all."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r, for high ranks."""
    use_dora: bool = False
    """Train the length of every row of a weight separately (DoRA); slower, with a few more parameters."""

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: tuple[int, int | None] | None) -> tuple[int, int | None] | None:
        first, end = layers or (0, None)
        if end is not None and (first < 0) == (end < 0) and first >= end:
            msg = f"({first}, {end}) is an empty range. Give the first layer and the one after the last."
            raise ValueError(msg)
        return layers


class SELoraConfig(LoraOptions):
    """LoRA adapters on the SE encoder."""

    _section: ClassVar[str | None] = "lora"

    targets: tuple[Literal["q", "k", "v", "out", "linear1", "linear2"], ...] = Field(default=("q", "v"), min_length=1)
    """Which linear layers carry an adapter."""


class STLoraConfig(LoraOptions):
    """LoRA adapters on the backbone of STTransition."""

    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the adapter, while training."""
    targets: tuple[Literal["q", "k", "v", "qkv", "out"], ...] | None = Field(default=None, min_length=1)
    """Which linear layers of the attention carry an adapter; `qkv` is GPT-2's fusion of the first three. None: all."""
