"""Gene names: read from an AnnData, matched by name, and columns taken in the order asked for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

_MIN_COVERAGE = 0.1


@dataclass(frozen=True)
class GeneMatch:
    """Which genes of some data are in a base's vocabulary.

    Parameters
    ----------
    source
        Where their names were found, ``"adata.var['gene_symbol']"`` for instance.
    columns
        Positions of the genes among the data's, in the data's order, int64 ``(n_kept,)``.
    vocabulary
        Their positions in the vocabulary, int64 ``(n_kept,)``; two columns may be of one gene.
    n_data, n_vocabulary
        Number of genes of the data, and of the vocabulary.
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
    def n_found(self) -> int:
        """Number of different genes of the vocabulary that were found."""
        return len(np.unique(self.vocabulary))

    def __str__(self) -> str:
        n_kept, repeated = len(self.columns), len(self.columns) - self.n_found
        share = f"; {repeated:,} of them have the name of another" if repeated else ""
        return (
            f"{n_kept:,} of the data's {self.n_data:,} genes are in the base's vocabulary of {self.n_vocabulary:,} "
            f"(by {self.source}{share})"
        )


def gene_names(adata: AnnData, gene_key: str | None = None) -> list[str]:
    """Read the gene names from ``adata.var_names`` or ``adata.var[gene_key]``; they must be unique."""
    if gene_key is None:
        return unique_names(adata.var_names, "adata.var_names", "adata.var_names_make_unique()")
    column, name = _gene_column(adata, gene_key), f"adata.var[{gene_key!r}]"
    if column.isna().any():
        msg = f"{name} has {int(column.isna().sum())} missing names of {len(column)}. Take adata[:, {name}.notna()]."
        raise ValueError(msg)
    return unique_names(column, name, f"adata[:, ~{name}.duplicated()] keeps the first of each")


def _gene_column(adata: AnnData, gene_key: str) -> pd.Series:
    if gene_key not in adata.var:
        msg = f"adata.var[{gene_key!r}] does not exist. {did_you_mean(gene_key, adata.var.columns)}"
        raise KeyError(msg)
    return adata.var[gene_key]


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


def match_vocabulary(
    data: AnnData | Sequence[str], vocabulary: Sequence[str], *, gene_key: str | None = None
) -> GeneMatch:
    """Find the genes of some data in a base's vocabulary; the others are left out.

    ``adata.var_names`` and every column of text in ``adata.var`` are tried, and the one that finds most genes of the
    vocabulary is taken. Version suffixes of Ensembl ids count only where both sides have them.

    Parameters
    ----------
    data
        AnnData, or the names of its genes.
    vocabulary
        Names of the genes that the base knows, each once.
    gene_key
        Column of ``adata.var`` to use in place of all.

    Raises
    ------
    KeyError
        The column ``gene_key`` does not exist.
    ValueError
        A name is twice in ``adata.var_names``, or under 10 % of the genes are found, of the vocabulary's or the data's,
        whichever are fewer; the message shows both kinds of identifiers.
    """
    candidates = _candidates(data, gene_key)
    best = _best_match(candidates, vocabulary)
    if not _enough(best):
        msg = (
            f"Only {len(best.columns):,} of the data's {best.n_data:,} genes are in the base's vocabulary of "
            f"{best.n_vocabulary:,} (at least {_MIN_COVERAGE:.0%} needed of whichever are fewer). "
            f"{_examples(candidates)}; the base has {_listed(vocabulary)}. "
        )
        if gene_key is not None and _enough(better := _best_match(_candidates(data, None), vocabulary)):
            msg_0 = f"{msg}{better.source} would match {len(better.columns):,}: leave out {gene_key=}."
            raise ValueError(msg_0)
        raise ValueError(msg + _vocabulary_hint(candidates, vocabulary))
    return best


def _enough(match: GeneMatch) -> bool:
    return match.n_found >= _MIN_COVERAGE * min(match.n_data, match.n_vocabulary)


