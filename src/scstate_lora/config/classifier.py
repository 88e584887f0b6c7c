"""Options of CellTypeClassifier: labels of the data, its start and its head, and how it is trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypedDict

from pydantic import BeforeValidator, Field, model_validator

from scstate_lora.config.data import DataConfig, Level, check_level
from scstate_lora.config.options import Options, as_written_in_a_file
from scstate_lora.config.training import Accelerator, Precision, TrainerOptions

if TYPE_CHECKING:
    from lightning import Callback
    from lightning.pytorch.loggers import Logger

Strategy = Literal["gradual", "full", "frozen", "lora"]
"""What is trained of the encoder: all of it after its head, all of it at once, nothing, or LoRA adapters."""
ClassWeight = Literal["balanced", "root", "none"]


def _as_keys(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LabelledDataConfig(DataConfig):
    """What the columns of data with labels mean: the arguments of ``CellTypeClassifier.setup_anndata``."""

    _section: ClassVar[str | None] = "data"

    labels_key: Annotated[
        list[str] | dict[str, Literal["categorical", "continuous"] | None], BeforeValidator(_as_keys)
    ] = Field(min_length=1)
    """Column of the labels; a list of several to learn together, or a mapping to their kinds. Numbers with more than 8
    different values are continuous by default and get a regression head."""
    unlabeled_category: Annotated[Level, BeforeValidator(check_level)] | None = None
    """Label that means "not labelled"; missing values mean the same."""
    label_tree: Annotated[
        str | list[str] | dict[str, Any] | None,
        BeforeValidator(lambda tree: os.fspath(tree) if isinstance(tree, os.PathLike) else tree),
    ] = None
    """Coarser labels above those of the first key: a nested dict, columns of adata.obs from coarse to fine, or the file
    of an ontology (`.obo` or `.owl`), whose terms or ids the labels are."""
    ontology_terms: list[str] | None = None
    """Further terms of the ontology to use as coarser labels."""
    test_size: float = Field(default=0.0, ge=0, lt=1)
    """Share of the cells held out at random; none by default, as all choices are made on cells left out in turn."""
    val_size: float = Field(default=0.0, ge=0, lt=1)
    """Share of the remaining cells on which all choices are made instead."""

    @property
    def label_kinds(self) -> dict[str, str | None]:
        """Kind of each label's column by key; None where the values decide."""
        return dict(self.labels_key) if isinstance(self.labels_key, dict) else dict.fromkeys(self.labels_key)

    @model_validator(mode="after")
    def _terms_of_a_file(self) -> Self:
        if self.ontology_terms is not None and not isinstance(self.label_tree, str):
            msg = "ontology_terms are terms of the ontology whose file label_tree names. Give the file, or leave out."
            raise ValueError(msg)
        return self


class LinearStartConfig(Options):
    """The logistic (or ridge) regression on expression that a classifier starts at."""

    n_top_genes: int = Field(default=2000, ge=1)
    """Genes of largest variance of log values."""
    clip: float | None = Field(default=None, gt=0)
    """Bound of standardised values, in standard deviations; None: 3 or 10, whichever has the lower loss on left-out
    cells, and 3 for numbers. A tight bound is what saves a classifier in a batch of another chemistry."""
    penalty: float = Field(default=10.0, gt=0)
    """Weight of half the squared coefficients against the summed loss."""


class HeadConfig(Options):
    """The head on the encoder's embedding; its last layer starts at zero."""

    _section: ClassVar[str | None] = "head"

    hidden_dim: int | None = Field(default=256, ge=1)
    """Width of the hidden layer; None for a linear head."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the last layer, while training."""
    n_members: int = Field(default=3, ge=1)
    """Heads that are trained together from different initialisations, and averaged."""
    n_steps: int = Field(default=300, ge=0)
    """Steps that train the head alone, on embeddings that are computed once; as many of them are kept as left-out cells
    ask for, none included."""


class ClassifierTrainOptions(TrainerOptions):
    """What ``train()`` of a classifier takes besides its strategy. None takes the model's own choice."""

    _section: ClassVar[str | None] = "train"

    max_epochs: int | None = Field(default=None, ge=1)
    """Passes over the labelled cells while the encoder is trained; by default 4 epochs of 15 steps each, or of one
    pass, whichever is less."""
    batch_size: int = Field(default=64, ge=2)
    """Cells per step."""
    backbone_lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the encoder's own weights."""
    adapter_lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of LoRA adapters."""
    head_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the head."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimiser steps over which the learning rates rise."""
    unfreeze_epoch: int = Field(default=1, ge=0)
    """Epoch, from 0, from which on `gradual` trains the encoder too."""
    class_weight: ClassWeight = "balanced"
    """`balanced`: every class weighs the same; `root`: by the root of its cells; `none`: every cell weighs the same."""
    early_stopping: bool | int = Field(default=3, ge=0)
    """Stop after this many epochs without a lower loss of left-out cells; true means 10, false never."""
    check_unknown: bool = True
    """Leave every known type out in turn and print how well it is found to be unknown."""


class ClassifierTrainConfig(
    as_written_in_a_file(ClassifierTrainOptions, without=("logger", "callbacks", "progress_bar", "strategy"))  # type: ignore[misc]  # derived
):
    """How a classifier is trained, as a file says it: :class:`ClassifierTrainOptions`, None for the default of each."""

    _section: ClassVar[str | None] = "train"


class ClassifierTrainArguments(TypedDict, total=False):
    """Keywords of ``train()`` besides the strategy: :class:`ClassifierTrainOptions`, for editors and type checkers."""

    max_epochs: int | None
    batch_size: int
    backbone_lr: float
    adapter_lr: float
    head_lr: float
    weight_decay: float
    warmup_steps: int
    unfreeze_epoch: int
    class_weight: ClassWeight
    check_unknown: bool
    accelerator: Accelerator
    precision: Precision | None
    early_stopping: bool | int
    devices: int | str | list[int]
    accumulate_grad_batches: int
    gradient_clip_val: float
    restore_best: bool
    gradient_checkpointing: bool
    compile: bool
    logger: bool | str | Logger | list[Logger]
    run_folder: str | os.PathLike[str] | None
    resume_from: str | os.PathLike[str] | None
    callbacks: Callback | list[Callback]
    progress_bar: bool
