"""The registry: a record of the data that ``setup_anndata`` validated, stored as JSON and applied to new data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scstate_lora._constants import OBS_SPLIT, TARGET_SUM
from scstate_lora._utils import did_you_mean, listed, warn_user
from scstate_lora.config import LabelledDataConfig
from scstate_lora.config.data import declared_covariates
from scstate_lora.data.contexts import column_labels, join_labels
from scstate_lora.data.embedding import embedding_columns, read_embedding
from scstate_lora.data.expression import check_expression
from scstate_lora.data.fields import (
    MAX_NUMERIC_LEVELS,
    CategoricalCovariate,
    Covariate,
    covariate_from_dict,
    covariate_to_dict,
    fit_covariates,
    obs_column,
)
from scstate_lora.data.genes import gene_names, unique_names
from scstate_lora.data.label_targets import LabelTarget, fit_label_targets
from scstate_lora.data.labels import as_labels, joined_levels, label_of
from scstate_lora.data.log_scale import LogScale, find_log_scale, noted_base
from scstate_lora.data.matrix import Scale, resolve_scale
from scstate_lora.data.perturbations import key_of
from scstate_lora.data.raw import raw_advised, warn_of_raw
from scstate_lora.data.results import LIBRARY_SIZE, REGISTRY, read_result, write_result
from scstate_lora.data.stream import check_not_empty

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from anndata import AnnData

    from scstate_lora.config import DataConfig

_RESERVED = {OBS_SPLIT: "the column of the split", "source_cell": "a column of interpolated cells"}
_RESERVED_IN_PREDICTIONS = {
    "control_cell": "the column of the control cell in predictions",
    "expected_loss": "the column of the expected loss in predictions",
    LIBRARY_SIZE: "the column of library sizes in predictions",
}


@dataclass(frozen=True)
class Registry:
    """Description of the data that a model was set up on, as plain values that any file format can store.

    Parameters
    ----------
    var_names
        Genes, in the model's order.
    scale, scale_reason
        ``"counts"`` or ``"log1p"``, and the reason for this decision.
    layer
        Layer that holds the matrix; None for ``adata.X``.
    gene_key
        Column of ``adata.var`` with the gene names; None for ``adata.var_names``.
    covariates
        Fitted covariates.
    pert_key, control
        Column with the perturbation, and its control level.
    perturbations
        All levels of ``pert_key``, sorted.
    cell_type_key, batch_key
        Columns of the cell type and the batch.
    context_keys
        Columns that define the contexts: control and perturbed cells of a set agree in all of them.
    batch
        Levels of ``batch_key``; None if no batch was set up, if it has one level only, or if the registry was written
        by a version that did not record the levels.
    embed_key, embed_width
        Key of the input embedding in ``adata.obsm``, and its number of columns.
    embed_columns
        Names of its columns; None if it had none.
    log_base, source_sum
        Base of the logarithm of log1p values, which are read as natural ones, and the sum of the counts of a cell
        before it; None if unknown.
    target_sum
        The same sum of the log1p values that models work with; None if unknown.
    label_targets
        What a classifier learns; none for other models.
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
    log_base: float = math.e
    source_sum: float | None = None
    target_sum: float | None = None
    embed_columns: list[str] | None = None
    label_targets: tuple[LabelTarget, ...] = ()

    @classmethod
    def create(cls, adata: AnnData, config: DataConfig) -> Self:
        """Validate an AnnData and record its description. Nothing is written to it.

        Parameters
        ----------
        adata
            Cells x genes.
        config
            The roles of the columns; options of the split are ignored.

        Raises
        ------
        TypeError, KeyError, ValueError
            As in :func:`scstate_lora.setup_anndata`.
        """
        check_not_empty(adata)
        unique_names(adata.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
        genes = gene_names(adata, config.gene_key)
        pert_key, control = config.pert_key, None if config.control is None else label_of(config.control)
        _refuse_reserved(config)
        covariates = fit_covariates(adata, config.covariate_keys, pert_key=pert_key, control=control)
        for name in ("cell_type_key", "batch_key"):
            key = getattr(config, name)
            if key is not None:
                obs_column(adata, key)
                if key == pert_key:
                    msg = f"{name} and pert_key are both {key!r}. Name two different columns of adata.obs."
                    raise ValueError(msg)
        perturbations = _perturbations(adata, pert_key, control)
        context_keys = config.context_keys
        if context_keys is None:
            context_keys = _default_context(adata, covariates, pert_key, config.cell_type_key)
        if pert_key is not None:
            nullable = {c.name for c in covariates if c.allow_missing} - {config.cell_type_key, config.batch_key}
            _check_contexts(adata, pert_key, control, context_keys, nullable)
        targets = fit_label_targets(adata, config) if isinstance(config, LabelledDataConfig) else ()
        embed_width = None if config.embed_key is None else read_embedding(adata, config.embed_key).shape[1]
        with raw_advised(adata):
            stats, matrix = check_expression(adata, config.layer)  # last, as it takes longest
            scale, reason = resolve_scale(stats, config.input_scale, matrix)
        log_scale = LogScale(math.e, None)
        if scale == "log1p":
            log_scale = find_log_scale(stats, noted_base(adata))
            if log_scale.base != math.e:
                reason += f"; logarithms to the base {log_scale.base:g} are read as natural ones"
            if log_scale.target_sum is None and config.layer is None:
                warn_of_raw(adata)
        registry = cls(
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
            embed_columns=None if config.embed_key is None else embedding_columns(adata, config.embed_key),
            log_base=log_scale.base,
            source_sum=log_scale.target_sum,
            target_sum=_target_sum(config.target_sum, scale, log_scale.target_sum, matrix),
            label_targets=targets,
        )
        registry._warn_of_joined_levels(adata, [key for condition in config.holdout or () for key in condition])
        return registry

    def _warn_of_joined_levels(self, adata: AnnData, further: Iterable[str]) -> None:
        """Warn of values that are written in several ways and read as one level, in the columns in use."""
        keys = [self.pert_key, self.cell_type_key, self.batch_key, *self.context_keys, *further]
        keys += [c.name for c in self.covariates if c.kind == "categorical"]
        joined = []
        for key in dict.fromkeys(key for key in keys if key is not None and key in adata.obs):
            column = adata.obs[key].dropna()
            labels = self.perturbation.labels(column) if key == self.pert_key else as_labels(column)
            several = joined_levels(column, labels)
            values = [f"{label!r} ({', '.join(values)})" for label, values in several.items()]
            joined += [f"adata.obs[{key!r}]: {listed(values, joined_by='; ', form=str)}"] if several else []
        if joined:
            warn_user(f"Values written in several ways are read as one level. {'. '.join(joined)}.")

    @property
    def targets(self) -> list[str]:
        """The perturbations other than the control."""
        return [p for p in self.perturbations if p != self.control]

    def covariate(self, name: str) -> Covariate:
        """Return the fitted covariate with this name; if none exists, a KeyError suggests similar names."""
        for covariate in self.covariates:
            if covariate.name == name:
                return covariate
        msg = f"{name!r} is not a covariate of this model. {did_you_mean(name, [c.name for c in self.covariates])}"
        raise KeyError(msg)

    @property
    def nullable_columns(self) -> set[str]:
        """Columns that may have missing values: covariates declared so, except keys that every cell needs."""
        names = {c.name for c in self.covariates if c.allow_missing}
        return names - {str(key) for key in (self.pert_key, self.cell_type_key, self.batch_key) if key is not None}

    def level_of(self, key: str, value: Any) -> str:
        """Return the level of a column of ``adata.obs`` that a value names; of perturbations, in the one spelling."""
        return self.perturbation.level_of(value) if key == self.pert_key else label_of(value)

    def labels(self, adata: AnnData, key: str) -> np.ndarray:
        """Return a column of ``adata.obs`` as levels, shape ``(n_cells,)``; missing values become ``"(missing)"``.

        Raises
        ------
        KeyError, TypeError, ValueError
            As in :func:`~scstate_lora.data.fields.obs_column`; values may be missing in :attr:`nullable_columns`.
        """
        if key == self.pert_key:
            return self.perturbation.labels(obs_column(adata, key)).to_numpy(dtype=object)
        return column_labels(adata, key, allow_missing=key in self.nullable_columns)

    def targets_of(self, names: Iterable[Any]) -> list[str]:
        """Bring names of perturbations to the spelling of :attr:`perturbations`, each perturbation once.

        Perturbations of other data keep the first of their spellings.
        """
        chosen: dict[str, str] = {}
        for name in names:
            level = self.perturbation.level_of(name)
            chosen.setdefault(key_of(level, str(self.control)), level)
        return list(chosen.values())

    @property
    def perturbation(self) -> CategoricalCovariate:
        """The perturbation as a covariate, whose levels are :attr:`perturbations`."""
        return CategoricalCovariate(str(self.pert_key), tuple(self.perturbations), control=str(self.control))

    def unknown(self) -> dict[str, int | float]:
        """Return the encoding of "unknown" for each covariate: its own code, or NaN."""
        return {c.name: c.unknown for c in self.covariates}

    def without_unseen_batches(self, adata: AnnData, is_training: np.ndarray) -> Registry:
        """Drop batches without training cells: nothing can be learned about them, so they count as unknown."""
        if self.batch is None:
            return self
        seen = set(column_labels(adata, self.batch.name)[is_training])
        levels = tuple(level for level in self.batch.categories if level in seen)
        return replace(self, batch=replace(self.batch, categories=levels) if len(levels) > 1 else None)

    def to_json(self) -> str:
        """Return the registry as JSON text."""
        batch = None if self.batch is None else covariate_to_dict(self.batch)
        covariates = [covariate_to_dict(c) for c in self.covariates]
        targets = [target.to_json() for target in self.label_targets]
        return json.dumps({**self.__dict__, "batch": batch, "covariates": covariates, "label_targets": targets})

    @classmethod
    def from_json(cls, text: str) -> Registry:
        """Rebuild a registry from the result of :meth:`to_json`, of this or an earlier version."""
        stored: dict[str, Any] = json.loads(text)
        control, pert_key = stored["control"], stored["pert_key"]
        stored["covariates"] = tuple(
            covariate_from_dict(c | {"control": control} if (c["name"], c["kind"]) == (pert_key, "categorical") else c)
            for c in stored["covariates"]
        )
        if stored.get("batch") is not None:
            stored["batch"] = covariate_from_dict(stored["batch"])
        stored["label_targets"] = tuple(map(LabelTarget.from_json, stored.get("label_targets", ())))
        if stored["scale"] == "counts":
            stored.setdefault("target_sum", TARGET_SUM)  # absent in version 0.1
        return cls(**stored)

    def write(self, adata: AnnData) -> None:
        """Store the registry in ``adata.uns["scstate_lora"]["registry"]``."""
        write_result(adata, REGISTRY, self.to_json())

    @classmethod
    def from_adata(cls, adata: AnnData) -> Registry:
        """Read the registry of an AnnData.

        Raises
        ------
        KeyError
            If the AnnData was not set up.
        """
        stored = read_result(adata, REGISTRY)
        if stored is None:
            msg = "This AnnData was not set up. Run ssl.setup_anndata(adata, covariate_keys=[...]) first."
            raise KeyError(msg)
        return cls.from_json(stored)


def _refuse_reserved(config: DataConfig) -> None:
    """Refuse keys that are the names of columns in results, where they would replace each other."""
    keys = [config.pert_key, config.cell_type_key, config.batch_key, *(config.context_keys or [])]
    keys += list(declared_covariates(config.covariate_keys))
    reserved = _RESERVED if config.pert_key is None else {**_RESERVED, **_RESERVED_IN_PREDICTIONS}
    for key in keys:
        if key in reserved:
            msg = f"adata.obs[{key!r}] cannot be used under this name, which is that of {reserved[key]}. Rename it."
            raise ValueError(msg)


def check_columns(adata: AnnData, config: DataConfig) -> None:
    """Check that the columns named by the options exist, and the control level: the first, and fast, part of set-up.

    Raises
    ------
    TypeError, KeyError, ValueError
        As in :meth:`Registry.create`.
    """
    for key in (*config.columns, *declared_covariates(config.covariate_keys)):
        obs_column(adata, key, allow_missing=True)
    _perturbations(adata, config.pert_key, None if config.control is None else label_of(config.control))


def _perturbations(adata: AnnData, pert_key: str | None, control: str | None) -> list[str]:
    """Levels of ``adata.obs[pert_key]``, of which the control must be one."""
    if pert_key is None:
        if control is not None:
            msg = f"control={control!r} needs pert_key=, the column of adata.obs that holds it."
            raise ValueError(msg)
        return []
    obs_column(adata, pert_key)  # missing values are never allowed here
    levels = list(CategoricalCovariate.fit(adata, pert_key, control=control).categories)
    if control is None:
        msg = (
            f"pert_key={pert_key!r} needs control=, the level of the control cells; adata.obs[{pert_key!r}] holds "
            f"{listed(levels, limit=10)}."
        )
        raise ValueError(msg)
    if control not in levels:
        msg = f"control={control!r} is not in adata.obs[{pert_key!r}]. {did_you_mean(control, levels)}"
        raise ValueError(msg)
    return levels


def _target_sum(requested: float | None, scale: Scale, source_sum: float | None, name: str) -> float | None:
    """Choose the sum of the counts of a cell before log1p, in the values that models work with."""
    if scale == "counts":
        return TARGET_SUM if requested is None else requested
    if requested is not None and source_sum is None:
        msg = (
            f"target_sum={requested:g} cannot be reached: {name} is log1p of normalised counts, but the target sum is "
            "unknown, because the cells do not sum to one number before log1p. Give the counts, for example a layer=, "
            "or leave target_sum out."
        )
        raise ValueError(msg)
    return source_sum if requested is None else requested


def _batch(adata: AnnData, batch_key: str) -> CategoricalCovariate | None:
    """Levels of the batch; None if it has only one."""
    levels = sorted(as_labels(obs_column(adata, batch_key)).unique())
    return CategoricalCovariate(batch_key, tuple(levels)) if len(levels) > 1 else None


def _check_contexts(
    adata: AnnData, pert_key: str, control: str | None, context_keys: Sequence[str], nullable: Collection[str]
) -> None:
    """Name the contexts with perturbed cells but without control cells; refuse if no context has both.

    Raises
    ------
    ValueError
        If no context has both, or ``context_keys`` holds the perturbation.

    Warns
    -----
    UserWarning
        If some contexts have no control cells.
    """
    if pert_key in context_keys:
        msg = f"context_keys holds {pert_key!r}, which is pert_key, whose levels are compared. Leave it out."
        raise ValueError(msg)
    levels = as_labels(adata.obs[pert_key], lambda value: key_of(label_of(value), str(control)))
    perturbed = (levels != control).to_numpy()
    labels = {key: column_labels(adata, key, allow_missing=key in nullable) for key in context_keys}

    def without_controls(keys: Sequence[str]) -> tuple[dict[str, int], int]:
        """Perturbed cells by context without control cells, and the number of contexts with perturbed cells."""
        contexts = join_labels([labels[key] for key in keys], adata.n_obs)
        names, counts = np.unique(contexts[perturbed].astype(str), return_counts=True)
        controlled = set(contexts[~perturbed])
        return {n: int(c) for n, c in zip(names, counts, strict=True) if n not in controlled}, len(names)

    missing, n_contexts = without_controls(context_keys)
    if not missing:
        return
    coarser = [[k for k in context_keys if k != dropped] for dropped in reversed(context_keys)]
    sufficient = next(keys for keys in [*coarser, []] if not without_controls(keys)[0])
    cells = listed((f"{name} ({n} cells)" for name, n in missing.items()), joined_by="; ", form=str)
    which = f"have perturbed cells but no control cells ({control!r} in adata.obs[{pert_key!r}])"
    advice = f"coarser contexts, which all have control cells: context_keys={sufficient}."
    if len(missing) < n_contexts:
        warn_user(
            f"{len(missing)} of {n_contexts} contexts ({' x '.join(context_keys)}) {which}: {cells}. Perturbations "
            f"are learned without these cells. To use them, set up {advice}"
        )
        return
    msg = f"All {n_contexts} contexts ({' x '.join(context_keys)}) {which}: {cells}. Use {advice}"
    raise ValueError(msg)


def _default_context(
    adata: AnnData, covariates: Sequence[Covariate], pert_key: str | None, cell_type_key: str | None
) -> list[str]:
    """Return the cell type and every covariate that groups cells: categorical, or with few distinct numbers."""
    keys = [cell_type_key] if cell_type_key is not None else []
    for covariate in covariates:
        groups = covariate.kind == "categorical" or adata.obs[covariate.name].nunique() <= MAX_NUMERIC_LEVELS
        if groups and covariate.name not in (pert_key, cell_type_key):
            keys.append(covariate.name)
    return keys
