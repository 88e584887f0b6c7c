"""Options of the data: what its columns mean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scstate_lora.config.options import Options


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
