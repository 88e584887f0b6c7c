"""The registry: what `setup_anndata` found in an AnnData, stored as JSON, and the transfer of new data against it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.embedding import read_embedding
from scstate_lora.data.fields import (
    HANDFUL,
    CategoricalCovariate,
    Covariate,
    as_labels,
    covariate_from_dict,
    covariate_to_dict,
    fit_covariates,
    label_of,
    obs_column,
)
from scstate_lora.data.genes import gene_names, match_genes, take_columns, unique_names
from scstate_lora.data.matrix import MatrixStats, Scale, check_scale, log_normalize, resolve_scale
from scstate_lora.data.results import REGISTRY, read_result, write_result
from scstate_lora.data.stream import check_not_empty, matrix_name, open_source, read_matrix

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence

    from anndata import AnnData
    from scipy import sparse

    from scstate_lora.config import DataConfig

MISSING = "(missing)"
"""Label of cells whose value of a covariate is missing."""


@dataclass(frozen=True)
class Registry:
    """What a model needs to know of the data it was set up on. Plain values only, so it survives any file format.

    Parameters
    ----------
    var_names
        Genes, in the model's order.
    scale, scale_reason
        ``"counts"`` or ``"log1p"``, and why it was decided so.
    layer
        Layer that holds the matrix; None for ``adata.X``.
    gene_key
        Column of ``adata.var`` with the gene names; None for ``adata.var_names``.
    covariates
        Fitted covariates.
    pert_key, control
        Column of the perturbation, and its control level.
    perturbations
        All levels of ``pert_key``, sorted.
    cell_type_key, batch_key
        Columns of the cell type and the batch.
    context_keys
        Columns within whose combinations cells are compared: sets of control and perturbed cells share them.
    batch
        Levels of ``batch_key``; None without one, where it has one level only, and in registries written by versions
        that did not record them.
    embed_key, embed_width
        An embedding in ``adata.obsm`` to work from, and its number of columns.
    """

    var_names: list[str]
    scale: Scale
    scale_reason: str
    layer: str | None
    gene_key: str | None
    covariates: tuple[Covariate, ...]
    pert_key: str | None
    control: str | None
    perturbations: list[str]
    cell_type_key: str | None
    batch_key: str | None
    context_keys: list[str]
    batch: CategoricalCovariate | None = None
    embed_key: str | None = None
    embed_width: int | None = None

    @classmethod
    def create(cls, adata: AnnData, config: DataConfig) -> Self:
        """Validate an AnnData and record what was found. Nothing is written.

        Parameters
        ----------
        adata
            Cells x genes.
        config
            What the columns mean; how the cells are split does not matter here.

        Raises
        ------
        TypeError, KeyError, ValueError
            See :func:`scstate_lora.setup_anndata`.
        """
        check_not_empty(adata)
        unique_names(adata.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
        genes = gene_names(adata, config.gene_key)
        covariates = fit_covariates(adata, config.covariate_keys)
        pert_key = config.pert_key
        for name in ("cell_type_key", "batch_key"):
            key = getattr(config, name)
            if key is not None:
                obs_column(adata, key)
                if key == pert_key:
                    msg = f"{name} and pert_key are both {key!r}. Name two different columns of adata.obs."
                    raise ValueError(msg)
        perturbations, control = _perturbations(adata, pert_key, config.control)
        context_keys = config.context_keys
        if context_keys is None:
            context_keys = _default_context(adata, covariates, pert_key, config.cell_type_key)
        if pert_key is not None:
            may_miss = {c.name for c in covariates if c.allow_missing} - {config.cell_type_key, config.batch_key}
            _check_contexts(adata, pert_key, control, context_keys, may_miss)
        embed_width = None if config.embed_key is None else read_embedding(adata, config.embed_key).shape[1]
        source = open_source(adata, config.layer)  # last, as it takes longest
        scale, reason = resolve_scale(source.scan(), config.input_scale, source.name)
        return cls(
            var_names=genes,
            scale=scale,
            scale_reason=reason,
            layer=config.layer,
            gene_key=config.gene_key,
            covariates=covariates,
            pert_key=pert_key,
            control=control,
            perturbations=perturbations,
            cell_type_key=config.cell_type_key,
            batch_key=config.batch_key,
            context_keys=context_keys,
            batch=None if config.batch_key is None else _batch(adata, config.batch_key),
            embed_key=config.embed_key,
            embed_width=embed_width,
        )

    @property
    def targets(self) -> list[str]:
        """The perturbations other than the control."""
        return [p for p in self.perturbations if p != self.control]

    def covariate(self, name: str) -> Covariate:
        """Return the fitted covariate of that name; a KeyError suggests near ones."""
        for covariate in self.covariates:
            if covariate.name == name:
                return covariate
        msg = f"{name!r} is not a covariate of this model. {did_you_mean(name, [c.name for c in self.covariates])}"
        raise KeyError(msg)

    def labels(self, adata: AnnData, key: str) -> np.ndarray:
        """Return a column's values as strings, shape ``(n_cells,)``.

        Values that a covariate may miss are ``"(missing)"``.
        """
        return _labels(adata, key, self._may_miss)

    def contexts(self, adata: AnnData) -> np.ndarray:
        """Name the context of every cell, shape ``(n_cells,)``; ``"all"`` without context keys."""
        return _contexts(adata, self.context_keys, self._may_miss)

    def batch_codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Codes of the cells' batches, int64 ``(n_cells,)``; -1 for one that is missing or was never seen."""
        batch = self.batch
        if batch is None or batch.name not in obs:
            return np.full(len(obs), -1, dtype=np.int64)
        labels = as_labels(obs[batch.name]).where(obs[batch.name].notna(), None)
        return pd.Categorical(labels, categories=list(batch.categories)).codes.astype(np.int64)

    @property
    def _may_miss(self) -> set[str]:
        names = {c.name for c in self.covariates if c.allow_missing}
        return names - {str(key) for key in (self.pert_key, self.cell_type_key, self.batch_key) if key is not None}

    def unknown(self) -> dict[str, int | float]:
        """Return what stands for "unknown" in each encoded covariate: a code of its own, or NaN."""
        return {c.name: c.unknown for c in self.covariates}

    def embedding(self, adata: AnnData) -> np.ndarray:
        """Read the embedding the model works from, float32 ``(n_cells, embed_width)``.

        Raises
        ------
        ValueError
            The model was set up without ``embed_key``, or the embedding is of another width or not finite.
        KeyError
            ``adata.obsm`` does not hold it.
        TypeError
            It does not hold numbers.
        """
        if self.embed_key is None:
            msg = "No embedding was set up: ssl.setup_anndata(adata, embed_key=...), a key of adata.obsm."
            raise ValueError(msg)
        return read_embedding(adata, self.embed_key, width=self.embed_width)

    def encode(
        self, obs: pd.DataFrame, *, without: str | None = None, allow_missing: Iterable[Hashable] | None = None
    ) -> dict[str, np.ndarray]:
        """Turn the covariates of cells into int64 codes or standardised float32, each of shape ``(n_cells,)``.

        A missing value gives the code, or the NaN, of :meth:`unknown` where it is allowed.

        Parameters
        ----------
        obs
            Table with the covariates' columns.
        without
            A covariate to leave out.
        allow_missing
            Covariates that may be missing besides those declared so: the ones a user asked for by ``covariates=``.

        Raises
        ------
        KeyError
            A covariate's column is not there.
        ValueError
            A level was never seen, a number is infinite, or a value is missing where that is not allowed.
        """
        allowed = set(() if allow_missing is None else allow_missing)
        encoded = {}
        for covariate in self.covariates:
            if covariate.name == without:
                continue
            if covariate.name not in obs:
                msg = (
                    f"adata.obs[{covariate.name!r}] does not exist, and the model was set up with this covariate. "
                    f"{did_you_mean(covariate.name, obs.columns)} Or say what it is for all cells, or None to withhold "
                    f"it: covariates={{{covariate.name!r}: ...}}."
                )
                raise KeyError(msg)
            values = obs[covariate.name]
            encoded[covariate.name] = covariate.encode(values, allow_missing=covariate.name in allowed)
        return encoded

    def matrix(self, adata: AnnData, *, genes: Sequence[str] | None = None) -> sparse.csr_matrix:
        """Read an AnnData's matrix in the registered scale, genes matched by name, absent ones zero.

        Parameters
        ----------
        adata
            The registered data, or new data.
        genes
            Genes wanted, all registered ones by default.

        Returns
        -------
        float32 CSR of shape ``(n_cells, n_genes)``.

        Raises
        ------
        KeyError, ValueError
            The layer or ``gene_key`` is not there, under 10 % of the genes are found, or the new matrix is of another
            scale than the registered one.

        Warns
        -----
        UserWarning
            Some registered genes are not in the data.
        """
        check_not_empty(adata)
        unique_names(adata.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
        found = gene_names(adata, self.gene_key)
        positions = match_genes(found, self.var_names)
        absent = np.flatnonzero(positions < 0)
        if len(absent):
            names = ", ".join(self.var_names[i] for i in absent[:3]) + (", …" if len(absent) > 3 else "")
            msg = f"{len(absent)} of the model's {len(positions)} genes are not in the data and count as 0: {names}"
            warnings.warn(msg, UserWarning, stacklevel=2)
        matrix = read_matrix(adata, self.layer)
        check_scale(MatrixStats.of(matrix), self.scale, self.scale_reason, matrix_name(self.layer))
        aligned = take_columns(matrix, positions)
        if genes is None:
            return aligned
        return take_columns(aligned, match_genes(self.var_names, list(genes)))

    def log_expression(self, adata: AnnData) -> sparse.csr_matrix:
        """Return log1p of counts per 10,000, or registered log1p values, as float32 CSR ``(n_cells, n_genes)``."""
        return log_normalize(self.matrix(adata), self.scale)

    def of_trained_batches(self, adata: AnnData, trained: np.ndarray) -> Registry:
        """Forget the batches without training cells: nothing can be learned of them, so they are unknown."""
        if self.batch is None:
            return self
        seen = set(_labels(adata, self.batch.name, ())[trained])
        levels = tuple(level for level in self.batch.categories if level in seen)
        return replace(self, batch=replace(self.batch, categories=levels) if len(levels) > 1 else None)

    def to_json(self) -> str:
        """Turn the registry into JSON text."""
        batch = None if self.batch is None else covariate_to_dict(self.batch)
        covariates = [covariate_to_dict(c) for c in self.covariates]
        return json.dumps({**self.__dict__, "batch": batch, "covariates": covariates})

    @classmethod
    def from_json(cls, text: str) -> Registry:
        """Rebuild a registry from :meth:`to_json`, of this version or an earlier one."""
        stored: dict[str, Any] = json.loads(text)
        stored["covariates"] = tuple(covariate_from_dict(c) for c in stored["covariates"])
        if stored.get("batch") is not None:
            stored["batch"] = covariate_from_dict(stored["batch"])
        return cls(**stored)

    def write(self, adata: AnnData) -> None:
        """Store the registry in ``adata.uns["scstate_lora"]["registry"]``."""
        write_result(adata, REGISTRY, self.to_json())

    @classmethod
    def from_adata(cls, adata: AnnData) -> Registry:
        """Read the registry of an AnnData that was set up; a KeyError otherwise."""
        stored = read_result(adata, REGISTRY)
        if stored is None:
            msg = "This AnnData was not set up. Run ssl.setup_anndata(adata, covariate_keys=[...]) first."
            raise KeyError(msg)
        return cls.from_json(stored)


def _perturbations(adata: AnnData, pert_key: str | None, control: Any) -> tuple[list[str], str | None]:
    """Levels of ``adata.obs[pert_key]``, and the control as one of them."""
    if pert_key is None:
        if control is not None:
            msg = f"control={control!r} is given without pert_key=, the column of adata.obs it belongs to."
            raise ValueError(msg)
        return [], None
    obs_column(adata, pert_key)  # missing values are allowed in no case
    levels = list(CategoricalCovariate.fit(adata, pert_key).categories)
    if control is None:
        listed = ", ".join(map(repr, levels[:10])) + (", …" if len(levels) > 10 else "")
        msg = (
            f"pert_key={pert_key!r} needs control=, the level of the unperturbed cells; adata.obs[{pert_key!r}] holds "
            f"{listed}."
        )
        raise ValueError(msg)
    if label_of(control) not in levels:
        msg = f"control={control!r} is not in adata.obs[{pert_key!r}]. {did_you_mean(label_of(control), levels)}"
        raise ValueError(msg)
    return levels, label_of(control)


def _batch(adata: AnnData, batch_key: str) -> CategoricalCovariate | None:
    """Levels of the batch; None when there is nothing to tell apart."""
    levels = sorted(as_labels(obs_column(adata, batch_key)).unique())
    return CategoricalCovariate(batch_key, tuple(levels)) if len(levels) > 1 else None


def _labels(adata: AnnData, key: str, may_miss: Collection[str]) -> np.ndarray:
    column = obs_column(adata, key, allow_missing=key in may_miss)
    labels = as_labels(column)
    return labels.where(column.notna(), MISSING).to_numpy(dtype=object)


def _contexts(adata: AnnData, context_keys: Sequence[str], may_miss: Collection[str]) -> np.ndarray:
    if not context_keys:
        return np.full(adata.n_obs, "all", dtype=object)
    columns = [_labels(adata, key, may_miss) for key in context_keys]
    return np.array([" | ".join(values) for values in zip(*columns, strict=True)], dtype=object)


def _check_contexts(
    adata: AnnData, pert_key: str, control: str | None, context_keys: Sequence[str], may_miss: Collection[str]
) -> None:
    """Every context with perturbed cells must have control cells; the message names coarser contexts that do."""
    if pert_key in context_keys:
        msg = f"context_keys holds {pert_key!r}, which is pert_key: cells are compared across it. Leave it out."
        raise ValueError(msg)
    perturbed = (as_labels(obs_column(adata, pert_key)) != control).to_numpy()

    def lacking(keys: Sequence[str]) -> list[str]:
        contexts = _contexts(adata, keys, may_miss)
        return sorted(set(contexts[perturbed]) - set(contexts[~perturbed]))

    missing = lacking(context_keys)
    if missing:
        fewer = [[k for k in context_keys if k != dropped] for dropped in reversed(context_keys)]
        enough = next(keys for keys in [*fewer, []] if not lacking(keys))
        listed = "; ".join(missing[:5]) + (f"; and {len(missing) - 5} more" if len(missing) > 5 else "")
        msg = (
            f"{len(missing)} contexts ({' x '.join(context_keys)}) have perturbed cells, but no control "
            f"({control!r} in adata.obs[{pert_key!r}]): {listed}. Leave those cells out, or compare within coarser "
            f"contexts, which all have controls: context_keys={enough}."
        )
        raise ValueError(msg)


def _default_context(
    adata: AnnData, covariates: Sequence[Covariate], pert_key: str | None, cell_type_key: str | None
) -> list[str]:
    """Cell type, then every covariate that groups cells: categorical, or numeric with a handful of values."""
    keys = [cell_type_key] if cell_type_key is not None else []
    for covariate in covariates:
        groups = covariate.kind == "categorical" or adata.obs[covariate.name].nunique() <= HANDFUL
        if groups and covariate.name not in (pert_key, cell_type_key):
            keys.append(covariate.name)
    return keys
