"""Whether known markers move the right way along predicted time or dose: `trajectory_markers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean, warn_user
from scstate_lora.datasets.wound_genes import PROGRAMMES, TRENDS
from scstate_lora.tl.plain_cells import logged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

WOUND_MARKERS: dict[str, dict[str, int]] = {
    name: dict.fromkeys(PROGRAMMES[name], direction) for name, direction in TRENDS.items()
}
"""Markers of wound healing by programme: 1 for a gene that rises from day 10 to day 19, -1 for one that falls."""

_COLUMNS = [
    *("programme", "gene", "expected", "predicted_slope", "measured_slope", "predicted_agrees", "measured_agrees"),
    *("agreement", "n_predicted", "n_measured", "reason"),
]
_ALL = "all"


def trajectory_markers(
    pred: AnnData,
    real: AnnData | None = None,
    *,
    time_key: str,
    markers: Mapping[str, Mapping[str, int] | Sequence[str]] | None = None,
    cell_type_key: str | None = None,
) -> pd.DataFrame:
    """Compare the direction in which known markers move along predicted time, or dose, with the expected one.

    The slope of a gene is that of the straight line, by least squares, through its mean log1p expression at each time;
    every time weighs the same, however many cells it has. With `cell_type_key` it is the average of the slopes within
    the cell types that have two times, so that a change of composition is no trend.

    Parameters
    ----------
    pred
        Predicted cells, of :meth:`~scstate_lora.STTransition.predict` or any model, at two times or more.
    real
        Measured cells, to show the measured slope beside the predicted one.
    time_key
        Column with the time or dose: numbers, or labels that hold one, for instance ``"day10"``.
    markers
        Genes by programme, with the expected direction of each: 1 rises, -1 falls. A list of genes means that they
        rise. By default the trends of undisturbed healing that
        :func:`scstate_lora.datasets.wound_healing` simulates.
    cell_type_key
        Column with the cell type.

    Returns
    -------
    One row per marker: ``programme``, ``gene``, ``expected`` direction, ``predicted_slope`` and ``measured_slope`` per
    unit of time, whether each has the expected sign (``predicted_agrees``, ``measured_agrees``), ``agreement``: whether
    predicted and measured slope have one sign; numbers of cells; and ``reason``, why a slope is NaN. Rows with the gene
    ``"all"`` are the means over a programme's genes, in which the three columns of agreement are shares.

    Raises
    ------
    KeyError
        If a column does not exist, or no marker is among the genes of `pred`.
    ValueError
        If a time holds no number, there is only one, or an expected direction is neither 1 nor -1.

    Warns
    -----
    UserWarning
        If some markers are not among the genes of `pred`.
    """
    expected = _expected(WOUND_MARKERS if markers is None else markers)
    present = set(map(str, pred.var_names))
    missing = [gene for genes in expected.values() for gene in genes if gene not in present]
    n_all = sum(map(len, expected.values()))
    if len(missing) == n_all:
        msg = (
            f"None of the {n_all} markers is among the {pred.n_vars} genes of pred, the first is {missing[0]!r}. "
            f"{did_you_mean(missing[0], sorted(present))}"
        )
        raise KeyError(msg)
    if missing:
        warn_user(f"{len(missing)} of the {n_all} markers are not among the genes of pred: {', '.join(missing[:5])}.")
    slopes = {"predicted": _Slopes(pred, "pred", time_key, cell_type_key)}
    if real is not None:
        slopes["measured"] = _Slopes(real, "real", time_key, cell_type_key)
    rows = []
    for programme, genes in expected.items():
        own = [_row(programme, gene, direction, slopes) for gene, direction in genes.items()]
        rows += [*own, _average(programme, own)]
    return pd.DataFrame(rows)[_COLUMNS]


class _Slopes:
    """Mean expression by time, of cells of every type."""

    def __init__(self, adata: AnnData, argument: str, time_key: str, cell_type_key: str | None) -> None:
        for key in (time_key, *(() if cell_type_key is None else (cell_type_key,))):
            if key not in adata.obs:
                msg = f"{argument}.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
                raise KeyError(msg)
        times = _times(adata.obs[time_key], f"{argument}.obs[{time_key!r}]")
        types = np.full(adata.n_obs, _ALL, dtype=object)
        if cell_type_key is not None:
            types = adata.obs[cell_type_key].astype(str).to_numpy(dtype=object)
        self.n_cells, self.argument = adata.n_obs, argument
        self._position = {str(gene): i for i, gene in enumerate(adata.var_names)}
        matrix = logged(adata)
        slopes = []
        for name in sorted(set(types)):
            own = [np.flatnonzero((types == name) & (times == time)) for time in np.unique(times[types == name])]
            if len(own) < 2:
                continue
            x = np.array([times[rows[0]] for rows in own])
            y = np.array([np.asarray(matrix[rows].mean(axis=0, dtype=np.float64)).ravel() for rows in own])
            deviation = x - x.mean()
            slopes.append(deviation @ y / np.square(deviation).sum())
        if not slopes:
            msg = f"A slope needs two times; {argument}.obs[{time_key!r}] holds {len(np.unique(times))}" + (
                f" of a {cell_type_key}." if cell_type_key is not None and len(np.unique(times)) > 1 else "."
            )
            raise ValueError(msg)
        self._slopes = np.mean(slopes, axis=0)

    def of(self, gene: str) -> float:
        """Slope of a gene, NaN if it is absent."""
        return float(self._slopes[self._position[gene]]) if gene in self._position else np.nan


def _row(programme: str, gene: str, direction: int, slopes: Mapping[str, _Slopes]) -> dict[str, object]:
    row: dict[str, object] = {"programme": programme, "gene": gene, "expected": direction, "reason": ""}
    signs = {}
    for side in ("predicted", "measured"):
        slope = slopes[side].of(gene) if side in slopes else np.nan
        row[f"{side}_slope"], row[f"n_{side}"] = slope, slopes[side].n_cells if side in slopes else 0
        signs[side] = np.sign(slope)
        row[f"{side}_agrees"] = float(signs[side] == direction) if np.isfinite(slope) else np.nan
        if side in slopes and np.isnan(slope):
            row["reason"] = f"it is not among the genes of {slopes[side].argument}"
    both = np.isfinite(list(signs.values())).all()
    row["agreement"] = float(signs["predicted"] == signs["measured"]) if both else np.nan
    return row


def _average(programme: str, rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Average over the genes of a programme; slopes in the expected direction are above 0."""
    table = pd.DataFrame(rows)
    average: dict[str, object] = {"programme": programme, "gene": _ALL, "expected": 1, "reason": ""}
    for side in ("predicted", "measured"):
        average[f"{side}_slope"] = float((table[f"{side}_slope"] * table["expected"]).mean())
        average[f"n_{side}"] = int(table[f"n_{side}"].iloc[0])
    for column in ("predicted_agrees", "measured_agrees", "agreement"):
        average[column] = float(table[column].mean())
    if table["reason"].ne("").any():
        average["reason"] = f"without {int(table['reason'].ne('').sum())} of {len(table)} genes"
    return average


def _expected(markers: Mapping[str, Mapping[str, int] | Sequence[str]]) -> dict[str, dict[str, int]]:
    expected = {}
    for name, genes in markers.items():
        single = [genes] if isinstance(genes, str) else genes
        own = {str(g): int(d) for g, d in single.items()} if hasattr(single, "items") else dict.fromkeys(single, 1)
        wrong = {gene: direction for gene, direction in own.items() if direction not in (-1, 1)}
        if wrong or not own:
            found = f"{next(iter(wrong.items()))}" if wrong else "no gene"
            msg = f"markers[{name!r}] must give genes the direction 1 (rises) or -1 (falls); found {found}."
            raise ValueError(msg)
        expected[str(name)] = own
    return expected


def _times(column: pd.Series, name: str) -> np.ndarray:
    """Numbers of a column, or those within its labels."""
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=float)
    else:
        values = column.astype(str).str.extract(r"(-?\d+(?:\.\d+)?)", expand=False).astype(float).to_numpy()
    if not np.isfinite(values).all():
        example = column[~np.isfinite(values)].iloc[0]
        msg = f"{name} must hold the time as a number, or labels with one as 'day10'; found {example!r}."
        raise ValueError(msg)
    return values
