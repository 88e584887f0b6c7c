"""The first screen: the question in plain words, three cards, and the genes that change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora._constants import OBS_SPLIT
from scstate_lora._utils import listed
from scstate_lora.data.bound import BoundData
from scstate_lora.data.splits import split_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.data import Registry

_MOST_NAMED = 4


def in_words(names: Sequence[str], kind: str) -> str:
    """Name up to four things; of more say how many of which kind there are."""
    if len(names) > _MOST_NAMED:
        return f"{len(names)} {kind}"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}" if names else f"no {kind}"


def question_of(registry: Registry, *, targets: Sequence[str], contexts: Sequence[str]) -> str:
    """Say what is asked.

    Parameters
    ----------
    registry
        How the cells were set up.
    targets
        Predicted perturbations.
    contexts
        Kinds of cells for which they were predicted, or scored.
    """
    named = [str(name) for name in contexts if name != "all"]
    of = f" to {in_words(named, 'kinds of cells')}" if named else ""
    if targets:
        does = "does" if len(targets) == 1 else "do"
        return f"What {does} {in_words(targets, 'perturbations')} do{of}, compared with {registry.control}?"
    what = "these cells" if registry.cell_type_key is None else f"the cell types ({registry.cell_type_key})"
    given = " and ".join(c.name for c in registry.covariates)
    return f"How well does an embedding keep {what} apart" + (f", when the model is given {given}?" if given else "?")


def data_in_words(adata: AnnData, registry: Registry, *, n_train: int = 0) -> str:
    """Say of how many cells the data are, what was held out, and how many training cells are not among them."""
    cells = BoundData(registry, adata)
    has = [f"{adata.n_obs:,} cells, {len(registry.var_names):,} genes"]
    has += [
        f"{len(set(cells.labels(key)))} {words} ({key})"
        for key, words in ((registry.cell_type_key, "cell types"), (registry.batch_key, "batches"))
        if key is not None
    ]
    if registry.pert_key is not None:
        n = int(cells.is_control.sum())
        has.append(f"{n:,} control cells and {adata.n_obs - n:,} perturbed ones ({registry.pert_key})")
    others = f"All are for testing; the {n_train:,} training cells are in a file of their own."
    return f"Data: {', '.join(has)}. {others if n_train else _held_out(cells)}"


def _held_out(cells: BoundData) -> str:
    """Say what was held out."""
    if OBS_SPLIT not in cells.adata.obs:
        return "Nothing was held out: no model was trained on these cells."
    n_test = int((cells.split == "test").sum())
    if not n_test:
        return "No cell was held out for testing."
    if n_test == len(cells):
        return "All are for testing; what the model was trained on is not known here, these cells perhaps among it."
    names = held_out_whole(split_table(cells))
    if names and len(names) <= _MOST_NAMED:
        return f"Held out, so that no model saw them: {n_test:,} cells, all of {'; '.join(names)}."
    whole = f", among them all cells of {len(names)} groups" if names else ""
    return f"Held out, so that no model saw them: {n_test:,} cells{whole}."


def held_out_whole(counts: pd.DataFrame) -> list[str]:
    """Name the groups of a table of `split_table` of which training saw no cell."""
    whole = counts[(counts["test"] > 0) & (counts["train"] + counts["val"] == 0)]
    groups = [c for c in counts.columns if c not in ("train", "val", "test")]
    return [" / ".join(str(v) for v in row) for row in whole[groups].itertuples(index=False, name=None)]


def predicted_contexts(pred: AnnData, keys: Sequence[str]) -> list[str]:
    """Name the kinds of cells that were predicted, if there is a column of them."""
    if len(keys) != 1 or keys[0] not in pred.obs:
        return []
    return [str(name) for name in np.unique(pred.obs[keys[0]].astype(str))]


def groups_in_words(names: Sequence[str], limit: int) -> str:
    """List groups, each of several words."""
    return listed(list(names), limit=limit, joined_by="; ", form=str)
