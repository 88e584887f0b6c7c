"""Covariates: columns of ``adata.obs``, categorical or continuous, validated and turned into numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types as pdt

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
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
        Values are missing, or several columns have that name.
    """
    if not isinstance(key, str):
        msg = f"A key of adata.obs must be a string, found {key!r} ({type(key).__name__})."
        raise TypeError(msg)
    if key not in adata.obs:
        msg = f"adata.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    column = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        msg = f"adata.obs has {column.shape[1]} columns named {key!r}. Rename or drop all but one."
        raise ValueError(msg)
    _check_present(column, key)
    return column


def _check_present(column: pd.Series, name: str) -> None:
    missing = int(column.isna().sum())
    if missing:
        msg = (
            f"adata.obs[{name!r}] has {missing} missing values of {len(column)}. Fill them in, or leave those cells "
            f"out: adata[adata.obs[{name!r}].notna()]."
        )
        raise ValueError(msg)


def _check_no_dates(column: pd.Series, name: str) -> None:
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if pdt.infer_dtype(values) in ("datetime64", "datetime", "date", "timedelta64", "timedelta", "period"):
        msg = (
            f"adata.obs[{name!r}] holds dates or durations ({column.dtype}), which are neither levels nor numbers. "
            f"Turn them into a number, for instance days since the first: "
            f"(adata.obs[{name!r}] - adata.obs[{name!r}].min()).dt.days."
        )
        raise TypeError(msg)


def as_labels(column: pd.Series) -> pd.Series:
    """Turn categories, strings, bools or numbers into plain strings; 10 and 10.0 both become ``"10"``."""
    codes, levels = pd.factorize(column, use_na_sentinel=False)
    labels = np.array([label_of(level) for level in np.asarray(levels)], dtype=object)
    return pd.Series(labels[codes], index=column.index, name=column.name, dtype=object)


def label_of(value: Any) -> str:
    """Name the category of one value: ``"burn"``, ``"True"``, ``"10"`` for 10 and 10.0, ``"0.5"``."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
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
        column = obs_column(adata, name)
        _check_no_dates(column, name)
        categories = tuple(sorted(as_labels(column).unique()))
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
        """Turn labels into int64 codes ``(n_cells,)``; a missing value or a level never seen is a ValueError."""
        _check_present(values, self.name)
        labels = as_labels(values)
        codes = pd.Categorical(labels, categories=list(self.categories)).codes.astype(np.int64)
        if (codes < 0).any():
            unseen = sorted(set(labels[codes < 0]))
            msg = (
                f"adata.obs[{self.name!r}] holds {', '.join(map(repr, unseen[:5]))}, which the model has never seen. "
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
        if values.min() == values.max():
            msg = f"adata.obs[{name!r}] has one value only, {values[0]:g}: leave it out of the covariates."
            raise ValueError(msg)
        return cls(name, float(values.mean()), float(values.std()), float(values.min()), float(values.max()))

    @staticmethod
    def _numbers(column: pd.Series, name: str) -> np.ndarray:
        _check_present(column, name)
        _check_no_dates(column, name)
        try:
            values = pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64)
        except (ValueError, TypeError) as error:
            msg = f"adata.obs[{name!r}] is declared continuous, but is not numeric: {error}. Declare it 'categorical'."
            raise ValueError(msg) from error
        if not np.isfinite(values).all():
            infinite = int((~np.isfinite(values)).sum())
            msg = f"adata.obs[{name!r}] holds {infinite} infinite values of {len(values)}. Give finite numbers."
            raise ValueError(msg)
        return values

    def encode(self, values: pd.Series) -> np.ndarray:
        """Standardise values in the column's units to float32 numbers ``(n_cells,)``."""
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


def fit_covariates(adata: AnnData, covariate_keys: str | Iterable[str] | Mapping[str, str]) -> tuple[Covariate, ...]:
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
    covariates: list[Covariate] = []
    for key, declared in _declared_kinds(covariate_keys).items():
        kind = _guess_kind(obs_column(adata, key)) if declared is None else declared
        if kind == "categorical":
            covariates.append(CategoricalCovariate.fit(adata, key))
        elif kind == "continuous":
            covariates.append(ContinuousCovariate.fit(adata, key))
        else:
            msg = f"covariate_keys[{key!r}]={kind!r} is unknown. {did_you_mean(kind, ['categorical', 'continuous'])}"
            raise ValueError(msg)
    return tuple(covariates)


def _declared_kinds(covariate_keys: str | Iterable[str] | Mapping[str, str]) -> dict[str, str | None]:
    """Bring the accepted forms to a dict key -> kind, None where no kind is declared."""
    if isinstance(covariate_keys, str):
        return {covariate_keys: None}
    if isinstance(covariate_keys, Mapping):
        return dict(covariate_keys)
    if not isinstance(covariate_keys, Iterable):
        msg = f"covariate_keys must be a list of keys or a mapping key -> kind, found {type(covariate_keys).__name__}."
        raise TypeError(msg)
    keys = list(covariate_keys)
    for key in keys:
        if not isinstance(key, str):
            msg = f"covariate_keys holds {key!r} ({type(key).__name__}); each must be a column name of adata.obs."
            raise TypeError(msg)
    repeated = [key for i, key in enumerate(keys) if key in keys[:i]]
    if repeated:
        msg = f"covariate_keys names {repeated[0]!r} more than once: {keys}. Name it once."
        raise ValueError(msg)
    return dict.fromkeys(keys)


def _guess_kind(column: pd.Series) -> Literal["categorical", "continuous"]:
    numeric = pdt.is_numeric_dtype(column.infer_objects()) and not pdt.is_bool_dtype(column.infer_objects())
    return "continuous" if numeric and column.nunique() > HANDFUL else "categorical"
