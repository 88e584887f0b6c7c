"""What a classifier learns of a cell: labels in a tree, or a number; columns of ``adata.obs``, validated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from pandas.api import types as pdt

from scstate_lora._utils import did_you_mean, listed, warn_user
from scstate_lora.data.fields import MAX_NUMERIC_LEVELS, obs_column
from scstate_lora.data.label_levels import finest_labels, tree_from_columns
from scstate_lora.data.label_tree import LabelTree
from scstate_lora.data.labels import as_labels, label_of
from scstate_lora.data.ontology import tree_from_ontology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.config import LabelledDataConfig

UNKNOWN = "Unknown"
"""Label of a cell that gets none."""


@dataclass(frozen=True)
class LabelTarget:
    """A column of labels, or of numbers, that a classifier learns.

    Parameters
    ----------
    key
        Column of ``adata.obs``.
    kind
        ``"categorical"`` or ``"continuous"``.
    levels
        Columns of coarser labels above it, from coarse to fine; a cell without a label of its own has the finest of
        theirs.
    unlabeled
        Label that means "not labelled".
    tree
        Labels and what is above them; None for numbers.
    """

    key: str
    kind: Literal["categorical", "continuous"]
    levels: tuple[str, ...] = ()
    unlabeled: str | None = None
    tree: LabelTree | None = None

    def labels(self, adata: AnnData) -> np.ndarray:
        """Return the label of every cell, or its number, ``(n_cells,)``; None, or NaN, of those without one.

        Raises
        ------
        KeyError
            If a column does not exist.
        """
        if self.kind == "continuous":
            return pd.to_numeric(obs_column(adata, self.key, allow_missing=True)).to_numpy(dtype=np.float64)
        return _labels(adata, (*self.levels, self.key), self.unlabeled)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which :meth:`from_json` makes the same target."""
        return {**asdict(self), "tree": None if self.tree is None else self.tree.to_json()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Rebuild from what :meth:`to_json` returned."""
        tree = saved["tree"]
        changed = {"levels": tuple(saved["levels"]), "tree": None if tree is None else LabelTree.from_json(tree)}
        return cls(**{**saved, **changed})


def fit_label_targets(adata: AnnData, config: LabelledDataConfig) -> tuple[LabelTarget, ...]:
    """Validate the columns of labels, and put their labels into trees.

    Parameters
    ----------
    adata
        The cells.
    config
        Of which ``labels_key``, ``unlabeled_category``, ``label_tree`` and ``ontology_terms`` are used.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If a column has fewer than two labels, ``unlabeled_category`` is none of them, or the tree does not hold them.
    FileNotFoundError
        If there is no ontology at the path.
    """
    unlabeled = None if config.unlabeled_category is None else label_of(config.unlabeled_category)
    targets = []
    for number, (key, kind) in enumerate(config.label_kinds.items()):
        column = obs_column(adata, key, allow_missing=True)
        if kind == "continuous" or (kind is None and _is_continuous(column)):
            targets.append(_number_target(key, column))
            continue
        tree = config.label_tree if number == 0 else None
        levels = tuple(tree) if isinstance(tree, list) else ()
        if key in levels:
            msg = f"label_tree={list(levels)} holds labels_key={key!r} itself. Name the coarser columns only."
            raise ValueError(msg)
        labels = _labels(adata, (*levels, key), unlabeled)
        present = sorted({label for label in labels if label is not None})
        _check_labels(key, column, present, unlabeled)
        whole = _tree(adata, key, levels, present, tree, unlabeled, config.ontology_terms or ())
        targets.append(LabelTarget(key, "categorical", levels, unlabeled, whole))
    if unlabeled is not None and not any(unlabeled in as_labels(adata.obs[t.key].dropna()).unique() for t in targets):
        known = sorted({str(n) for t in targets if t.tree is not None for n in t.tree.names[1:]})
        where = f"adata.obs[{targets[0].key!r}]"
        msg = f"unlabeled_category={unlabeled!r} is not in {where}. {did_you_mean(unlabeled, known)}"
        raise ValueError(msg)
    _warn_of_selected_genes(adata)
    return tuple(targets)


def _warn_of_selected_genes(adata: AnnData) -> None:
    """Warn if only highly variable genes are left: new data are often selected otherwise, and lack some of them."""
    selected = adata.var.get("highly_variable")
    if selected is not None and np.asarray(selected, dtype=bool).all():
        warn_user(
            f"All {adata.n_vars} genes are highly variable ones: cells to be labelled will lack some of them, and an "
            "encoder reads far more. Set up with all genes; the classifier chooses its own."
        )


def _is_continuous(column: pd.Series) -> bool:
    return bool(
        pdt.is_numeric_dtype(column) and not pdt.is_bool_dtype(column) and column.nunique() > MAX_NUMERIC_LEVELS
    )


def _number_target(key: str, column: pd.Series) -> LabelTarget:
    try:
        values = pd.to_numeric(column).astype(float)
    except (ValueError, TypeError) as error:
        msg = f"labels_key={key!r} is declared continuous, but adata.obs[{key!r}] holds other values than numbers."
        raise ValueError(msg) from error
    if np.isinf(values).any() or values.nunique() < 2:
        msg = f"adata.obs[{key!r}] must hold finite numbers, at least two different ones, to be learned."
        raise ValueError(msg)
    return LabelTarget(key, "continuous")


def _labels(adata: AnnData, keys: Sequence[str], unlabeled: str | None) -> np.ndarray:
    """Finest label of every cell, None of those without one."""
    for key in keys:
        obs_column(adata, key, allow_missing=True)
    labels = finest_labels(_labelled(adata.obs, keys, unlabeled), keys)
    return labels.where(labels.notna(), None).to_numpy(dtype=object)


def _labelled(obs: pd.DataFrame, keys: Sequence[str], unlabeled: str | None) -> pd.DataFrame:
    """Return the columns with missing values where they say "not labelled"."""
    if unlabeled is None:
        return obs[list(keys)]
    columns = {}
    for key in keys:
        known = obs[key].notna()
        columns[key] = pd.Series(np.nan, index=obs.index, dtype=object)
        columns[key][known] = as_labels(obs[key][known])
        columns[key] = columns[key].mask(columns[key] == unlabeled)
    return pd.DataFrame(columns, index=obs.index)


def _check_labels(key: str, column: pd.Series, present: Sequence[str], unlabeled: str | None) -> None:
    if len(present) < 2:
        what = f"the single label {present[0]!r}" if present else "no label"
        msg = f"adata.obs[{key!r}] has {what}; a classifier needs at least two."
        raise ValueError(msg)
    if UNKNOWN in present:
        msg = (
            f"adata.obs[{key!r}] has the label {UNKNOWN!r}, which predictions use for cells without a label. If it "
            f"means that here too, set up with unlabeled_category={UNKNOWN!r}; otherwise rename it."
        )
        raise ValueError(msg)
    n = len(column) if unlabeled is None else int((as_labels(column.dropna()) != unlabeled).sum())
    if len(present) > max(50, n // 2):
        msg = (
            f"adata.obs[{key!r}] has {len(present)} labels for {n} labelled cells, as a name of each cell would. Name "
            "the column of cell types; a column of numbers is learned as such with labels_key={key: 'continuous'}."
        )
        raise ValueError(msg)


def _tree(
    adata: AnnData,
    key: str,
    levels: Sequence[str],
    present: Sequence[str],
    given: str | list[str] | dict[str, Any] | None,
    unlabeled: str | None,
    further: Sequence[str],
) -> LabelTree:
    """Put the labels that occur into the tree that the options describe."""
    if given is None:
        return LabelTree.from_nested(dict.fromkeys(present))
    if isinstance(given, list):
        return tree_from_columns(_labelled(adata.obs, (*levels, key), unlabeled), [*levels, key])
    if isinstance(given, str):
        coarser = [term for term in further if term not in present]
        return tree_from_ontology(Path(given), [*present, *coarser], as_given=True)
    whole = LabelTree.from_nested(given)
    absent = [label for label in present if label not in whole.names]
    if absent:
        msg = (
            f"label_tree does not hold {listed(absent)} of adata.obs[{key!r}]. Give every label a place; a label that "
            "is below none goes to the top."
        )
        raise ValueError(msg)
    return whole.pruned(present)
