"""The cells of an AnnData as described by a registry: labels, expression, split and covariates, each read once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora._constants import OBS_SPLIT, TARGET_SUM
from scstate_lora._utils import did_you_mean, warn_user
from scstate_lora.data.contexts import join_labels
from scstate_lora.data.counterfactual import set_covariates
from scstate_lora.data.embedding import read_embedding
from scstate_lora.data.expression import read_expression
from scstate_lora.data.genes import gene_names, match_genes, take_columns, unique_names
from scstate_lora.data.labels import as_labels
from scstate_lora.data.log_scale import LogScale, describe_scale, find_log_scale, noted_base, same_sum
from scstate_lora.data.matrix import check_scale, log_normalize, log_raw, rescale_log, to_natural_log
from scstate_lora.data.raw import raw_advised
from scstate_lora.data.split_column import read_split
from scstate_lora.data.stream import check_not_empty, matrix_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scipy import sparse

    from scstate_lora.data.expression import Expression
    from scstate_lora.data.registry import Registry


class BoundData:
    """An AnnData bound to a registry.

    Each property is read and checked on first use, then cached for the lifetime of this object; bind again if the cells
    may have changed.

    Parameters
    ----------
    registry
        Description of the data.
    adata
        The registered data, or new data with the same columns; genes are matched by name.
    """

    def __init__(self, registry: Registry, adata: AnnData) -> None:
        self.registry = registry
        self.adata = adata
        self._counterfactual: set[str] = set()
        self._labels: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.adata.n_obs)

    @property
    def obs(self) -> pd.DataFrame:
        """Table of the cells."""
        return self.adata.obs

    @property
    def names(self) -> list[str]:
        """Names of the cells."""
        return [str(name) for name in self.adata.obs_names]

    def take(self, rows: np.ndarray) -> BoundData:
        """Bind a subset of the cells."""
        return BoundData(self.registry, self.adata[rows])

    def labels(self, key: str) -> np.ndarray:
        """Return a column's values as strings, shape ``(n_cells,)``; missing values, if allowed, are ``"(missing)"``.

        Raises
        ------
        KeyError
            If the column does not exist.
        ValueError
            If values are missing and the column is not a covariate declared with ``allow_missing``.
        """
        if key not in self._labels:
            self._labels[key] = self.registry.labels(self.adata, key)
        return self._labels[key]

    @cached_property
    def contexts(self) -> np.ndarray:
        """Context of every cell, shape ``(n_cells,)``; ``"all"`` if no context keys were set up."""
        return join_labels([self.labels(key) for key in self.registry.context_keys], len(self))

    @cached_property
    def cell_types(self) -> np.ndarray | None:
        """Cell type of every cell, shape ``(n_cells,)``; None if no ``cell_type_key`` was set up."""
        key = self.registry.cell_type_key
        return None if key is None else self.labels(key)

    @cached_property
    def perturbations(self) -> np.ndarray:
        """Perturbation of every cell, shape ``(n_cells,)``.

        Raises
        ------
        ValueError
            If the data were set up without ``pert_key``.
        """
        if self.registry.pert_key is None:
            msg = "No perturbation was set up. Run ssl.setup_anndata(adata, pert_key=..., control=...)."
            raise ValueError(msg)
        return self.labels(self.registry.pert_key)

    @cached_property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control cell, bool ``(n_cells,)``; True for all cells if the column is absent."""
        if self.registry.pert_key not in self.obs:
            return np.ones(len(self), dtype=bool)
        return np.asarray(self.perturbations == self.registry.control)

    @cached_property
    def split(self) -> np.ndarray:
        """Split of every cell, ``"train"``, ``"val"`` or ``"test"``, shape ``(n_cells,)``.

        Raises
        ------
        KeyError
            If the cells were not set up.
        """
        if OBS_SPLIT not in self.obs:
            msg = f"adata.obs[{OBS_SPLIT!r}] does not exist: run ssl.setup_anndata(adata, ...) on this AnnData first."
            raise KeyError(msg)
        return read_split(self.adata)

    def rows(self, split: str) -> np.ndarray:
        """Row indices of the cells of a split."""
        return np.flatnonzero(self.split == split)

    def under(self, covariates: Mapping[str, Any] | pd.DataFrame | None) -> BoundData:
        """Bind the same cells under counterfactual covariates; contexts, split and expression are unchanged.

        Parameters
        ----------
        covariates
            Counterfactual values: a mapping from covariate to one value for all cells, or a DataFrame with one row per
            cell; None changes nothing. A missing value (None, NaN, ``pandas.NA``) withholds the covariate. Covariates
            that are not named keep each cell's own value.

        Raises
        ------
        KeyError
            If a covariate is unknown.
        ValueError
            If a level was never seen in training, a number is not finite, or the rows do not match the cells.
        TypeError
            If the counterfactual values are neither a mapping nor a DataFrame, or if the mapping holds several values
            for one covariate.

        Warns
        -----
        UserWarning
            If a number lies outside the range seen in training.
        """
        if covariates is None:
            return self
        counterfactual = BoundData(self.registry, self.adata)
        counterfactual.covariate_values = set_covariates(self.covariate_values, self.registry, covariates)
        counterfactual._counterfactual = {str(name) for name in covariates}
        return counterfactual

    @cached_property
    def covariate_values(self) -> pd.DataFrame:
        """Values of the covariates whose columns exist; counterfactual values replace the cells' own."""
        return self.obs[[c.name for c in self.registry.covariates if c.name in self.obs]]

    def encode(self, *, without: str | None = None) -> dict[str, np.ndarray]:
        """Encode covariates as int64 codes or standardised float32 values, each of shape ``(n_cells,)``.

        Withheld values, and missing values where allowed, are encoded as given by :meth:`Registry.unknown`.

        Parameters
        ----------
        without
            A covariate to leave out.

        Raises
        ------
        KeyError, ValueError, TypeError
            If a covariate's column is absent, a level was never seen in training, a number is infinite, or a value is
            missing and the covariate does not allow it.
        """
        values = self.covariate_values
        encoded = {}
        for covariate in self.registry.covariates:
            name = covariate.name
            if name == without:
                continue
            if name not in values:
                msg = (
                    f"adata.obs[{name!r}] does not exist, but the model was set up with this covariate. "
                    f"{did_you_mean(name, self.obs.columns)} Alternatively, give one value for all cells, or None to "
                    f"withhold the covariate: covariates={{{name!r}: ...}}."
                )
                raise KeyError(msg)
            encoded[name] = covariate.encode(values[name], allow_missing=name in self._counterfactual)
        return encoded

    @cached_property
    def batch_codes(self) -> np.ndarray:
        """Batch code of every cell, int64 ``(n_cells,)``; -1 if the batch is missing or was never seen in training."""
        batch = self.registry.batch
        if batch is None or batch.name not in self.obs:
            return np.full(len(self), -1, dtype=np.int64)
        column = self.obs[batch.name]
        labels = as_labels(column).where(column.notna(), None)
        return pd.Index(batch.categories).get_indexer(pd.Index(labels))

    @cached_property
    def measured(self) -> np.ndarray:
        """Which of the registered genes are in these data, bool ``(n_genes,)``; errors as in :attr:`matrix`."""
        return match_genes(gene_names(self.adata, self.registry.gene_key), self.registry.var_names) >= 0

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """Expression on the registered scale, natural logarithms if any; float32 CSR ``(n_cells, n_genes)``.

        Absent genes are zero.

        Do not modify it: it may share memory with the AnnData.

        Raises
        ------
        KeyError, ValueError
            If the layer or ``gene_key`` is absent, fewer than 10 % of the genes match, or new data are on a different
            scale from the registered one.

        Warns
        -----
        UserWarning
            If registered genes are absent.
        """
        registry = self.registry
        check_not_empty(self.adata)
        unique_names(self.adata.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
        positions = match_genes(gene_names(self.adata, registry.gene_key), registry.var_names)
        absent = np.flatnonzero(positions < 0)
        if len(absent):
            names = ", ".join(registry.var_names[i] for i in absent[:3]) + (", …" if len(absent) > 3 else "")
            treated = "count as average" if registry.label_targets else "set to 0"  # by a classifier of cells
            warn_user(f"{len(absent)} of the model's {len(positions)} genes are not in the data and {treated}: {names}")
        matrix = take_columns(self._expression.matrix, positions)
        return matrix if registry.scale == "counts" else to_natural_log(matrix, self._log_scale.base)

    @cached_property
    def _expression(self) -> Expression:
        """The matrix as it is stored, whose values fit those of the registered one."""
        registry = self.registry
        with raw_advised(self.adata, scale=registry.scale):
            expression = read_expression(self.adata, registry.layer)
            check_scale(expression.stats, registry.scale, registry.scale_reason, matrix_name(registry.layer))
        return expression

    @cached_property
    def _log_scale(self) -> LogScale:
        """Base and target sum of the log1p values of these cells, which fit those of the registered ones.

        Raises
        ------
        ValueError
            If both target sums are known and differ.
        """
        registry = self.registry
        noted = noted_base(self.adata)
        own = find_log_scale(self._expression.stats, registry.log_base if noted is None else noted)
        if own.target_sum is None or registry.source_sum is None:
            return own._replace(target_sum=own.target_sum or registry.source_sum)
        is_converted = registry.target_sum is not None and not same_sum(registry.target_sum, registry.source_sum)
        if not (is_converted or same_sum(own.target_sum, registry.source_sum)):
            msg = (
                f"{matrix_name(registry.layer)} is {describe_scale(own.target_sum)}, but the model was set up on "
                f"{describe_scale(registry.source_sum)}. Normalise these cells to that sum: sc.pp.normalize_total("
                f"adata, target_sum={registry.source_sum:.6g}) on the counts, then sc.pp.log1p(adata)."
            )
            raise ValueError(msg)
        return own

    @cached_property
    def logged(self) -> sparse.csr_matrix:
        """Natural log1p of counts, of which a cell has ``registry.target_sum``, float32 CSR ``(n_cells, n_genes)``."""
        registry = self.registry
        if registry.scale == "counts":
            return log_normalize(self.matrix, registry.scale, target_sum=registry.target_sum or TARGET_SUM)
        source_sum = self._log_scale.target_sum
        if registry.target_sum is None or source_sum is None or same_sum(registry.target_sum, source_sum):
            return self.matrix
        return rescale_log(self.matrix, registry.target_sum / source_sum)

    def logged_genes(self, genes: Sequence[str]) -> sparse.csr_matrix:
        """Select registered genes from :attr:`logged`, CSR ``(n_cells, len(genes))``."""
        return take_columns(self.logged, match_genes(self.registry.var_names, list(genes)))

    @cached_property
    def log_counts(self) -> sparse.csr_matrix:
        """log1p of counts without library-size scaling, the input of SE networks, CSR ``(n_cells, n_genes)``."""
        return log_raw(self.matrix, self.registry.scale)

    @cached_property
    def embedding(self) -> np.ndarray:
        """The embedding in ``adata.obsm`` that the model takes as input, float32 ``(n_cells, embed_width)``.

        Raises
        ------
        ValueError
            If no ``embed_key`` was set up, or the embedding has a different width, lacks a column, or is not finite.
        KeyError
            If the embedding does not exist.
        TypeError
            If the embedding does not hold numbers.

        Warns
        -----
        UserWarning
            If the model was set up on named columns and these have no names.
        """
        registry = self.registry
        if registry.embed_key is None:
            msg = "No embedding was set up. Name a key of adata.obsm: ssl.setup_anndata(adata, embed_key=...)."
            raise ValueError(msg)
        width, columns = registry.embed_width, registry.embed_columns
        return read_embedding(self.adata, registry.embed_key, width=width, columns=columns)
