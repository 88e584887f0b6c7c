"""Covariates: columns of ``adata.obs``, categorical or continuous, validated and turned into numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types as pdt

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

# A numeric column with at most this many different values is taken as categorical.
HANDFUL = 8


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """Return ``adata.obs[key]``, which must exist and hold no missing value.

    Raises
    ------
    TypeError
        The key is not a string.
    KeyError
        There is no such column; near names are suggested.
    ValueError
        Values are missing.
    """
    if not isinstance(key, str):
        msg = f"A key of adata.obs must be a string, found {key!r} ({type(key).__name__})."
        raise TypeError(msg)
    if key not in adata.obs:
        msg = f"adata.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    column = adata.obs[key]
    missing = int(column.isna().sum())
    if missing:
        msg = (
            f"adata.obs[{key!r}] has {missing} missing values of {len(column)}. Fill them in, or leave those cells "
            f"out: adata[adata.obs[{key!r}].notna()]."
        )
        raise ValueError(msg)
    return column


def as_labels(column: pd.Series) -> pd.Series:
    """Category, string, bool or number to plain strings; 10 and 10.0 both become ``"10"``."""
    return column.astype(object).map(label_of).astype(str)


def label_of(value: Any) -> str:
    """The category name of one value."""
    if isinstance(value, (bool, np.bool_, str)):
        return str(value)
    if isinstance(value, (int, float, np.number)):
        return format(float(value), ".10g")
    return str(value)


@dataclass(frozen=True)
class CategoricalCovariate:
    """A covariate with named levels.

    Parameters
    ----------
    name
        Column of ``adata.obs``.
    categories
        Known levels, sorted. Code ``len(categories)`` stands for "unknown".
    """

    name: str
    categories: tuple[str, ...]
    kind: Literal["categorical"] = "categorical"

    @classmethod
    def fit(cls, adata: AnnData, name: str) -> CategoricalCovariate:
        """Read the levels from ``adata.obs[name]``; at least two are needed."""
        labels = as_labels(obs_column(adata, name))
        categories = tuple(sorted(labels.unique()))
        if len(categories) < 2:
            msg = (
                f"adata.obs[{name!r}] has one category only, {categories[0]!r}: there is nothing to learn from it. "
                "Leave it out of the covariates."
            )
            raise ValueError(msg)
        return cls(name, categories)

    @property
    def unknown(self) -> int:
        """Code of the row that stands for an unknown level."""
        return len(self.categories)

    def encode(self, values: pd.Series) -> np.ndarray:
        """Labels to integer codes ``(n_cells,)``; a level never seen in training is a ValueError."""
        labels = as_labels(values)
        codes = pd.Categorical(labels, categories=list(self.categories)).codes.astype(np.int64)
        if (codes < 0).any():
            unseen = sorted(set(labels[codes < 0]))
            msg = (
                f"adata.obs[{self.name!r}] holds {unseen[0]!r}, which the model has never seen. "
                f"{did_you_mean(unseen[0], self.categories)}"
            )
            raise ValueError(msg)
        return codes


@dataclass(frozen=True)
class ContinuousCovariate:
    """A covariate with numeric values, standardised with the training data's mean and standard deviation.

    Parameters
    ----------
    name
        Column of ``adata.obs``.
    mean, std
        Scaling, in the column's units.
    low, high
        Observed range, in the column's units.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    kind: Literal["continuous"] = "continuous"

    @classmethod
    def fit(cls, adata: AnnData, name: str) -> ContinuousCovariate:
        """Read the scaling from ``adata.obs[name]``, which must be numeric, finite and not constant."""
        values = cls._numbers(obs_column(adata, name), name)
        if values.std() == 0:
            msg = f"adata.obs[{name!r}] has one value only, {values[0]:g}: leave it out of the covariates."
            raise ValueError(msg)
        return cls(name, float(values.mean()), float(values.std()), float(values.min()), float(values.max()))

    @staticmethod
    def _numbers(column: pd.Series, name: str) -> np.ndarray:
        try:
            values = pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64)
        except (ValueError, TypeError) as error:
            msg = f"adata.obs[{name!r}] is declared continuous, but is not numeric: {error}. Declare it 'categorical'."
            raise ValueError(msg) from error
        if not np.isfinite(values).all():
            msg = f"adata.obs[{name!r}] holds {int((~np.isfinite(values)).sum())} values that are not finite."
            raise ValueError(msg)
        return values

    def encode(self, values: pd.Series) -> np.ndarray:
        """Values in the column's units to standardised float32 numbers ``(n_cells,)``."""
        return ((self._numbers(values, self.name) - self.mean) / self.std).astype(np.float32)


Covariate = CategoricalCovariate | ContinuousCovariate


def covariate_from_dict(stored: Mapping[str, Any]) -> Covariate:
    """Rebuild a covariate from :func:`covariate_to_dict`."""
    stored = dict(stored)
    if stored["kind"] == "categorical":
        stored["categories"] = tuple(stored["categories"])
        return CategoricalCovariate(**stored)
    return ContinuousCovariate(**stored)


def covariate_to_dict(covariate: Covariate) -> dict[str, Any]:
    """Plain, JSON-able form of a covariate."""
    return asdict(covariate)


def fit_covariates(adata: AnnData, covariate_keys: str | list[str] | Mapping[str, str]) -> tuple[Covariate, ...]:
    """Validate the covariates and read their levels or scaling from ``adata.obs``.

    Parameters
    ----------
    adata
        Annotated data.
    covariate_keys
        One key, a list of keys, or a mapping from key to ``"categorical"`` or ``"continuous"``. Without a declared
        kind, a numeric column with more than 8 different values is continuous and everything else categorical.

    Raises
    ------
    TypeError, KeyError, ValueError
        A key is not a string, missing, given twice, of an unknown kind, or its column is unusable.
    """
    if isinstance(covariate_keys, str):
        covariate_keys = [covariate_keys]
    if not hasattr(covariate_keys, "__iter__"):
        msg = f"covariate_keys must be a list of keys or a mapping key -> kind, found {type(covariate_keys).__name__}."
        raise TypeError(msg)
    declared = dict(covariate_keys) if hasattr(covariate_keys, "items") else dict.fromkeys(covariate_keys)
    if not hasattr(covariate_keys, "items") and len(declared) != len(list(covariate_keys)):
        msg = f"covariate_keys names a key twice: {list(covariate_keys)}."
        raise ValueError(msg)
    covariates: list[Covariate] = []
    for key, kind in declared.items():
        column = obs_column(adata, key)
        if kind is None:
            numeric = pdt.is_numeric_dtype(column) and not pdt.is_bool_dtype(column)
            kind = "continuous" if numeric and column.nunique() > HANDFUL else "categorical"
        if kind == "categorical":
            covariates.append(CategoricalCovariate.fit(adata, key))
        elif kind == "continuous":
            covariates.append(ContinuousCovariate.fit(adata, key))
        else:
            msg = (
                f"covariate_keys[{key!r}]={kind!r} is unknown. {did_you_mean(str(kind), ['categorical', 'continuous'])}"
            )
            raise ValueError(msg)
    return tuple(covariates)
