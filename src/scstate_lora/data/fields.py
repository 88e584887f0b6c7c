"""Covariates: columns of ``adata.obs``, categorical or continuous, validated and encoded as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from pandas.api import types as pdt

from scstate_lora._utils import did_you_mean
from scstate_lora.config.data import CovariateConfig, declared_covariates
from scstate_lora.data.labels import as_labels, label_of
from scstate_lora.data.perturbations import key_of, spellings

if TYPE_CHECKING:
    from anndata import AnnData

    from scstate_lora.config.data import Activation

CovariateKeys = str | CovariateConfig | Iterable[Any] | Mapping[str, Any]
"""Accepted forms of ``covariate_keys``; see :func:`fit_covariates`."""

MAX_NUMERIC_LEVELS = 8
"""A numeric column with at most this many distinct values is treated as categorical."""


def obs_column(adata: AnnData, key: str, *, allow_missing: bool = False) -> pd.Series:
    """Return ``adata.obs[key]``, which must exist and, unless ``allow_missing``, have no missing values.

    Raises
    ------
    TypeError
        If the key is not a string.
    KeyError
        If the column does not exist; the message suggests similar names.
    ValueError
        If values are missing, or several columns have this name.
    """
    if not isinstance(key, str):
        msg = f"A column name of adata.obs must be a string, found {key!r} ({type(key).__name__})."
        raise TypeError(msg)
    if key not in adata.obs:
        msg = f"adata.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
        if ":" in key:
            msg += " To use a column of another modality, set up the MuData itself, with modality=."
        raise KeyError(msg)
    column = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        msg = f"adata.obs has {column.shape[1]} columns named {key!r}. Rename or drop all but one."
        raise ValueError(msg)
    if not allow_missing:
        _check_present(column, key)
    return column


def _check_present(column: pd.Series, name: str, *, alternative: str = "") -> None:
    n_missing = int(column.isna().sum())
    if n_missing:
        msg = (
            f"adata.obs[{name!r}] has {n_missing} missing values of {len(column)}. Fill them in, or drop these cells: "
            f"adata[adata.obs[{name!r}].notna()].{alternative}"
        )
        raise ValueError(msg)


def _check_any_present(column: pd.Series, name: str) -> None:
    if column.isna().all():
        msg = f"adata.obs[{name!r}] holds missing values only. Leave it out of the covariates."
        raise ValueError(msg)


def _check_covariate_present(column: pd.Series, name: str, *, is_new: bool = False) -> None:
    """Refuse missing values, of the cells that are set up or of new ones."""
    advice = f"treat them as unknown: covariate_keys={{{name!r}: {{'allow_missing': True}}}}"
    if is_new:
        advice = f"withhold this covariate from the model, for all cells: covariates={{{name!r}: None}}"
        if not column.isna().all():
            advice += f", or only where it is missing: covariates=adata.obs[[{name!r}]]"
    _check_present(column, name, alternative=f" Or {advice}.")


def _check_no_dates(column: pd.Series, name: str) -> None:
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if pdt.infer_dtype(values) in ("datetime64", "datetime", "date", "timedelta64", "timedelta", "period"):
        msg = (
            f"adata.obs[{name!r}] holds dates or durations ({column.dtype}), which are neither levels nor numbers. "
            f"Convert them to numbers, for example days since the first date: "
            f"(adata.obs[{name!r}] - adata.obs[{name!r}].min()).dt.days."
        )
        raise TypeError(msg)


@dataclass(frozen=True)
class CategoricalCovariate:
    """A covariate with named levels.

    Parameters
    ----------
    name
        Column of ``adata.obs``.
    categories
        Levels seen in training, sorted. Code ``len(categories)`` means "unknown".
    allow_missing
        Whether missing values are treated as "unknown"; otherwise they raise an error.
    embed_dim
        Width of the covariate's embedding vector.
    control
        Of the perturbation: its control level. Levels are then perturbations, each in one spelling
        (:func:`~scstate_lora.data.perturbations.spellings`).
    """

    name: str
    categories: tuple[str, ...]
    allow_missing: bool = False
    embed_dim: int = 256
    kind: Literal["categorical"] = "categorical"
    control: str | None = None

    @classmethod
    def fit(
        cls,
        adata: AnnData,
        name: str,
        *,
        allow_missing: bool = False,
        embed_dim: int = 256,
        control: str | None = None,
    ) -> Self:
        """Read the levels from ``adata.obs[name]``; at least two are needed."""
        column = obs_column(adata, name, allow_missing=True)
        _check_any_present(column, name)
        if not allow_missing:
            _check_covariate_present(column, name)
        _check_no_dates(column, name)
        categories = tuple(as_labels(column.dropna()).unique())
        if control is not None:
            present = {key_of(level, control) for level in categories}
            categories = tuple(name for key, name in spellings(categories, control).items() if key in present)
        categories = tuple(sorted(categories))
        if len(categories) < 2:
            msg = (
                f"adata.obs[{name!r}] has one category only, {categories[0]!r}, so nothing can be learned from it. "
                "Leave it out of the covariates."
            )
            raise ValueError(msg)
        return cls(name, categories, allow_missing, embed_dim, control=control)

    @property
    def unknown(self) -> int:
        """Code of an unknown level."""
        return len(self.categories)

    def level_of(self, value: Any) -> str:
        """Return the level that a value names, or its label if there is no such level."""
        label = label_of(value)
        if self.control is None:
            return label
        return spellings(self.categories, self.control).get(key_of(label, self.control), label)

    def labels(self, column: pd.Series) -> pd.Series:
        """Convert a column to levels, as :meth:`level_of` does."""
        return as_labels(column) if self.control is None else as_labels(column, self.level_of)

    def encode(self, values: pd.Series, *, allow_missing: bool = False) -> np.ndarray:
        """Encode labels as int64 codes ``(n_cells,)``.

        Raises
        ------
        ValueError
            If a level was never seen in training, or a value is missing and neither this call nor the covariate's
            declaration allows it.
        """
        if not (allow_missing or self.allow_missing):
            _check_covariate_present(values, self.name, is_new=True)
        present = values.notna().to_numpy()
        labels = self.labels(values[present])
        codes = pd.Index(self.categories).get_indexer(pd.Index(labels))
        if (codes < 0).any():
            unseen = sorted(set(labels[codes < 0]))
            msg = (
                f"adata.obs[{self.name!r}] holds {', '.join(map(repr, unseen[:5]))}, never seen in training. "
                f"{did_you_mean(unseen[0], self.categories)}"
            )
            raise ValueError(msg)
        encoded = np.full(len(values), self.unknown, dtype=np.int64)
        encoded[present] = codes
        return encoded


@dataclass(frozen=True)
class ContinuousCovariate:
    """A covariate with numeric values, standardised by their mean and standard deviation.

    Parameters
    ----------
    name
        Column of ``adata.obs``.
    mean, std
        Mean and standard deviation, in the column's units.
    low, high
        Observed range, in the column's units.
    allow_missing
        Whether missing values are treated as "unknown"; otherwise they raise an error.
    embed_dim
        Width of the covariate's embedding vector.
    hidden_dim, activation
        Hidden width and activation of the MLP that computes this vector.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    allow_missing: bool = False
    embed_dim: int = 256
    hidden_dim: int = 128
    activation: Activation = "silu"
    kind: Literal["continuous"] = "continuous"

    @classmethod
    def fit(
        cls,
        adata: AnnData,
        name: str,
        *,
        allow_missing: bool = False,
        embed_dim: int = 256,
        hidden_dim: int = 128,
        activation: Activation = "silu",
    ) -> Self:
        """Compute the scaling from ``adata.obs[name]``, which must be numeric, finite and not constant."""
        column = obs_column(adata, name, allow_missing=True)
        _check_any_present(column, name)
        values = _numbers(column, name, allow_missing=allow_missing)
        values = values[~np.isnan(values)]
        low, high = float(values.min()), float(values.max())
        if low == high:
            msg = f"adata.obs[{name!r}] has one value only, {low:g}. Leave it out of the covariates."
            raise ValueError(msg)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = float(values.mean()), float(values.std())
        if not 0 < std < np.inf:
            msg = (
                f"adata.obs[{name!r}] ranges from {low:g} to {high:g}, which cannot be standardised. Choose another "
                "unit."
            )
            raise ValueError(msg)
        return cls(name, mean, std, low, high, allow_missing, embed_dim, hidden_dim, activation)

    @property
    def unknown(self) -> float:
        """NaN, the encoding of an unknown number."""
        return np.nan

    def encode(self, values: pd.Series, *, allow_missing: bool = False) -> np.ndarray:
        """Standardise values in the column's units to float32 numbers ``(n_cells,)``; missing values become NaN.

        Raises
        ------
        ValueError
            If a value is infinite or too large to standardise, or is missing and neither this call nor the covariate's
            declaration allows it.
        """
        if not (allow_missing or self.allow_missing):
            _check_covariate_present(values, self.name, is_new=True)
        numbers = _numbers(values, self.name, allow_missing=True)
        with np.errstate(over="ignore"):
            standardised = ((numbers - self.mean) / self.std).astype(np.float32)
        if np.isinf(standardised).any():
            farthest = numbers[np.isinf(standardised)][0]
            msg = (
                f"adata.obs[{self.name!r}] holds {farthest:g}, which is too far outside the range seen in training "
                f"({self.low:g} to {self.high:g}) for the model."
            )
            raise ValueError(msg)
        return standardised


