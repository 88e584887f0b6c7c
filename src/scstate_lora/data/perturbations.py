"""Perturbations as numbers: one-hot, or features, by which also those that were never seen can be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

SEPARATOR = "+"
"""Stands between the parts of a combination: ``"A+B"``."""


@dataclass(frozen=True)
class PerturbationTable:
    """What describes every perturbation, as the network reads it.

    Without features each perturbation has a column of its own. With features the first column is one and the others are
    the features, standardised over the perturbations that train; the control is zero. A combination ``"A+B"`` that is
    not in the table is the sum of its parts, so what is linear in the table adds up.

    Parameters
    ----------
    names
        Perturbations in the table, the control first.
    values
        float32 ``(n_names, n_columns)``.
    from_features
        Whether they are features; otherwise one-hot.
    """

    names: tuple[str, ...]
    values: np.ndarray
    from_features: bool

    @classmethod
    def one_hot(cls, perturbations: Sequence[str], control: str) -> Self:
        """Give every perturbation a column of its own; the control has none."""
        targets = [name for name in perturbations if name != control]
        return cls((control, *targets), np.eye(len(targets) + 1, dtype=np.float32)[:, 1:], from_features=False)

    @classmethod
    def of_features(cls, features: pd.DataFrame, *, trained: Collection[str], control: str) -> Self:
        """Standardise features.

        Parameters
        ----------
        features
            One row a perturbation, numbers in every column.
        trained
            Perturbations of the training cells, without the control; combinations may be among them.
        control
            Of no effect; its row, if there is one, is not used.

        Raises
        ------
        TypeError
            It is no DataFrame, or holds something else than numbers.
        ValueError
            A name stands there twice, a number is missing or infinite, all columns are constant, or a perturbation of
            the training cells has no features.
        """
        if not isinstance(features, pd.DataFrame):
            found = type(features).__name__
            msg = f"pert_features must be a DataFrame with one row a perturbation, found {found}."
            raise TypeError(msg)
        frame = features.set_axis(features.index.astype(str))
        if frame.index.has_duplicates:
            name = frame.index[frame.index.duplicated()][0]
            msg = f"pert_features has {name!r} in several rows. Keep one row a perturbation."
            raise ValueError(msg)
        text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
        if text:
            msg = f"pert_features must hold numbers; {', '.join(map(repr, text[:3]))} does not."
            raise TypeError(msg)
        frame = frame.drop(index=control, errors="ignore").astype(np.float64)
        if not np.isfinite(frame.to_numpy()).all():
            name = frame.index[~np.isfinite(frame.to_numpy()).all(axis=1)][0]
            msg = f"pert_features is missing or infinite for {name!r}. Fill it in, or leave the row out."
            raise ValueError(msg)
        known = set(frame.index)
        parts = sorted({part for name in trained for part in _parts(name, known)})
        absent = [part for part in parts if part not in known]
        if absent:
            msg = (
                f"{len(absent)} of the {len(trained)} perturbations that train have no row in pert_features: "
                f"{', '.join(map(repr, absent[:5]))}. {did_you_mean(absent[0], sorted(known))} Add them, or leave "
                "those cells out."
            )
            raise ValueError(msg)
        used = frame.loc[parts].to_numpy()
        varies = used.std(axis=0) > 1e-9
        if not varies.any():
            msg = f"No column of pert_features differs between the {len(parts)} perturbations that train."
            raise ValueError(msg)
        # Divided by the root of their number too, so that all features together weigh as much as the first column.
        scaled = (frame.to_numpy() - used.mean(axis=0))[:, varies] / used.std(axis=0)[varies] / np.sqrt(varies.sum())
        values = np.hstack([np.ones((len(frame), 1)), scaled])
        values = np.vstack([np.zeros((1, values.shape[1])), values]).astype(np.float32)
        return cls((control, *map(str, frame.index)), values, from_features=True)

    @property
    def control(self) -> str:
        """The unperturbed level."""
        return self.names[0]

    @property
    def dim(self) -> int:
        """Numbers that describe a perturbation."""
        return self.values.shape[1]

    def encode(self, names: Sequence[str], *, where: str = "target") -> np.ndarray:
        """Look perturbations up, float32 ``(n_names, dim)``; `where` says in messages where the names stand.

        Raises
        ------
        ValueError
            One of them, or a part of a combination, is not known. Never a silent zero.
        """
        position = {name: i for i, name in enumerate(self.names)}
        rows = []
        for name in names:
            parts = _parts(name, position)
            absent = [part for part in parts if part not in position]
            if absent:
                how = "has no row in pert_features" if self.from_features else "was not seen in training"
                which = f"{where}={name!r}" + ("" if absent == [name] else f": its part {absent[0]!r}")
                msg = f"{which} {how}. {did_you_mean(absent[0], self.names[1:])}"
                if not self.from_features:
                    msg += " Unseen perturbations need features: STTransition(adata, pert_features=...)."
                raise ValueError(msg)
            rows.append(self.values[[position[part] for part in parts]].sum(axis=0))
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dim)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, without the values."""
        return {"names": list(self.names), "from_features": self.from_features}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], values: np.ndarray) -> Self:
        """Rebuild from :meth:`to_dict` and the values."""
        return cls(tuple(stored["names"]), values, bool(stored["from_features"]))


def _parts(name: str, known: Collection[str]) -> list[str]:
    """Parts of a combination that is not known as a whole."""
    if name in known or SEPARATOR not in name:
        return [name]
    return [part.strip() for part in name.split(SEPARATOR)]
