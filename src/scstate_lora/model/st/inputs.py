"""What STTransition reads of cells: covariates, the length of sets, velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean
from scstate_lora.data.embedding import embedding_columns, take_columns_by_name
from scstate_lora.data.genes import gene_names, match_genes

if TYPE_CHECKING:
    from scstate_lora.config import STObjectiveConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.fields import Covariate
    from scstate_lora.data.registry import Registry
    from scstate_lora.data.sets import Group


def covariates_of(registry: Registry) -> list[Covariate]:
    """Covariates that the network reads beside the perturbation."""
    return [c for c in registry.covariates if c.name != registry.pert_key]


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
        If its width is not that of the embedding, or it lacks some of the columns of the embedding by name.
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
    named = embedding_columns(adata, key) if genes is None else None
    if named is not None and registry.embed_columns is not None and not set(named).isdisjoint(registry.embed_columns):
        values = take_columns_by_name(values, registry.embed_columns, name=f"adata.obsm[{key!r}]")
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)
    if genes is not None:
        columns = match_genes(gene_names(adata, registry.gene_key), genes)
        # The layer holds the change of counts per 10,000. Of s, the counts per target sum, it is larger in proportion,
        # and that of log1p(s) is divided by 1 + s.
        per_count = np.float32((registry.target_sum or TARGET_SUM) / TARGET_SUM)
        values = per_count * values[:, columns] / np.exp(cells.logged_genes(genes).toarray())
        values[:, columns < 0] = np.nan
    elif values.shape[1] != cells.embedding.shape[1]:
        width = cells.embedding.shape[1]
        msg = f"adata.obsm[{key!r}] has {values.shape[1]} columns, the embedding {registry.embed_key!r} {width}."
        raise ValueError(msg)
    confidence = adata.obs.get(f"{key.split('_X_')[0]}_confidence")
    return values, None if confidence is None else confidence.to_numpy(dtype=np.float32)
