"""Registration: validate an AnnData or MuData, record what was found and how the cells are split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.data.registry import Registry
from scstate_lora.data.splits import make_split, split_table, write_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData


def choose_modality(data: AnnData | MuData, modality: str | None) -> AnnData:
    """The AnnData itself, or the one of a MuData's modalities that is named.

    Raises
    ------
    TypeError
        Neither an AnnData nor a MuData was given.
    ValueError, KeyError
        ``modality`` is missing for a MuData, given for an AnnData, or does not exist.
    """
    from anndata import AnnData

    if isinstance(data, AnnData):
        if modality is not None:
            msg = f"modality={modality!r} is for MuData; this is an AnnData. Leave it out."
            raise ValueError(msg)
        return data
    modalities = getattr(data, "mod", None)
    if modalities is None:
        msg = f"Expected an AnnData or a MuData, found {type(data).__name__}. Read a file by scanpy.read_h5ad(path)."
        raise TypeError(msg)
    if modality is None:
        msg = f"A MuData needs modality=, one of {list(modalities)}."
        raise ValueError(msg)
    if modality not in modalities:
        msg = f"The MuData has no modality {modality!r}. {did_you_mean(modality, modalities)}"
        raise KeyError(msg)
    return modalities[modality]


def register(
    data: AnnData | MuData,
    *,
    covariate_keys: str | list[str] | Mapping[str, str] = (),
    pert_key: str | None = None,
    control: str | None = None,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    context_keys: Sequence[str] | None = None,
    layer: str | None = None,
    input_scale: str | None = None,
    gene_key: str | None = None,
    modality: str | None = None,
    holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    split_key: str | None = None,
    test_size: float = 0.2,
    val_size: float = 0.1,
    seed: int = 0,
) -> tuple[AnnData, Registry]:
    """Validate, then write the registry and the split. Parameters: see :func:`scstate_lora.setup_anndata`."""
    adata = choose_modality(data, modality)
    registry = Registry.create(
        adata,
        covariate_keys=covariate_keys,
        pert_key=pert_key,
        control=control,
        cell_type_key=cell_type_key,
        batch_key=batch_key,
        context_keys=context_keys,
        layer=layer,
        input_scale=input_scale,
        gene_key=gene_key,
    )
    split = make_split(
        adata, registry, holdout=holdout, split_key=split_key, test_size=test_size, val_size=val_size, seed=seed
    )
    registry.write(adata)
    write_split(adata, split)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    logger.info("%s is taken as %s: %s.", where, registry.scale, registry.scale_reason)
    kinds = ", ".join(f"{c.name} ({c.kind})" for c in registry.covariates) or "none"
    logger.info("%d cells x %d genes; covariates: %s.", adata.n_obs, adata.n_vars, kinds)
    logger.info("Cells by split (adata.obs['scstate_split']):\n%s", split_table(adata, registry).to_string(index=False))
    return adata, registry
