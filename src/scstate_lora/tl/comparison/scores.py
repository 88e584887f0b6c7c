"""Scores of the variants' predictions on the held-out cells, one gene set and one set of baselines for all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora import metrics
from scstate_lora._constants import OBS_SPLIT
from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.tl.comparison.criteria import Found, day_order, in_order_of_time
from scstate_lora.tl.perturbation import BASELINES, CEILING, MEAN_SHIFT, evaluate_perturbation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry

ALL_TARGETS = "all"
NO_SEED = -1
KEYS = ["model", "target", "context", "metric"]
_KIND = ["direction", "lowest", "highest"]


@dataclass(frozen=True)
class Task:
    """What every variant is asked: targets, contexts and genes, and the cells that know the answers.

    Parameters
    ----------
    adata, registry
        All cells.
    targets
        Perturbations with held-out cells.
    keys
        Columns that make a context.
    genes
        Genes that all variants predict.
    pert_features
        For the linear baseline.
    n_boot
        Bootstrap samples.
    """

    adata: AnnData
    registry: Registry
    targets: list[str]
    keys: list[str]
    genes: list[str]
    pert_features: pd.DataFrame | None
    n_boot: int

    @cached_property
    def perts(self) -> np.ndarray:
        """Perturbation of every cell."""
        return self.registry.labels(self.adata, str(self.registry.pert_key))

    @cached_property
    def contexts(self) -> np.ndarray:
        """Context of every cell."""
        columns = [self.registry.labels(self.adata, key).astype(str) for key in self.keys]
        named = [" | ".join(parts) for parts in zip(*columns, strict=True)] if columns else [""] * self.adata.n_obs
        return np.array(named)

    def held_out(self, target: str) -> np.ndarray:
        """Find the test cells of a target, a mask."""
        return (self.adata.obs[OBS_SPLIT] == "test").to_numpy() & (self.perts == target)

    def controls(self, target: str) -> np.ndarray:
        """Find the control cells in the contexts of a target's test cells, a mask."""
        return (self.perts == self.registry.control) & np.isin(self.contexts, self.contexts[self.held_out(target)])

    def unchanged(self, target: str) -> AnnData:
        """Write the control cells down as if they were predicted."""
        rows = np.flatnonzero(self.controls(target))
        cells = self.adata[rows]
        position = {gene: i for i, gene in enumerate(self.registry.var_names)}
        x = self.registry.log_expression(cells)[:, [position[gene] for gene in self.genes]].toarray()
        obs = pd.DataFrame({"control_cell": cells.obs_names.astype(str)}, index=cells.obs_names.astype(str))
        obs[str(self.registry.pert_key)] = target
        made = ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=self.genes))
        prediction = Prediction(
            "log1p_cp10k", str(self.registry.pert_key), str(self.registry.control), [target], "genes"
        )
        write_result(made, PREDICT, prediction.record())
        return made

    def part_of(self, predicted: AnnData, target: str) -> AnnData:
        """Take the predicted cells, genes and columns that are scored."""
        rows = self.rows_of(predicted)
        keep = self.controls(target)[rows]
        part = predicted[keep][:, self.genes].copy()
        part.obs = part.obs[["control_cell", str(self.registry.pert_key)]].copy()
        for key in self.keys:
            part.obs[key] = self.adata.obs[key].to_numpy()[rows[keep]]
        return part

    def rows_of(self, predicted: AnnData) -> np.ndarray:
        """Find the control cell of each predicted one."""
        return self.adata.obs_names.get_indexer(predicted.obs["control_cell"])

    def score(self, part: AnnData, target: str, *, name: str, with_baselines: bool = False) -> pd.DataFrame:
        """Score predicted cells of one target against its test cells."""
        train = (self.adata.obs[OBS_SPLIT] == "train").to_numpy()
        table = evaluate_perturbation(
            part,
            self.adata[self.held_out(target)],
            self.adata[self.controls(target)],
            context_key=self.keys,
            train=self.adata[train] if with_baselines else None,
            pert_features=self.pert_features if with_baselines else None,
            name=name,
            n_boot=self.n_boot,
        )
        wanted = [*BASELINES, CEILING] if with_baselines else [name]
        return table[table["model"].isin(wanted)].assign(target=target).drop(columns="skill")

    def baselines(self) -> pd.DataFrame:
        """Score the baselines and the ceiling on all targets."""
        tables = [
            self.score(self.part_of(self.unchanged(target), target), target, name="controls", with_baselines=True)
            for target in self.targets
        ]
        return with_mean_target(pd.concat(tables, ignore_index=True).assign(seed=NO_SEED), n_boot=self.n_boot)

    def day_order(self, part: AnnData, target: str, time_key: str | None) -> Found:
        """Share of the pairs of days in the order of the measured cells, over all cell types."""
        if time_key is None:
            return Found(np.nan, "no column of the time was named: time_key=")
        try:
            days = in_order_of_time(self.adata.obs[time_key])
        except ValueError as error:
            return Found(np.nan, str(error))
        labels = self.adata.obs[time_key].astype(str).to_numpy()
        types = np.full(self.adata.n_obs, "")
        if self.registry.cell_type_key is not None:
            types = self.registry.labels(self.adata, self.registry.cell_type_key).astype(str)
        rows, perturbed = self.rows_of(part), np.flatnonzero(self.perts == target)
        measured = self.measured(perturbed)
        predicted = np.asarray(part.X)
        kept = total = 0
        for cell_type in sorted(set(types[rows])):
            of_pred, of_real = types[rows] == cell_type, types[perturbed] == cell_type
            good, pairs = day_order(
                _means(predicted[of_pred], labels[rows][of_pred]),
                _means(measured[of_real], labels[perturbed][of_real]),
                days,
            )
            kept, total = kept + good, total + pairs
        if not total:
            return Found(np.nan, f"no cell type has two times with predicted and measured cells of {target!r}")
        return Found(kept / total, f"{kept} of {total} pairs of days")

    def markers_up(self, part: AnnData, target: str, markers: Mapping[str, Sequence[str]]) -> Found:
        """Share of the markers whose mean rises, averaged over contexts."""
        known = list(dict.fromkeys(markers.get(target, ())))
        if not known:
            return Found(np.nan, f"no markers of {target!r} were named: markers=")
        scored = [gene for gene in known if gene in set(self.genes)]
        if not scored:
            return Found(
                np.nan, f"none of the {len(known)} markers of {target!r} is among the {len(self.genes)} genes scored"
            )
        rows = self.rows_of(part)
        position = {gene: i for i, gene in enumerate(self.genes)}
        columns = [position[gene] for gene in scored]
        before = _means(self.measured(rows)[:, columns], self.contexts[rows])
        after = _means(np.asarray(part.X)[:, columns], self.contexts[rows])
        change = np.mean([after[context] - before[context] for context in before], axis=0)
        not_up = [gene for gene, by in zip(scored, change, strict=True) if not by > 0]
        note = f"{len(scored) - len(not_up)} of {len(scored)}" + (f", not {', '.join(not_up[:5])}" if not_up else "")
        absent = len(known) - len(scored)
        return Found(1 - len(not_up) / len(scored), note + (f"; {absent} more are not scored" if absent else ""))

    def measured(self, rows: np.ndarray) -> np.ndarray:
        """Measured log1p expression of some cells over the genes scored, dense."""
        position = {gene: i for i, gene in enumerate(self.registry.var_names)}
        expression = self.registry.log_expression(self.adata[rows])
        return expression[:, [position[gene] for gene in self.genes]].toarray()


