"""Counterfactual covariates: put the values a user asks for in place of the cells' own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.fields import CategoricalCovariate, ContinuousCovariate, Covariate, as_labels

if TYPE_CHECKING:
    from scstate_lora.data.registry import Registry


def set_covariates(
    obs: pd.DataFrame, registry: Registry, covariates: Mapping[str, Any] | pd.DataFrame | None
) -> pd.DataFrame:
    """Put counterfactual values into a table of cells; see ``BoundData.covariate_values``.

    Parameters
    ----------
    obs
        The cells' own values, one row per cell.
    registry
        Holds the covariates.
    covariates
        Counterfactual values.

    Returns
    -------
    A new table; columns not named keep their values.
    """
    if covariates is None:
        return obs
    if isinstance(covariates, pd.DataFrame):
        if not covariates.index.equals(obs.index):
            msg = (
                f"covariates has {len(covariates)} rows; expected one for each of the {len(obs)} cells, in their order "
                "and under their names (covariates.index = adata.obs_names)."
            )
            raise ValueError(msg)
    elif not isinstance(covariates, Mapping):
        msg = (
            f"covariates must be a dict or a DataFrame, found {type(covariates).__name__}: covariates={{'key': value}}."
        )
        raise TypeError(msg)
    moved = obs.copy()
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
        moved[covariate.name] = _with_missing(covariate, values) if values.isna().any() else value
    return moved


def _with_missing(covariate: Covariate, values: pd.Series) -> pd.Series:
    """Make a column with missing values that an h5ad file can hold: categories or floats."""
    if isinstance(covariate, ContinuousCovariate):
        return values.astype(object).where(values.notna(), np.nan).astype(np.float64)
    labels = as_labels(values).where(values.notna(), None)
    return labels.astype(pd.CategoricalDtype(list(covariate.categories)))


def _check(covariate: Covariate, values: pd.Series) -> None:
    what = f"covariates[{covariate.name!r}]"
    if len(values) == 0:
        return
    if isinstance(covariate, CategoricalCovariate):
        for level in sorted(set(as_labels(values)) - set(covariate.categories)):
            msg = f"{what}={level!r} was never seen in training. {did_you_mean(level, covariate.categories)}"
            raise ValueError(msg)
        return
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        msg = f"{what} must be finite numbers, found {values[~np.isfinite(numbers)].tolist()[0]!r}."
        raise ValueError(msg)
    if numbers.min() < covariate.low or numbers.max() > covariate.high:
        msg = (
            f"{what} goes to {numbers.min():g} ... {numbers.max():g}; training saw {covariate.low:g} ... "
            f"{covariate.high:g}. This is extrapolation."
        )
        warnings.warn(msg, UserWarning, stacklevel=_users_level())


def _users_level() -> int:
    """Count the frames from the caller up to the first one outside of this package, as ``stacklevel`` does."""
    package = f"{Path(__file__).parents[1]}{os.sep}"
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level
