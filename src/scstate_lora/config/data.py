"""Options of the data: what its columns mean."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from scstate_lora.config.options import Options

Activation = Literal["silu", "relu", "gelu", "tanh"]


class ContinuousEncoderConfig(Options):
    """MLP 1 -> hidden -> out of a continuous covariate."""

    hidden_dim: int = Field(default=128, ge=1)
    """Width of the hidden layer."""
    output_dim: int | None = Field(default=None, ge=1)
    """Width of the covariate's vector, as `embed_dim` of the covariate; 256 by default."""
    activation: Activation = "silu"
    """Activation of the hidden layer."""


class CovariateConfig(Options):
    """One covariate: what it is and how it is encoded."""

    name: str
    """Column of adata.obs."""
    type: Literal["categorical", "continuous"] | None = None
    """Its kind; by default continuous for numbers with more than 8 different values, categorical otherwise."""
    num_categories: int | None = Field(default=None, ge=2)
    """How many categories the data must hold; not checked by default."""
    embed_dim: int | None = Field(default=None, ge=1)
    """Width of the covariate's own vector in LoRACovariateSE; 256 by default."""
    allow_missing: bool = False
    """Take missing values as unknown, in place of an error."""
    continuous_encoder: ContinuousEncoderConfig | None = None
    """Encoder of a continuous covariate."""

    @model_validator(mode="after")
    def _agreement(self) -> Self:
        if self.type == "categorical" and self.continuous_encoder is not None:
            msg = f"{self.name!r} is declared categorical and has a continuous_encoder. Leave one of them out."
            raise ValueError(msg)
        if self.type == "continuous" and self.num_categories is not None:
            msg = f"{self.name!r} is declared continuous and has num_categories. Leave one of them out."
            raise ValueError(msg)
        output_dim = self.encoder.output_dim
        if None not in (self.embed_dim, output_dim) and self.embed_dim != output_dim:
            msg = (
                f"{self.name!r} has embed_dim={self.embed_dim} and continuous_encoder.output_dim={output_dim}, which "
                "mean the same. Give one of them."
            )
            raise ValueError(msg)
        return self

    @property
    def encoder(self) -> ContinuousEncoderConfig:
        """Options of the continuous encoder, given or default."""
        return self.continuous_encoder or ContinuousEncoderConfig()

    @property
    def width(self) -> int:
        """Width of the covariate's own vector."""
        return self.embed_dim or self.encoder.output_dim or 256


class DataConfig(Options):
    """What the columns of the data mean; as the arguments of `setup_anndata`."""

    covariate_keys: list[str] | dict[str, Literal["categorical", "continuous"] | None]
    """Covariates; with a kind where it is not to be decided from the values."""
    pert_key: str | None = None
    """Column of the perturbation."""
    control: str | None = None
    """Its unperturbed level."""
    cell_type_key: str | None = None
    """Column of the cell type."""
    batch_key: str | None = None
    """Column of the batch."""
    context_keys: list[str] | None = None
    """Columns within which perturbed cells are compared to controls."""
    layer: str | None = None
    """Layer of the expression; adata.X by default."""
    input_scale: Literal["counts", "log1p"] | None = None
    """What the expression is; decided from the values by default."""
    gene_key: str | None = None
    """Column of adata.var with gene names."""
    modality: str | None = None
    """Modality of a MuData."""
    holdout: list[dict[str, str]] | None = None
    """Conditions that no model may see in training."""
    split_key: str | None = None
    """Column with train, val and test."""
    test_size: float = Field(default=0.2, ge=0, lt=1)
    """Share of the cells held out at random."""
    val_size: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rest that validates."""
