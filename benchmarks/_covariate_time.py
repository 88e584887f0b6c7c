"""Cells of a day that training never saw, predicted from those of the days before and after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from _covariate_metrics import (
    MIN_CELLS,
    decoder,
    distance_of_means,
    e_distance,
    e_distance_unbiased,
    gap_of_means,
    half_against_half,
)
from _covariate_model import BASE, PCA, Settings, embedded, set_split, strata, trained

if TYPE_CHECKING:
    import argparse

    from anndata import AnnData

    from _covariate_metrics import Distance


def run(adata: AnnData, args: argparse.Namespace) -> pd.DataFrame:
    """Train without the day in the middle and predict it; one row a seed, space, group of cells and prediction."""
    settings = Settings.of(args, adata)
    days = adata.obs[args.time_key].to_numpy(dtype=float)
    before, day, after = args.days
    test = days == day
    set_split(adata, test, strata(adata, [settings.cell_type_key, *settings.covariates]))
    groups = strata(adata, args.within.split(","))
    tables = []
    for seed in args.seeds:
        start = time.perf_counter()
        se = trained(adata, settings, seed=seed)
        seconds = time.perf_counter() - start
        model = embedded(se, adata)
        moved = se.get_latent_representation(adata, covariates={args.time_key: day}, key_added=None)
        decode = decoder(model[~test], adata.obsm[PCA][~test])
        spaces: list[tuple[str, np.ndarray, np.ndarray | None, Distance]] = [
            ("model", model, moved, e_distance),
            ("model, means", model, moved, distance_of_means),
            ("model, unbiased", model, moved, e_distance_unbiased),
            ("PCA means", adata.obsm[PCA], decode(moved), gap_of_means),
        ]
        if BASE in adata.obsm:
            spaces.append(("base", adata.obsm[BASE], None, e_distance))
        for space, own, counterfactual, distance in spaces:
            for group in sorted(set(groups[test])):
                rows = [(groups == group) & (days == d) for d in (before, day, after)]
                if min(r.sum() for r in rows) < MIN_CELLS:
                    continue
                scores = _score(own, counterfactual, rows, (day - before) / (after - before), distance)
                found = [{"prediction": p, "source": s, "distance": value} for (p, s), value in scores.items()]
                tables.append(pd.DataFrame(found).assign(seed=seed, space=space, group=group, seconds=seconds))
    return pd.concat(tables, ignore_index=True)


def _score(
    own: np.ndarray, moved: np.ndarray | None, rows: list[np.ndarray], weight: float, distance: Distance
) -> dict[tuple[str, str], float]:
    """Distances to the real cells of the day; `rows`: the cells before, on and after it."""
    first, goal, last = (own[r] for r in rows)
    change = last.mean(axis=0) - first.mean(axis=0)
    predictions = {
        "neighbours": (first, last),
        "interpolation": (first + weight * change, last - (1 - weight) * change),
    }
    if moved is not None:
        predictions["model"] = (moved[rows[0]], moved[rows[2]])
    found = {}
    for name, (from_first, from_last) in predictions.items():
        found[name, "before"] = distance(from_first, goal)
        found[name, "after"] = distance(from_last, goal)
        found[name, "both"] = distance(np.concatenate([from_first, from_last]), goal)
    ceiling = half_against_half(goal, distance)
    return found | {("ceiling", source): ceiling for source in ("before", "after", "both")}


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over groups, all weighted equally, and seeds; skill 0 = interpolation, 1 = ceiling."""
    shown = table.groupby(["space", "source", "prediction"])["distance"].mean().unstack("prediction")
    shown = shown.reindex(columns=["neighbours", "interpolation", "model", "ceiling"])
    shown["skill"] = (shown["interpolation"] - shown["model"]) / (shown["interpolation"] - shown["ceiling"])
    return shown.sort_index(ascending=False)
