"""A covariate without signal: nothing may be found of it, and learning it may cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from _covariate_celltype import hold_out, values_of
from _covariate_metrics import knn_accuracy, majority_share, probe
from _covariate_model import BASE, PCA, Settings, embedded, trained, withheld

if TYPE_CHECKING:
    import argparse

    from anndata import AnnData

    import scstate_lora as ssl


def run(adata: AnnData, args: argparse.Namespace) -> pd.DataFrame:
    """Probe the covariates in every embedding; one row an embedding and seed."""
    if args.shuffle:
        order = np.random.default_rng(0).permutation(adata.n_obs)
        adata.obs[args.shuffle] = adata.obs[args.shuffle].to_numpy()[order]
    settings = Settings.of(args, adata)
    test = hold_out(adata, settings)
    label = args.label or settings.cell_type_key
    probed = [args.shuffle] if args.shuffle else list(settings.covariates)
    labels = None if label is None else adata.obs[label].astype(str).to_numpy(dtype=object)

    def scores(x: np.ndarray) -> dict[str, float]:
        found = {f"probe {key}": probe(x, values_of(adata, key, settings), test) for key in probed}
        return found if labels is None else found | {"knn": knn_accuracy(x, labels, test)}

    majority: dict[str, Any] = {"embedding": "majority"}
    for key in probed:
        values = values_of(adata, key, settings)
        majority[f"probe {key}"] = 0.0 if values.dtype == float else majority_share(values, test)
    if labels is not None:
        majority["knn"] = majority_share(labels, test)
    rows = [majority, {"embedding": "PCA 50", **scores(adata.obsm[PCA])}]
    for seed in args.seeds:
        se = trained(adata, settings, seed=seed)
        x = embedded(se, adata)
        if BASE in adata.obsm:
            rows.append({"embedding": "base plain", "seed": seed, **scores(adata.obsm[BASE])})
        rows.append({"embedding": "model, given", "seed": seed, **scores(x), **_validation(se)})
        for key in probed:
            hidden, reason = withheld(se, adata, key)
            found = {"note": reason} if hidden is None else scores(hidden)
            rows.append({"embedding": f"model, {key} withheld", "seed": seed, **found})
    return pd.DataFrame(rows)


def _validation(se: ssl.LoRACovariateSE) -> dict[str, float]:
    """Give the validation losses after the first epoch and after the last, by term."""
    val = se.history[se.history["phase"] == "val"]
    terms = [c for c in ("loss", "reconstruction", "preservation") if c in val and val[c].notna().any()]
    return {f"{term} {when}": val[term].iloc[at] for term in terms for when, at in (("first", 0), ("last", -1))}
