"""Options of manifold-constrained hyper-connections (mHC)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scstate_lora.config.options import Options


class MHCConfig(Options):
    """Hyper-connections around the layers of a transformer (arXiv:2512.24880)."""

    kind: Literal["streams", "features"] = "streams"
    """`streams` mixes parallel residual streams, as in the paper; `features` mixes the features of one stream."""
    n_streams: int = Field(default=4, ge=2)
    """Residual streams; of `streams` only."""
    sinkhorn_iters: int = Field(default=10, ge=1)
    """Rounds of normalising rows and columns."""
    layer_indices: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Layers to wrap; negative ones count from the end. None: all."""
    dynamic: bool = False
    """Let the mixing depend on the input."""
