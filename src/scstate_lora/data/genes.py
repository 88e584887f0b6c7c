"""Gene names: read from an AnnData and matched by name, and columns taken in a requested order."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean
from scstate_lora.data.labels import decoded, is_written_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

_MIN_COVERAGE = 0.1


@dataclass(frozen=True)
class GeneMatch:
    """The genes shared by a data set and a base's vocabulary.

    Parameters
    ----------
    source
        Where the gene names come from, for example ``"adata.var['gene_symbol']"``.
    columns
        Positions of the matched genes in the data, in the data's order, int64 ``(n_matched,)``.
    vocabulary
        Their positions in the vocabulary, int64 ``(n_matched,)``; two columns may match the same gene.
    n_data, n_vocabulary
        Number of genes in the data, and in the vocabulary.
    """

    source: str
    columns: np.ndarray
    vocabulary: np.ndarray
    n_data: int
    n_vocabulary: int

    @property
    def coverage(self) -> float:
        """Share of the data's genes that are in the vocabulary."""
        return len(self.columns) / self.n_data

    @property
    def n_matched(self) -> int:
        """Number of distinct genes of the vocabulary that are in the data."""
        return len(np.unique(self.vocabulary))

    def __str__(self) -> str:
        n_columns, n_repeated = len(self.columns), len(self.columns) - self.n_matched
        note = f"; {n_repeated:,} of them repeat a gene" if n_repeated else ""
        return (
            f"{n_columns:,} of the data's {self.n_data:,} genes are in the base's vocabulary of {self.n_vocabulary:,} "
            f"(by {self.source}{note})"
        )


def gene_names(adata: AnnData, gene_key: str | None = None) -> list[str]:
    """Read the gene names from ``adata.var_names`` or ``adata.var[gene_key]``; they must be unique."""
    if gene_key is None:
        return unique_names(adata.var_names, "adata.var_names", "adata.var_names_make_unique()")
    column, name = _gene_column(adata, gene_key), f"adata.var[{gene_key!r}]"
    if column.isna().any():
        msg = f"{name} has {int(column.isna().sum())} missing names of {len(column)}. Use adata[:, {name}.notna()]."
        raise ValueError(msg)
    return unique_names(column, name, f"adata[:, ~{name}.duplicated()] keeps the first of each")


def _gene_column(adata: AnnData, gene_key: str) -> pd.Series:
    if gene_key not in adata.var:
        msg = f"adata.var[{gene_key!r}] does not exist. {did_you_mean(gene_key, adata.var.columns)}"
        raise KeyError(msg)
    return adata.var[gene_key]


def unique_names(names: Any, label: str, remedy: str) -> list[str]:
    """Return names as a list of strings, decoded from bytes.

    Raises
    ------
    ValueError
        If they are not unique, naming a duplicate and the remedy, or are bytes that were written as text.
    """
    listed = [str(decoded(n)) for n in names]
    if listed and is_written_bytes(listed[0]) and all(map(is_written_bytes, listed)):
        msg = f"{label} holds bytes that were written as text ({listed[0]!r}). Decode them: [n[2:-1] for n in {label}]."
        raise ValueError(msg)
    if len(set(listed)) < len(listed):
        repeated = Counter(listed).most_common(1)[0][0]
        msg = f"{label} holds {repeated!r} more than once. Names must be unique: {remedy}."
        raise ValueError(msg)
    return listed


def match_genes(available: Sequence[str], requested: Sequence[str]) -> np.ndarray:
    """Find the position of every requested gene among the available ones; -1 if absent, shape ``(n_requested,)``.

    Raises
    ------
    ValueError
        If fewer than 10 % of the requested genes are available; the message shows both kinds of identifiers.
    """
    lookup = {name: i for i, name in enumerate(available)}
    positions = np.array([lookup.get(name, -1) for name in requested], dtype=np.int64)
    coverage = float((positions >= 0).mean())
    if coverage < _MIN_COVERAGE:
        msg = (
            f"Only {coverage:.1%} of the model's {len(requested)} genes are in the data (at least {_MIN_COVERAGE:.0%} "
            f"needed). The data have {', '.join(available[:3])}, …; the model has {', '.join(requested[:3])}, …. "
            f"{_naming_hint(available, requested)}"
        )
        raise ValueError(msg)
    return positions


