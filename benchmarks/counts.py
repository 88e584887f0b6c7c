"""Counts drawn for predicted cells beside measured ones, leaving one cell type's perturbed cells out at a time.

    python benchmarks/counts.py kang_muscat.h5ad --pert-key condition --control ctrl \
        --cell-type-key cell_type --covariates condition,replicate

One row a held-out cell type and kind of cells: the model's mean output, counts that it draws, counts drawn to the
measured means (what is left is the fault of the drawing), the control cells, and one half of the measured cells against
the other.

`e_distance` is 2 E|x-y| - E|x-x'| - E|y-y'| to the measured cells over log1p of counts per 10,000, with the diagonal.
`zeros` is the share of zeros, `detection` the mean difference of the share of cells that express a gene. `top20` counts
how many of the 20 genes first in sc.tl.rank_genes_groups (predicted against control cells) are among the first 50 of
measured against control cells.
"""

from __future__ import annotations

import argparse
import logging
import time

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch

import scstate_lora as ssl
from leave_one_out import data_arguments
from scstate_lora.metrics import energy_distance
from scstate_lora.model.st.counts import draw_counts


def logged(counts: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000."""
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def first_genes(cells: np.ndarray, control: np.ndarray, n: int) -> set[str]:
    """Genes that sc.tl.rank_genes_groups puts first, by its default t-test."""
    obs = pd.DataFrame({"group": ["cells"] * len(cells) + ["control"] * len(control)}).set_axis(
        [str(i) for i in range(len(cells) + len(control))]
    )
    both = ad.AnnData(np.vstack([cells, control]).astype(np.float32), obs=obs)
    sc.tl.rank_genes_groups(both, "group", groups=["cells"], reference="control", method="t-test")
    return set(both.uns["rank_genes_groups"]["names"]["cells"][:n])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[data_arguments()]
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    adata = sc.read_h5ad(args.h5ad)
    types, perts = (adata.obs[key].astype(str) for key in (args.cell_type_key, args.pert_key))
    rows = []
    for held_out in sorted(set(types)):
        for target in sorted(set(perts) - {args.control}):
            cells = adata.copy()
            ssl.STTransition.setup_anndata(
                cells,
                covariate_keys=args.covariates.split(","),
                pert_key=args.pert_key,
                control=args.control,
                cell_type_key=args.cell_type_key,
                holdout={args.cell_type_key: held_out, args.pert_key: target},
            )
            st = ssl.STTransition(cells, seed=args.seed)
            st.train(progress_bar=False, logger=False)
            mean = st.predict(target=target, contexts={args.cell_type_key: held_out})
            start = time.perf_counter()
            drawn = st.predict(target=target, contexts={args.cell_type_key: held_out}, output="counts")
            seconds = time.perf_counter() - start
            genes = list(mean.var_names)
            control = cells[mean.obs["control_cell"], genes].X.toarray()
            sizes = np.asarray(cells[mean.obs["control_cell"]].X.sum(axis=1)).ravel()
            real = cells[(types == held_out).to_numpy() & (perts == target).to_numpy(), genes].X.toarray()
            truth = np.broadcast_to(logged(real).mean(axis=0), control.shape)
            oracle = draw_counts(
                cells[mean.obs["control_cell"], genes].X, sizes, truth, np.full(len(sizes), ""), seed=0
            )
            half = np.random.default_rng(0).permutation(len(real)) % 2 == 0
            for name, expression, counts, against in (
                ("mean output", np.asarray(mean.X), np.asarray(mean.X), real),
                ("counts", logged(drawn.X.toarray()), drawn.X.toarray(), real),
                ("counts, measured mean", logged(oracle.toarray()), oracle.toarray(), real),
                ("control cells", logged(control), control, real),
                ("half of the measured", logged(real[half]), real[half], real[~half]),
            ):
                first = first_genes(logged(against), logged(control), 50)
                rows.append(
                    {
                        "held out": held_out,
                        "target": target,
                        "cells": name,
                        "e_distance": energy_distance(expression, logged(against)),
                        "zeros": (counts == 0).mean(),
                        "measured zeros": (against == 0).mean(),
                        "detection": np.abs((counts > 0).mean(axis=0) - (against > 0).mean(axis=0)).mean(),
                        "top20": len(first_genes(expression, logged(control), 20) & first),
                        "depth": np.median(counts.sum(axis=1)),
                        "seconds": seconds if name == "counts" else np.nan,
                    }
                )
            print(pd.DataFrame(rows[-5:]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    if args.csv:
        table.to_csv(args.csv, index=False)
    print(table.groupby("cells", sort=False).mean(numeric_only=True).round(3).to_string())


if __name__ == "__main__":
    main()