def _numbers(column: pd.Series, name: str, *, allow_missing: bool) -> np.ndarray:
    """Convert values to float64; missing ones, if allowed, become NaN."""
    if not allow_missing:
        _check_covariate_present(column, name)
    _check_no_dates(column, name)
    plain = column.astype(object).where(column.notna(), np.nan)
    if pdt.infer_dtype(plain, skipna=True) == "bytes":
        plain = as_labels(column).where(column.notna(), np.nan)
    try:
        if pdt.is_complex_dtype(column):
            msg = "complex numbers"
            raise TypeError(msg)
        values = pd.to_numeric(plain).to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        msg = f"adata.obs[{name!r}] is declared continuous but is not numeric: {error}. Declare it 'categorical'."
        raise ValueError(msg) from error
    if np.isinf(values).any():
        msg = f"adata.obs[{name!r}] holds {np.isinf(values).sum()} infinite values of {len(values)}. "
        raise ValueError(msg + "Give finite numbers.")
    return values


Covariate = CategoricalCovariate | ContinuousCovariate


def covariate_from_dict(stored: Mapping[str, Any]) -> Covariate:
    """Rebuild a covariate from the result of :func:`covariate_to_dict`."""
    stored = dict(stored)
    if stored["kind"] == "categorical":
        stored["categories"] = tuple(map(label_of, stored["categories"]))
        return CategoricalCovariate(**stored)
    return ContinuousCovariate(**stored)


