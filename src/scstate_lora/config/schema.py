"""Options of the models, with their defaults and what they mean."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scstate_lora._utils import did_you_mean


class Options(BaseModel):
    """Frozen, validated options."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls, options: Any, *, name: str) -> Self:
        """Make options from a mapping, from options, or from None for the defaults.

        Parameters
        ----------
        options
            A mapping, an instance, or None.
        name
            What the user calls them, for messages.

        Raises
        ------
        TypeError
            Something else was given.
        ValueError
            A key is unknown (near ones are suggested) or a value is not allowed.
        """
        if isinstance(options, cls):
            return options
        if options is None:
            return cls()
        if not isinstance(options, dict):
            msg = f"{name} must be a dict or {cls.__name__}, found {type(options).__name__}."
            raise TypeError(msg)
        unknown = [key for key in options if key not in cls.model_fields]
        if unknown:
            msg = f"{name} has no option {unknown[0]!r}. {did_you_mean(str(unknown[0]), cls.model_fields)}"
            raise ValueError(msg)
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            msg = f"{name}: {key}={first['input']!r} is not allowed: {first['msg']}."
            raise ValueError(msg) from error


class LoraConfig(Options):
    """LoRA adapters on the SE encoder."""

    r: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale: W = W0 + (alpha / r) B A."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the adapter, while training."""
    targets: tuple[Literal["q", "k", "v", "out", "linear1", "linear2"], ...] = Field(("q", "v"), min_length=1)
    """Which linear layers carry an adapter."""


class CompactBaseConfig(Options):
    """The compact SE base that is trained on the user's own cells when no pretrained base is given."""

    token_dim: int = Field(64, ge=2)
    """Components of the SVD that makes the gene tokens; fewer when the data has fewer."""
    d_model: int = Field(128, ge=8)
    """Width of the transformer."""
    n_layers: int = Field(2, ge=1)
    """Layers of the transformer."""
    n_heads: int = Field(4, ge=1)
    """Attention heads."""
    d_hid: int = Field(256, ge=8)
    """Width of the feed-forward."""
    output_dim: int = Field(128, ge=2)
    """Width of the cell embedding."""
    n_tokens: int = Field(129, ge=2)
    """Length of a cell's sentence, CLS included; at most one more than there are genes."""
    n_steps: int = Field(500, ge=1)
    """Optimiser steps of the self-supervised training."""
    batch_size: int = Field(64, ge=2)
    """Cells a step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    n_targets: int = Field(32, ge=1)
    """Genes a step that the expression head is asked for."""


class ObjectiveConfig(Options):
    """Weights of the loss terms of LoRACovariateSE; 0 switches a term off."""

    reconstruction: float = Field(1.0, ge=0)
    """Expression predicted from the conditioned embedding by the frozen expression head."""
    contrastive: float = Field(0.1, ge=0)
    """Supervised contrastive loss on the cell type, or on the categorical covariates where there is none."""
    preservation: float = Field(1.0, ge=0)
    """1 - cosine between the conditioned and the base embedding."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    n_targets: int = Field(64, ge=1)
    """Genes a step that are reconstructed."""


class STModelConfig(Options):
    """Sizes of STTransition. None is chosen from the data; `summary()` shows what and why."""

    hidden: int = Field(256, ge=8)
    """Width of encoders and backbone."""
    n_layers: int = Field(2, ge=1)
    """Layers of the backbone."""
    n_heads: int = Field(4, ge=1)
    """Attention heads of the backbone."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In encoders and backbone, while training."""
    cell_set_len: int | None = Field(None, ge=2)
    """Cells a set; None: the power of two below the median group, at most 64 on a CPU and 256 on a GPU."""
    n_genes: int | None = Field(2000, ge=1)
    """At most this many genes, the most variable ones; None for all."""
