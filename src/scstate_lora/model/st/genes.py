"""Genes that a transition model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch

if TYPE_CHECKING:
    from scstate_lora.data.bound import BoundData


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
