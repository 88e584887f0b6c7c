"""Options of STTransition."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scstate_lora.config.options import Options, check_heads


class STModelConfig(Options):
    """Sizes and form of STTransition. `summary()` shows the choices made from the data, and why."""

    space: Literal["genes", "embedding"] = "genes"
    """Representation of the cells: log1p expression, or the registered embedding (`embed_key`)."""
    backbone: Literal["gpt2", "llama", "bert"] = "gpt2"
    """Architecture of the transformer over the set."""
    hidden: int = Field(default=256, ge=8)
    """Width of encoders and backbone."""
    n_layers: int = Field(default=2, ge=1)
    """Layers of the backbone."""
    n_heads: int = Field(default=4, ge=1)
    """Attention heads of the backbone."""
    n_encoder_layers: int = Field(default=2, ge=1)
    """Linear layers of the encoders of cells and perturbations."""
    n_decoder_layers: int = Field(default=2, ge=1)
    """Linear layers of the head."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in encoders and head, while training."""
    residual: Literal["output", "latent"] = "output"
    """`output`: predict the change of the control cell; `latent`: predict the perturbed cell itself, as Arc's
    models."""
    prior: Literal["context", "mean"] = "context"
    """Start of a prediction: the mean shift; with `context`, corrected by the shifts in similar contexts."""
    gene_decoder: bool = True
    """Decode expression from a predicted embedding."""
    confidence_token: bool = False
    """Learn to predict the loss of a set."""
    batch_token: bool = False
    """Learn to predict the batch of a set from a token beside the cells; needs a `batch_key`."""
    cell_set_len: int | None = Field(default=None, ge=2)
    """Cells per set; None: the power of two below the median group, at most 64 on a CPU and 256 on a GPU."""
    n_genes: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"
    """Genes to predict. `auto`: all, if memory allows; cells deviate from the shift in those that vary or respond most.
    A number: only so many, the most variable ones. None: all, each read by the network, at several times the cost."""
    genes: list[str] | None = None
    """Genes that are predicted and read by the network in any case."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        check_heads("hidden", self.hidden, self.n_heads)
        return self


class STObjectiveConfig(Options):
    """Weights of the loss terms of STTransition; 0 switches a term off."""

    energy: float = Field(default=1.0, ge=0)
    """Energy distance between predicted and measured cells, unbiased."""
    sinkhorn: float = Field(default=0.0, ge=0)
    """Sinkhorn divergence with blur 0.05, in units of the cells' spread."""
    mmd: float = Field(default=0.0, ge=0)
    """Squared maximum mean discrepancy with Gaussian kernels."""
    mse: float = Field(default=0.0, ge=0)
    """Squared distance of the means."""
    shrinkage: float = Field(default=1.0, ge=0)
    """Factor on the weight, estimated from the data, that keeps cells near the shift of their context."""
    l1: float = Field(default=0.0, ge=0)
    """Mean absolute change of a cell."""
    decoder: float = Field(default=1.0, ge=0)
    """Squared error of the expression decoded from the embedding of measured cells; only with a gene decoder."""
    confidence: float = Field(default=0.01, ge=0)
    """Squared error of the predicted loss; only with a confidence token."""
    batch: float = Field(default=0.1, ge=0)
    """Cross-entropy of the batch; only with a batch token."""
    velocity_key: str | None = None
    """RNA velocity of the control cells: a layer, or a key of obsm where cells are an embedding. None: none."""
    velocity: float = Field(default=0.1, ge=0)
    """Disagreement of a cell's change with its RNA velocity; only with a `velocity_key`."""
    velocity_beta: float = Field(default=1.0, ge=0)
    """Weight of the lengths relative to the direction in that term."""
    velocity_kind: Literal["direction", "l2"] = "direction"
    """Direction and length, or the plain squared difference."""
    velocity_min_confidence: float = Field(default=0.0, ge=0)
    """Cells whose velocity has a lower confidence are dropped."""
    velocity_warmup_steps: int = Field(default=1000, ge=0)
    """Steps over which the weight of the velocity rises, at most half of the training."""
    velocity_regularization: float = Field(default=0.0, ge=0)
    """Penalty on the change of cells without a confident velocity; only with a `velocity_key`."""

    @model_validator(mode="after")
    def _any_distance(self) -> Self:
        if not any(getattr(self, name) for name in _DISTANCES):
            msg = f"{', '.join(_DISTANCES[:-1])} and {_DISTANCES[-1]} are all 0: nothing compares the cells."
            raise ValueError(msg)
        return self


_DISTANCES = ("energy", "sinkhorn", "mmd", "mse")
