"""Options of scoring files: predicted cells of any model against measured ones, and the embeddings of a file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from scstate_lora.config.data import DataConfig
from scstate_lora.config.options import Options

SHARED = "shared"


class EvaluateOptions(Options):
    """How predicted cells in a file are scored against the measured ones in another."""

    pert_key: str | None = None
    """Column of the perturbation, in all files; by default the one that PRED names, if a model of this package made
    it."""
    control: str | None = None
    """Level of its control cells; by default the one that PRED names."""
    context_key: list[str] = Field(default_factory=list)
    """Column that defines a context, such as the cell type; repeatable. Without it all cells are one context."""
    split_key: str | None = None
    """Column of REAL with `train`, `val` and `test`: training cells teach the baselines, test cells are scored. By
    default `scstate_split`, which a run writes, if REAL has it."""
    holdout: list[dict[str, Any]] | None = None
    """Cells of REAL that the model has not seen, such as 'cell_type=B cells,condition=stim'; repeatable. They are
    scored, and the others teach the baselines."""
    batch_key: str | None = None
    """Column of the batch or donor, which the audit looks at."""
    layer: str | None = None
    """Layer of the measured expression; X by default."""
    input_scale: Literal["counts", "log1p"] | None = None
    """`counts` or `log1p`: the scale of the measured expression; decided from the values by default."""
    genes: str | None = None
    """Genes that are scored: `shared` for those of PRED that REAL has, or a text file with one name per line; all of
    PRED by default."""
    pert_features: str | None = None
    """Table of perturbation features for the linear baseline, one row per perturbation: .csv, .tsv or .parquet."""
    name: str = "model"
    """Name of the model in tables."""
    min_cells: int = Field(default=10, ge=1)
    """Fewest control cells, and fewest measured cells, of a context that counts in the average."""
    weights: Literal["equal", "cells"] = "equal"
    """Whether contexts weigh the same in the average, or as their number of measured cells: `equal` or `cells`."""
    n_boot: int = Field(default=1000, ge=1)
    """Bootstrap samples behind the intervals."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random halves and the bootstrap."""

    @model_validator(mode="after")
    def _one_split(self) -> EvaluateOptions:
        if self.split_key is not None and self.holdout is not None:
            msg = "split_key= and holdout= both say which cells are held out. Give one of them."
            raise ValueError(msg)
        return self

    def data(self) -> DataConfig:
        """Options of the measured data."""
        names = ("pert_key", "control", "split_key", "holdout", "batch_key", "layer", "input_scale")
        given = {name: getattr(self, name) for name in names}
        return DataConfig.parse({**given, "context_keys": [], "val_size": 0.0}, name="evaluate")


class EvaluateEmbeddingsOptions(Options):
    """How the embeddings in a file are scored."""

    embedding: list[str] = Field(default_factory=list)
    """Embedding in obsm, such as X_scVI; repeatable. By default those that this package has written."""
    label_key: str | None = None
    """Column of the cell type; by default the one that the cells were set up with, if they were."""
    batch_key: str | None = None
    """Column of the batch; by default the one that the cells were set up with, if they were."""
    covariate: list[str] = Field(default_factory=list)
    """Column to predict from the embedding, such as the condition; repeatable. By default those that the cells were set
    up with."""
    metrics: list[str] = Field(default_factory=lambda: ["quick"])
    """`quick`: neighbours and linear probes; `scib`: the metrics of scIB, in minutes for many cells; `all`; or the name
    of a metric; repeatable."""
    layer: str | None = None
    """Layer of the expression, whose PCA stands beside; X by default."""
    input_scale: Literal["counts", "log1p"] | None = None
    """`counts` or `log1p`: the scale of the expression; decided from the values by default."""
    n_pcs: int = Field(default=50, ge=1)
    """Components of the PCA."""
    n_neighbors: int = Field(default=10, ge=1)
    """Neighbours that vote."""
    seed: int = Field(default=0, ge=0)
    """Seed of the folds and the PCA."""