def match_vocabulary(
    data: AnnData | Sequence[str], vocabulary: Sequence[str], *, gene_key: str | None = None
) -> GeneMatch:
    """Match the genes of a data set to a base's vocabulary; all others are left out.

    ``adata.var_names`` and every text column of ``adata.var`` are tried, and the one that matches most genes of the
    vocabulary is used. Version suffixes of Ensembl ids count only if both sides have them.

    Parameters
    ----------
    data
        AnnData, or the names of its genes.
    vocabulary
        Unique names of the genes in the base's vocabulary.
    gene_key
        Column of ``adata.var`` to use instead of trying all.

    Raises
    ------
    KeyError
        If the column ``gene_key`` does not exist.
    ValueError
        If ``adata.var_names`` has duplicates, or if fewer than 10 % of the genes match, of the vocabulary or of the
        data, whichever is smaller; the message shows both kinds of identifiers.
    """
    candidates = _candidates(data, gene_key)
    best = _best_match(candidates, vocabulary)
    if not _enough(best):
        msg = (
            f"Only {len(best.columns):,} of the data's {best.n_data:,} genes are in the base's vocabulary of "
            f"{best.n_vocabulary:,} (at least {_MIN_COVERAGE:.0%} of the smaller set is needed). "
            f"{_examples(candidates)}; the base has {_listed(vocabulary)}. "
        )
        if gene_key is not None and _enough(better := _best_match(_candidates(data, None), vocabulary)):
            raise ValueError(msg + f"{better.source} would match {len(better.columns):,}: leave out {gene_key=}.")
        raise ValueError(msg + _vocabulary_hint(candidates, vocabulary))
    return best


def match_registered(
    registered: Sequence[str], vocabulary: Sequence[str], *, adata: AnnData | None = None
) -> GeneMatch:
    """Match the genes of an experiment to a base's vocabulary by the names that it was set up with.

    Parameters
    ----------
    registered, vocabulary
        Unique names of the genes.
    adata
        Data whose other names are tried for advice, where it was set up by ``adata.var_names``.

    Raises
    ------
    ValueError
        If fewer than 10 % match; a column of ``adata.var`` that does match is named.
    """
    try:
        return match_vocabulary(registered, vocabulary)
    except ValueError as error:
        if adata is None:
            raise
        better = match_vocabulary(adata, vocabulary)  # raises, with advice, if no other names match either
        key = better.source.removeprefix("adata.var[").removesuffix("]")
        msg = f"The base does not know the genes by adata.var_names, but {better}: set up with gene_key={key}."
        raise ValueError(msg) from error


def _enough(match: GeneMatch) -> bool:
    return match.n_matched >= _MIN_COVERAGE * min(match.n_data, match.n_vocabulary)


def _best_match(candidates: Mapping[str, Sequence[str | None]], vocabulary: Sequence[str]) -> GeneMatch:
    """Match by the names that cover most genes of the vocabulary; in a tie, the first wins, which is var_names."""
    exact = {name: i for i, name in enumerate(vocabulary)}
    stems: dict[str, int] = {}
    for i, name in enumerate(vocabulary):
        stems.setdefault(_without_version(name), i)
    matches = []
    for source, names in candidates.items():
        positions = _positions(names, exact, stems)
        columns = np.flatnonzero(positions >= 0)
        matches.append(GeneMatch(source, columns, positions[columns], len(names), len(vocabulary)))
    return max(matches, key=lambda match: match.n_matched)


def _candidates(data: AnnData | Sequence[str], gene_key: str | None) -> dict[str, list[str | None]]:
    """Collect the possible names of the data's genes, by source; a missing name is None."""
    if not hasattr(data, "var_names"):
        return {"the list of genes": list(unique_names(data, "The data", "set the data up again"))}
    adata: Any = data
    if gene_key is not None:
        return {f"adata.var[{gene_key!r}]": _texts(_gene_column(adata, gene_key))}
    candidates: dict[str, list[str | None]] = {"adata.var_names": list(gene_names(adata))}
    for key, column in adata.var.items():
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        if pd.api.types.is_object_dtype(values.dtype) or pd.api.types.is_string_dtype(values.dtype):
            candidates[f"adata.var[{key!r}]"] = _texts(column)
    return candidates


