"""Sections on the embeddings: the cells before and after adaptation, and all scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora import pl
from scstate_lora._constants import OBS_SPLIT, OBSM_BASE, OBSM_SE, OBSM_ST
from scstate_lora.data.bound import BoundData
from scstate_lora.data.results import EVALUATE, read_result
from scstate_lora.pl.embeddings import drawn_cells
from scstate_lora.pl.layouts import umap_layout
from scstate_lora.reporting.cards import embedding_results
from scstate_lora.reporting.embedding_verdicts import embedding_results_table
from scstate_lora.reporting.parts import Section, table
from scstate_lora.reporting.pictures import Picture, picture
from scstate_lora.reporting.score_tables import remarks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry

MAX_DRAWN_CELLS = 4_000
EMBEDDINGS = (OBSM_BASE, OBSM_SE, OBSM_ST)
_FEWEST_DRAWN_CELLS = 5
_MOST_COLORS = 30
_FIRST_COLUMNS = 2  # coloured by, in the open section
_TITLES = {OBSM_BASE: "base model", OBSM_SE: "adapted", OBSM_ST: "transition model"}


def embedding_sections(adata: AnnData, registry: Registry) -> tuple[Section, Section]:
    """Draw the cells before and after in an open section; further colours and all scores in a folded one."""
    shown = Section("The cells before and after adaptation", "cells")
    details = Section("Embeddings: all scores", "embeddings", folded=True)
    present = [k for k in EMBEDDINGS if k in adata.obsm]
    cells = _columns(adata, registry)
    columns = list(cells.columns)
    if not present:
        shown.paragraphs.append("No embedding is stored in adata.obsm: call get_latent_representation() first.")
    elif columns and adata.n_obs >= _FEWEST_DRAWN_CELLS:
        drawn = _laid_out(adata, present, cells)
        pair = [k for k in present if k != OBSM_ST] or present
        if len(pair) < 2:
            shown.title = f"The cells in the embedding of the {_TITLES[pair[0]]} model".replace("model model", "model")
        shown.blocks.append(_umap(drawn, pair, columns[:_FIRST_COLUMNS], n_all=adata.n_obs))
        if columns[_FIRST_COLUMNS:]:
            details.blocks.append(_umap(drawn, pair, columns[_FIRST_COLUMNS:], n_all=adata.n_obs))
        if OBSM_ST in present and OBSM_ST not in pair:
            details.blocks.append(_umap(drawn, [OBSM_ST], columns, n_all=adata.n_obs))
    _add_scores(details, adata, registry)
    return shown, details


def _columns(adata: AnnData, registry: Registry) -> pd.DataFrame:
    """Take the columns to colour cells by: the cell type, what the models are conditioned on, and the batch.

    Of one with more categories than colours that can be told apart, none is taken; of such perturbations, whether there
    is any.
    """
    keys = [registry.cell_type_key, *(c.name for c in registry.covariates), registry.batch_key, registry.pert_key]
    named = [key for key in dict.fromkeys(keys) if key is not None and key in adata.obs]
    columns = adata.obs[[key for key in named if _few_levels(adata.obs[key])]].copy()
    if registry.pert_key in named and registry.pert_key not in columns:
        is_control = BoundData(registry, adata).is_control
        columns["perturbed"] = pd.Categorical(np.where(is_control, str(registry.control), "perturbed"))
    return columns


def _few_levels(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column)) or column.nunique() <= _MOST_COLORS


def _laid_out(adata: AnnData, keys: Sequence[str], columns: pd.DataFrame) -> AnnData:
    """Lay out some of the cells once for all pictures: their columns, and two coordinates per embedding."""
    chosen = drawn_cells(adata.n_obs, MAX_DRAWN_CELLS)
    layouts = {}
    for key in keys:
        array = np.asarray(adata.obsm[key], dtype=np.float32)[chosen]
        layouts[_TITLES[key]] = array if array.shape[1] == 2 else umap_layout(array)
    colors = {f"{c}_colors": adata.uns[f"{c}_colors"] for c in columns if f"{c}_colors" in adata.uns}
    return ad.AnnData(obs=columns.iloc[chosen].copy(), obsm=layouts, uns=colors)


def _umap(drawn: AnnData, keys: Sequence[str], columns: Sequence[str], *, n_all: int) -> Picture:
    """Draw the cells in one or two embeddings, coloured by some columns."""
    names = [_TITLES[key] for key in keys]

    def draw() -> np.ndarray:
        axes = pl.embedding(drawn, names[-1], color=columns, compare=names[0] if len(names) > 1 else None, n_cells=None)
        for ax in np.ravel(np.asarray(axes, dtype=object)):
            ax.set_xlabel("UMAP 1", fontsize="small")
            ax.set_ylabel("UMAP 2", fontsize="small")
        return np.asarray(axes, dtype=object)

    which = f"{drawn.n_obs:,} of {n_all:,} cells" if drawn.n_obs < n_all else f"All {n_all:,} cells"
    order = (
        "before adaptation on the left, after it on the right"
        if len(names) > 1
        else f"in the embedding of the {names[0]}"
    )
    caption = f"UMAP of {which.lower()}, {order}, coloured by {' and '.join(columns)}."
    return picture(draw, caption, alt=f"Scatter plots of cells, {order}, coloured by {' and '.join(columns)}.")


def _add_scores(section: Section, adata: AnnData, registry: Registry) -> None:
    scores = read_result(adata, EVALUATE)
    if scores is None:
        section.paragraphs.append("The embeddings were not scored: call scstate_lora.tl.evaluate(adata) first.")
        return
    if "n_cells" in scores:
        n_cells = int(scores["n_cells"].iloc[0])
        n_unseen = int((adata.obs[OBS_SPLIT] != "train").sum()) if OBS_SPLIT in adata.obs else 0
        which = ", on none of which a model was trained" if n_cells == n_unseen else ", including training cells"
        section.paragraphs.append(f"Scores are of {n_cells:,} cells{which}.")
    results = embedding_results(scores, registry)
    if results:
        caption = "Every score beside that of a PCA of the same cells."
        section.blocks.append(table(embedding_results_table(results), caption, save_as="embedding-scores", full=scores))
    section.blocks.append(
        picture(
            lambda: pl.metrics(scores),
            "Headline scores of the embeddings beside the PCA and what ignoring the embedding gives.",
            alt="Dot plots of the headline scores of each embedding; the values are in the table.",
        )
    )
    noted = remarks(scores, "embedding")
    if len(noted):
        section.blocks.append(table(noted, "Remarks: scores missing, or not on all cells.", folded=len(noted) > 5))
