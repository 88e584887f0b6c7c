"""Labels as a tree: one distribution over leaves, parents by summing, and the deepest label that is certain enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean, listed
from scstate_lora.metrics.calibration import cells_to_bear, last_safe_step

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = "cell"
_THRESHOLDS = np.concatenate([np.linspace(0.99, 0.5, 50), np.linspace(0.45, 0.05, 9)])


@dataclass(frozen=True)
class LabelTree:
    """Labels from coarse to fine.

    Made by :meth:`from_nested`, by :func:`~scstate_lora.data.label_levels.tree_from_columns` of columns from coarse to
    fine, or by :func:`~scstate_lora.data.ontology.tree_from_ontology` of a part of the Cell Ontology.

    Parameters
    ----------
    names
        Name of every node, the root first and parents before their children, all different.
    parents
        Position of every node's parent; -1 of the root.
    ids
        Ontology id of every node, None where it has none.

    Raises
    ------
    ValueError
        If a name or an id is there twice, there is no child, or a parent does not come before its child.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    ids: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", (None,) * len(self.names))
        if not len(self.names) == len(self.parents) == len(self.ids) or len(self.names) < 2:
            msg = f"A tree of {len(self.names)} names needs as many parents and ids, and one label beside its root."
            raise ValueError(msg)
        if self.parents[0] != -1 or any(not 0 <= parent < i for i, parent in enumerate(self.parents) if i):
            msg = "The root comes first, with the parent -1, and every other node after its parent."
            raise ValueError(msg)
        if len(self._positions) < len(self.names) + sum(i is not None for i in self.ids):
            keys = [*self.names, *(i for i in self.ids if i is not None)]
            twice = pd.Series(keys)[pd.Series(keys).duplicated()]
            msg = f"{listed(twice.unique())} is in the tree twice. Every label has one place: rename one of them."
            raise ValueError(msg)

    @classmethod
    def from_nested(cls, nested: Mapping[str, Any], *, root: str = ROOT) -> LabelTree:
        """Make a tree of a nested dict: ``{"lymphocyte": {"T cell": ["CD4", "CD8"], "B cell": None}, "monocyte": {}}``.

        Parameters
        ----------
        nested
            Labels and what is below them: a dict, a list of leaves, or None or an empty dict for a leaf.
        root
            Name of the node above all.

        Raises
        ------
        ValueError
            If a label is in two places, or a dict contains itself.
        TypeError
            If something else than a dict, a list or None is below a label.
        """
        names, parents, paths = [root], [-1], {root: root}

        def add(below: Any, parent: int, path: str, above: tuple[int, ...]) -> None:
            if id(below) in above:
                msg = f"The tree has a cycle: what is below {path!r} contains itself. Make every dict of its own."
                raise ValueError(msg)
            for name, under in _children(below, path):
                here = f"{path} > {name}"
                if name in paths:
                    msg = (
                        f"{name!r} is in the tree twice, as {paths[name]!r} and as {here!r}. Every label has one "
                        "place: rename one of them, or leave it out."
                    )
                    raise ValueError(msg)
                paths[name] = here
                names.append(name)
                parents.append(parent)
                add(under, len(names) - 1, here, (*above, id(below)))

        add(nested, 0, root, ())
        return cls(tuple(names), tuple(parents))

    @classmethod
    def from_parents(
        cls, parents: Mapping[str, str], *, ids: Mapping[str, str] | None = None, root: str = ROOT
    ) -> LabelTree:
        """Make a tree of the parent of every label.

        Parameters
        ----------
        parents
            Parent by label; labels directly below the root have the root.
        ids
            Ontology id by label, of those that have one.
        root
            Name of the node above all; it has no parent.

        Raises
        ------
        ValueError
            If labels are below themselves, or a parent has no place in the tree.
        """
        if root in parents:
            msg = f"{root!r} is the root and has no parent, but {parents[root]!r} is given. Rename it, or the root."
            raise ValueError(msg)
        names, positions = [root], [-1]
        below: dict[str, list[str]] = {}
        for child, parent in parents.items():
            below.setdefault(parent, []).append(child)
        place = 0
        while place < len(names):
            names += below.get(names[place], [])
            positions += [place] * len(below.get(names[place], []))
            place += 1
        lost = [name for name in parents if name not in set(names)]
        if lost:
            raise ValueError(_why_lost(lost, parents))
        known = ids or {}
        return cls(tuple(names), tuple(positions), tuple(known.get(name) for name in names))

    def pruned(self, labels: Iterable[Any]) -> LabelTree:
        """Return the tree of those nodes that are labels of cells, or have one below them.

        Parameters
        ----------
        labels
            Labels that cells have.

        Raises
        ------
        ValueError
            If a label is not in the tree, or none is left.
        """
        kept = np.zeros(len(self.names), dtype=bool)
        kept[self.positions(labels)] = True
        for i in range(len(self.names) - 1, 0, -1):  # parents come before their children
            kept[self.parents[i]] |= kept[i]
        kept[0] = True
        place = np.cumsum(kept) - 1
        nodes = [i for i in range(len(self.names)) if kept[i]]
        return LabelTree(
            tuple(self.names[i] for i in nodes),
            tuple(-1 if i == 0 else int(place[self.parents[i]]) for i in nodes),
            tuple(self.ids[i] for i in nodes),
        )

    @cached_property
    def _positions(self) -> dict[str, int]:
        named = {name: i for i, name in enumerate(self.names)}
        return {**{key: i for i, key in enumerate(self.ids) if key is not None}, **named}

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the children of every node."""
        children: list[list[int]] = [[] for _ in self.names]
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(i)
        return tuple(tuple(below) for below in children)

    @cached_property
    def leaves(self) -> np.ndarray:
        """Positions of the leaves, in their order, int64 ``(n_leaves,)``: the classes of a classifier."""
        return np.array([i for i, below in enumerate(self.children) if not below], dtype=np.int64)

    @cached_property
    def depths(self) -> np.ndarray:
        """Level of every node, 0 for the root, int64 ``(n_nodes,)``."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return np.array(depths, dtype=np.int64)

    @cached_property
    def members(self) -> np.ndarray:
        """Which leaves are below each node, a leaf below itself, bool ``(n_nodes, n_leaves)``."""
        is_below = np.zeros((len(self.names), len(self.leaves)), dtype=bool)
        is_below[self.leaves, np.arange(len(self.leaves))] = True
        for i in range(len(self.names) - 1, 0, -1):
            is_below[self.parents[i]] |= is_below[i]
        return is_below

    def positions(self, labels: Iterable[Any]) -> np.ndarray:
        """Find nodes by name or ontology id, int64 ``(n_labels,)``.

        Raises
        ------
        ValueError
            If one is not in the tree.
        """
        labels = [str(label) for label in labels]
        unknown = [label for label in dict.fromkeys(labels) if label not in self._positions]
        if unknown:
            msg = f"{listed(unknown)} is not in the tree of labels. {did_you_mean(unknown[0], self._positions)}"
            raise ValueError(msg)
        return np.array([self._positions[label] for label in labels], dtype=np.int64)

    def allowed(self, labels: Iterable[Any]) -> np.ndarray:
        """Return the leaves that each cell's label leaves open, bool ``(n_cells, n_leaves)``; errors as `positions`."""
        return self.members[self.positions(labels)]

    def leaf_mask(self, *, allow: Iterable[str] | None = None, block: Iterable[str] = ()) -> np.ndarray:
        """Select leaves: those below the allowed labels and not below a blocked one, bool ``(n_leaves,)``.

        Raises
        ------
        ValueError
            If a label is not in the tree, or no leaf is left.
        """
        mask = self.members[0 if allow is None else self.positions(allow)]
        mask = mask if allow is None else mask.any(axis=0)
        mask = mask & ~self.members[self.positions(block)].any(axis=0)
        if not mask.any():
            msg = "The allowed and blocked labels leave no leaf of the tree. Allow more, or block less."
            raise ValueError(msg)
        return mask

    def probabilities(self, leaves: np.ndarray, *, mask: np.ndarray | None = None) -> np.ndarray:
        """Compute the probability of every node; that of a parent is exactly the sum of its children's.

        Parameters
        ----------
        leaves
            Distribution over leaves, ``(n_cells, n_leaves)``.
        mask
            Of :meth:`leaf_mask`: all others get 0, and what is left is made to sum to 1; a cell that nothing is left
            of gets equal parts.

        Returns
        -------
        float64 ``(n_cells, n_nodes)``.

        Raises
        ------
        ValueError
            If the number of leaves is another.
        """
        p = np.asarray(leaves, dtype=np.float64)
        if p.ndim != 2 or p.shape[1] != len(self.leaves):
            msg = f"Probabilities {p.shape} must be (n_cells, n_leaves) of this tree's {len(self.leaves)} leaves."
            raise ValueError(msg)
        if mask is not None:
            p = np.where(mask, p, 0)
            total = p.sum(axis=1, keepdims=True)
            p = np.where(total > 0, p / np.where(total > 0, total, 1), mask / mask.sum())
        nodes = np.zeros((len(p), len(self.names)))
        nodes[:, self.leaves] = p
        for i in range(len(self.names) - 1, -1, -1):
            if self.children[i]:
                nodes[:, i] = nodes[:, list(self.children[i])].sum(axis=1)
        return nodes

    def deepest(self, nodes: np.ndarray, threshold: float) -> np.ndarray:
        """Find the deepest node of each cell that is certain enough, int64 ``(n_cells,)``; the root where none is.

        From the root to the likeliest child, for as long as its probability is at least the threshold.

        Parameters
        ----------
        nodes
            Of :meth:`probabilities`.
        threshold
            Smallest probability of a label that is given.
        """
        deepest = np.zeros(len(nodes), dtype=np.int64)
        for i, below in enumerate(self.children):  # parents come before their children
            if not below:
                continue
            here = np.flatnonzero(deepest == i)
            best = nodes[here][:, list(below)].argmax(axis=1)
            child = np.array(below)[best]
            go = nodes[here, child] >= threshold
            deepest[here[go]] = child[go]
        return deepest

    def threshold(
        self, nodes: np.ndarray, allowed: np.ndarray, *, max_error: float = 0.05, certainty: float = 0.9
    ) -> float:
        """Find the lowest threshold of :meth:`deepest` with which labels are wrong no more often than promised.

        A label is right if the cell's own is below it or above it. Thresholds from 0.99 down to 0.05 are tested in
        this order as in :func:`scstate_lora.metrics.error_threshold`, over the cells that get more than the root; the
        first is one with which these are enough to bear an error.

        Parameters
        ----------
        nodes
            Of held-out cells.
        allowed
            Leaves that their labels leave open.
        max_error
            Largest share of wrong labels, between 0 and 1.
        certainty
            Probability with which this holds on cells exchangeable with the held-out ones.

        Returns
        -------
        The threshold; infinite where not even the first keeps the promise, so that all cells are at the root.
        """
        given = [self.deepest(nodes, threshold) for threshold in _THRESHOLDS]
        right = np.array([(self.members[g] & allowed).any(axis=1) for g in given])
        labelled = np.array(given) > 0
        n_wrong, n = (labelled & ~right).sum(axis=1), labelled.sum(axis=1)
        first = int(np.argmax(n >= min(cells_to_bear(max_error, certainty), n.max())))
        last, _ = last_safe_step(n_wrong[first:], n[first:], max_error=max_error, certainty=certainty)
        return float("inf") if last is None else float(_THRESHOLDS[first + last])

    def to_json(self) -> dict[str, list[Any]]:
        """Return plain lists, from which ``LabelTree.from_json`` makes the same tree."""
        return {"names": list(self.names), "parents": list(self.parents), "ids": list(self.ids)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Sequence[Any]]) -> LabelTree:
        """Rebuild from what :meth:`to_json` returned."""
        return cls(tuple(saved["names"]), tuple(saved["parents"]), tuple(saved["ids"]))


def _why_lost(lost: Sequence[str], parents: Mapping[str, str]) -> str:
    """Say why labels are not below the root: a cycle, or a parent that is nowhere."""
    path = [lost[0]]
    while path[-1] in parents and parents[path[-1]] not in path:
        path.append(parents[path[-1]])
    if path[-1] not in parents:
        return f"{path[-2]!r} is below {path[-1]!r}, which has no place in the tree. Give its parent, or leave it out."
    cycle = [*path[path.index(parents[path[-1]]) :], parents[path[-1]]]
    return f"The tree has a cycle: {' below '.join(map(repr, cycle))}. Give one of them another parent."


def _children(below: Any, path: str) -> list[tuple[str, Any]]:
    if below is None:
        return []
    if isinstance(below, Mapping):
        return [(str(name), under) for name, under in below.items()]
    if isinstance(below, Sequence) and not isinstance(below, (str, bytes)):
        return [(str(name), None) for name in below]
    msg = f"Below {path!r} stands {below!r}; a dict, a list of labels, or None for a leaf is expected."
    raise TypeError(msg)
