"""Registration: validate an AnnData or MuData, record what was found and how the cells are split."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.config.data import declared_covariates
from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import CategoricalCovariate
from scstate_lora.data.modalities import Borrowed, borrow
from scstate_lora.data.registry import Registry
from scstate_lora.data.results import results_restored_on_error
from scstate_lora.data.splits import SplitRules, make_split, write_split, write_split_table
from scstate_lora.data.stream import matrix_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import DataConfig


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


def register(data: AnnData | MuData, config: DataConfig, *, seed: int = 0) -> BoundData:
    """Validate, then write the registry and the split.

    Parameters
    ----------
    data
        Cells x genes.
    config
        What the columns mean and how the cells are split.
    seed
        Seed of a random split.

    Returns
    -------
    The AnnData that was set up, of a MuData that of its modality, bound to its registry.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        See :func:`scstate_lora.setup_anndata`.
    """
    adata = choose_modality(data, config.modality)
    rules = SplitRules.of(config, seed=seed)
    declared = declared_covariates(config.covariate_keys)
    borrowed: dict[str, Borrowed] = {} if data is adata else _borrow(data, adata, declared, _other_columns(config))
    for name, column in borrowed.items():
        if column.is_variable and declared[name].type is None:
            declared[name] = declared[name].model_copy(update={"type": "continuous"})
    with undone_on_error(adata):
        for name, column in borrowed.items():
            adata.obs[name] = column.values.array
        registry = Registry.create(adata, config.model_copy(update={"covariate_keys": list(declared.values())}))
        cells = BoundData(registry, adata)
        assigned = make_split(cells, rules)
        _check_levels_are_trained(cells, assigned)
        registry = registry.of_trained_batches(adata, assigned == "train")
        registry.write(adata)
        write_split(adata, assigned)
        cells = BoundData(registry, adata)
        table = write_split_table(cells, rules)
    logger.info("%s is taken as %s: %s.", matrix_name(config.layer), registry.scale, registry.scale_reason)
    kinds = ", ".join(f"{c.name} ({c.kind})" for c in registry.covariates) or "none"
    logger.info("%d cells x %d genes; covariates: %s.", adata.n_obs, adata.n_vars, kinds)
    if borrowed:
        logger.info("Copied to the modality's obs: %s.", ", ".join(borrowed))
    logger.info("Cells by split in adata.obs['scstate_split'] (%s):\n%s", rules.source, table.to_string(index=False))
    return cells


def _borrow(mdata: Any, adata: AnnData, covariates: Iterable[str], others: Iterable[str]) -> dict[str, Borrowed]:
    """Find the columns that the modality's own obs lacks elsewhere in the MuData; variables only for covariates."""
    columns = {key: borrow(mdata, adata, key, variables=False) for key in others}
    columns |= {key: borrow(mdata, adata, key, variables=True) for key in covariates}
    return {key: column for key, column in columns.items() if column is not None}


def _other_columns(config: DataConfig) -> list[str]:
    """Columns of obs that are named beside the covariates."""
    keys = [config.pert_key, config.cell_type_key, config.batch_key, config.split_key]
    keys += [*(config.context_keys or []), *(key for condition in config.holdout or [] for key in condition)]
    return [key for key in keys if key is not None]


def _check_levels_are_trained(cells: BoundData, split: np.ndarray) -> None:
    """Every level a model learns a vector for must have training cells, or it would keep a random one."""
    registry = cells.registry
    for covariate in registry.covariates:
        if covariate.kind == "continuous" and cells.obs[covariate.name][split == "train"].isna().all():
            msg = (
                f"All training cells miss adata.obs[{covariate.name!r}], so nothing can be learnt of it. Hold out "
                "other cells, or leave this column out."
            )
            raise ValueError(msg)
    levels = {c.name: c.categories for c in registry.covariates if isinstance(c, CategoricalCovariate)}
    if registry.control is not None:  # of perturbations STTransition decides: it may know them by their features
        levels.setdefault(str(registry.pert_key), (registry.control,))
    for name, known in levels.items():
        unseen = sorted(set(known) - set(cells.labels(name)[split == "train"]))
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
