"""Splits: which cells train, which validate, which are held out; stored in the AnnData and shown as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._constants import OBS_SPLIT
from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import as_labels, label_of, obs_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data.registry import Registry

SPLITS = ("train", "val", "test")


def make_split(
    adata: AnnData,
    registry: Registry,
    *,
    holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    split_key: str | None = None,
    test_size: float = 0.2,
    val_size: float = 0.1,
    seed: int = 0,
) -> np.ndarray:
    """Assign every cell to ``train``, ``val`` or ``test``.

    Parameters
    ----------
    adata, registry
        The data and what was found in it.
    holdout
        Conditions whose cells are the test split, for instance ``{"cell_type": "B cells", "condition": "stim"}``:
        a cell is held out when all values of one mapping agree, a list standing for any of its values. Without it, a
        random ``test_size`` of the cells is, stratified by context and perturbation.
    split_key
        Column of ``adata.obs`` that already holds ``train``/``val``/``test``; used as it is.
    test_size, val_size
        Share of all cells held out, and share of the rest that validates.
    seed
        Seed of the random choices.

    Returns
    -------
    Strings of shape ``(n_cells,)``.

    Raises
    ------
    KeyError, ValueError, TypeError
        A column or a value of ``holdout`` does not exist, ``split_key`` holds anything but the three names, a share is
        not in [0, 1), or no cell is left for training.
    """
    if split_key is not None:
        if holdout is not None:
            msg = f"holdout= and split_key={split_key!r} both say which cells are held out. Give one of them."
            raise ValueError(msg)
        split = _stored_split(adata, split_key)
    else:
        for name, share in (("test_size", test_size), ("val_size", val_size)):
            if not 0 <= share < 1:
                msg = f"{name}={share} must lie in [0, 1): it is a share of the cells."
                raise ValueError(msg)
        strata = registry.contexts(adata)
        if registry.pert_key is not None:
            strata = strata + " | " + registry.labels(adata, registry.pert_key)
        rng = np.random.default_rng(seed)
        split = np.full(adata.n_obs, "train", dtype=object)
        if holdout is not None:
            split[_held_out(adata, holdout)] = "test"
        else:
            split[_draw(strata, split == "train", test_size, rng)] = "test"
        split[_draw(strata, split == "train", val_size, rng)] = "val"
    if not (split == "train").any():
        source = "holdout=" if split_key is None else f"adata.obs[{split_key!r}]"
        msg = f"{source} leaves no cell for training. Hold out fewer cells."
        raise ValueError(msg)
    return split


def _stored_split(adata: AnnData, split_key: str) -> np.ndarray:
    split = as_labels(obs_column(adata, split_key)).to_numpy(dtype=object)
    unknown = sorted(set(split) - set(SPLITS))
    if unknown:
        msg = (
            f"adata.obs[{split_key!r}] holds {', '.join(map(repr, unknown[:5]))}; a split is one of "
            f"{', '.join(map(repr, SPLITS))}. Rename the values."
        )
        raise ValueError(msg)
    return split


def _held_out(adata: AnnData, holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Cells that agree with all of one mapping, bool ``(n_cells,)``."""
    held = np.zeros(adata.n_obs, dtype=bool)
    for condition in [holdout] if isinstance(holdout, Mapping) else holdout:
        if not isinstance(condition, Mapping) or not condition:
            msg = (
                f"holdout holds {condition!r}; each condition is a mapping from a column of adata.obs to a value, such "
                "as {'cell_type': 'B cells'}."
            )
            raise TypeError(msg)
        matches = np.ones(adata.n_obs, dtype=bool)
        for key, value in condition.items():
            labels = as_labels(obs_column(adata, key))
            levels = sorted(set(labels))
            values = [label_of(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
            absent = [v for v in values if v not in levels]
            if absent:
                msg = f"holdout names {absent[0]!r}, which adata.obs[{key!r}] does not hold. "
                raise ValueError(msg + did_you_mean(absent[0], levels))
            matches &= labels.isin(values).to_numpy()
        if not matches.any():
            msg = f"holdout={dict(condition)} matches no cell: its values never occur together."
            raise ValueError(msg)
        held |= matches
    return held


def _draw(strata: np.ndarray, candidates: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the indices of a share of the candidates, the same share in every stratum up to rounding at random."""
    rows = np.flatnonzero(candidates)
    codes, _ = pd.factorize(strata[rows], sort=True)
    by_stratum = np.split(rows[np.argsort(codes, kind="stable")], np.cumsum(np.bincount(codes))[:-1])
    chosen = [np.zeros(0, dtype=np.int64)]
    for members in map(rng.permutation, by_stratum):
        # A stratum of n gives floor or ceil of share * n cells, but never its last one.
        n = min(int(share * len(members) + rng.random()), len(members) - 1)
        chosen.append(members[: max(n, 0)])
    return np.concatenate(chosen)


def write_split(adata: AnnData, split: np.ndarray) -> None:
    """Store the split in ``adata.obs["scstate_split"]``."""
    adata.obs[OBS_SPLIT] = pd.Categorical(split, categories=list(SPLITS))


def read_split(adata: AnnData) -> np.ndarray:
    """Read the stored split of every cell, shape ``(n_cells,)``."""
    return _stored_split(adata, OBS_SPLIT)


def split_table(adata: AnnData, registry: Registry) -> pd.DataFrame:
    """Count cells by context, perturbation and split: one row a context (and perturbation), one column a split."""
    groups = {"context": registry.contexts(adata)}
    if registry.pert_key is not None:
        groups[registry.pert_key] = registry.labels(adata, registry.pert_key)
    counts = pd.DataFrame(groups).assign(**{name: read_split(adata) == name for name in SPLITS})
    return counts.groupby(list(groups), sort=True)[list(SPLITS)].sum().reset_index()
