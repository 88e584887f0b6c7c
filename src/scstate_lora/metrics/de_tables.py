"""Tables of differential expression: Wilcoxon's test of every perturbation and gene, on counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora.metrics.counts import CountGroups, same_genes
from scstate_lora.metrics.rank_sums import mean_per_million, rank_sums

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from scstate_lora.metrics.counts import Counts

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


def de_table(cells: Counts, perturbation: ArrayLike, control: Counts, *, min_cpm: float = 5.0) -> DETable:
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
    from scipy.stats import false_discovery_control

    groups = CountGroups.of(cells, perturbation)
    reference = CountGroups.one(control, name="control")
    same_genes(("cells", groups.cells), ("control", reference.cells))
    baseline = mean_per_million(reference)[0]
    genes = np.flatnonzero(baseline > min_cpm)
    if not len(genes):
        msg = f"No gene has a mean above {min_cpm} counts per million in the control cells; lower min_cpm."
        raise ValueError(msg)
    tests = rank_sums(groups, reference, genes)
    lfc = np.log2((tests.mean + _PSEUDOCOUNT) / (baseline[genes] + _PSEUDOCOUNT))
    return DETable(genes, lfc, tests.p_value, false_discovery_control(tests.p_value, axis=1))
