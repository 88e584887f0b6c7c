"""Registration: validate an AnnData or MuData, and write its registry and split."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.config.data import declared_covariates
from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import CategoricalCovariate
from scstate_lora.data.log_scale import describe_scale, scale_name
from scstate_lora.data.modalities import SharedColumn, find_column
from scstate_lora.data.registry import Registry
from scstate_lora.data.results import results_restored_on_error
from scstate_lora.data.split_column import write_split
from scstate_lora.data.splits import SplitRules, make_split, write_split_table
from scstate_lora.data.stream import matrix_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import DataConfig

_GROUPS_SHOWN = 20


def choose_modality(data: AnnData | MuData, modality: str | None) -> AnnData:
    """Return the AnnData itself, or the named modality of a MuData.

    Raises
    ------
    TypeError
        If the data are neither an AnnData nor a MuData.
    ValueError, KeyError
        If ``modality`` is missing for a MuData, given for an AnnData, or does not exist.
    """
    from anndata import AnnData

    if isinstance(data, AnnData):
        if modality is not None:
            msg = f"modality={modality!r} is for MuData; this is an AnnData. Leave it out."
            raise ValueError(msg)
        return data
    modalities = getattr(data, "mod", None)
    if modalities is None:
        msg = f"Expected an AnnData or a MuData, found {type(data).__name__}. Read a file with scanpy.read_h5ad(path)."
        raise TypeError(msg)
    if modality is None:
        msg = f"A MuData needs modality=, one of {list(modalities)}."
        raise ValueError(msg)
    if modality not in modalities:
        msg = f"The MuData has no modality {modality!r}. {did_you_mean(modality, modalities)}"
        raise KeyError(msg)
    return modalities[modality]


def register(data: AnnData | MuData, config: DataConfig, *, seed: int = 0) -> BoundData:
    """Validate the data, then write the registry and the split.

    Parameters
    ----------
    data
        Cells x genes.
    config
        The roles of the columns, and how the cells are split.
    seed
        Seed of a random split.

    Returns
    -------
    The AnnData that was set up (for a MuData, its modality), bound to its registry.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        As in :func:`scstate_lora.setup_anndata`.
    """
    adata = choose_modality(data, config.modality)
    rules = SplitRules.of(config, seed=seed)
    covariates = declared_covariates(config.covariate_keys)
    shared: dict[str, SharedColumn] = {} if data is adata else _find(data, adata, covariates, config.columns)
    for name, column in shared.items():
        if column.is_variable and covariates[name].type is None:
            covariates[name] = covariates[name].model_copy(update={"type": "continuous"})
    with undone_on_error(adata):
        for name, column in shared.items():
            adata.obs[name] = column.values.array
        registry = Registry.create(adata, config.model_copy(update={"covariate_keys": list(covariates.values())}))
        cells = BoundData(registry, adata)
        assigned = make_split(cells, rules)
        _check_training_levels(cells, assigned)
        registry = registry.without_unseen_batches(adata, assigned == "train")
        registry.write(adata)
        write_split(adata, assigned)
        cells = BoundData(registry, adata)
        table = write_split_table(cells, rules)
    logger.info("%s is treated as %s: %s.", matrix_name(config.layer), registry.scale, registry.scale_reason)
    scale = describe_scale(registry.target_sum)
    logger.info("Models work with %s (%r in their predictions).", scale, scale_name(registry.target_sum))
    kinds = ", ".join(f"{c.name} ({c.kind})" for c in registry.covariates) or "none"
    logger.info("%d cells x %d genes; covariates: %s.", adata.n_obs, adata.n_vars, kinds)
    if shared:
        logger.info("Copied to the modality's obs: %s.", ", ".join(shared))
    logger.info("Cells by split in adata.obs['scstate_split'] (%s):\n%s", rules.source, _shown(table))
    return cells


def _shown(table: pd.DataFrame) -> str:
    """Write the first groups of the split's table, and where the others are."""
    lines = table.to_string(index=False).splitlines()
    if len(table) <= _GROUPS_SHOWN:
        return "\n".join(lines)
    more = f"... and {len(table) - _GROUPS_SHOWN} more groups, all in adata.uns['scstate_lora']['split']['table']"
    return "\n".join([*lines[: _GROUPS_SHOWN + 1], more])


def _find(mdata: Any, adata: AnnData, covariates: Iterable[str], others: Iterable[str]) -> dict[str, SharedColumn]:
    """Find columns absent from the modality's ``obs`` elsewhere in the MuData; only covariates may be variables."""
    columns = {key: find_column(mdata, adata, key, allow_variables=False) for key in others}
    columns |= {key: find_column(mdata, adata, key, allow_variables=True) for key in covariates}
    return {key: column for key, column in columns.items() if column is not None}


def _check_training_levels(cells: BoundData, split: np.ndarray) -> None:
    """Require training cells for every level with a learned vector, which would otherwise stay random."""
    registry = cells.registry
    for covariate in registry.covariates:
        if covariate.kind == "continuous" and cells.obs[covariate.name][split == "train"].isna().all():
            msg = (
                f"adata.obs[{covariate.name!r}] is missing in all training cells, so nothing can be learned from it. "
                "Hold out other cells, or leave this column out."
            )
            raise ValueError(msg)
    levels = {c.name: c.categories for c in registry.covariates if isinstance(c, CategoricalCovariate)}
    if registry.control is not None:  # other perturbations may be described by features: STTransition checks them
        levels.setdefault(str(registry.pert_key), (registry.control,))
    for name, categories in levels.items():
        unseen = sorted(set(categories) - set(cells.labels(name)[split == "train"]))
        if unseen:
            msg = (
                f"No training cell has adata.obs[{name!r}] = {', '.join(map(repr, unseen[:5]))}, so nothing can be "
                "learned about it. Hold out fewer cells (for example, one combination of values rather than all cells "
                "with one value), or leave these cells or this column out."
            )
            raise ValueError(msg)


@contextmanager
def undone_on_error(adata: AnnData) -> Iterator[None]:
    """On an error, restore ``obs`` and all results to their earlier state."""
    obs = adata.obs.copy(deep=False)
    try:
        with results_restored_on_error(adata):
            yield
    except BaseException:
        if not adata.obs.equals(obs):
            adata.obs = obs
        raise
