"""Options of LoRACovariateSE: the compact base and the loss terms."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from scstate_lora.config.options import Options, check_heads


class CompactBaseConfig(Options):
    """The compact SE base that is trained on the user's own cells when no pretrained base is given."""

    token_dim: int = Field(default=64, ge=2)
    """Components of the SVD that makes the gene tokens; fewer when the data has fewer."""
    d_model: int = Field(default=128, ge=8)
    """Width of the transformer."""
    n_layers: int = Field(default=2, ge=1)
    """Layers of the transformer."""
    n_heads: int = Field(default=4, ge=1)
    """Attention heads."""
    d_hid: int = Field(default=256, ge=8)
    """Width of the feed-forward."""
    output_dim: int = Field(default=128, ge=2)
    """Width of the cell embedding."""
    n_tokens: int = Field(default=129, ge=2)
    """Length of a cell's sentence, CLS included; at most one more than there are genes."""
    n_steps: int = Field(default=500, ge=1)
    """Optimiser steps of the self-supervised training."""
    batch_size: int = Field(default=64, ge=2)
    """Cells a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    n_targets: int = Field(default=32, ge=1)
    """Genes a step that the expression head is asked for."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        check_heads("d_model", self.d_model, self.n_heads)
        return self


class ObjectiveConfig(Options):
    """Weights of the loss terms of LoRACovariateSE; 0 switches a term off."""

    reconstruction: float = Field(default=1.0, ge=0)
    """Expression predicted from the conditioned embedding by the frozen expression head."""
    contrastive: float = Field(default=0.1, ge=0)
    """Supervised contrastive loss on the cell type, or on the categorical covariates where there is none."""
    preservation: float = Field(default=1.0, ge=0)
    """1 - cosine between the conditioned and the base embedding."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the contrastive loss."""
    n_targets: int = Field(default=64, ge=1)
    """Genes a step that are reconstructed."""

    @model_validator(mode="after")
    def _any_term(self) -> Self:
        if not (self.reconstruction or self.contrastive or self.preservation):
            msg = "reconstruction, contrastive and preservation are all 0: nothing is left to train on."
            raise ValueError(msg)
        return self