def _texts(column: pd.Series) -> list[str | None]:
    """Return a column as strings, with None for missing values."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = [*(str(decoded(name)) for name in column.cat.categories), None]
        return [levels[code] for code in column.cat.codes]  # code -1 takes the last one: missing
    return [decoded(name) if isinstance(name, (str, bytes)) else None for name in column.tolist()]


def _positions(names: Sequence[str | None], exact: Mapping[Any, int], stems: Mapping[str, int]) -> np.ndarray:
    """Look up the positions of names in the vocabulary; -1 for an absent name."""
    positions = [exact.get(name, -1) for name in names]
    for i, name in enumerate(names):
        if positions[i] < 0 and name is not None and name.startswith("ENS"):
            positions[i] = stems.get(_without_version(name), -1)
    return np.array(positions, dtype=np.int64)


def _listed(names: Sequence[str | None]) -> str:
    present = [name for name in names if name is not None]
    return ", ".join(present[:3]) + (", …" if len(present) > 3 else "")


def _examples(candidates: Mapping[str, Sequence[str | None]]) -> str:
    """Show example names from the first few sources."""
    shown = [f"{source} has {_listed(names) or 'no names'}" for source, names in list(candidates.items())[:4]]
    if len(candidates) > 4:
        shown.append(f"and {len(candidates) - 4} more columns were tried")
    return "; ".join(shown)


def _vocabulary_hint(candidates: Mapping[str, Sequence[str | None]], vocabulary: Sequence[str]) -> str:
    """Suggest how to match the data's genes to a vocabulary."""
    present = [[name for name in names if name is not None] for names in candidates.values()]
    present = [names for names in present if len(set(names)) > len(names) / 2]  # not chromosomes or feature types
    for names in present:
        if hint := _difference(names, vocabulary, total=min(len(names), len(vocabulary))):
            return hint
    base_species = _ensembl_species(vocabulary)
    data_species = [species for names in present if (species := _ensembl_species(names))]
    if base_species is None and data_species:
        if data_species[0] != "ENSG" and _share(vocabulary, str.isupper) > 0.5:
            return (
                f"The data use Ensembl ids of a species other than human ({data_species[0]}…), and the base seems to "
                "use human symbols: add a column with the symbols of the human orthologues to adata.var; it is then "
                "matched automatically."
            )
        kinds = "The data use Ensembl ids, the base symbols: add a column with the symbols"
    elif base_species is not None and not data_species:
        kinds = f"The base uses Ensembl ids ({base_species}…), the data do not: add a column with these ids"
    else:
        kinds = "Add a column with such names"
    return f"{kinds} to adata.var; it is then matched automatically."


def _naming_hint(available: Sequence[str], requested: Sequence[str]) -> str:
    """Describe how two sets of gene names differ, as far as can be determined."""
    general = "Name the column of adata.var with names like those of the model: gene_key=..."
    return _difference(available, requested) or general


def _difference(available: Sequence[str], requested: Sequence[str], *, total: int | None = None) -> str | None:
    """Describe how two sets of gene names differ, or return None if unclear; `total` is the number that could match."""

    def share(simplify: Callable[[str], str]) -> float:
        simple = {simplify(name) for name in available}
        return min(1.0, sum(simplify(name) in simple for name in requested) / (total or len(requested)))

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
    if _share(available, str.istitle) > 0.5 and _share(requested, str.isupper) > 0.5:
        return (
            "These look like mouse symbols (Actb) against human ones (ACTB): convert the data's genes to the model's "
            "species by a table of orthologues."
        )
    species = [_ensembl_species(names) for names in (available, requested)]
    if None not in species and species[0] != species[1]:
        return f"These are Ensembl ids of two species ({species[0]}…, {species[1]}…): convert them to orthologues."
    return None


def _share(names: Sequence[str], predicate: Callable[[str], bool]) -> float:
    return sum(map(predicate, names)) / len(names)


def _without_version(name: str) -> str:
    return name.split(".")[0] if name.startswith("ENS") else name


def _ensembl_species(names: Sequence[str]) -> str | None:
    """Return the Ensembl prefix of most names, such as ``ENSG`` (human) or ``ENSMUSG`` (mouse), or None."""
    prefixes = [match.group() for name in names if (match := re.match(r"ENS[A-Z]*G(?=\d{6})", name))]
    return max(set(prefixes), key=prefixes.count) if len(prefixes) > len(names) / 2 else None


def take_columns(matrix: sparse.csr_matrix, positions: np.ndarray) -> sparse.csr_matrix:
    """Take columns of a CSR matrix in the given order; position -1 gives an empty column."""
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
