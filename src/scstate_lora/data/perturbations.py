"""Perturbations: their names, however written, and their vectors, one-hot or from features."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.labels import label_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

SEPARATOR = "+"
"""Separator between the parts of a combination: ``"A+B"``."""


def parts_of(name: str) -> tuple[str, ...]:
    """Split a combination into its parts: sorted, each once, without blanks around them.

    A name with an empty part, such as ``"Na+"``, is no combination and its own only part.
    """
    parts = {part.strip() for part in name.split(SEPARATOR)}
    return tuple(sorted(parts)) if all(parts) else (name.strip(),)


def key_of(name: str, control: str) -> str:
    """Return the text that all spellings of a perturbation share.

    The order of parts, blanks around them, and the control among them have no effect: with the control ``"ctrl"``,
    ``"B + A"`` and ``"A+B+ctrl"`` have the key ``"A+B"``, ``"A+ctrl"`` has ``"A"``, and ``"ctrl+ctrl"`` is the control.
    """
    parts, none = parts_of(name), set(parts_of(control))
    if none.issubset(parts):
        parts = tuple(part for part in parts if part not in none)
    return SEPARATOR.join(parts) if parts else control


@lru_cache(maxsize=32)
def spellings(names: tuple[str, ...], control: str) -> dict[str, str]:
    """Choose one spelling for each perturbation: by key, the control's own, and the shortest of the others.

    Parameters
    ----------
    names
        Perturbations; of several spellings of equal length, the first in the alphabet is chosen.
    control
        Control level.
    """
    chosen = {control: control}
    for name in sorted(names, key=lambda name: (len(name), name)):
        chosen.setdefault(key_of(name, control), name)
    return chosen


def respelled(labels: np.ndarray, names: Iterable[str], control: str) -> np.ndarray:
    """Bring perturbations to the spelling of others.

    Parameters
    ----------
    labels
        Perturbation of every cell, ``(n_cells,)``. Those that are not among `names` stay as they are.
    names, control
        Perturbations in their spelling, and the control level.
    """
    chosen = spellings(tuple(sorted(set(names))), control)
    codes, levels = pd.factorize(np.asarray(labels, dtype=object))
    return np.array([chosen.get(key_of(str(level), control), str(level)) for level in levels], dtype=object)[codes]


@dataclass(frozen=True)
class PerturbationTable:
    """Vectors that describe the perturbations to the network.

    Without features, each perturbation has its own column. With features, the first column is one and the others are
    the features, standardised over the training perturbations. The control is zero. A combination ``"A+B"`` that is not
    in the table is the sum of its parts, so effects that are linear in the vectors add up. Names are found in any
    spelling (:func:`key_of`).

    Parameters
    ----------
    names
        Perturbations in the table, the control first.
    values
        Perturbation vectors, float32 ``(n_names, n_columns)``.
    from_features
        Whether the vectors come from features; otherwise they are one-hot.
    untrained
        Perturbations that have training cells but are not in the table, as too few: why, by name.
    """

    names: tuple[str, ...]
    values: np.ndarray
    from_features: bool
    untrained: dict[str, str] = field(default_factory=dict)

    @classmethod
    def one_hot(cls, perturbations: Sequence[str], control: str) -> Self:
        """Make one-hot vectors: one column per perturbation, none for the control."""
        targets = [name for name in perturbations if name != control]
        return cls((control, *targets), np.eye(len(targets) + 1, dtype=np.float32)[:, 1:], from_features=False)

    @classmethod
    def of_features(cls, features: pd.DataFrame, *, trained: Collection[str], control: str) -> Self:
        """Make vectors from features, standardised over the training perturbations.

        Parameters
        ----------
        features
            One row per perturbation; all columns are numeric.
        trained
            Perturbations of the training cells, without the control; may include combinations.
        control
            Control level; it needs no row, and one that it has is ignored.

        Raises
        ------
        TypeError
            If ``features`` is not a DataFrame, or a column is not numeric.
        ValueError
            If a name is repeated, a number is missing or infinite, all columns are constant, or a perturbation of the
            training cells has no features.
        """
        if not isinstance(features, pd.DataFrame):
            msg = f"pert_features must be a DataFrame with one row per perturbation, found {type(features).__name__}."
            raise TypeError(msg)
        frame = features.set_axis([label_of(name) for name in features.index])
        keys = pd.Index([key_of(name, control) for name in frame.index])
        if keys.has_duplicates:
            names = list(dict.fromkeys(frame.index[keys == keys[keys.duplicated()][0]]))
            also = f" (also written {', '.join(map(repr, names[1:]))})" if len(names) > 1 else ""
            msg = f"pert_features has {names[0]!r} in several rows{also}. Keep one row per perturbation."
            raise ValueError(msg)
        text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
        if text:
            msg = f"pert_features must be numeric in every column; not numeric: {', '.join(map(repr, text[:3]))}."
            raise TypeError(msg)
        frame, keys = frame[keys != control].astype(np.float64), keys[keys != control]
        if not np.isfinite(frame.to_numpy()).all():
            name = frame.index[~np.isfinite(frame.to_numpy()).all(axis=1)][0]
            msg = f"pert_features is missing or infinite for {name!r}. Fill it in, or leave the row out."
            raise ValueError(msg)
        described = {key: i for i, key in enumerate(keys)}
        parts = sorted({part for name in trained for part in _described(key_of(name, control), described)})
        absent = [part for part in parts if part not in described]
        if absent:
            msg = (
                f"{len(absent)} of the {len(trained)} training perturbations have no row in pert_features: "
                f"{', '.join(map(repr, absent[:5]))}. {did_you_mean(absent[0], sorted(frame.index))} Add them, or "
                "leave their cells out."
            )
            raise ValueError(msg)
        used = frame.to_numpy()[[described[part] for part in parts]]
        varies = used.std(axis=0) > 1e-9
        if not varies.any():
            msg = f"No column of pert_features differs between the {len(parts)} training perturbations."
            raise ValueError(msg)
        # Also divided by the square root of their number, so that all features together weigh as much as the first
        # column.
        scaled = (frame.to_numpy() - used.mean(axis=0))[:, varies] / used.std(axis=0)[varies] / np.sqrt(varies.sum())
        values = np.hstack([np.ones((len(frame), 1)), scaled])
        values = np.vstack([np.zeros((1, values.shape[1])), values]).astype(np.float32)
        return cls((control, *map(str, frame.index)), values, from_features=True)

    @property
    def control(self) -> str:
        """The control level."""
        return self.names[0]

    @property
    def dim(self) -> int:
        """Length of a perturbation vector."""
        return self.values.shape[1]

    def describes(self, name: str) -> bool:
        """Whether a perturbation, or every part of a combination, is in the table."""
        known = {key_of(known, self.control) for known in self.names}
        return known.issuperset(_described(key_of(name, self.control), known))

    def encode(self, names: Sequence[str], *, source: str = "target") -> np.ndarray:
        """Look up perturbation vectors, float32 ``(n_names, dim)``.

        Parameters
        ----------
        names
            Perturbations; may include combinations.
        source
            Origin of the names, for error messages.

        Raises
        ------
        ValueError
            If a perturbation, or a part of a combination, is not in the table.
        """
        position = {key_of(name, self.control): i for i, name in reversed(list(enumerate(self.names)))}
        rows = []
        for name in names:
            parts = _described(key_of(name, self.control), position)
            absent = [part for part in parts if part not in position]
            if absent:
                untrained = {key_of(name, self.control): why for name, why in self.untrained.items()}
                lacking = next((key for key in (key_of(name, self.control), *absent) if key in untrained), None)
                if lacking is not None:
                    is_whole = lacking == key_of(name, self.control)
                    subject = f"{source}={name!r}" + ("" if is_whole else f": its part {lacking!r}")
                    msg = f"{subject} cannot be predicted: {untrained[lacking]}"
                    raise ValueError(msg)
                problem = "has no row in pert_features" if self.from_features else "was not seen in training"
                subject = f"{source}={name!r}" + ("" if absent == [name] else f": its part {absent[0]!r}")
                msg = f"{subject} {problem}. {did_you_mean(absent[0], self.names[1:])}"
                if not self.from_features:
                    msg += " Unseen perturbations need features: STTransition(adata, pert_features=...)."
                raise ValueError(msg)
            rows.append(self.values[[position[part] for part in parts]].sum(axis=0))
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values that JSON can store, without the vectors."""
        return {"names": list(self.names), "from_features": self.from_features, "untrained": self.untrained}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], values: np.ndarray) -> Self:
        """Rebuild a table from the result of :meth:`to_dict` and the vectors."""
        untrained = dict(stored.get("untrained", {}))  # unknown to version 0.1
        return cls(tuple(stored["names"]), values, bool(stored["from_features"]), untrained)


def _described(key: str, available: Collection[str]) -> tuple[str, ...]:
    """Return a perturbation, by its key, as a whole if it is available so, else its parts."""
    return (key,) if key in available else parts_of(key)