def _best_match(candidates: Mapping[str, Sequence[str | None]], vocabulary: Sequence[str]) -> GeneMatch:
    """Match by whichever names find most genes of the vocabulary, the first of equals, which is var_names."""
    exact = {name: i for i, name in enumerate(vocabulary)}
    stems: dict[str, int] = {}
    for i, name in enumerate(vocabulary):
        stems.setdefault(_without_version(name), i)
    matches = []
    for source, names in candidates.items():
        found = _positions(names, exact, stems)
        kept = np.flatnonzero(found >= 0)
        matches.append(GeneMatch(source, kept, found[kept], len(names), len(vocabulary)))
    return max(matches, key=lambda match: match.n_found)


def _candidates(data: AnnData | Sequence[str], gene_key: str | None) -> dict[str, list[str | None]]:
    """Names of the data's genes by where they are; None for a missing one."""
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
    """Texts of a column, None where there is none."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = [*map(str, column.cat.categories), None]
        return [levels[code] for code in column.cat.codes]  # code -1, the last, is a missing value
    return [name if isinstance(name, str) else None for name in column.tolist()]


def _positions(names: Sequence[str | None], exact: Mapping[Any, int], stems: Mapping[str, int]) -> np.ndarray:
    """Positions of names in the vocabulary, -1 for one that is not there."""
    found = [exact.get(name, -1) for name in names]
    for i, name in enumerate(names):
        if found[i] < 0 and name is not None and name.startswith("ENS"):
            found[i] = stems.get(_without_version(name), -1)
    return np.array(found, dtype=np.int64)


def _listed(names: Sequence[str | None]) -> str:
    present = [name for name in names if name is not None]
    return ", ".join(present[:3]) + (", …" if len(present) > 3 else "")


def _examples(candidates: Mapping[str, Sequence[str | None]]) -> str:
    """Show names of the first few sources."""
    shown = [f"{source} has {_listed(names) or 'no names'}" for source, names in list(candidates.items())[:4]]
    if len(candidates) > 4:
        shown.append(f"and {len(candidates) - 4} more columns were tried")
    return "; ".join(shown)


def _vocabulary_hint(candidates: Mapping[str, Sequence[str | None]], vocabulary: Sequence[str]) -> str:
    """Say how the data's genes could be found in a vocabulary."""
    present = [[name for name in names if name is not None] for names in candidates.values()]
    present = [names for names in present if len(set(names)) > len(names) / 2]  # not chromosomes or kinds of features
    for names in present:
        if hint := _difference(names, vocabulary, of=min(len(names), len(vocabulary))):
            return hint
    wanted = _ensembl_species(vocabulary)
    found = [species for names in present if (species := _ensembl_species(names))]
    if wanted is None and found:
        if found[0] != "ENSG" and _share(vocabulary, str.isupper) > 0.5:
            return (
                f"The data's are Ensembl ids of another species ({found[0]}…) than human, the base's look like human "
                "symbols: add a column with the symbols of their human orthologues to adata.var; it will be found."
            )
        kinds = "Ensembl ids, the base's are symbols: add a column with the symbols"
    elif wanted is not None and not found:
        kinds = f"not Ensembl ids, the base's are ({wanted}…): add a column with these ids"
    else:
        return "Add a column with such names to adata.var; it will be found."
    return f"The data's are {kinds} to adata.var; it will be found."


def _naming_hint(found: Sequence[str], wanted: Sequence[str]) -> str:
    """Say how two sets of gene names differ, as far as it can be seen."""
    general = "Name the column of adata.var that holds names such as the model's: gene_key=..."
    return _difference(found, wanted) or general


def _difference(found: Sequence[str], wanted: Sequence[str], *, of: int | None = None) -> str | None:
    """Say how two sets of gene names differ; None if it cannot be seen. Shares are of all wanted, or of that many."""

    def share(simplify: Callable[[str], str]) -> float:
        simple = {simplify(name) for name in found}
        return min(1.0, sum(simplify(name) in simple for name in wanted) / (of or len(wanted)))

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
    if _share(found, str.istitle) > 0.5 and _share(wanted, str.isupper) > 0.5:
        return (
            "These look like mouse symbols (Actb) against human ones (ACTB): convert the data's genes to the model's "
            "species by a table of orthologues."
        )
    species = [_ensembl_species(names) for names in (found, wanted)]
    if None not in species and species[0] != species[1]:
        return f"These are Ensembl ids of two species ({species[0]}…, {species[1]}…): convert them to orthologues."
    return None


def _share(names: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, names)) / len(names)


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
