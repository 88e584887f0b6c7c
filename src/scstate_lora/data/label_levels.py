"""Columns of ``adata.obs`` from coarse to fine as one tree of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean, listed
from scstate_lora.data.label_tree import ROOT, LabelTree
from scstate_lora.data.labels import as_labels

if TYPE_CHECKING:
    from collections.abc import Sequence


def tree_from_columns(obs: pd.DataFrame, keys: Sequence[str], *, root: str = ROOT) -> LabelTree:
    """Make a tree of columns of ``adata.obs``, from the coarsest to the finest level.

    A label that a finer column repeats for all its cells (``B`` in both) is one node. Missing values are allowed: the
    cell then has the label of a coarser level (:func:`finest_labels`).

    Parameters
    ----------
    obs
        ``adata.obs``.
    keys
        Its columns, coarse to fine.
    root
        Name of the node above all.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a label is below two parents or below itself, or repeats its parent while that has other children.
    """
    levels = _levels(obs, keys)
    parents: dict[Any, str] = {}
    seen: dict[Any, None] = {}
    for depth, key in enumerate(keys):
        coarser = levels[list(keys[:depth])]
        above = _finest(coarser) if depth else pd.Series(root, index=levels.index)
        pairs = pd.DataFrame({"child": levels[key], "parent": above}).dropna(subset="child").drop_duplicates()
        seen |= dict.fromkeys(sorted(set(pairs["child"])))
        pairs = pairs.dropna()  # where all coarser levels are missing, other cells say what is above
        _check_repeats(pairs, key)
        for child, found in pairs[pairs["child"] != pairs["parent"]].groupby("child", sort=True)["parent"]:
            certain = list(dict.fromkeys([*([parents[child]] if child in parents else []), *sorted(found)]))
            if len(certain) > 1:
                msg = (
                    f"adata.obs[{key!r}] is not nested: {child!r} is below {listed(certain, joined_by=' and below ')}. "
                    f"Every label has one parent: rename it ('{certain[0]} {child}', '{certain[1]} {child}'), "
                    "correct the cells that are wrong, or put the columns in order from coarse to fine."
                )
                raise ValueError(msg)
            parents[child] = certain[0]
    return LabelTree.from_parents({name: parents.get(name, root) for name in seen}, root=root)


def finest_labels(obs: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Return each cell's label of the finest level that it has one of; missing where it has none.

    Parameters
    ----------
    obs, keys
        As in :func:`tree_from_columns`, with its KeyError.
    """
    return pd.Series(_finest(_levels(obs, keys)).to_numpy(), index=obs.index, dtype=object)


def _levels(obs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Columns as text, missing values kept, cells by number."""
    if not len(keys) or len(set(keys)) < len(keys):
        msg = f"The levels {list(keys)} must be different columns of adata.obs, from coarse to fine, at least one."
        raise ValueError(msg)
    levels = {}
    for key in keys:
        if key not in obs:
            msg = f"adata.obs[{key!r}] does not exist. {did_you_mean(key, obs.columns)}"
            raise KeyError(msg)
        known = obs[key].notna().to_numpy()
        text = np.full(len(obs), np.nan, dtype=object)
        if known.any():
            text[known] = as_labels(obs[key][known]).to_numpy()
        levels[key] = text
    return pd.DataFrame(levels, dtype=object)


def _finest(levels: pd.DataFrame) -> pd.Series:
    """Last value of each row that is not missing, still as text: filling would guess another type where all are."""
    finest = levels.iloc[:, 0]
    for key in levels.columns[1:]:
        finest = levels[key].where(levels[key].notna(), finest)
    return finest


def _check_repeats(pairs: pd.DataFrame, key: str) -> None:
    """Raise where a label repeats its parent, though other labels are below that too."""
    repeated = pairs.loc[pairs["child"] == pairs["parent"], "parent"]
    below = pairs[pairs["parent"].isin(repeated) & (pairs["child"] != pairs["parent"])]
    if len(below):
        name = below["parent"].iloc[0]
        others = sorted(below.loc[below["parent"] == name, "child"])
        msg = (
            f"adata.obs[{key!r}] has {name!r} below {name!r}, beside {listed(others)}. A label cannot be a part of "
            f"itself: rename it on the finer level ('other {name}'), or leave it missing where nothing finer is known."
        )
        raise ValueError(msg)
