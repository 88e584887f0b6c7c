"""The registry: what `setup_anndata` found in an AnnData, stored as JSON, and the transfer of new data against it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scstate_lora._constants import UNS_KEY
from scstate_lora._utils import did_you_mean
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
from scstate_lora.data.matrix import Scale, check_scale, log_normalize, matrix_name, read_matrix, resolve_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData

_MIN_COVERAGE = 0.1
REGISTRY_KEY = "registry"


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

    @classmethod
    def create(
        cls,
        adata: AnnData,
        *,
        covariate_keys: str | list[str] | Mapping[str, str] = (),
        pert_key: str | None = None,
        control: str | None = None,
        cell_type_key: str | None = None,
        batch_key: str | None = None,
        context_keys: Sequence[str] | None = None,
        layer: str | None = None,
        input_scale: str | None = None,
        gene_key: str | None = None,
    ) -> Registry:
        """Validate an AnnData and record what was found. Nothing is written.

        Raises
        ------
        TypeError, KeyError, ValueError
            See :func:`scstate_lora.setup_anndata`.
        """
        _unique(adata.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
        genes = gene_names(adata, gene_key)
        matrix = read_matrix(adata, layer)
        scale, reason = resolve_scale(matrix, input_scale, matrix_name(layer))
        covariates = fit_covariates(adata, covariate_keys)
        for key in (cell_type_key, batch_key):
            if key is not None:
                obs_column(adata, key)
        perturbations: list[str] = []
        if pert_key is not None:
            perturbations = list(CategoricalCovariate.fit(adata, pert_key).categories)
            if control is None:
                msg = f"pert_key={pert_key!r} needs control=, the level of unperturbed cells. Found: {perturbations}."
                raise ValueError(msg)
            control = label_of(control)
            if control not in perturbations:
                msg = f"control={control!r} is not in adata.obs[{pert_key!r}]. {did_you_mean(control, perturbations)}"
                raise ValueError(msg)
        elif control is not None:
            msg = f"control={control!r} is given without pert_key=, the column it belongs to."
            raise ValueError(msg)
        if context_keys is None:
            context_keys = _default_context(adata, covariates, pert_key, cell_type_key)
        registry = cls(
            var_names=genes,
            scale=scale,
            scale_reason=reason,
            layer=layer,
            gene_key=gene_key,
            covariates=covariates,
            pert_key=pert_key,
            control=control,
            perturbations=perturbations,
            cell_type_key=cell_type_key,
            batch_key=batch_key,
            context_keys=[context_keys] if isinstance(context_keys, str) else list(context_keys),
        )
        if pert_key is not None:
            registry._check_controls(adata)
        return registry

    def _check_controls(self, adata: AnnData) -> None:
        contexts = self.contexts(adata)
        perturbed = self.labels(adata, self._pert_key()) != self.control
        lacking = sorted(set(contexts[perturbed]) - set(contexts[~perturbed]))
        if lacking:
            listed = "; ".join(lacking[:5]) + (f"; and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            msg = (
                f"{len(lacking)} contexts ({' x '.join(self.context_keys)}) have perturbed cells, but no control "
                f"({self.control!r} in adata.obs[{self.pert_key!r}]): {listed}. Leave those cells out, or compare "
                "within coarser contexts: context_keys=[...]."
            )
            raise ValueError(msg)

    def _pert_key(self) -> str:
        if self.pert_key is None:
            msg = "This data was set up without pert_key=, which a perturbation model needs."
            raise ValueError(msg)
        return self.pert_key

    @property
    def targets(self) -> list[str]:
        """The perturbations other than the control."""
        return [p for p in self.perturbations if p != self.control]

    def covariate(self, name: str) -> Covariate:
        """The fitted covariate of that name; a KeyError suggests near ones."""
        for covariate in self.covariates:
            if covariate.name == name:
                return covariate
        msg = f"{name!r} is not a covariate of this model. {did_you_mean(name, [c.name for c in self.covariates])}"
        raise KeyError(msg)

    def labels(self, adata: AnnData, key: str) -> np.ndarray:
        """Values of a column as strings, shape ``(n_cells,)``."""
        return as_labels(obs_column(adata, key)).to_numpy(dtype=object)

    def contexts(self, adata: AnnData) -> np.ndarray:
        """Context of every cell as one string, shape ``(n_cells,)``; ``"all"`` without context keys."""
        if not self.context_keys:
            return np.full(adata.n_obs, "all", dtype=object)
        columns = [self.labels(adata, key) for key in self.context_keys]
        return np.array([" | ".join(values) for values in zip(*columns, strict=True)], dtype=object)

    def encode(self, obs: pd.DataFrame) -> dict[str, np.ndarray]:
        """Covariates of cells as numbers: int64 codes or standardised float32, each of shape ``(n_cells,)``."""
        encoded = {}
        for covariate in self.covariates:
            if covariate.name not in obs:
                msg = f"adata.obs[{covariate.name!r}] does not exist, and the model was trained with this covariate."
                raise KeyError(msg)
            encoded[covariate.name] = covariate.encode(obs[covariate.name])
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
        ValueError
            Under 10 % of the genes are found, or the new matrix is of another scale than the registered one.
        """
        _unique(adata.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
        found = gene_names(adata, self.gene_key)
        positions = match_genes(found, self.var_names)
        matrix = read_matrix(adata, self.layer)
        check_scale(matrix, self.scale, self.scale_reason, matrix_name(self.layer))
        aligned = take_columns(matrix, positions)
        if genes is None:
            return aligned
        return take_columns(aligned, match_genes(self.var_names, list(genes)))

    def log_expression(self, adata: AnnData) -> sparse.csr_matrix:
        """log1p of counts per 10,000 (or the registered log1p values), float32 CSR ``(n_cells, n_genes)``."""
        return log_normalize(self.matrix(adata), self.scale)

    def to_json(self) -> str:
        """The registry as JSON text."""
        stored = {k: v for k, v in self.__dict__.items() if k != "covariates"}
        return json.dumps({**stored, "covariates": [covariate_to_dict(c) for c in self.covariates]})

    @classmethod
    def from_json(cls, text: str) -> Registry:
        """Rebuild a registry from :meth:`to_json`."""
        stored: dict[str, Any] = json.loads(text)
        covariates = tuple(covariate_from_dict(c) for c in stored.pop("covariates"))
        return cls(covariates=covariates, **stored)

    def write(self, adata: AnnData) -> None:
        """Store the registry in ``adata.uns["scstate_lora"]["registry"]``."""
        adata.uns.setdefault(UNS_KEY, {})[REGISTRY_KEY] = self.to_json()

    @classmethod
    def from_adata(cls, adata: AnnData) -> Registry:
        """Read the registry of an AnnData that was set up; a KeyError otherwise."""
        stored = adata.uns.get(UNS_KEY, {}).get(REGISTRY_KEY)
        if stored is None:
            msg = "This AnnData was not set up. Run ssl.setup_anndata(adata, covariate_keys=[...]) first."
            raise KeyError(msg)
        return cls.from_json(stored)


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


def gene_names(adata: AnnData, gene_key: str | None = None) -> list[str]:
    """Gene names from ``adata.var_names`` or ``adata.var[gene_key]``; they must be unique."""
    if gene_key is None:
        return _unique(adata.var_names, "adata.var_names", "adata.var_names_make_unique()")
    if gene_key not in adata.var:
        msg = f"adata.var[{gene_key!r}] does not exist. {did_you_mean(gene_key, adata.var.columns)}"
        raise KeyError(msg)
    return _unique(adata.var[gene_key].astype(str), f"adata.var[{gene_key!r}]", "keep one column of each gene")


def _unique(names: Any, what: str, fix: str) -> list[str]:
    listed = [str(n) for n in names]
    if len(set(listed)) < len(listed):
        seen: set[str] = set()
        repeated = next(n for n in listed if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        msg = f"{what} holds {repeated!r} more than once. Names must be unique: {fix}."
        raise ValueError(msg)
    return listed


def match_genes(found: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Position of every wanted gene among those found, -1 where absent, shape ``(n_wanted,)``.

    Raises
    ------
    ValueError
        Under 10 % of the wanted genes are found; the message shows both kinds of identifiers.
    """
    lookup = {name: i for i, name in enumerate(found)}
    positions = np.array([lookup.get(name, -1) for name in wanted], dtype=np.int64)
    coverage = float((positions >= 0).mean())
    if coverage < _MIN_COVERAGE:
        upper = {name.upper() for name in found}
        by_case = np.mean([name.upper() in upper for name in wanted])
        hint = (
            f" Ignoring case {by_case:.0%} would match: mouse symbols (Actb) against human ones (ACTB)? Convert them "
            "to orthologues."
            if by_case >= _MIN_COVERAGE
            else " Name the var column that holds such names: gene_key=..."
        )
        msg = (
            f"Only {coverage:.1%} of the model's {len(wanted)} genes are in the data (at least {_MIN_COVERAGE:.0%} "
            f"needed). The data has {', '.join(found[:3])}, …; the model has {', '.join(wanted[:3])}, ….{hint}"
        )
        raise ValueError(msg)
    return positions


def take_columns(matrix: sparse.csr_matrix, positions: np.ndarray) -> sparse.csr_matrix:
    """Columns of a CSR matrix in the order asked for; position -1 gives an empty column."""
    if len(positions) == matrix.shape[1] and np.array_equal(positions, np.arange(matrix.shape[1])):
        return matrix
    present = np.flatnonzero(positions >= 0)
    selector = sparse.csr_matrix(
        (np.ones(len(present), dtype=matrix.dtype), (positions[present], present)),
        shape=(matrix.shape[1], len(positions)),
    )
    taken = sparse.csr_matrix(matrix @ selector)
    taken.sort_indices()
    return taken