def _means(cells: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    return {str(label): cells[labels == label].mean(axis=0, dtype=np.float64) for label in np.unique(labels)}


def choose_targets(target: Any, registry: Registry, with_cells: list[str]) -> list[str]:
    """Check the targets asked for; all with test cells by default.

    Raises
    ------
    ValueError
        There are no test cells, of one target or at all, or a target is unknown.
    """
    if target is None:
        wanted = with_cells
        if not wanted:
            msg = (
                f"No perturbed cell is in the test split (adata.obs[{OBS_SPLIT!r}]): nothing can be scored. "
                "Set up with test_size= or holdout=."
            )
            raise ValueError(msg)
    else:
        wanted = [target] if isinstance(target, str) else [str(name) for name in target]
    for name in wanted:
        if name not in registry.targets:
            msg = (
                f"target: {name!r} is no perturbation of adata.obs[{registry.pert_key!r}]. "
                f"{did_you_mean(name, registry.targets)}"
            )
            raise ValueError(msg)
        if name not in with_cells:
            msg = f"target: no cell of {name!r} is in the test split. There are: {', '.join(with_cells)}."
            raise ValueError(msg)
    if not wanted:
        msg = "target names no perturbation."
        raise ValueError(msg)
    if ALL_TARGETS in wanted and len(wanted) > 1:
        msg = f"A perturbation is called {ALL_TARGETS!r}, the name of the average over them; rename it."
        raise ValueError(msg)
    return list(dict.fromkeys(wanted))


def failed(baselines: pd.DataFrame, *, name: str, seed: int, reason: str) -> pd.DataFrame:
    """Give a variant that could not be scored the rows it would have had."""
    like = baselines[baselines["model"] == CEILING]
    return like.assign(model=name, seed=seed, value=np.nan, ci_low=np.nan, ci_high=np.nan, reason=reason)


def with_mean_target(table: pd.DataFrame, *, n_boot: int) -> pd.DataFrame:
    """Add the averages over the targets, where there are several; their intervals are over targets."""
    if table["target"].nunique() < 2:
        return table
    rows = []
    for key, part in table.groupby(["model", "seed", "context", "metric"], sort=False):
        values = part["value"].to_numpy(dtype=float)
        finite = values[np.isfinite(values)]
        low, high = metrics.bootstrap_interval(finite, n_boot=n_boot)
        lacking = [f"{t}: {r}" for t, r in zip(part["target"], part["reason"], strict=True) if r]
        row = dict(zip(["model", "seed", "context", "metric"], key, strict=True))
        row |= {
            "target": ALL_TARGETS,
            "value": finite.mean() if len(finite) else np.nan,
            "ci_low": low,
            "ci_high": high,
        }
        row["reason"] = ("without " if len(finite) else "") + "; ".join(lacking) if lacking else ""
        rows.append(row | part.iloc[0][_KIND].to_dict())
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def over_seeds(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Average over the seeds, with a 95 % t-interval where there are several, and give the skill of the mean."""
    from scipy.stats import t as student

    finite = by_seed.assign(value=by_seed["value"].where(np.isfinite(by_seed["value"])))
    firsts = {column: (column, "first") for column in _KIND}
    table = (
        finite.groupby(KEYS, sort=False)
        .agg(
            value=("value", "mean"), ci_low=("ci_low", "mean"), ci_high=("ci_high", "mean"),
            spread=("value", "std"), n_seeds=("value", "count"), **firsts,
        )
        .reset_index()
    )  # fmt: skip
    several, n = table["n_seeds"] > 1, table["n_seeds"].clip(lower=2)
    half = student.ppf(0.975, n - 1) * table["spread"] / np.sqrt(n)
    low, high = table["value"] - half, table["value"] + half
    table["ci_low"] = table["ci_low"].where(~several, low.clip(lower=table["lowest"]))
    table["ci_high"] = table["ci_high"].where(~several, high.clip(upper=table["highest"]))
    over = np.where(table["target"] == ALL_TARGETS, "targets", "contexts")
    over = np.where(several, "seeds", over)
    table["interval"] = np.where(table["ci_low"].notna(), over, "")
    table["skill"] = _skill(table)
    table["reason"] = _reasons(by_seed, table)
    table.loc[table["model"].isin([*BASELINES, CEILING]), "n_seeds"] = 0
    columns = [*KEYS, "value", "skill", "ci_low", "ci_high", "interval", "n_seeds", *_KIND, "reason"]
    return table[columns]


def _reasons(by_seed: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Join the reasons of the seeds; what all have in common is said once."""
    said: dict[tuple[Any, ...], dict[int, str]] = {}
    for *begun, seed, reason in by_seed[[*KEYS, "seed", "reason"]].itertuples(index=False, name=None):
        said.setdefault(tuple(begun), {})[seed] = reason
    joined = []
    for key in table[KEYS].itertuples(index=False, name=None):
        reasons = said[key]
        if len(set(reasons.values())) == 1:
            joined.append(next(iter(reasons.values())))
        else:
            joined.append("; ".join(f"seed {seed}: {why}" for seed, why in reasons.items() if why))
    return joined


def _skill(table: pd.DataFrame) -> np.ndarray:
    """Place every value between the mean shift, 0, and the ceiling, 1."""
    marks = {
        name: table[table["model"] == name].set_index(KEYS[1:])["value"].reindex(table.set_index(KEYS[1:]).index)
        for name in (MEAN_SHIFT, CEILING)
    }
    skill = np.full(len(table), np.nan)
    for direction in dict.fromkeys(table["direction"]):
        rows = (table["direction"] == direction).to_numpy()
        own, floor, top = (
            metrics.goodness(values.to_numpy(dtype=float)[rows], direction=direction)
            for values in (table["value"], marks[MEAN_SHIFT], marks[CEILING])
        )
        skill[rows] = metrics.skill(own, floor=floor, ceiling=top)
    return skill