def covariate_to_dict(covariate: Covariate) -> dict[str, Any]:
    """Return a covariate as plain values that JSON can store."""
    return asdict(covariate)


def withhold(
    encoded: Mapping[str, np.ndarray], unknown: Mapping[str, int | float], share: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Replace values by "unknown" at random, so that a model learns to work without them.

    Parameters
    ----------
    encoded
        Encoded covariates, each of any shape; not modified.
    unknown
        Encoding of "unknown" for each covariate: :meth:`Registry.unknown`.
    share
        Probability of replacing a value, drawn independently for each value of each covariate.
    rng
        Random generator.
    """
    return {
        name: np.where(rng.random(values.shape) < share, unknown[name], values).astype(values.dtype)
        for name, values in encoded.items()
    }


def fit_covariates(
    adata: AnnData, covariate_keys: CovariateKeys, *, pert_key: str | None = None, control: str | None = None
) -> tuple[Covariate, ...]:
    """Validate the covariates and read their levels or scaling from ``adata.obs``.

    Parameters
    ----------
    adata
        Annotated data.
    covariate_keys
        One key; a list of keys; a mapping from key to ``"categorical"``, ``"continuous"``, None or options; or a list
        of options with a ``name``. Options are a dict or a :class:`scstate_lora.config.CovariateConfig`. If no kind is
        declared, a numeric column with more than 8 distinct values is continuous and any other column categorical.
    pert_key, control
        Column of the perturbation, and its control level.

    Raises
    ------
    TypeError, KeyError, ValueError
        If a key is not a string, does not exist, is repeated, or has an unknown kind or invalid options, or if its
        column cannot be used.
    """
    declared = declared_covariates(covariate_keys)
    return tuple(_fit(adata, options, control if key == pert_key else None) for key, options in declared.items())


def _fit(adata: AnnData, declared: CovariateConfig, control: str | None) -> Covariate:
    key = declared.name
    kind = declared.type or _guess_kind(obs_column(adata, key, allow_missing=True))
    if kind == "continuous":
        if declared.num_categories is not None:
            msg = (
                f"covariate_keys[{key!r}] has num_categories={declared.num_categories}, but adata.obs[{key!r}] is "
                "treated as continuous. Declare its type 'categorical', or leave num_categories out."
            )
            raise ValueError(msg)
        return ContinuousCovariate.fit(
            adata,
            key,
            allow_missing=declared.allow_missing,
            embed_dim=declared.width,
            hidden_dim=declared.encoder.hidden_dim,
            activation=declared.encoder.activation,
        )
    if declared.continuous_encoder is not None:
        msg = (
            f"covariate_keys[{key!r}] has a continuous_encoder, but adata.obs[{key!r}] is treated as categorical. "
            "Declare its type 'continuous', or leave the encoder out."
        )
        raise ValueError(msg)
    covariate = CategoricalCovariate.fit(
        adata, key, allow_missing=declared.allow_missing, embed_dim=declared.width, control=control
    )
    levels, expected = covariate.categories, declared.num_categories
    if expected is not None and len(levels) != expected:
        msg = (
            f"covariate_keys[{key!r}] has num_categories={expected}, but adata.obs[{key!r}] holds {len(levels)}: "
            f"{', '.join(map(repr, levels[:10]))}{', …' if len(levels) > 10 else ''}."
        )
        raise ValueError(msg)
    return covariate


def _guess_kind(column: pd.Series) -> Literal["categorical", "continuous"]:
    values = column.dropna().infer_objects()
    numeric = pdt.is_numeric_dtype(values) and not pdt.is_bool_dtype(values)
    return "continuous" if numeric and values.nunique() > MAX_NUMERIC_LEVELS else "categorical"
