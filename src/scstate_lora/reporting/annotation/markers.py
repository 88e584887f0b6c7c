"""Marker genes of predicted types beside those of the training types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora.data.bound import BoundData
from scstate_lora.data.label_targets import UNKNOWN
from scstate_lora.pl.style import shortened

if TYPE_CHECKING:
    from anndata import AnnData

    from scstate_lora.data import Registry

N_TOP, N_AMONG = 10, 50
"""Of so many first genes of predicted cells, how many are among so many first genes of training cells."""
FEWEST_CELLS = 10
_MOST_CELLS = 20_000
_LONGEST = 14  # letters of a gene's name


def compare_markers(
    registry: Registry, labelled: AnnData, predicted: np.ndarray, reference: AnnData, types: np.ndarray
) -> pd.DataFrame:
    """Rank the genes of predicted and of training types alike, and name those that both have.

    Genes are ranked by scanpy's t-test of a type against all other cells, on log expression, those that are higher in
    the type alone; of 20,000 cells at most, evenly spread. A model that labels by expression finds its own markers
    again: agreement is no proof of a label, but lack of it is a warning.

    Parameters
    ----------
    registry
        How the model reads cells.
    labelled, predicted
        Cells, and the label of each, ``(n_cells,)``.
    reference, types
        Training cells, and the type of each, ``(n_cells,)``; None for none.

    Returns
    -------
    One row a label of 10 cells or more, the commonest first: ``label``, ``cells``, ``genes`` (the first ten, first
    five named), ``shared`` (how many of the ten are among the first 50 of the training type; missing for a label that
    training cells do not have) and ``shared genes``.
    """
    here, there = (
        _ranked(registry, cells, labels, n)
        for cells, labels, n in ((labelled, predicted, N_TOP), (reference, types, N_AMONG))
    )
    rows = []
    for label, n_cells in pd.Series(predicted).value_counts().items():
        if label not in here:
            continue
        top = here[label]
        shared = [gene for gene in top if gene in there.get(label, ())]
        rows.append(
            {
                "label": str(label),
                "cells": int(n_cells),
                "first genes": ", ".join(shortened(g, _LONGEST) for g in top[:5]),
                "shared": float(len(shared)) if label in there else np.nan,
                "shared genes": ", ".join(shortened(g, _LONGEST) for g in shared),
            }
        )
    return pd.DataFrame(rows, columns=["label", "cells", "first genes", "shared", "shared genes"])


def _ranked(registry: Registry, cells: AnnData, labels: np.ndarray, n_genes: int) -> dict[str, list[str]]:
    """First genes of every label that enough cells have."""
    import scanpy as sc

    chosen = np.flatnonzero(pd.notna(labels))
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(_MOST_CELLS, len(chosen))).astype(np.int64))]
    part = cells[chosen].to_memory() if cells.isbacked else cells[chosen]
    bound = BoundData(registry, part)
    own = pd.Series(labels[chosen]).astype(str)
    sizes = own.value_counts()
    groups = [str(name) for name, n in sizes.items() if n >= FEWEST_CELLS]
    if len(sizes) < 2 or not groups:
        return {}
    measured = np.flatnonzero(bound.measured)
    ranked = ad.AnnData(
        bound.logged[:, measured],
        obs=pd.DataFrame({"label": pd.Categorical(own)}, index=part.obs_names),
        var=pd.DataFrame(index=np.asarray(registry.var_names, dtype=object)[measured]),
    )
    ranked.uns["log1p"] = {"base": None}
    sc.tl.rank_genes_groups(ranked, "label", groups=groups, method="t-test", n_genes=min(n_genes, len(measured)))
    names, scores = (ranked.uns["rank_genes_groups"][key] for key in ("names", "scores"))
    return {group: [str(gene) for gene in names[group][scores[group] > 0]] for group in groups}


def doubtful(markers: pd.DataFrame) -> list[str]:
    """Name the labels of which fewer than half of the first genes are those of the training type."""
    return [str(label) for label in markers.loc[markers["shared"] < N_TOP / 2, "label"] if label != UNKNOWN]
