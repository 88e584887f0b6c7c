"""What STTransition reads of cells: perturbations, groups of a split, genes, velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy import sparse

from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import CategoricalCovariate
from scstate_lora.data.genes import gene_names, match_genes
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.data.sets import make_groups

if TYPE_CHECKING:
    from scstate_lora.config import STObjectiveConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.fields import Covariate
    from scstate_lora.data.registry import Registry
    from scstate_lora.data.sets import Group

MIN_GROUP = 5
"""Fewest control and perturbed cells of a group that trains."""


def covariates_of(registry: Registry) -> list[Covariate]:
    """Covariates that the network reads beside the perturbation."""
    return [c for c in registry.covariates if c.name != registry.pert_key]


def describe_perturbations(cells: BoundData, features: pd.DataFrame | None) -> PerturbationTable:
    """Make the table of perturbation vectors.

    Raises
    ------
    TypeError, ValueError
        If the features cannot be used; without them, if a perturbation has no training cells.
    """
    registry = cells.registry
    key, control = str(registry.pert_key), str(registry.control)
    trained = set(cells.perturbations[cells.rows("train")])
    if features is not None:
        return PerturbationTable.of_features(features, trained=trained - {control}, control=control)
    unseen = sorted(set(registry.perturbations) - trained)
    if unseen:
        msg = (
            f"No training cell has adata.obs[{key!r}] = {', '.join(map(repr, unseen[:5]))}, so nothing can be "
            "learnt of it. Hold out fewer cells, leave these cells out, or describe the perturbations: "
            "pert_features=DataFrame indexed by their names."
        )
        raise ValueError(msg)
    return PerturbationTable.one_hot(registry.perturbations, control)


def split_groups(cells: BoundData, split: str, *, min_cells: int, by_type: bool = False) -> list[Group]:
    """Pair a split's perturbed cells with controls; validation ones are predicted from training controls too.

    Parameters
    ----------
    cells
        All cells.
    split
        ``"train"`` or ``"val"``.
    min_cells
        Groups with fewer control or perturbed cells are left out.
    by_type
        Take the cell type alone as the context, where types are known.
    """
    registry = cells.registry
    levels = CategoricalCovariate(str(registry.pert_key), tuple(registry.perturbations))
    perts = levels.encode(cells.obs[levels.name])
    used = cells.split == split
    if split == "val":
        used |= (cells.split == "train") & cells.is_control
    contexts = cells.contexts if not by_type or cells.cell_types is None else cells.cell_types
    control = registry.perturbations.index(str(registry.control))
    return make_groups(contexts, perts, control, used, min_cells=min_cells)


def training_groups(cells: BoundData) -> list[Group]:
    """Pair the training split's perturbed cells with controls.

    Raises
    ------
    ValueError
        If no context has enough cells.
    """
    groups = split_groups(cells, "train", min_cells=MIN_GROUP)
    if not groups:
        keys = cells.registry.context_keys
        where = f"No context ({' x '.join(keys)}) has" if keys else "There are not"
        advice = "Use coarser contexts (context_keys=[...]) or more cells." if keys else "Use more cells."
        msg = f"{where} {MIN_GROUP} control and {MIN_GROUP} perturbed training cells. {advice}"
        raise ValueError(msg)
    return groups


def choose_genes(cells: BoundData, limit: int | None) -> tuple[list[str], str]:
    """Choose the most variable genes of the training cells, and describe the choice."""
    names = cells.registry.var_names
    if limit is None or len(names) <= limit:
        return names, f"all {len(names)} genes"
    train = ad.AnnData(cells.logged[cells.rows("train")], var=pd.DataFrame(index=names))
    threads = torch.get_num_threads()
    sc.pp.highly_variable_genes(train, n_top_genes=limit)
    torch.set_num_threads(threads)  # scanpy's numba shares torch's thread pool, and resizes it
    # Genes that tie with the last one are marked too, as rounding has it: the first of them is taken.
    marked = np.flatnonzero(train.var["highly_variable"])
    order = np.argsort(-train.var["dispersions_norm"].to_numpy()[marked], kind="stable")
    chosen = np.zeros(len(names), dtype=bool)
    chosen[marked[order[:limit]]] = True
    note = f"the {chosen.sum()} most variable of {len(names)} genes"
    return [n for n, c in zip(names, chosen, strict=True) if c], note


def choose_set_len(groups: list[Group], requested: int | None) -> tuple[int, str]:
    """Choose the number of cells per set by the groups that train, and describe the choice.

    Raises
    ------
    ValueError
        If more cells are requested than any group has.
    """
    sizes = [min(len(g.control), len(g.perturbed)) for g in groups]
    if requested is not None:
        if requested > max(sizes):
            msg = (
                f"cell_set_len={requested}, but the largest context has only {max(sizes)} control and perturbed "
                "training cells. Use at most that many, or leave it out."
            )
            raise ValueError(msg)
        return requested, f"sets of {requested} cells, as requested"
    largest = 256 if torch.cuda.is_available() else 64
    median = int(np.median(sizes))
    length = int(min(largest, max(8, 2 ** int(np.log2(median)))))
    return length, f"sets of {length} cells: the median of {len(groups)} training contexts has {median}"


def read_velocity(
    cells: BoundData, objective: STObjectiveConfig, *, genes: list[str] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """RNA velocity in the space of the model, and its confidence.

    Parameters
    ----------
    cells
        The cells.
    objective
        Names the velocity.
    genes
        Genes of the model, whose velocities are in a layer; None where cells are an embedding, theirs are in obsm.

    Returns
    -------
    float32 ``(n_cells, n_columns)``, of log1p expression or as stored, NaN where unknown; ``(n_cells,)`` from
    ``adata.obs["<key>_confidence"]``, where that exists.

    Raises
    ------
    KeyError
        If the layer or key of obsm does not exist.
    ValueError
        If its width is not that of the embedding.
    """
    adata, registry, key = cells.adata, cells.registry, str(objective.velocity_key)
    where, stored = ("layers", adata.layers) if genes is not None else ("obsm", adata.obsm)
    if key not in stored:
        msg = (
            f"objective.velocity_key={key!r}: adata.{where}[{key!r}] does not exist. {did_you_mean(key, stored)} "
            "ssl.pp.velocity(adata) computes it."
        )
        raise KeyError(msg)
    values = stored[key]
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)
    if genes is not None:
        columns = match_genes(gene_names(adata, registry.gene_key), genes)
        # The layer holds the change of counts per 10,000; that of their log1p is divided by 1 + s.
        values = values[:, columns] / np.exp(cells.logged_genes(genes).toarray())
        values[:, columns < 0] = np.nan
    elif values.shape[1] != cells.embedding.shape[1]:
        width = cells.embedding.shape[1]
        msg = f"adata.obsm[{key!r}] has {values.shape[1]} columns, the embedding {registry.embed_key!r} {width}."
        raise ValueError(msg)
    confidence = adata.obs.get(f"{key.split('_X_')[0]}_confidence")
    return values, None if confidence is None else confidence.to_numpy(dtype=np.float32)
