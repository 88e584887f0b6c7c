"""Cells moved to a combination of covariates that training never saw, beside the real cells there."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from _covariate_metrics import MIN_CELLS, decoder, e_distance, e_distance_unbiased, gap_of_means, half_against_half
from _covariate_model import BASE, PCA, Settings, embedded, set_split, strata, trained

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from _covariate_metrics import Distance

Combination = dict[str, str]


@dataclass(frozen=True)
class Source:
    """Cells to move to a combination, and in how many covariates they differ from it."""

    rows: np.ndarray
    differs: tuple[str, ...]
    """Covariates of the combination that the cells do not agree with."""
    values: Mapping[str, str]
    """What the cells have in the covariates of the combination."""


@dataclass(frozen=True)
class Space:
    """An embedding, that of the moved cells (None: no model), and how distances are taken in it."""

    name: str
    own: np.ndarray
    moved: np.ndarray | None
    distance: Distance
    decoded: np.ndarray | None = None
    """What the decoder makes of the cells as they are, where `moved` was decoded: its own error."""


def parse_folds(adata: AnnData, entries: Sequence[str]) -> list[list[Combination]]:
    """Read ``cell_type=*,condition=stim``: one fold a level for ``*``, several combinations a fold by ``;``."""
    folds: list[list[Combination]] = []
    for entry in entries:
        parts = [[pair.partition("=")[::2] for pair in combination.split(",")] for combination in entry.split(";")]
        keys = [key for combination in parts for key, value in combination if value == "*"]
        levels = [sorted(set(adata.obs[key].astype(str))) for key in dict.fromkeys(keys)]
        for chosen in product(*levels):
            star = dict(zip(dict.fromkeys(keys), chosen, strict=True))
            folds.append([{k: star[k] if v == "*" else v for k, v in combination} for combination in parts])
    return folds


def matches(obs: pd.DataFrame, wanted: Mapping[str, str]) -> np.ndarray:
    """Which cells agree with all values, bool ``(n_cells,)``; `obs` holds strings."""
    found = np.ones(len(obs), dtype=bool)
    for key, value in wanted.items():
        found &= (obs[key] == value).to_numpy()
    return found


def run(adata: AnnData, args: argparse.Namespace) -> pd.DataFrame:
    """Leave combinations out, train, and score; one row a fold, cell type, space, sources and prediction."""
    settings = Settings.of(args, adata)
    tables = []
    for fold in parse_folds(adata, args.leave):
        name = "; ".join(",".join(f"{k}={v}" for k, v in combination.items()) for combination in fold)
        obs = adata.obs.astype(str)
        held = [matches(obs, combination) for combination in fold]
        if not all(rows.any() for rows in held):
            msg = f"--leave {name} matches no cell."
            raise SystemExit(msg)
        for seed in args.seeds:
            cells = adata.copy()
            test = np.any(held, axis=0)
            set_split(cells, test, strata(cells, [settings.cell_type_key, *settings.covariates]))
            start = time.perf_counter()
            se = trained(cells, settings, seed=seed)
            seconds = time.perf_counter() - start
            model = embedded(se, cells)
            for combination, real in zip(fold, held, strict=True):
                left = {k: v for k, v in combination.items() if k in settings.covariates}
                moved_to = {k: _as_in(cells.obs[k], v) for k, v in left.items()}
                moved = se.get_latent_representation(cells, covariates=moved_to, key_added=None)
                decode = decoder(model[~test], cells.obsm[PCA][~test])
                spaces = [
                    Space("model", model, moved, e_distance),
                    Space("model, unbiased", model, moved, e_distance_unbiased),
                    Space("PCA means", cells.obsm[PCA], decode(moved), gap_of_means, decode(model)),
                ]
                if BASE in cells.obsm:
                    spaces.append(Space("base", cells.obsm[BASE], None, e_distance))
                for space in spaces:
                    table = pd.DataFrame(_score(space, obs, combination, real, test, settings))
                    tables.append(table.assign(fold=name, space=space.name, seed=seed, seconds=seconds))
            print(f"{name}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return pd.concat(tables, ignore_index=True)


def _as_in(column: pd.Series, label: str) -> object:
    """Give the value of a column that has this label; a covariate of numbers is moved to a number."""
    return float(label) if pd.api.types.is_float_dtype(column) else label


def _score(
    space: Space,
    obs: pd.DataFrame,
    combination: Combination,
    real: np.ndarray,
    test: np.ndarray,
    settings: Settings,
) -> list[dict[str, object]]:
    """Distances to the real cells of the combination, one cell type after the other.

    `pooled`: all cells of the other combinations. `single`: every group of cells that is one covariate away for itself,
    the mean of their distances. The mean shift knows single covariates only, so its `pooled` is the union of those.
    """
    own, distance = space.own, space.distance
    left = {k: v for k, v in combination.items() if k in settings.covariates}
    fixed = {k: v for k, v in combination.items() if k not in left}
    type_key = settings.cell_type_key
    rows: list[dict[str, object]] = []
    for cell_type in sorted(set(obs[type_key][real])) if type_key else ["all"]:
        of_type = matches(obs, {type_key: cell_type} if type_key else {})
        goal = own[real & of_type]
        pool = _sources(obs, left, ~test & of_type & matches(obs, fixed))
        single = [s for s in pool if len(s.differs) == 1]
        shifts = [_mean_shift(own, obs, s, left, fixed, type_key, cell_type, ~test) for s in single]
        shifted = [(own[s.rows] + shift, s) for s, shift in zip(single, shifts, strict=True) if shift is not None]
        if len(goal) < 2 * MIN_CELLS or not shifted:
            print(f"  {cell_type}: {len(goal)} real cells, {len(shifted)} sources: left out", file=sys.stderr)
            continue
        used = [s for _, s in shifted]
        every = np.concatenate([s.rows for s in pool])
        ceiling = half_against_half(goal, distance)
        found: dict[tuple[str, str], float] = {
            ("pooled", "no change"): distance(own[every], goal),
            ("pooled", "mean shift"): distance(np.concatenate([x for x, _ in shifted]), goal),
            ("pooled", "ceiling"): ceiling,
            ("single", "no change"): float(np.mean([distance(own[s.rows], goal) for s in used])),
            ("single", "mean shift"): float(np.mean([distance(x, goal) for x, _ in shifted])),
            ("single", "ceiling"): ceiling,
        }
        if space.moved is not None:
            found["pooled", "model"] = distance(space.moved[every], goal)
            found["single", "model"] = float(np.mean([distance(space.moved[s.rows], goal) for s in used]))
        if space.decoded is not None:
            found["pooled", "decoded real"] = distance(space.decoded[real & of_type], goal)
        rows += [
            {"cell_type": cell_type, "sources": sources, "prediction": prediction, "distance": value}
            for (sources, prediction), value in found.items()
        ]
    return rows


def _sources(obs: pd.DataFrame, left: Combination, among: np.ndarray) -> list[Source]:
    """Group cells by their values in the covariates of the combination; a group has at least ten cells."""
    groups = obs[among].groupby(list(left), sort=True).indices
    places = np.flatnonzero(among)
    sources = []
    for values, within in groups.items():
        own = dict(zip(left, values if isinstance(values, tuple) else (values,), strict=True))
        differs = tuple(k for k in left if own[k] != left[k])
        if differs and len(within) >= MIN_CELLS:
            sources.append(Source(places[within], differs, own))
    return sources


def _mean_shift(
    x: np.ndarray,
    obs: pd.DataFrame,
    source: Source,
    left: Combination,
    fixed: Combination,
    type_key: str | None,
    cell_type: str,
    train: np.ndarray,
) -> np.ndarray | None:
    """Mean difference between the source's and the wanted level of one covariate, in other training groups.

    Other groups are the other cell types where the combination names one. Otherwise they are the other levels of the
    combination's further covariates, within the cell type, or over all types where it is not there.
    """
    (key,) = source.differs
    rest = {k: v for k, v in left.items() if k != key}
    if type_key in fixed:
        others = [{**rest, type_key: t} for t in sorted(set(obs[type_key]) - {cell_type})]
        return _mean_difference(x, obs, key, source.values[key], left[key], others, train)
    combinations = obs.loc[train, list(rest)].drop_duplicates().to_dict("records") if rest else []
    others = [other for other in combinations if other != rest]
    within = [{**other, type_key: cell_type} for other in others] if type_key else []
    shift = _mean_difference(x, obs, key, source.values[key], left[key], within, train)
    return shift if shift is not None else _mean_difference(x, obs, key, source.values[key], left[key], others, train)


def _mean_difference(
    x: np.ndarray,
    obs: pd.DataFrame,
    key: str,
    source: str,
    target: str,
    groups: Sequence[Combination],
    train: np.ndarray,
) -> np.ndarray | None:
    differences = []
    for group in groups:
        before, after = (train & matches(obs, {**group, key: level}) for level in (source, target))
        if min(before.sum(), after.sum()) >= MIN_CELLS:
            differences.append(x[after].mean(axis=0) - x[before].mean(axis=0))
    return np.mean(differences, axis=0) if differences else None


def summarise(table: pd.DataFrame, *, by_fold: bool) -> pd.DataFrame:
    """Mean over cell types, then folds and seeds, with the skill 0 = mean shift, 1 = ceiling."""
    keys = ["space", "sources"]
    per_fold = table.groupby([*keys, "fold", "seed", "prediction"])["distance"].mean().unstack("prediction")
    per_fold["skill"] = np.nan
    if "model" in per_fold:
        per_fold["skill"] = (per_fold["mean shift"] - per_fold["model"]) / (
            per_fold["mean shift"] - per_fold["ceiling"]
        )
    shown = per_fold.groupby([*keys, "fold"] if by_fold else keys).mean()
    if not by_fold and "model" in shown:
        shown["skill"] = (shown["mean shift"] - shown["model"]) / (shown["mean shift"] - shown["ceiling"])
    order = ["no change", "mean shift", "model", "decoded real", "ceiling", "skill"]
    return shown.reindex(columns=[c for c in order if c in shown]).sort_index(
        ascending=[False] * len(shown.index.names)
    )
