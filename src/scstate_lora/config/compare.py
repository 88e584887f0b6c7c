"""Options of a comparison: the variants of STTransition, and what counts as a success."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from scstate_lora.config.load import read_yaml, with_overrides
from scstate_lora.config.mhc import MHCConfig
from scstate_lora.config.options import Options
from scstate_lora.config.run import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class VariantConfig(Options):
    """One variant of STTransition; unset options are those shared by all variants."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Sizes and form: options of STModelConfig."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Loss terms: options of STObjectiveConfig."""
    pretrained: str | Literal[False] | None = None
    """Folder or hub id of a published ST model; null: as for all variants, false: none."""
    reuse: Literal["all", "backbone"] | None = None
    """Which part of it is used; null: as for all variants."""
    finetune: Literal["lora", "full", "frozen"] | None = None
    """How the backbone trains; null: adapters on a pretrained one, all of a new one."""
    lora: dict[str, Any] = Field(default_factory=dict)
    """Adapters: options of STLoraConfig."""
    mhc: MHCConfig | bool = False
    """Hyper-connections around the backbone's layers: true for the defaults, or their options."""
    train: dict[str, Any] | Literal[False] = Field(default_factory=dict)
    """Arguments of `train()`; false scores the model untrained, as it is."""


class Thresholds(Options):
    """What counts as a success."""

    validation_improvement: float = 0.2
    """Least relative decrease of the validation loss, from the first epoch to the best one."""
    loss_variance: float = 0.1
    """Upper limit of the variance of the training loss over the last 10 % of the steps."""
    gradient_spikes: float = 5.0
    """Upper limit of the gradient spikes per epoch."""
    pearson_delta: float = 0.5
    """Pearson correlation of the change above which it passes."""
    pearson_delta_strong: float = 0.65
    """Above this it is strong."""
    pearson_delta_excellent: float = 0.75
    """Above this it is excellent."""
    cell_type_score: float = 0.7
    """Least Pearson correlation of the change in every cell type."""
    nearest_distance: float = 0.2
    """Difference from 1 of the distance from a predicted to the nearest measured cell, relative to that from a measured
    cell to the nearest other one, below which it passes."""
    nearest_distance_strong: float = 0.1
    """Below this it is strong."""
    day_order: float = 1.0
    """Least share of the pairs of days that are predicted in their order."""
    markers_up: float = 1.0
    """Least share of the known markers that are predicted to rise."""


class CompareConfig(Options):
    """What is compared with what."""

    variants: dict[str, VariantConfig | None] | list[str] | None = None
    """Further variants by name beside the usual ones, null leaving one out; or the names to compare; null: all."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds; every variant is trained once with each."""
    target: str | list[str] | None = None
    """Perturbations to score; null: all that have test cells."""
    context_key: str | list[str] | None = None
    """Columns whose combinations are scored separately; null: the cell type."""
    time_key: str | None = None
    """Column of the time, whose order predictions should preserve."""
    markers: dict[str, list[str]] | list[str] | None = None
    """Genes known to rise, by perturbation or for all."""
    thresholds: Thresholds = Thresholds()
    """What counts as a success."""
    min_cells: int = Field(default=10, ge=1)
    """Fewest control cells, and fewest measured cells, of a context that counts in averages."""
    weights: Literal["equal", "cells"] = "equal"
    """Whether contexts weigh the same in averages, or as their number of measured cells."""

    @field_validator("variants", mode="before")
    @classmethod
    def _named(cls, variants: Any) -> Any:
        """Check each on its own, so that a message names it."""
        if not isinstance(variants, dict):
            return variants
        return {name: None if v is None else VariantConfig.parse(v, name=repr(name)) for name, v in variants.items()}


class CompareRunConfig(RunConfig):
    """A run that compares: the data and, under `st`, the options shared by all variants; `se` and `base` are unused."""

    compare: CompareConfig = CompareConfig()
    """What is compared with what."""


def load_compare(
    path: str | Path | None = None, *, arguments: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()
) -> CompareRunConfig:
    """Make the options of a comparison, as :func:`scstate_lora.config.load_run` makes those of a run.

    Parameters
    ----------
    path
        YAML file; None for none. A file for ``scstate-lora train`` serves, and may have a section ``compare``.
    arguments
        Top-level options that take precedence over those of the file.
    overrides
        ``section.key=value`` assignments.

    Raises
    ------
    FileNotFoundError
        If there is no such file; near names are suggested.
    ValueError
        If the file is not YAML, an option is unknown (near ones are suggested) or a value is not allowed.
    """
    loaded = {} if path is None else read_yaml(path)
    merged = with_overrides({"data": {}, **loaded, **(arguments or {})}, overrides)
    return CompareRunConfig.parse(merged, name="options" if path is None else str(path))
