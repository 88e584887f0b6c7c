"""The task that all variants share, and its scores: one set of genes, contexts, test cells and baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora._constants import OBS_SPLIT
from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.metrics.baselines import CEILING, reference_names
from scstate_lora.tl.comparison.criteria import Measure, day_order, in_order_of_time
from scstate_lora.tl.scoring.table import ALL, CALIBRATION_COLUMNS, NO_RANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry
    from scstate_lora.tl.scoring.held_out import HeldOutCells
    from scstate_lora.tl.scoring.table import Counting

NO_SEED = -1
KEYS = ["model", "target", "context", "metric"]
_METRIC_COLUMNS = ["direction", "lowest", "highest"]
COUNT_COLUMNS = ["n_control", "n_measured", "weight"]


@dataclass(frozen=True)
class Task:
    """The task shared by all variants.

    Parameters
    ----------
    cells
        All cells over the genes that every variant predicts, with the held-out ones.
    targets
        Perturbations with test cells.
    n_boot
        Bootstrap samples.
    counting
        Which contexts count in averages, and with what weight.
    """

    cells: HeldOutCells
    targets: list[str]
    n_boot: int
    counting: Counting

    def needed_part(self, predicted: AnnData) -> AnnData:
        """Take the cells and genes of a prediction that scores may need."""
        return predicted[self.cells.controls_in_use[self.cells.rows_of(predicted)], self.cells.genes]

    def score(self, read: Callable[[str], AnnData], *, name: str) -> pd.DataFrame:
        """Score predicted cells of all targets, read one at a time, against their test cells."""
        return self._table(read, name=name).drop(columns=CALIBRATION_COLUMNS)

    def baselines(self) -> pd.DataFrame:
        """Score the baselines and the ceiling on all targets.

        Raises
        ------
        ValueError
            If the contexts of a target have no control cells.
        """
        table = self._table(None).assign(seed=NO_SEED)
        scored = set(table["target"])
        for target in self.targets:
            if target not in scored:
                msg = f"target: the contexts of the test cells of {target!r} have no control cells."
                raise ValueError(msg)
        return table

    def _table(self, read: Callable[[str], AnnData] | None, *, name: str = "model") -> pd.DataFrame:
        table = self.cells.score_all(
            self.targets, read, name=name, with_baselines=read is None, counting=self.counting, n_boot=self.n_boot
        )
        return table.rename(columns={"perturbation": "target"}).drop(columns=["skill", "skill_reason"])

    def day_order(self, predicted: AnnData, target: str, time_key: str | None) -> Measure:
        """Share of the pairs of days in the order of the measured cells, over all cell types."""
        if time_key is None:
            return Measure(np.nan, "no column of the time was named: time_key=")
        bound = self.cells.bound
        times = bound.obs[time_key]
        try:
            days = in_order_of_time(times)
        except ValueError as error:
            return Measure(np.nan, str(error))
        labels = times.astype(str).to_numpy()
        types = np.full(len(labels), "") if bound.cell_types is None else bound.cell_types
        rows, perturbed = self.cells.rows_of(predicted), np.flatnonzero(bound.perturbations == target)
        measured, cells = self.cells.dense(perturbed), np.asarray(predicted.X)
        n_ordered = n_pairs = 0
        for cell_type in sorted(set(types[rows])):
            of_pred, of_real = types[rows] == cell_type, types[perturbed] == cell_type
            ordered, pairs = day_order(
                _means(cells[of_pred], labels[rows][of_pred]),
                _means(measured[of_real], labels[perturbed][of_real]),
                days,
            )
            n_ordered, n_pairs = n_ordered + ordered, n_pairs + pairs
        if not n_pairs:
            return Measure(np.nan, f"no cell type has two times with predicted and measured cells of {target!r}")
        return Measure(n_ordered / n_pairs, f"{n_ordered} of {n_pairs} pairs of days")

    def markers_up(self, predicted: AnnData, target: str, markers: Mapping[str, Sequence[str]]) -> Measure:
        """Share of the markers whose mean rises, averaged over contexts."""
        named = list(dict.fromkeys(markers.get(target, ())))
        if not named:
            return Measure(np.nan, f"no markers of {target!r} were named: markers=")
        position = {gene: i for i, gene in enumerate(self.cells.genes)}
        scored = [gene for gene in named if gene in position]
        if not scored:
            note = f"none of the {len(named)} markers of {target!r} is among the {len(position)} genes scored"
            return Measure(np.nan, note)
        rows, columns = self.cells.rows_of(predicted), [position[gene] for gene in scored]
        contexts = self.cells.contexts[rows]
        before = _means(self.cells.dense(rows)[:, columns], contexts)
        after = _means(np.asarray(predicted.X)[:, columns], contexts)
        change = np.mean([after[context] - before[context] for context in before], axis=0)
        not_up = [gene for gene, by in zip(scored, change, strict=True) if not by > 0]
        note = f"{len(scored) - len(not_up)} of {len(scored)}" + (f", not {', '.join(not_up[:5])}" if not_up else "")
        absent = len(named) - len(scored)
        return Measure(1 - len(not_up) / len(scored), note + (f"; {absent} more are not scored" if absent else ""))


def _means(cells: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    return {str(label): cells[labels == label].mean(axis=0, dtype=np.float64) for label in np.unique(labels)}


def choose_targets(target: Any, registry: Registry, with_cells: list[str]) -> list[str]:
    """Check the requested targets; by default all with test cells.

    Raises
    ------
    ValueError
        If no cell, or none of a target, is a test cell, or a target is unknown.
    """
    if target is None:
        names = with_cells
        if not names:
            msg = (
                f"No perturbed cell is in the test split (adata.obs[{OBS_SPLIT!r}]): nothing can be scored. "
                "Set up with test_size= or holdout=."
            )
            raise ValueError(msg)
    else:
        names = registry.targets_of([target] if isinstance(target, str) else target)
    for name in names:
        if name not in registry.targets:
            msg = (
                f"target: {name!r} is no perturbation of adata.obs[{registry.pert_key!r}]. "
                f"{did_you_mean(name, registry.targets)}"
            )
            raise ValueError(msg)
        if name not in with_cells:
            msg = f"target: no cell of {name!r} is in the test split. There are: {', '.join(with_cells)}."
            raise ValueError(msg)
    if not names:
        msg = "target names no perturbation."
        raise ValueError(msg)
    if ALL in names and len(names) > 1:
        msg = f"A perturbation is called {ALL!r}, the name of the average over them; rename it."
        raise ValueError(msg)
    return names


def predicted_by_all(targets: list[str], untrained: Mapping[str, str], *, requested: bool) -> list[str]:
    """Leave out the targets that a variant cannot predict, by why not; the user's own are refused.

    Raises
    ------
    ValueError
        If the user requested such a target, or no other is left.
    """
    predicted = [name for name in targets if name not in untrained]
    for name in (name for name in targets if name in untrained):
        if requested or not predicted:
            msg = f"target: {name!r} cannot be predicted: {untrained[name]}"
            raise ValueError(msg)
        logger.warning("%r is not compared, as it cannot be predicted: %s", name, untrained[name])
    return predicted


def failed(baselines: pd.DataFrame, *, name: str, seed: int, reason: str) -> pd.DataFrame:
    """Give a variant that could not be scored the rows that it would have had."""
    rows = baselines[baselines["model"] == CEILING]
    empty = dict.fromkeys(("value", "split_sd", "ci_low", "ci_high"), np.nan)
    return rows.assign(model=name, seed=seed, reason=reason, **empty)


def over_seeds(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Average over the seeds, with a 95 % t-interval over several, and compute the skill of the mean."""
    from scipy.stats import t as student

    finite = by_seed.assign(value=by_seed["value"].where(np.isfinite(by_seed["value"])))
    firsts = {column: (column, "first") for column in (*_METRIC_COLUMNS, *COUNT_COLUMNS)}
    table = (
        finite.groupby(KEYS, sort=False)
        .agg(
            value=("value", "mean"), ci_low=("ci_low", "mean"), ci_high=("ci_high", "mean"),
            spread=("value", "std"), n_seeds=("value", "count"), split_sd=("split_sd", "mean"), **firsts,
        )
        .reset_index()
    )  # fmt: skip
    several, n = table["n_seeds"] > 1, table["n_seeds"].clip(lower=2)
    half = student.ppf(0.975, n - 1) * table["spread"] / np.sqrt(n)
    low, high = table["value"] - half, table["value"] + half
    table["ci_low"] = table["ci_low"].where(~several, low.clip(lower=table["lowest"]))
    table["ci_high"] = table["ci_high"].where(~several, high.clip(upper=table["highest"]))
    over = np.where(table["target"] == ALL, "targets", "contexts")
    over = np.where(several, "seeds", over)
    table["interval"] = np.where(table["ci_low"].notna(), over, "")
    keys = pd.MultiIndex.from_frame(table[KEYS[1:]])
    shared = by_seed[by_seed["model"] == CEILING].set_index(KEYS[1:])[CALIBRATION_COLUMNS].reindex(keys)
    table[CALIBRATION_COLUMNS] = shared.to_numpy()
    table["skill"], table["skill_reason"] = _skill(table)
    table["reason"] = _reasons(by_seed, table)
    table.loc[table["model"].isin(reference_names()), "n_seeds"] = 0
    columns = ["value", "split_sd", "skill", "ci_low", "ci_high", "interval", "n_seeds", *_METRIC_COLUMNS]
    table = table.astype(dict.fromkeys(CALIBRATION_COLUMNS[1:], float))
    return table[[*KEYS, *columns, *COUNT_COLUMNS, "reason", "skill_reason", *CALIBRATION_COLUMNS]]


