"""Registration: validate an AnnData or MuData, record what was found and how the cells are split."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.config.data import declared_covariates
from scstate_lora.data.fields import CategoricalCovariate
from scstate_lora.data.modalities import Borrowed, borrow
from scstate_lora.data.registry import Registry
from scstate_lora.data.results import results_restored_on_error
from scstate_lora.data.splits import SplitRules, make_split, split_table, write_split, write_split_table

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.data.fields import CovariateKeys
    from scstate_lora.data.split_files import SplitFile
    from scstate_lora.data.splits import ZeroshotControls


def choose_modality(data: AnnData | MuData, modality: str | None) -> AnnData:
    """Return the AnnData itself, or the one of a MuData's modalities that is named.

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
    covariate_keys: CovariateKeys = (),
    pert_key: str | None = None,
    control: str | float | bool | None = None,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    context_keys: Sequence[str] | None = None,
    layer: str | None = None,
    input_scale: str | None = None,
    gene_key: str | None = None,
    embed_key: str | None = None,
    modality: str | None = None,
    holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    split_key: str | None = None,
    split: str | os.PathLike[str] | Mapping[str, Any] | SplitFile | None = None,
    split_dataset: str | None = None,
    zeroshot_controls: ZeroshotControls = "held_out",
    test_size: float = 0.2,
    val_size: float = 0.1,
    seed: int = 0,
) -> tuple[AnnData, Registry]:
    """Validate, then write the registry and the split. Parameters: see :func:`scstate_lora.setup_anndata`."""
    adata = choose_modality(data, modality)
    rules = SplitRules(
        holdout=holdout,
        split_key=split_key,
        split=split,
        split_dataset=split_dataset,
        zeroshot_controls=zeroshot_controls,
        test_size=test_size,
        val_size=val_size,
        seed=seed,
    )
    declared = declared_covariates(covariate_keys)
    borrowed: dict[str, Borrowed] = {}
    if data is not adata:
        others = (pert_key, cell_type_key, batch_key, split_key, *_names(context_keys), *_holdout_keys(holdout))
        borrowed = _borrow(data, adata, declared, others)
    for name, found in borrowed.items():
        if found.is_variable and declared[name].type is None:
            declared[name] = declared[name].model_copy(update={"type": "continuous"})
    with undone_on_error(adata):
        for name, found in borrowed.items():
            adata.obs[name] = found.values.array
        registry = Registry.create(
            adata,
            covariate_keys=declared,
            pert_key=pert_key,
            control=control,
            cell_type_key=cell_type_key,
            batch_key=batch_key,
            context_keys=context_keys,
            layer=layer,
            input_scale=input_scale,
            gene_key=gene_key,
            embed_key=embed_key,
        )
        cells = make_split(adata, registry, rules)
        _check_levels_are_trained(adata, registry, cells)
        registry = registry.of_trained_batches(adata, cells == "train")
        registry.write(adata)
        write_split(adata, cells)
        write_split_table(adata, registry, rules)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    logger.info("%s is taken as %s: %s.", where, registry.scale, registry.scale_reason)
    kinds = ", ".join(f"{c.name} ({c.kind})" for c in registry.covariates) or "none"
    logger.info("%d cells x %d genes; covariates: %s.", adata.n_obs, adata.n_vars, kinds)
    if borrowed:
        logger.info("Copied to the modality's obs: %s.", ", ".join(borrowed))
    table = split_table(adata, registry).to_string(index=False)
    logger.info("Cells by split in adata.obs['scstate_split'] (%s):\n%s", rules.source, table)
    return adata, registry


def _borrow(mdata: Any, adata: AnnData, covariates: Iterable[str], others: Iterable[Any]) -> dict[str, Borrowed]:
    """Find the columns that the modality's own obs lacks elsewhere in the MuData; variables only for covariates."""
    found = {key: borrow(mdata, adata, key, variables=False) for key in others if isinstance(key, str)}
    found |= {key: borrow(mdata, adata, key, variables=True) for key in covariates}
    return {key: values for key, values in found.items() if values is not None}


def _names(keys: str | Sequence[str] | None) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys or [])


def _holdout_keys(holdout: Any) -> list[Any]:
    """Columns that ``holdout`` names; what is no condition is refused later."""
    conditions = [holdout] if isinstance(holdout, Mapping) else list(holdout or [])
    return [key for condition in conditions if isinstance(condition, Mapping) for key in condition]


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise a TypeError that suggests near names when :func:`register` has no such argument."""
    known = [name for name in inspect.signature(register).parameters if name != "data"]
    for name in given:
        if name not in known:
            msg = f"setup_anndata() has no argument {name!r}. {did_you_mean(name, known, limit=len(known))}"
            raise TypeError(msg)


def _check_levels_are_trained(adata: AnnData, registry: Registry, split: np.ndarray) -> None:
    """Every level a model learns a vector for must have training cells, or it would keep a random one."""
    for covariate in registry.covariates:
        if covariate.kind == "continuous" and adata.obs[covariate.name][split == "train"].isna().all():
            msg = (
                f"All training cells miss adata.obs[{covariate.name!r}], so nothing can be learnt of it. Hold out "
                "other cells, or leave this column out."
            )
            raise ValueError(msg)
    levels = {c.name: c.categories for c in registry.covariates if isinstance(c, CategoricalCovariate)}
    if registry.control is not None:  # of perturbations STTransition decides: it may know them by their features
        levels.setdefault(str(registry.pert_key), (registry.control,))
    for name, known in levels.items():
        unseen = sorted(set(known) - set(registry.labels(adata, name)[split == "train"]))
        if unseen:
            msg = (
                f"No training cell has adata.obs[{name!r}] = {', '.join(map(repr, unseen[:5]))}, so nothing can be "
                "learnt of it. Hold out fewer cells, for instance one combination of values rather than all cells of "
                "one value, or leave these cells or this column out."
            )
            raise ValueError(msg)


@contextmanager
def undone_on_error(adata: AnnData) -> Iterator[None]:
    """Take the registry, the split and any other new column out again, or put the earlier ones back, on an error."""
    obs = adata.obs.copy(deep=False)
    try:
        with results_restored_on_error(adata):
            yield
    except BaseException:
        if not adata.obs.equals(obs):
            adata.obs = obs
        raise
