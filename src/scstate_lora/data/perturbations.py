"""Perturbation vectors: one-hot, or from features, which also describe perturbations never seen in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

SEPARATOR = "+"
"""Separator between the parts of a combination: ``"A+B"``."""


@dataclass(frozen=True)
class PerturbationTable:
    """Vectors that describe the perturbations to the network.

    Without features, each perturbation has its own column. With features, the first column is one and the others are
    the features, standardised over the training perturbations. The control is zero. A combination ``"A+B"`` that is not
    in the table is the sum of its parts, so effects that are linear in the vectors add up.

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
            Control level; its row, if any, is ignored.

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
        frame = features.set_axis(features.index.astype(str))
        if frame.index.has_duplicates:
            name = frame.index[frame.index.duplicated()][0]
            msg = f"pert_features has {name!r} in several rows. Keep one row per perturbation."
            raise ValueError(msg)
        text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
        if text:
            msg = f"pert_features must be numeric in every column; not numeric: {', '.join(map(repr, text[:3]))}."
            raise TypeError(msg)
        frame = frame.drop(index=control, errors="ignore").astype(np.float64)
        if not np.isfinite(frame.to_numpy()).all():
            name = frame.index[~np.isfinite(frame.to_numpy()).all(axis=1)][0]
            msg = f"pert_features is missing or infinite for {name!r}. Fill it in, or leave the row out."
            raise ValueError(msg)
        described = set(frame.index)
        parts = sorted({part for name in trained for part in _parts(name, described)})
        absent = [part for part in parts if part not in described]
        if absent:
            msg = (
                f"{len(absent)} of the {len(trained)} training perturbations have no row in pert_features: "
                f"{', '.join(map(repr, absent[:5]))}. {did_you_mean(absent[0], sorted(described))} Add them, or leave "
                "their cells out."
            )
            raise ValueError(msg)
        used = frame.loc[parts].to_numpy()
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
        return set(_parts(name, self.names)) <= set(self.names)

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
        position = {name: i for i, name in enumerate(self.names)}
        rows = []
        for name in names:
            parts = _parts(name, position)
            absent = [part for part in parts if part not in position]
            if absent:
                untrained = next((part for part in (name, *absent) if part in self.untrained), None)
                if untrained is not None:
                    subject = f"{source}={name!r}" + ("" if untrained == name else f": its part {untrained!r}")
                    msg = f"{subject} cannot be predicted: {self.untrained[untrained]}"
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


def _parts(name: str, available: Collection[str]) -> list[str]:
    """Split a combination into its parts, unless it is available as a whole."""
    if name in available or SEPARATOR not in name:
        return [name]
    return [part.strip() for part in name.split(SEPARATOR)]
