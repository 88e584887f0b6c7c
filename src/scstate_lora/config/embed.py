"""Options of embedding cells with a base model: the one list behind ``tl.embed``, ``tl.embed_file`` and ``embed``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from scstate_lora.config.options import Options

EXPRESSED = "expressed"


class ComputeOptions(Options):
    """How cells are run through a network. None of it changes the result by more than rounding."""

    batch_size: int | None = Field(default=None, ge=1)
    """Cells at a time; None: as many as suit the caches of a CPU or the free memory of a GPU."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:1` or `mps`; None: CUDA if available, else the CPU."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """`fp32`, `bf16` or `fp16`; None: `bf16` on CUDA, `fp32` elsewhere."""
    n_workers: int = Field(default=1, ge=1)
    """Threads that read and tokenise."""
    compile: bool = False
    """Compile the transformer by `torch.compile`: slow to start, worthwhile for many cells."""


class EmbedOptions(ComputeOptions):
    """How a base model reads cells, and how their embedding is computed."""

    layer: str | None = None
    """Layer of the expression; adata.X by default."""
    input_scale: Literal["counts", "log1p"] | None = None
    """`counts` or `log1p`; decided from the values by default."""
    gene_key: str | None = None
    """Column of adata.var with gene names; by default adata.var_names or the column with most of the base's genes."""
    n_tokens: int | Literal["expressed"] | None = None
    """Tokens per cell, the base's own number by default; `expressed`: that number, without unexpressed genes."""
    seed: int | None = None
    """Seed of ties and padding; the base's own by default."""
    arc_per_cell_scale: bool = False
    """Guess counts or log1p for each cell, as Arc's own tool does; for comparison only."""

    @field_validator("n_tokens", mode="before")
    @classmethod
    def _tokens(cls, n_tokens: Any) -> Any:
        if n_tokens is None or n_tokens == EXPRESSED:
            return n_tokens
        if isinstance(n_tokens, float) or not str(n_tokens).isdecimal() or int(n_tokens) < 2:
            msg = f"{n_tokens!r} must be a whole number, at least 2, or {EXPRESSED!r}."
            raise ValueError(msg)
        return int(n_tokens)
