"""Splits: which cells train, which validate, which are held out; stored in the AnnData and shown as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._constants import OBS_SPLIT
from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import as_labels, label_of, obs_column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scstate_lora.data.registry import Registry

SPLITS = ("train", "val", "test")


def make_split(
    adata: AnnData,
    registry: Registry,
    *,
    holdout: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
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
        a cell is held out when all values of one mapping agree. Without it, a random ``test_size`` of the cells is,
        stratified by context and perturbation.
    split_key
        Column of ``adata.obs`` that already holds ``train``/``val``/``test``; used as it is.
    test_size, val_size
        Share of all cells held out, and share of the rest that validates.
    seed
        Seed of the random choices.

    Returns
    -------
    Strings of shape ``(n_cells,)``.
    """
    if split_key is not None:
        split = as_labels(obs_column(adata, split_key)).to_numpy(dtype=object)
        unknown = sorted(set(split) - set(SPLITS))
        if unknown:
            msg = f"adata.obs[{split_key!r}] holds {unknown[0]!r}; a split is one of {', '.join(SPLITS)}."
            raise ValueError(msg)
    else:
        for name, share in (("test_size", test_size), ("val_size", val_size)):
            if not 0 <= share < 1:
                msg = f"{name}={share} must lie in [0, 1)."
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
        msg = "No cell is left for training: every cell is in the validation or test split."
        raise ValueError(msg)
    return split


def _held_out(adata: AnnData, holdout: Mapping[str, str] | Sequence[Mapping[str, str]]) -> np.ndarray:
    conditions = [holdout] if hasattr(holdout, "items") else list(holdout)
    held = np.zeros(adata.n_obs, dtype=bool)
    for condition in conditions:
        matches = np.ones(adata.n_obs, dtype=bool)
        for key, value in condition.items():
            labels = as_labels(obs_column(adata, key))
            if label_of(value) not in set(labels):
                msg = f"holdout names {value!r}, which adata.obs[{key!r}] does not hold. "
                raise ValueError(msg + did_you_mean(label_of(value), sorted(set(labels))))
            matches &= (labels == label_of(value)).to_numpy()
        if not matches.any():
            msg = f"holdout={dict(condition)} matches no cell: its values never occur together."
            raise ValueError(msg)
        held |= matches
    return held


def _draw(strata: np.ndarray, candidates: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of a share of the candidates, the same share in every stratum up to rounding at random."""
    chosen = []
    for stratum in sorted(set(strata[candidates])):
        members = rng.permutation(np.flatnonzero(candidates & (strata == stratum)))
        # A stratum of n gives floor or ceil of share * n cells, but never its last one.
        n = min(int(share * len(members) + rng.random()), len(members) - 1)
        chosen.append(members[:n])
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)


def write_split(adata: AnnData, split: np.ndarray) -> None:
    """Store the split in ``adata.obs["scstate_split"]``."""
    adata.obs[OBS_SPLIT] = pd.Categorical(split, categories=list(SPLITS))


def read_split(adata: AnnData) -> np.ndarray:
    """The stored split of every cell, shape ``(n_cells,)``."""
    return as_labels(obs_column(adata, OBS_SPLIT)).to_numpy(dtype=object)


def split_table(adata: AnnData, registry: Registry) -> pd.DataFrame:
    """Number of cells by context, perturbation and split: one row a context (and perturbation), one column a split."""
    groups = {"context": registry.contexts(adata)}
    if registry.pert_key is not None:
        groups[registry.pert_key] = registry.labels(adata, registry.pert_key)
    frame = pd.DataFrame({**groups, "split": pd.Categorical(read_split(adata), categories=list(SPLITS))})
    counts = frame.groupby([*groups, "split"], observed=False, sort=True).size().unstack("split", fill_value=0)
    counts.columns = [str(c) for c in counts.columns]
    return counts.reset_index()
