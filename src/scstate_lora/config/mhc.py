"""Options of manifold-constrained hyper-connections (mHC)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from scstate_lora.config.options import Options


class MHCConfig(Options):
    """Hyper-connections around the layers of a transformer (arXiv:2512.24880)."""

    kind: Literal["streams", "features"] = "streams"
    """`streams` mixes parallel residual streams, as in the paper; `features` mixes the features of one stream."""
    n_streams: int = Field(default=4, ge=2)
    """Residual streams; for `streams` only."""
    sinkhorn_iters: int = Field(default=10, ge=1)
    """Rounds of normalising rows and columns."""
    layer_indices: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Layers to wrap; negative ones count from the end. None: all."""
    dynamic: bool = False
    """Let the mixing depend on the input."""

    @classmethod
    def requested(cls, mhc: Any) -> Self | None:
        """Make options of the argument of ``train(mhc=)``: True for defaults, a mapping, or options; None for False.

        Raises
        ------
        TypeError
            If it is anything else.
        ValueError
            If a key is unknown (near ones are suggested) or a value is not allowed.
        """
        if mhc is False or mhc is None:
            return None
        if mhc is True:
            return cls()
        if not isinstance(mhc, (dict, cls)):
            msg = f"mhc must be True, False, a dict or MHCConfig, found {type(mhc).__name__}."
            raise TypeError(msg)
        return cls.parse(mhc, name="mhc")
