"""Options of STTransition."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from scstate_lora.config.options import Options, check_heads


class STModelConfig(Options):
    """Sizes of STTransition. None is chosen from the data; `summary()` shows what and why."""

    hidden: int = Field(default=256, ge=8)
    """Width of encoders and backbone."""
    n_layers: int = Field(default=2, ge=1)
    """Layers of the backbone."""
    n_heads: int = Field(default=4, ge=1)
    """Attention heads of the backbone."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In encoders and backbone, while training."""
    cell_set_len: int | None = Field(default=None, ge=2)
    """Cells a set; None: the power of two below the median group, at most 64 on a CPU and 256 on a GPU."""
    shrinkage: float = Field(default=1.0, ge=0)
    """Multiplies the weight, estimated from the data, that holds cells near the mean shift; 0 for none."""
    n_genes: int | None = Field(default=2000, ge=1)
    """At most this many genes, the most variable ones; None for all."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        check_heads("hidden", self.hidden, self.n_heads)
        return self
