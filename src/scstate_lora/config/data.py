"""Options of the data: what its columns mean, and how the cells are split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from scstate_lora._utils import did_you_mean
from scstate_lora.config.options import Options

Activation = Literal["silu", "relu", "gelu", "tanh"]


class ContinuousEncoderConfig(Options):
    """MLP 1 -> hidden -> out of a continuous covariate."""

    hidden_dim: int = Field(default=128, ge=1)
    """Width of the hidden layer."""
    output_dim: int | None = Field(default=None, ge=1)
    """Width of the covariate's vector, the same as its `embed_dim`; 256 by default."""
    activation: Activation = "silu"
    """Activation of the hidden layer."""


class CovariateConfig(Options):
    """One covariate: what it is and how it is encoded."""

    name: str
    """Column of adata.obs."""
    type: Literal["categorical", "continuous"] | None = None
    """Its kind; by default continuous for numbers with more than 8 different values, categorical otherwise."""
    num_categories: int | None = Field(default=None, ge=2)
    """Number of categories the data must hold; not checked by default."""
    embed_dim: int | None = Field(default=None, ge=1)
    """Width of the covariate's own vector in LoRACovariateSE; 256 by default."""
    allow_missing: bool = False
    """Treat missing values as unknown instead of refusing them."""
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


def declared_covariates(covariate_keys: Any) -> dict[str, CovariateConfig]:
    """Bring the accepted forms of ``covariate_keys`` to one: options by key, in order.

    Parameters
    ----------
    covariate_keys
        A key; a list of keys; a mapping from key to ``"categorical"``, ``"continuous"``, None or options; or a list of
        options with a ``name``. Options are a dict or a :class:`CovariateConfig`.

    Raises
    ------
    TypeError
        If it is of another type.
    ValueError
        If a key is named twice, a kind or an option is unknown, or options contradict each other.
    """
    if isinstance(covariate_keys, Mapping):
        return {key: _declared(key, value) for key, value in covariate_keys.items()}
    if isinstance(covariate_keys, (str, CovariateConfig)):
        covariate_keys = [covariate_keys]
    if not isinstance(covariate_keys, Iterable):
        kind = type(covariate_keys).__name__
        msg = f"covariate_keys must be a list of keys or a mapping key -> kind, found {kind}."
        raise TypeError(msg)
    declared: dict[str, CovariateConfig] = {}
    for i, item in enumerate(covariate_keys):
        if isinstance(item, str):
            options = CovariateConfig(name=str(item))
        elif isinstance(item, (Mapping, CovariateConfig)):
            options = CovariateConfig.parse(_as_dict(item), name=f"covariate_keys[{i}]")
        else:
            msg = f"covariate_keys holds {item!r} ({type(item).__name__}); each must be a column name of adata.obs."
            raise TypeError(msg)
        if options.name in declared:
            msg = f"covariate_keys names {options.name!r} more than once. Name it once."
            raise ValueError(msg)
        declared[options.name] = options
    return declared


def _declared(key: Any, value: Any) -> CovariateConfig:
    """Options of one covariate of the mapping form."""
    label = f"covariate_keys[{key!r}]"
    if not isinstance(key, str):
        msg = f"A key of adata.obs must be a string, found {key!r} ({type(key).__name__})."
        raise TypeError(msg)
    if value is None:
        return CovariateConfig(name=key)
    if isinstance(value, str):
        if value not in ("categorical", "continuous"):
            msg = f"{label}={value!r} is unknown. {did_you_mean(value, ['categorical', 'continuous'])}"
            if key == "name":
                msg += f" Options of a covariate go in a list: covariate_keys=[{{'name': {value!r}, ...}}]."
            raise ValueError(msg)
        return CovariateConfig.parse({"name": key, "type": value}, name=label)
    if not isinstance(value, (Mapping, CovariateConfig)):
        msg = f"{label} must be 'categorical', 'continuous', None or options, found {type(value).__name__}."
        raise TypeError(msg)
    options = CovariateConfig.parse({"name": key, **_as_dict(value)}, name=label)
    if options.name != key:
        msg = f"{label} has the name {options.name!r}. Leave the name out, or make both the same."
        raise ValueError(msg)
    return options


def _as_dict(options: Mapping[str, Any] | CovariateConfig) -> dict[str, Any]:
    return options.model_dump() if isinstance(options, CovariateConfig) else dict(options)


def _check_covariates(value: Any) -> Any:
    """Keep short forms, and bring anything with options to a list of them; with messages of our own."""
    try:
        declared = declared_covariates(value)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if isinstance(value, str):
        return value
    with_options = any(isinstance(v, Mapping) for v in (value.values() if isinstance(value, Mapping) else value))
    return list(declared.values()) if with_options else value


def check_level(value: Any) -> Any:
    """Return a level as plain text, number or bool; a ValueError for anything else, missing values included."""
    value = value.item() if isinstance(value, np.generic) else value
    value = value.decode() if isinstance(value, bytes) else value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        msg = (
            f"names a missing value ({value}), and missing values match nothing. Give these cells a value of their "
            "own, such as 'unknown', and name that."
        )
        raise ValueError(msg)
    if not isinstance(value, (str, int, float)):
        msg = (
            f"must be text, a number, true or false, found {value!r}. Put quotes around text that YAML reads otherwise."
        )
        raise ValueError(msg)
    return value


