"""Gene names: read from an AnnData, matched by name, and columns taken in the order asked for."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

_MIN_COVERAGE = 0.1


def gene_names(adata: AnnData, gene_key: str | None = None) -> list[str]:
    """Read the gene names from ``adata.var_names`` or ``adata.var[gene_key]``; they must be unique."""
    if gene_key is None:
        return unique_names(adata.var_names, "adata.var_names", "adata.var_names_make_unique()")
    if gene_key not in adata.var:
        msg = f"adata.var[{gene_key!r}] does not exist. {did_you_mean(gene_key, adata.var.columns)}"
        raise KeyError(msg)
    column, name = adata.var[gene_key], f"adata.var[{gene_key!r}]"
    if column.isna().any():
        msg = f"{name} has {int(column.isna().sum())} missing names of {len(column)}. Take adata[:, {name}.notna()]."
        raise ValueError(msg)
    return unique_names(column, name, f"adata[:, ~{name}.duplicated()] keeps the first of each")


def unique_names(names: Any, what: str, fix: str) -> list[str]:
    """Return names as a list of strings; a ValueError names one that is there twice, and how to fix it."""
    listed = [str(n) for n in names]
    if len(set(listed)) < len(listed):
        repeated = Counter(listed).most_common(1)[0][0]
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
        msg = (
            f"Only {coverage:.1%} of the model's {len(wanted)} genes are in the data (at least {_MIN_COVERAGE:.0%} "
            f"needed). The data has {', '.join(found[:3])}, …; the model has {', '.join(wanted[:3])}, …. "
            f"{_naming_hint(found, wanted)}"
        )
        raise ValueError(msg)
    return positions


def _naming_hint(found: Sequence[str], wanted: Sequence[str]) -> str:
    """Say how two sets of gene names differ, as far as it can be seen."""

    def share(simplify: Callable[[str], str]) -> float:
        simple = {simplify(name) for name in found}
        return float(np.mean([simplify(name) in simple for name in wanted]))

    if (matched := share(_without_version)) >= _MIN_COVERAGE:
        return (
            f"Without version suffixes (ENSG00000075624.17) {matched:.0%} would match: "
            "adata.var_names = adata.var_names.str.split('.').str[0]."
        )
    if (matched := share(str.upper)) >= _MIN_COVERAGE:
        return (
            f"Ignoring case {matched:.0%} would match: mouse symbols (Actb) against human ones (ACTB)? Convert the "
            "data's genes to the model's species by a table of orthologues."
        )
    species = [_ensembl_species(names) for names in (found, wanted)]
    if None not in species and species[0] != species[1]:
        return f"These are Ensembl ids of two species ({species[0]}…, {species[1]}…): convert them to orthologues."
    return "Name the column of adata.var that holds names such as the model's: gene_key=..."


def _without_version(name: str) -> str:
    return name.split(".")[0] if name.startswith("ENS") else name


def _ensembl_species(names: Sequence[str]) -> str | None:
    """Return the prefix that most names share, ``ENSG`` (human) or ``ENSMUSG`` (mouse) for instance, if any does."""
    prefixes = [match.group() for name in names if (match := re.match(r"ENS[A-Z]*G(?=\d{6})", name))]
    return max(set(prefixes), key=prefixes.count) if len(prefixes) > len(names) / 2 else None


def take_columns(matrix: sparse.csr_matrix, positions: np.ndarray) -> sparse.csr_matrix:
    """Take columns of a CSR matrix in the order asked for; position -1 gives an empty column."""
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
