"""How predicted cells vary around their mean: per gene, between genes, and as a set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.metrics.perturbation import checked_cells, energy_distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

_CONSTANT = 1e-6  # standard deviation of a gene that is constant up to float32's rounding
_MIN_CORRELATED = 20  # genes
_MIN_EXPRESSING = 10  # measured cells
_LEVEL = 1e-10  # spread of correlations that are all the same


def sd_r2(pred: ArrayLike, real: ArrayLike) -> float:
    """Share of the variance, over genes, of the measured standard deviations that the predicted ones explain.

    The coefficient of determination, not a squared correlation: standard deviations that are all too large by a factor
    lose. 1 is right; below 0 is worse than one number for all genes.

    Parameters
    ----------
    pred, real
        Predicted and measured cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``, log1p scale.

    Raises
    ------
    ValueError
        If genes differ, a side has fewer than two cells, a number is not finite, or all genes vary by the same amount.

    References
    ----------
    Lotfollahi et al. (2023), Predicting cellular responses to complex perturbations in high-throughput screens.
    """
    return _r2(_deviations(pred, real), "standard deviation")


def sd_ratio(pred: ArrayLike, real: ArrayLike) -> float:
    """Mean over genes of the predicted standard deviation over that of the measured one; 1 is right.

    Parameters
    ----------
    pred, real
        As in :func:`sd_r2`.

    Raises
    ------
    ValueError
        As in :func:`sd_r2`, and if the measured cells are all equal.
    """
    predicted, measured = _deviations(pred, real)
    if not measured.sum() > 0:
        msg = "The measured cells are all equal: their standard deviation is 0."
        raise ValueError(msg)
    return float(predicted.sum() / measured.sum())


def detection_r2(pred: ArrayLike, real: ArrayLike) -> float:
    """Share of the variance, over genes, of the measured detection rates that the predicted ones explain.

    The detection rate of a gene is the share of cells in which it is above 0. As :func:`sd_r2`, the coefficient of
    determination.

    Parameters
    ----------
    pred, real
        Predicted and measured cells, shapes ``(n, n_genes)`` and ``(m, n_genes)``.

    Raises
    ------
    ValueError
        If they do not have the same genes, either has no cell, a number is not finite, or all genes are detected
        equally often.
    """
    return _r2(_detection(pred, real), "detection rate")


def detection_mae(pred: ArrayLike, real: ArrayLike) -> float:
    """Mean over genes of the absolute difference between predicted and measured detection rate, between 0 and 1.

    Parameters
    ----------
    pred, real
        As in :func:`detection_r2`.

    Raises
    ------
    ValueError
        If they do not have the same genes, either has no cell, or a number is not finite.
    """
    predicted, measured = _detection(pred, real)
    return float(np.abs(predicted - measured).mean())


def cell_cov_corr(
    pred: ArrayLike,
    real: ArrayLike,
    control: ArrayLike,
    *,
    excluded: Sequence[int] = (),
    n_genes: int = 100,
    min_cells: int = 50,
    max_cells: int = 500,
    seed: int = 0,
) -> float:
    """Correlation, over pairs of genes, of their correlation in the predicted and in the measured cells.

    Whether the genes that change most vary together from cell to cell as they do when measured. Taken are the genes
    with the largest measured log fold change against the controls (of mean counts per 10,000 plus 1) among those that
    at least 10 measured cells express, as many cells on either side, and of the genes those that vary on both sides.

    Parameters
    ----------
    pred, real, control
        Predicted, measured and control cells, ``(n, n_genes)`` each, log1p of counts per 10,000.
    excluded
        Positions of genes to leave out: the one that the perturbation acts on.
    n_genes
        Genes correlated.
    min_cells
        Fewest cells on either side.
    max_cells
        Most cells on either side.
    seed
        Seed of the choice of cells where one side has more.

    Returns
    -------
    Pearson correlation between -1 and 1; 1 is right, 0 is a prediction whose genes vary independently.

    Raises
    ------
    ValueError
        If genes differ in number, a number is not finite, a side has fewer than `min_cells` cells, fewer than 20 genes
        are left, or the correlations of one side are all the same.

    References
    ----------
    ``cell_cov_corr`` of the ``cell-eval2`` package 0.20 (2026).
    """
    predicted, measured, controls = _same_genes(pred=pred, real=real, control=control)
    n = min(len(predicted), len(measured), max_cells)
    if n < min_cells:
        found = f"{len(predicted)} predicted and {len(measured)} measured"
        msg = f"Correlating genes needs {min_cells} cells on either side; there are {found}."
        raise ValueError(msg)
    size, base = (np.expm1(cells.astype(np.float64)).mean(axis=0) for cells in (measured, controls))
    is_allowed = (measured != 0).sum(axis=0) >= _MIN_EXPRESSING
    is_allowed[np.asarray(excluded, dtype=np.intp)] = False
    allowed = np.flatnonzero(is_allowed)
    change = np.abs(np.log2((size[allowed] + 1) / (base[allowed] + 1)))
    genes = allowed[np.argsort(-change, kind="stable")[:n_genes]]
    rng = np.random.default_rng(seed)
    drawn = [cells[np.ix_(_some(len(cells), n, rng), genes)].astype(np.float64) for cells in (predicted, measured)]
    varies = np.all([cells.std(axis=0) > _CONSTANT for cells in drawn], axis=0)
    n_varying = int(varies.sum())
    if n_varying < _MIN_CORRELATED:
        msg = f"Only {n_varying} of the genes vary on both sides; {_MIN_CORRELATED} are needed."
        raise ValueError(msg)
    pairs = np.triu_indices(n_varying, k=1)
    of_pred, of_real = (np.asarray(np.corrcoef(cells[:, varies], rowvar=False))[pairs] for cells in drawn)
    if min(of_pred.std(), of_real.std()) <= _LEVEL:
        msg = "All pairs of genes are correlated alike on one side: there is nothing to compare."
        raise ValueError(msg)
    return float(np.corrcoef(of_pred, of_real)[0, 1])


def centered_energy_distance(pred: ArrayLike, real: ArrayLike, *, chunk: int = 1024) -> float:
    """Energy distance of two sets of cells after each is moved to its own mean: of their spread alone.

    Parameters
    ----------
    pred, real, chunk
        As in :func:`energy_distance`.

    Raises
    ------
    ValueError
        As :func:`energy_distance`.
    """
    predicted, measured = _same_genes(pred=pred, real=real)
    moved = [cells - cells.mean(axis=0, dtype=np.float64) for cells in (predicted, measured)]
    return energy_distance(*moved, chunk=chunk)


def _same_genes(**sides: ArrayLike) -> list[np.ndarray]:
    cells = [checked_cells(side, name) for name, side in sides.items()]
    found = {name: side.shape[1] for name, side in zip(sides, cells, strict=True)}
    if len(set(found.values())) > 1:
        msg = f"The sets of cells must have the same genes; found {found} genes."
        raise ValueError(msg)
    return cells


def _some(n_cells: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `n` of the cells, all where there are no more."""
    return np.arange(n_cells) if n_cells == n else rng.choice(n_cells, n, replace=False)


def _deviations(pred: ArrayLike, real: ArrayLike) -> list[np.ndarray]:
    """Sample standard deviation of every gene."""
    sides = _same_genes(pred=pred, real=real)
    if min(map(len, sides)) < 2:
        msg = f"A standard deviation needs two cells on either side; there are {len(sides[0])} and {len(sides[1])}."
        raise ValueError(msg)
    return [cells.std(axis=0, ddof=1, dtype=np.float64) for cells in sides]


def _detection(pred: ArrayLike, real: ArrayLike) -> list[np.ndarray]:
    return [(cells > 0).mean(axis=0) for cells in _same_genes(pred=pred, real=real)]


def _r2(sides: list[np.ndarray], what: str) -> float:
    pred, real = sides
    total = np.square(real - real.mean()).sum()
    if not total > 1e-12 * np.square(real).sum():
        msg = f"The {what} of all genes is the same in the measured cells: there is nothing to explain."
        raise ValueError(msg)
    return float(1 - np.square(pred - real).sum() / total)