def _reasons(by_seed: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Join the reasons of the seeds; a reason that all share is given once."""
    by_key: dict[tuple[Any, ...], dict[int, str]] = {}
    for *key, seed, reason in by_seed[[*KEYS, "seed", "reason"]].itertuples(index=False, name=None):
        by_key.setdefault(tuple(key), {})[seed] = reason
    joined = []
    for row in table[KEYS].itertuples(index=False, name=None):
        reasons = by_key[row]
        if len(set(reasons.values())) == 1:
            joined.append(next(iter(reasons.values())))
        else:
            joined.append("; ".join(f"seed {seed}: {why}" for seed, why in reasons.items() if why))
    return joined


def _skill(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Place every value between the yardstick, 0, and the ceiling, 1; say why where there is no such scale."""
    own = table[["value", "split_sd"]].set_index(pd.MultiIndex.from_frame(table[KEYS]))
    marks = [
        own.reindex(pd.MultiIndex.from_arrays([names, *(table[key] for key in KEYS[1:])])).to_numpy(dtype=float)
        for names in (table["yardstick"], np.full(len(table), CEILING, dtype=object))
    ]
    noise = np.sqrt(np.nansum([np.square(mark[:, 1]) for mark in marks], axis=0))
    skill, is_flat = np.full(len(table), np.nan), np.zeros(len(table), dtype=bool)
    for direction in dict.fromkeys(table["direction"]):
        rows = (table["direction"] == direction).to_numpy()
        good, floor, top = (
            metrics.goodness(values[rows], direction=direction)
            for values in (table["value"].to_numpy(dtype=float), marks[0][:, 0], marks[1][:, 0])
        )
        skill[rows] = metrics.skill(good, floor=floor, ceiling=top, noise=noise[rows])
        is_flat[rows] = np.isfinite([good, floor, top]).all(axis=0) & np.isnan(skill[rows])
    return skill, np.where(is_flat, NO_RANGE, "")
