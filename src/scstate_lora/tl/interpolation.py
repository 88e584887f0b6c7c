"""Cells at values of a continuous covariate that may never have been measured: `interpolate`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._constants import OBSM_SE
from scstate_lora._utils import warn_user
from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import CategoricalCovariate, ContinuousCovariate
from scstate_lora.data.labels import label_of
from scstate_lora.data.results import INTERPOLATE, as_uns, write_result
from scstate_lora.tl.conditioned import chosen_cells, require_trained

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData

    from scstate_lora.model import LoRACovariateSE
    from scstate_lora.model.se.conditioned_cells import ConditionedCells

SOURCE_CELL = "source_cell"


def interpolate(
    se: LoRACovariateSE,
    covariate: str,
    values: float | Iterable[float],
    *,
    adata: AnnData | None = None,
    covariates: Mapping[str, Any] | pd.DataFrame | None = None,
    cells: np.ndarray | None = None,
    key_added: str | None = None,
) -> AnnData:
    """Embed cells at other values of a continuous covariate, such as a day without samples.

    Every cell is embedded at every value; its other covariates are its own or those in `covariates`. The expression
    passes through the network once, whatever the number of values.

    The result is a prediction in the learned space, as good as what the model learned from the values on either side.
    It shows where the model would place the cell, not that cells ever were in that state: hold out a measured value,
    interpolate to it and compare before you trust a value that was never measured.

    Parameters
    ----------
    se
        A trained model.
    covariate
        A continuous covariate of the model.
    values
        Values of it, in the units of ``adata.obs[covariate]``; repeated ones count once.
    adata
        Cells; the model's own by default.
    covariates
        Further counterfactual values, as in :meth:`~scstate_lora.LoRACovariateSE.get_latent_representation`; of
        a DataFrame the rows are those of the cells that are embedded.
    cells
        Cells to embed, a mask of shape ``(n_cells,)``; all by default.
    key_added
        Write the embeddings to `adata` as well: those of a single value at this key of ``adata.obsm``, those of several
        at ``f"{key_added}_{value}"`` each, for instance ``"X_at_12"``. By default nothing is written.

    Returns
    -------
    AnnData of ``n_values * n_cells`` embedded cells, value after value, named ``f"{cell}|{covariate}={value}"``:

    - ``X`` and ``obsm["X_scstate_lora"]``: the embedding, float32 ``(n_values * n_cells, output_dim)``, rows of unit
      length; under the same key as that of measured cells, so that ``anndata.concat`` joins the two.
    - ``obs``: ``source_cell``, the cell's name in `adata`; `covariate`, the requested value; ``f"{covariate}_own"``,
      the cell's own; the other covariates as the model was conditioned on them; cell type and batch.
    - ``uns["scstate_lora"]["interpolate"]``: ``covariate``, ``values``, the ``observed_range`` of training, the
      ``base`` and the ``adapter``.

    With `key_added` also adds ``adata.uns["scstate_lora"]["interpolate"][key_added]``, the same description.

    Raises
    ------
    TypeError
        If `se` is not a LoRACovariateSE, or a value is not a number.
    KeyError
        If the model has no such covariate.
    ValueError
        If the covariate is categorical, `values` is empty or not finite, `covariates` names the covariate too, the
        model is not trained, or `key_added` is given with `cells`.

    Warns
    -----
    UserWarning
        If values lie outside the range seen in training.

    Examples
    --------
    >>> import anndata, scanpy as sc
    >>> between = ssl.tl.interpolate(se, "time_days", [12, 16])
    >>> both = anndata.concat({"measured": adata, "interpolated": between}, label="source")
    >>> sc.pp.neighbors(both, use_rep="X_scstate_lora")
    >>> sc.tl.umap(both)
    >>> sc.pl.umap(both, color=["source", "time_days"])
    """
    from anndata import AnnData

    from scstate_lora.model.se.conditioned_cells import ConditionedCells

    require_trained(se, INTERPOLATE)
    fitted = _continuous(se, covariate)
    requested = _numbers(values, covariate)
    adata = se.adata if adata is None else adata
    if key_added is not None and cells is not None:
        msg = f"key_added={key_added!r} writes an embedding of all cells, but cells= leaves some out. Drop one of them."
        raise ValueError(msg)
    if covariates is not None and covariate in covariates:
        msg = f"covariates names {covariate!r}, whose values are {requested.tolist()} already. Leave it out there."
        raise ValueError(msg)
    embedded = chosen_cells(adata, cells)
    _warn_outside(requested, fitted)

    description = {
        "covariate": covariate,
        "values": requested,
        "observed_range": np.array([fitted.low, fitted.high]),
        "base": "" if se.base is None else se.base.name,
        "adapter": se.active_adapter,
    }
    conditioned = ConditionedCells(se.adapters, BoundData(se.registry, embedded))
    n = embedded.n_obs
    interpolated: np.ndarray | None = None
    for i, value in enumerate(requested):
        at_value = _under(conditioned, covariates, covariate, float(value))
        if interpolated is None:
            interpolated = np.empty((len(requested) * n, at_value.shape[1]), dtype=np.float32)
        interpolated[i * n : (i + 1) * n] = at_value
    assert interpolated is not None  # values has one
    result = AnnData(
        interpolated,
        obs=_describe(se, embedded, covariates, covariate, requested),
        var=pd.DataFrame(index=[f"se_{i}" for i in range(interpolated.shape[1])]),
        obsm={OBSM_SE: interpolated},
        uns=as_uns(INTERPOLATE, description),
    )
    if key_added is not None:
        for i, value in enumerate(requested):
            key = key_added if len(requested) == 1 else f"{key_added}_{label_of(value)}"
            adata.obsm[key] = interpolated[i * n : (i + 1) * n].copy()
        write_result(adata, INTERPOLATE, description, key=key_added)
    return result


def _continuous(se: LoRACovariateSE, covariate: str) -> ContinuousCovariate:
    fitted = se.registry.covariate(covariate)
    if isinstance(fitted, CategoricalCovariate):
        levels = ", ".join(map(repr, fitted.categories[:10])) + (", …" if len(fitted.categories) > 10 else "")
        msg = (
            f"{covariate!r} is categorical, without values between its levels {levels}. For one of them use "
            f"se.get_latent_representation(covariates={{{covariate!r}: {fitted.categories[0]!r}}}). To interpolate, "
            "set up a column of numbers as continuous: covariate_keys={'column': 'continuous'}."
        )
        raise ValueError(msg)
    return fitted


def _numbers(values: Any, covariate: str) -> np.ndarray:
    """Return the unique values in the order of first occurrence, float64 ``(n_values,)``."""
    listed = [values] if np.isscalar(values) or np.ndim(values) == 0 else list(values)
    wrong = [v for v in listed if isinstance(v, (bool, np.bool_, str, bytes)) or not np.isscalar(v)]
    if wrong:
        msg = f"values holds {wrong[0]!r} ({type(wrong[0]).__name__}): give numbers in the units of {covariate!r}."
        raise TypeError(msg)
    if not listed:
        msg = f"values is empty. Name at least one value of {covariate!r}."
        raise ValueError(msg)
    numbers = np.array(list(dict.fromkeys(float(v) for v in listed)))
    if not np.isfinite(numbers).all():
        odd = numbers[~np.isfinite(numbers)][0]
        msg = (
            f"values holds {odd}, but {covariate!r} can only be interpolated to finite numbers. To embed cells "
            f"without it: se.get_latent_representation(covariates={{{covariate!r}: None}})."
        )
        raise ValueError(msg)
    return numbers


def _warn_outside(values: np.ndarray, fitted: ContinuousCovariate) -> None:
    outside = values[(values < fitted.low) | (values > fitted.high)]
    if len(outside):
        warn_user(
            f"{fitted.name!r} was seen from {fitted.low:g} to {fitted.high:g} in training; "
            f"{', '.join(f'{v:g}' for v in outside)} {'lies' if len(outside) == 1 else 'lie'} outside. This is "
            "extrapolation, which no training cell constrains."
        )


def _under(
    cells: ConditionedCells, covariates: Mapping[str, Any] | pd.DataFrame | None, covariate: str, value: float
) -> np.ndarray:
    condition: Mapping[str, Any] | pd.DataFrame
    if isinstance(covariates, pd.DataFrame):
        condition = covariates.assign(**{covariate: value})
    else:
        condition = {**(covariates or {}), covariate: value}
    with warnings.catch_warnings():
        # Warned of already, once for all values; warnings of other covariates still show.
        warnings.filterwarnings("ignore", message=rf"covariates\[{covariate!r}\] ranges from", category=UserWarning)
        return cells.under(condition)


def _describe(
    se: LoRACovariateSE,
    cells: AnnData,
    covariates: Mapping[str, Any] | pd.DataFrame | None,
    covariate: str,
    values: np.ndarray,
) -> pd.DataFrame:
    """Describe every embedded cell: its source and the covariates that it is conditioned on."""
    registry = se.registry
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ranges from", category=UserWarning)  # warned of while embedding
        condition = (
            BoundData(registry, cells).under(covariates).covariate_values.drop(columns=covariate, errors="ignore")
        )
    keys = [k for k in (registry.cell_type_key, registry.batch_key) if k is not None and k in cells.obs]
    once = pd.DataFrame(index=pd.RangeIndex(cells.n_obs))
    once[SOURCE_CELL] = np.asarray(cells.obs_names, dtype=object)
    if covariate in cells.obs:
        once[f"{covariate}_own"] = cells.obs[covariate].to_numpy()
    for name in [*condition.columns, *(k for k in keys if k not in condition and k != covariate)]:
        column = condition[name] if name in condition else cells.obs[name]
        once[str(name)] = column.array
    obs = pd.concat([once] * len(values), ignore_index=True)
    obs.insert(1, covariate, np.repeat(values, len(once)))
    obs.index = pd.Index([f"{cell}|{covariate}={label_of(value)}" for value in values for cell in once[SOURCE_CELL]])
    return obs
