"""Options of the models, with their defaults and what they mean."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scstate_lora._utils import did_you_mean


class Options(BaseModel):
    """Frozen, validated options."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

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
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ValueError(f"{name}: {cls._explain(error)}") from error

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        """Say what is wrong first, with near names for an unknown key."""
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # a check of ours says it all
            return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        *parents, last = first["loc"]
        if first["type"] == "extra_forbidden":
            return f"there is no option {key!r}. {did_you_mean(str(last), cls._options_at(parents))}"
        if first["type"] == "missing":
            return f"the option {key!r} is missing."
        return f"{key}={first['input']!r} is not allowed: {first['msg']}."

    @classmethod
    def _options_at(cls, path: list[Any]) -> list[str]:
        """Names of the options of a nested section."""
        section: Any = cls
        for part in path:
            section = section.model_fields[part].annotation
        return list(section.model_fields)


def _check_heads(name: str, width: int, n_heads: int) -> None:
    if width % n_heads:
        msg = f"{name}={width} is not divisible by n_heads={n_heads}."
        raise ValueError(msg)


class LoraConfig(Options):
    """LoRA adapters on the SE encoder."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """Scale: W = W0 + (alpha / r) B A."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the adapter, while training."""
    targets: tuple[Literal["q", "k", "v", "out", "linear1", "linear2"], ...] = Field(default=("q", "v"), min_length=1)
    """Which linear layers carry an adapter."""


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
        _check_heads("d_model", self.d_model, self.n_heads)
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
        _check_heads("hidden", self.hidden, self.n_heads)
        return self


class TrainConfig(Options):
    """How long and how fast one model is trained. None takes the model's own default."""

    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    batch_size: int | None = Field(default=None, ge=1)
    """Cells (LoRACovariateSE) or sets (STTransition) a step."""


class SERunConfig(Options):
    """LoRACovariateSE within a run."""

    lora: LoraConfig = LoraConfig()
    """Adapters."""
    compact: CompactBaseConfig = CompactBaseConfig()
    """Compact base."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Loss terms."""
    train: TrainConfig = TrainConfig()
    """Training."""


class STRunConfig(Options):
    """STTransition within a run."""

    model: STModelConfig = STModelConfig()
    """Sizes."""
    train: TrainConfig = TrainConfig()
    """Training."""


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


class RunConfig(Options):
    """A whole run: data, both models, the device, the seed."""

    data: DataConfig
    """Columns."""
    se: SERunConfig = SERunConfig()
    """Embedding model."""
    st: STRunConfig = STRunConfig()
    """Perturbation model."""
    base: str | None = None
    """Directory of a saved LoRACovariateSE whose base is taken; None trains a compact one."""
    accelerator: str = "auto"
    """Device, as in Lightning."""
    precision: str | None = None
    """Precision, as in Lightning."""
    early_stopping: bool = False
    """Stop when the validation loss no longer falls."""
    seed: int = 0
    """Seed of everything random."""
