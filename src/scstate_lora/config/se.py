"""Options of LoRACovariateSE: the compact base and the loss terms."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from scstate_lora.config.options import Options, check_heads


class CompactBaseConfig(Options):
    """The compact SE base that is trained on the user's own cells if no pretrained base is given."""

    token_dim: int = Field(default=64, ge=2)
    """Components of the SVD that makes the gene tokens; fewer if the data has fewer."""
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
    n_tokens: int | None = Field(default=None, ge=2)
    """Length of a cell's sentence, including CLS. None: the number that 19 of 20 training cells can fill with expressed
    genes, at most 257; sentences padded with unexpressed genes make a worse embedding."""
    n_steps: int = Field(default=300, ge=1)
    """Optimiser steps of the self-supervised training."""
    batch_size: int = Field(default=32, ge=2)
    """Cells per step."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    n_targets: int = Field(default=8, ge=1)
    """Genes per step that the expression head predicts."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        check_heads("d_model", self.d_model, self.n_heads)
        return self


class ConditioningConfig(Options):
    """How covariates enter the embedding. Each covariate's own sizes belong to its declaration."""

    combine: Literal["concat_mlp", "add"] = "concat_mlp"
    """Combine the covariates' vectors by an MLP, which learns interactions, or by their sum."""
    hidden_dims: tuple[int, ...] = (1024, 512)
    """Hidden widths of that MLP."""
    withheld: float = Field(default=0.1, ge=0, lt=1)
    """Share of a cell's covariates that are replaced by "unknown" in training, each independently."""
    n_steps: int = Field(default=600, ge=0)
    """Steps that train the conditioning alone, on base embeddings computed once, before the adapters join."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if any(width < 1 for width in self.hidden_dims):
            msg = f"hidden_dims={self.hidden_dims} must be at least 1 each."
            raise ValueError(msg)
        return self


class SEObjectiveConfig(Options):
    """Weights of the loss terms of LoRACovariateSE; 0 switches a term off."""

    reconstruction: float = Field(default=1.0, ge=0)
    """Reconstruction of the expression from the conditioned embedding by the frozen expression head."""
    contrastive: float = Field(default=0.3, ge=0)
    """Contrastive loss: cells of one label together, others apart."""
    covariates: float = Field(default=0.05, ge=0)
    """Covariates predicted from the conditioned embedding by linear heads."""
    preservation: float = Field(default=1.0, ge=0)
    """1 - cosine between the conditioned and the base embedding."""
    counterfactual: float = Field(default=2.0, ge=0)
    """Match of cells moved to another combination of covariates with the cells of their type measured there."""
    batch: float = Field(default=0.3, ge=0)
    """Mixing of the batches among cells of one type and condition; only with a batch_key."""
    contrastive_loss: Literal["supcon", "infonce", "ntxent"] = "supcon"
    """Which contrastive loss."""
    contrastive_on: Literal["auto", "cell_type", "covariates"] = "auto"
    """Its labels; `auto`: the cell type if known, else the combination of categorical covariates."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the contrastive loss."""
    n_targets: int = Field(default=8, ge=1)
    """Genes per step that are reconstructed."""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every term."""
        return {name: getattr(self, name) for name in _TERMS}

    @model_validator(mode="after")
    def _any_term(self) -> Self:
        if not any(self.weights.values()):
            msg = f"{', '.join(_TERMS[:-1])} and {_TERMS[-1]} are all 0: nothing is left to train on."
            raise ValueError(msg)
        return self


_TERMS = ("reconstruction", "contrastive", "covariates", "preservation", "counterfactual", "batch")
