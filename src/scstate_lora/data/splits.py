"""Splits: assignment of cells to training, validation and test, stored in the AnnData and shown as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.contexts import join_labels
from scstate_lora.data.fields import obs_column
from scstate_lora.data.labels import label_of
from scstate_lora.data.results import SPLIT, write_result
from scstate_lora.data.split_column import SPLITS, read_split
from scstate_lora.data.split_files import SplitFile

if TYPE_CHECKING:
    from scstate_lora.config import DataConfig
    from scstate_lora.data.bound import BoundData


@dataclass(frozen=True)
class SplitRules:
    """Rules for splitting the cells: the data options, with the split file that they name.

    Parameters
    ----------
    options
        Data options, of which ``holdout``, ``split_key``, ``split_dataset``, ``zeroshot_controls``, ``test_size`` and
        ``val_size`` are used.
    file
        The split file named by ``options.split``.
    seed
        Seed of random splits.
    """

    options: DataConfig
    file: SplitFile | None
    seed: int

    @classmethod
    def of(cls, options: DataConfig, *, seed: int = 0) -> Self:
        """Read the split file, if one is named.

        Raises
        ------
        ValueError, FileNotFoundError
            If the file cannot be read, or does not hold ``split_dataset``.
        """
        file = None if options.split is None else SplitFile.of(options.split)
        if file is not None:
            file.choose(options.split_dataset)
        return cls(options, file, seed)

    @property
    def source(self) -> str:
        """Short description of where the split comes from."""
        if self.file is not None:
            return self.file.source
        if self.options.split_key is not None:
            return f"adata.obs[{self.options.split_key!r}]"
        return "random" if self.options.holdout is None else "holdout="

    def to_json(self) -> str:
        """Return the rules in effect as JSON text."""
        options = self.options
        if options.split_key is not None:
            return json.dumps({"split_key": options.split_key})
        rules: dict[str, Any] = {"test_size": options.test_size}
        if self.file is not None:
            dataset = self.file.choose(options.split_dataset)
            whole, partial = self.file.rules(dataset)
            rules = {"dataset": dataset, "zeroshot": whole, "fewshot": {k: v.model_dump() for k, v in partial.items()}}
        elif options.holdout is not None:
            rules = {"holdout": options.holdout}
        if "test_size" not in rules:
            rules["zeroshot_controls"] = options.zeroshot_controls
        rules |= {"val_size": options.val_size, "seed": self.seed}
        return json.dumps(rules, default=label_of, ensure_ascii=False)


def make_split(cells: BoundData, rules: SplitRules) -> np.ndarray:
    """Assign every cell to ``train``, ``val`` or ``test``.

    Parameters
    ----------
    cells
        The registered cells.
    rules
        Rules for splitting them.

    Returns
    -------
    Strings of shape ``(n_cells,)``.

    Raises
    ------
    KeyError, ValueError, TypeError
        If a column or value of ``holdout`` does not exist, ``split_key`` holds anything but the three names, a split
        file does not fit the data, or no cells are left for training.
    """
    if rules.options.split_key is not None:
        split = read_split(cells.adata, rules.options.split_key)
    else:
        split = _held_out_split(cells, rules)
    if not (split == "train").any():
        msg = f"{rules.source} leaves no cell for training. Hold out fewer cells."
        raise ValueError(msg)
    return split


def _held_out_split(cells: BoundData, rules: SplitRules) -> np.ndarray:
    """Hold out cells by file, by conditions or at random; validation cells are random unless the file defines them."""
    registry, strata = cells.registry, cells.contexts
    if registry.pert_key is not None:
        strata = join_labels([strata, cells.perturbations], len(cells))
    options = rules.options
    spare_controls = options.zeroshot_controls == "train"
    if spare_controls and registry.pert_key is None:
        msg = "zeroshot_controls='train' needs control cells. Define them: pert_key= and control=."
        raise ValueError(msg)
    rng = np.random.default_rng(rules.seed)
    split = np.full(len(cells), "train", dtype=object)
    if rules.file is not None:
        split = rules.file.split(cells, dataset=options.split_dataset, spare_controls=spare_controls)
    elif options.holdout is not None:
        split[_held_out(cells, options.holdout, spare_controls=spare_controls)] = "test"
    else:
        split[_draw(strata, split == "train", options.test_size, rng)] = "test"
    if not (split == "val").any():
        split[_draw(strata, split == "train", options.val_size, rng)] = "val"
    return split


def _held_out(cells: BoundData, holdout: list[dict[str, Any]], *, spare_controls: bool) -> np.ndarray:
    """Find cells that match all entries of any mapping, bool ``(n_cells,)``; spared controls match only by name."""
    adata, pert_key = cells.adata, cells.registry.pert_key
    held = np.zeros(adata.n_obs, dtype=bool)
    for condition in holdout:
        matches = np.ones(adata.n_obs, dtype=bool)
        for key, value in condition.items():
            labels = cells.labels(key)
            levels = sorted(set(labels[obs_column(adata, key, allow_missing=True).notna()]))
            values = [cells.registry.level_of(key, v) for v in (value if isinstance(value, list) else [value])]
            absent = [v for v in values if v not in levels]
            if absent:
                msg = f"holdout names {absent[0]!r}, which is not in adata.obs[{key!r}]. "
                raise ValueError(msg + did_you_mean(absent[0], levels))
            matches &= np.isin(labels.astype(str), values)
        if not matches.any():
            msg = f"holdout={condition} matches no cell: its values never occur together."
            raise ValueError(msg)
        if spare_controls and pert_key is not None and pert_key not in condition:
            matches &= ~cells.is_control
        held |= matches
    return held


def _draw(strata: np.ndarray, candidates: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Sample the same share of candidates in every stratum, rounded at random; return their row indices."""
    rows = np.flatnonzero(candidates)
    codes, _ = pd.factorize(strata[rows], sort=True)
    by_stratum = np.split(rows[np.argsort(codes, kind="stable")], np.cumsum(np.bincount(codes))[:-1])
    sampled = [np.zeros(0, dtype=np.int64)]
    for members in map(rng.permutation, by_stratum):
        # floor or ceil of share * n cells from a stratum of n, but never all of them
        n = min(int(share * len(members) + rng.random()), len(members) - 1)
        sampled.append(members[: max(n, 0)])
    return np.concatenate(sampled)


def write_split_table(cells: BoundData, rules: SplitRules) -> pd.DataFrame:
    """Store and return the table of the split in ``adata.obs``, together with its rules.

    Notes
    -----
    Adds ``adata.uns["scstate_lora"]["split"]``: ``table`` (a DataFrame, see :func:`split_table`), ``source`` (where the
    split comes from, for example the path to a file) and ``rules`` (JSON).
    """
    table = split_table(cells)
    stored = table.set_axis(table.index.astype(str))  # as when read from a file
    record = {"table": stored, "source": rules.source, "rules": rules.to_json()}
    write_result(cells.adata, SPLIT, record)
    return table


def split_table(cells: BoundData) -> pd.DataFrame:
    """Count cells by context, perturbation and split: one row per context (and perturbation), one column per split.

    The perturbation has the name of its column, or ``"perturbation"`` if that is the name of another one here.
    """
    groups = {"context": cells.contexts}
    pert_key = cells.registry.pert_key
    if pert_key is not None:
        groups["perturbation" if pert_key in ("context", *SPLITS) else pert_key] = cells.perturbations
    counts = pd.DataFrame(groups).assign(**{name: cells.split == name for name in SPLITS})
    return counts.groupby(list(groups), sort=True)[list(SPLITS)].sum().reset_index()
