"""Tables of differential expression: Wilcoxon's test of every perturbation and gene, on counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from scstate_lora.metrics.counts import CountGroups, in_threads, same_genes
from scstate_lora.metrics.rank_sums import SortedControls, mean_per_million, rank_sums

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from scstate_lora.metrics.counts import Counts

MIN_CPM = 5.0
_ROUNDING = 1e-6  # of log fold changes
_PSEUDOCOUNT = 1e-9  # per million, so that a gene that one side never has gets a finite fold change


class DETable(NamedTuple):
    """Differential expression of every perturbation against the controls, ``(n_perturbations, n_tested)`` each."""

    genes: np.ndarray
    """Positions of the tested genes, ascending, ``(n_tested,)``."""
    lfc: np.ndarray
    """Log2 of the ratio of the mean counts per million, perturbed over control."""
    p_value: np.ndarray
    """Two-sided p-values of Wilcoxon's rank-sum test."""
    fdr: np.ndarray
    """The p-values adjusted over the tested genes of one perturbation by Benjamini and Hochberg."""


def de_table(cells: Counts, perturbation: ArrayLike, control: Counts, *, min_cpm: float = MIN_CPM) -> DETable:
    """Test every perturbation and gene for a change against the control cells, as cell-eval2 does.

    Counts are scaled to counts per million within each cell and compared by Wilcoxon's rank-sum test (normal
    approximation, with corrections for ties and continuity). Give the **measured** control cells for the predicted
    table as for the measured one: then both test the same genes, and a prediction cannot choose what it is compared
    with.

    Parameters
    ----------
    cells
        Raw counts of the perturbed cells, predicted or measured, ``(n_cells, n_genes)``, sparse or dense.
    perturbation
        Perturbation of each cell, numbers from 0 on, ``(n_cells,)``; they are the rows of the table.
    control
        Raw counts of the measured control cells, ``(n_control, n_genes)``.
    min_cpm
        Genes are tested whose mean over the control cells is above so many counts per million.

    Returns
    -------
    The table. Nothing is left out for a perturbation's own target; the metrics on tables take ``targets`` for that.

    Raises
    ------
    ValueError
        If the genes differ in number, a count is negative or not finite, a perturbation has no cell, or no gene is
        above `min_cpm`.

    References
    ----------
    The ``cell-eval2`` package 0.20 (2026), configuration ``vcc2026``; Benjamini and Hochberg (1995), Controlling the
    false discovery rate.
    """
    groups = CountGroups.of(cells, perturbation)
    reference = DEReference.of(control, min_cpm=min_cpm)
    same_genes(("cells", groups.cells), ("control", reference.cells.cells))

    def of_group(group: int) -> DETable:
        rows = groups.order[groups.starts[group] : groups.starts[group + 1]]
        return reference.table(groups.cells[rows].toarray())

    parts = in_threads(of_group, range(len(groups.sizes)))
    lfc, p_value, fdr = (np.concatenate([getattr(part, name) for part in parts]) for name in DETable._fields[1:])
    return DETable(reference.genes, lfc, p_value, fdr)


@dataclass(frozen=True, eq=False)
class DEReference:
    """The control cells that sets of cells are tested against, sorted once.

    Parameters
    ----------
    cells
        Their counts, as one group.
    mean
        Mean counts per million of the tested genes, ``(n_tested,)``.
    controls
        The sorted counts of the tested genes.
    """

    cells: CountGroups
    mean: np.ndarray
    controls: SortedControls

    @classmethod
    def of(cls, control: Counts, *, min_cpm: float = MIN_CPM) -> Self:
        """Prepare counts ``(n_control, n_genes)``, at the genes with a mean above `min_cpm` counts per million.

        Raises
        ------
        ValueError
            If a count is negative or not finite, or no gene is above `min_cpm`.
        """
        cells = CountGroups.one(control, name="control")
        mean = mean_per_million(cells)[0]
        genes = np.flatnonzero(mean > min_cpm)
        if not len(genes):
            msg = f"No gene has a mean above {min_cpm} counts per million in the control cells; lower min_cpm."
            raise ValueError(msg)
        return cls(cells, mean[genes], SortedControls.of(cells, genes))

    @property
    def genes(self) -> np.ndarray:
        """Positions of the tested genes, ascending."""
        return self.controls.genes

    def at(self, genes: np.ndarray) -> DEReference:
        """Test some of the genes only, positions among all genes, ascending."""
        kept = np.flatnonzero(np.isin(self.genes, genes))
        return DEReference(self.cells, self.mean[kept], self.controls.at(kept))

    def table(self, cells: np.ndarray) -> DETable:
        """Test one set of cells, counts ``(n, n_genes)``: a table of one row."""
        tests = rank_sums(cells, self.controls)
        lfc = np.log2((tests.mean + _PSEUDOCOUNT) / (self.mean + _PSEUDOCOUNT))
        lfc[np.abs(lfc) < _ROUNDING] = 0.0  # that has no direction
        return DETable(self.genes, *(row[None] for row in (lfc, tests.p_value, adjusted(tests.p_value))))


def adjusted(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values ``(n,)`` by Benjamini and Hochberg."""
    order = np.argsort(-p_values)
    n = len(p_values)
    falling = p_values[order] * (n / np.arange(n, 0, -1))
    fdr = np.empty(n)
    fdr[order] = np.minimum(np.minimum.accumulate(falling), 1.0)
    return fdr
