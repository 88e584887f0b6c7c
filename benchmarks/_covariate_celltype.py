"""What held-out cells' embeddings say of the cell type, the covariates and the batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from _covariate_metrics import ilisi, knn_accuracy, label_silhouette, majority_share, probe
from _covariate_model import BASE, PCA, Settings, draw, embedded, scvi_embedding, set_split, strata, trained, withheld

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from anndata import AnnData

HELD_OUT = 0.3


def values_of(adata: AnnData, key: str, settings: Settings) -> np.ndarray:
    """Give a covariate's values: floating-point numbers when it is continuous, else labels."""
    if settings.covariates.get(key) == "continuous":
        return adata.obs[key].to_numpy(dtype=np.float64)
    return adata.obs[key].astype(str).to_numpy(dtype=object)


def hold_out(adata: AnnData, settings: Settings) -> np.ndarray:
    """Hold out 30 % of the cells of every cell type and combination of covariates, the same for every seed."""
    categorical = [key for key, kind in settings.covariates.items() if kind != "continuous"]
    groups = strata(adata, [settings.cell_type_key, *categorical])
    groups = groups if len(groups) else np.full(adata.n_obs, "all", dtype=object)
    test = draw(groups, np.ones(adata.n_obs, dtype=bool), HELD_OUT, seed=0)
    set_split(adata, test, groups)
    return test


def run(adata: AnnData, args: argparse.Namespace) -> pd.DataFrame:
    """Score all embeddings; one row an embedding and seed."""
    settings = Settings.of(args, adata)
    probed = args.probe.split(",") if args.probe else list(settings.covariates)
    test = hold_out(adata, settings)
    majority = {"embedding": "majority", "knn": majority_share(adata.obs[settings.cell_type_key].astype(str), test)}
    for key in probed:
        values = values_of(adata, key, settings)
        majority[f"probe {key}"] = 0.0 if values.dtype == float else majority_share(values, test)
    rows = [majority, {"embedding": "PCA 50", **_scores(adata.obsm[PCA], adata, test, settings, probed)}]
    for seed in args.seeds:
        start = time.perf_counter()
        se = trained(adata, settings, seed=seed)
        x = embedded(se, adata)
        seconds = time.perf_counter() - start
        if BASE in adata.obsm:
            base = _scores(adata.obsm[BASE], adata, test, settings, probed)
            rows.append({"embedding": "base plain", "seed": seed, **base})
        row = {"embedding": "LoRACovariateSE", "seed": seed, "seconds": seconds}
        row |= _scores(x, adata, test, settings, probed)
        for key in (k for k in probed if k in settings.covariates):
            hidden, reason = withheld(se, adata, key)
            row[f"withheld {key}"] = np.nan if hidden is None else probe(hidden, values_of(adata, key, settings), test)
            if reason:
                row["note"] = f"withheld: {reason}"
        rows.append(row)
        if args.scvi:
            latent, seconds = scvi_embedding(
                args.scvi, adata, settings.batch_key, seed=seed, n_threads=torch.get_num_threads()
            )
            scores = _scores(latent, adata, test, settings, probed)
            rows.append({"embedding": "scVI", "seed": seed, "seconds": seconds, **scores})
    return pd.DataFrame(rows)


def _scores(x: np.ndarray, adata: AnnData, test: np.ndarray, settings: Settings, probed: list[str]) -> Mapping:
    labels = adata.obs[settings.cell_type_key].astype(str).to_numpy(dtype=object)
    scores = {"knn": knn_accuracy(x, labels, test), "asw": label_silhouette(x, labels, test)}
    if settings.batch_key:
        scores["ilisi"] = ilisi(x, adata.obs[settings.batch_key].astype(str).to_numpy(dtype=object), test)
    return scores | {f"probe {key}": probe(x, values_of(adata, key, settings), test) for key in probed}
