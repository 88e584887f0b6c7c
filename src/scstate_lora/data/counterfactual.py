"""Counterfactual covariates: replace the cells' own values by requested ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean, warn_user
from scstate_lora.data.fields import CategoricalCovariate, ContinuousCovariate, Covariate

if TYPE_CHECKING:
    from scstate_lora.data.registry import Registry


def set_covariates(
    obs: pd.DataFrame, registry: Registry, covariates: Mapping[str, Any] | pd.DataFrame | None
) -> pd.DataFrame:
    """Replace values in a table of cells by counterfactual ones; see :meth:`BoundData.under` for what it raises.

    Parameters
    ----------
    obs
        The cells' own values, one row per cell.
    registry
        Registry that describes the covariates.
    covariates
        Counterfactual values.

    Returns
    -------
    A new table; covariates that are not named keep their values.
    """
    if covariates is None:
        return obs
    if isinstance(covariates, pd.DataFrame):
        if not covariates.index.equals(obs.index):
            msg = (
                f"covariates has {len(covariates)} rows; expected one per cell ({len(obs)}), in the same order and "
                "with the same names (covariates.index = adata.obs_names)."
            )
            raise ValueError(msg)
    elif not isinstance(covariates, Mapping):
        msg = (
            f"covariates must be a dict or a DataFrame, found {type(covariates).__name__}: covariates={{'key': value}}."
        )
        raise TypeError(msg)
    replaced = obs.copy()
    for name, value in covariates.items():
        covariate = registry.covariate(str(name))
        if not isinstance(value, pd.Series) and not pd.api.types.is_scalar(value):
            msg = f"covariates[{name!r}] must be one value for all cells. For one value per cell, give a DataFrame."
            raise TypeError(msg)
        if isinstance(value, pd.Series) and not isinstance(covariates, pd.DataFrame):
            msg = f"covariates[{name!r}] is a Series. For one value per cell, give a DataFrame with one row per cell."
            raise TypeError(msg)
        values = pd.Series(value, index=obs.index)
        _check(covariate, values.dropna())
        replaced[covariate.name] = _with_missing(covariate, values) if values.isna().any() else value
    return replaced


def _with_missing(covariate: Covariate, values: pd.Series) -> pd.Series:
    """Convert a column with missing values to a type that an h5ad file can store: categories or floats."""
    if isinstance(covariate, ContinuousCovariate):
        return values.astype(object).where(values.notna(), np.nan).astype(np.float64)
    labels = covariate.labels(values).where(values.notna(), None)
    return labels.astype(pd.CategoricalDtype(list(covariate.categories)))


def _check(covariate: Covariate, values: pd.Series) -> None:
    argument = f"covariates[{covariate.name!r}]"
    if len(values) == 0:
        return
    if isinstance(covariate, CategoricalCovariate):
        for level in sorted(set(covariate.labels(values)) - set(covariate.categories)):
            msg = f"{argument}={level!r} was never seen in training. {did_you_mean(level, covariate.categories)}"
            raise ValueError(msg)
        return
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        msg = f"{argument} must be finite numbers, found {values[~np.isfinite(numbers)].tolist()[0]!r}."
        raise ValueError(msg)
    if numbers.min() < covariate.low or numbers.max() > covariate.high:
        warn_user(
            f"{argument} ranges from {numbers.min():g} to {numbers.max():g}, but training covered {covariate.low:g} to "
            f"{covariate.high:g}. This is extrapolation."
        )