def _check_conditions(value: Any) -> Any:
    """One condition or several, each a mapping from a column to a level or to several of them."""
    conditions = [value] if isinstance(value, Mapping) else value
    if not isinstance(conditions, (list, tuple)) or not all(isinstance(c, Mapping) and c for c in conditions):
        msg = f"must be mappings from a column to a value, such as [{{cell_type: B cells}}], found {value!r}."
        raise ValueError(msg)
    return [{key: _check_levels(key, levels) for key, levels in condition.items()} for condition in conditions]


def _check_levels(key: Any, levels: Any) -> Any:
    try:
        if (
            not isinstance(levels, Iterable)
            or isinstance(levels, (str, bytes, Mapping))
            or getattr(levels, "ndim", 1) == 0
        ):
            return check_level(levels)
        checked = [check_level(v) for v in levels]
        return sorted(checked, key=str) if isinstance(levels, (set, frozenset)) else checked
    except ValueError as error:
        msg = f"{key} {error}"
        raise ValueError(msg) from error


Level = str | int | float | bool
"""One level of a column; 10 and 10.0 both name the level "10"."""


class DataConfig(Options):
    """What the columns of the data mean and how the cells are split: the arguments of `setup_anndata`."""

    covariate_keys: Annotated[
        str | list[str | CovariateConfig] | dict[str, Literal["categorical", "continuous"] | None],
        BeforeValidator(_check_covariates),
    ] = Field(default_factory=list)
    """Covariates: columns, a mapping to their kinds, or a list of options; may also be written as `covariates`."""
    pert_key: str | None = None
    """Column of the perturbation."""
    control: Annotated[Level, BeforeValidator(check_level)] | None = None
    """Its unperturbed level."""
    cell_type_key: str | None = None
    """Column of the cell type."""
    batch_key: str | None = None
    """Column of the batch."""
    context_keys: (
        Annotated[list[str], BeforeValidator(lambda keys: [keys] if isinstance(keys, str) else list(keys))] | None
    ) = None
    """Columns within which perturbed cells are compared to controls."""
    layer: str | None = None
    """Layer of the expression; adata.X by default."""
    input_scale: Literal["counts", "log1p"] | None = None
    """`counts` or `log1p`: the scale of the expression; decided from the values by default."""
    target_sum: float | None = Field(default=None, gt=0)
    """Sum to which the counts of each cell are normalised before log1p; 10,000 by default, and that of the data if they
    are log1p values already."""
    gene_key: str | None = None
    """Column of adata.var with gene names; adata.var_names by default."""
    embed_key: str | None = None
    """Embedding in adata.obsm to work from, in place of a base model."""
    modality: str | None = None
    """Modality of a MuData."""
    holdout: Annotated[list[dict[str, Level | list[Level]]], BeforeValidator(_check_conditions)] | None = None
    """Conditions whose cells no model may see in training: mappings from a column to a value, or to several."""
    split_key: str | None = None
    """Column with `train`, `val` and `test`."""
    split: (
        Annotated[
            str | dict[str, Any] | SerializeAsAny[Options],
            BeforeValidator(lambda split: os.fspath(split) if isinstance(split, os.PathLike) else split),
        ]
        | None
    ) = None
    """Split file in TOML, of the cell types and perturbations held out: a path, relative to the
    working directory, or its sections."""
    split_dataset: str | None = None
    """Dataset of the split file that the cells belong to; required if it splits several."""
    zeroshot_controls: Literal["held_out", "train"] = "held_out"
    """`train`: control cells of contexts that are held out as a whole train; otherwise they are held out, too."""
    test_size: float = Field(default=0.2, ge=0, lt=1)
    """Share of the cells held out at random, unless other options name them."""
    val_size: float = Field(default=0.1, ge=0, lt=1)
    """Share of the remaining cells that validate; ignored if the split file defines validation cells."""

    @property
    def columns(self) -> list[str]:
        """Columns of ``adata.obs`` that the options name, each once, but for the covariates."""
        keys = [self.pert_key, self.cell_type_key, self.batch_key, self.split_key, *(self.context_keys or ())]
        keys += [key for condition in self.holdout or () for key in condition]
        return [key for key in dict.fromkeys(keys) if key is not None]

    @model_validator(mode="before")
    @classmethod
    def _covariates(cls, options: Any) -> Any:
        if not isinstance(options, dict) or "covariates" not in options:
            return options
        if "covariate_keys" in options:
            msg = "covariates and covariate_keys are two names of one option. Give one of them."
            raise ValueError(msg)
        return {"covariate_keys" if key == "covariates" else key: value for key, value in options.items()}

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        sources = [name for name in ("holdout", "split_key", "split") if getattr(self, name) is not None]
        if len(sources) > 1:
            msg = f"{' and '.join(f'{name}=' for name in sources)} both say which cells are held out. Give one of them."
            raise ValueError(msg)
        if self.zeroshot_controls == "train" and self.holdout is None and self.split is None:
            msg = (
                "zeroshot_controls='train' is about contexts that are held out as a whole, by holdout= or split=. "
                "Neither is given: leave it out."
            )
            raise ValueError(msg)
        if self.split_dataset is not None and self.split is None:
            msg = f"split_dataset={self.split_dataset!r} is one of the datasets of a split file. Give the file: split=."
            raise ValueError(msg)
        return self
