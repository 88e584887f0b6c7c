"""Splits: which cells train, which validate, which are held out; stored in the AnnData and shown as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from scstate_lora._constants import OBS_SPLIT
from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import as_labels, label_of, obs_column
from scstate_lora.data.results import SPLIT, write_result
from scstate_lora.data.split_files import SplitFile

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data.registry import Registry

SPLITS = ("train", "val", "test")

ZeroshotControls = Literal["held_out", "train"]
"""What happens to control cells of contexts that are held out as a whole."""


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """How the cells are split.

    Parameters
    ----------
    holdout
        Conditions whose cells are the test split, for instance ``{"cell_type": "B cells", "condition": "stim"}``:
        a cell is held out when all values of one mapping agree, a list standing for any of its values. Without it, a
        random ``test_size`` of the cells is, stratified by context and perturbation.
    split_key
        Column of ``adata.obs`` that already holds ``train``/``val``/``test``; used as it is.
    split
        Cell types and perturbations that are held out: a TOML file, or what :meth:`SplitFile.of` takes.
    split_dataset
        Which of the datasets of ``split`` the cells are; needed where it splits several.
    zeroshot_controls
        ``"train"``: control cells of contexts that are held out as a whole train. A context is held out as a whole by
        ``[zeroshot]`` of a file, or by a condition of ``holdout`` that does not name the perturbation.
    test_size, val_size
        Share of all cells held out, and share of the rest that validates. A file that says what validates has the last
        word on it.
    seed
        Seed of the random choices.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        Rules contradict each other, a share is not in [0, 1), or the file cannot be used.
    """

    holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    split_key: str | None = None
    split: str | os.PathLike[str] | Mapping[str, Any] | SplitFile | None = None
    split_dataset: str | None = None
    zeroshot_controls: ZeroshotControls = "held_out"
    test_size: float = 0.2
    val_size: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("holdout", "split_key", "split") if getattr(self, name) is not None]
        if len(given) > 1:
            msg = f"{' and '.join(f'{name}=' for name in given)} both say which cells are held out. Give one of them."
            raise ValueError(msg)
        for name in ("test_size", "val_size"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                msg = f"{name}={share} must lie in [0, 1): it is a share of the cells."
                raise ValueError(msg)
        allowed = get_args(ZeroshotControls)
        if self.zeroshot_controls not in allowed:
            near = did_you_mean(self.zeroshot_controls, allowed)
            msg = f"zeroshot_controls={self.zeroshot_controls!r} is not allowed. {near}"
            raise ValueError(msg)
        if self.zeroshot_controls == "train" and self.holdout is None and self.split is None:
            msg = (
                "zeroshot_controls='train' is about contexts that are held out as a whole, by holdout= or split=. "
                "Neither is given: leave it out."
            )
            raise ValueError(msg)
        if self.split_dataset is not None and self.split is None:
            msg = f"split_dataset={self.split_dataset!r} is one of the datasets of a split file. Give the file: split=."
            raise ValueError(msg)
        if self.split is not None:
            file = SplitFile.of(self.split)
            file.choose(self.split_dataset)
            object.__setattr__(self, "split", file)

    @property
    def file(self) -> SplitFile | None:
        """The split file."""
        assert self.split is None or isinstance(self.split, SplitFile)  # __post_init__ reads it
        return self.split

    @property
    def source(self) -> str:
        """Where the split comes from, in a few words."""
        if self.file is not None:
            return self.file.source
        if self.split_key is not None:
            return f"adata.obs[{self.split_key!r}]"
        return "random" if self.holdout is None else "holdout="

    def to_json(self) -> str:
        """Turn the rules that were followed into JSON text."""
        if self.split_key is not None:
            return json.dumps({"split_key": self.split_key})
        rules: dict[str, Any] = {"test_size": self.test_size}
        if self.file is not None:
            dataset = self.file.choose(self.split_dataset)
            whole, some = self.file.rules(dataset)
            rules = {"dataset": dataset, "zeroshot": whole, "fewshot": {k: v.model_dump() for k, v in some.items()}}
        elif self.holdout is not None:
            rules = {"holdout": self.holdout}
        if "test_size" not in rules:
            rules["zeroshot_controls"] = self.zeroshot_controls
        rules |= {"val_size": self.val_size, "seed": self.seed}
        return json.dumps(rules, default=label_of, ensure_ascii=False)


def make_split(adata: AnnData, registry: Registry, rules: SplitRules | None = None) -> np.ndarray:
    """Assign every cell to ``train``, ``val`` or ``test``.

    Parameters
    ----------
    adata, registry
        The data and what was found in it.
    rules
        How; by default at random.

    Returns
    -------
    Strings of shape ``(n_cells,)``.

    Raises
    ------
    KeyError, ValueError, TypeError
        A column or a value of ``holdout`` does not exist, ``split_key`` holds anything but the three names, a split
        file does not fit the data, or no cell is left for training.
    """
    rules = rules or SplitRules()
    if rules.split_key is not None:
        split = _stored_split(adata, rules.split_key)
    else:
        split = _held_out_split(adata, registry, rules)
    if not (split == "train").any():
        msg = f"{rules.source} leaves no cell for training. Hold out fewer cells."
        raise ValueError(msg)
    return split


def _held_out_split(adata: AnnData, registry: Registry, rules: SplitRules) -> np.ndarray:
    """Hold cells out by a file, by conditions or at random; validation is drawn from the rest unless the file says."""
    strata = registry.contexts(adata)
    if registry.pert_key is not None:
        strata = strata + " | " + registry.labels(adata, registry.pert_key)
    spare_controls = rules.zeroshot_controls == "train"
    if spare_controls and registry.pert_key is None:
        msg = "zeroshot_controls='train' is about control cells. Say which they are: pert_key= and control=."
        raise ValueError(msg)
    rng = np.random.default_rng(rules.seed)
    split = np.full(adata.n_obs, "train", dtype=object)
    if rules.file is not None:
        split = rules.file.split(adata, registry, dataset=rules.split_dataset, spare_controls=spare_controls)
    elif rules.holdout is not None:
        split[_held_out(adata, registry, rules.holdout, spare_controls=spare_controls)] = "test"
    else:
        split[_draw(strata, split == "train", rules.test_size, rng)] = "test"
    if not (split == "val").any():
        split[_draw(strata, split == "train", rules.val_size, rng)] = "val"
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


def _held_out(
    adata: AnnData,
    registry: Registry,
    holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    spare_controls: bool,
) -> np.ndarray:
    """Cells that agree with all of one mapping, bool ``(n_cells,)``; controls only by name where they are spared."""
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
        if spare_controls and registry.pert_key is not None and registry.pert_key not in condition:
            matches &= registry.labels(adata, registry.pert_key) != registry.control
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


def write_split_table(adata: AnnData, registry: Registry, rules: SplitRules) -> None:
    """Store the table of the split that is in ``adata.obs`` and the rules it follows.

    Notes
    -----
    Adds ``adata.uns["scstate_lora"]["split"]``: ``table`` (a DataFrame, see :func:`split_table`), ``source`` (where the
    split comes from, for instance the path of a file) and ``rules`` (JSON).
    """
    table = split_table(adata, registry)
    table.index = table.index.astype(str)  # as it is read from a file
    record = {"table": table, "source": rules.source, "rules": rules.to_json()}
    write_result(adata, SPLIT, record)


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
