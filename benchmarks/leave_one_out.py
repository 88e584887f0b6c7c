"""Leave one cell type's perturbed cells out, train on the rest, predict them; beside the naive baselines.

    python benchmarks/leave_one_out.py kang_muscat.h5ad --pert-key condition --control ctrl \
        --cell-type-key cell_type --covariates condition,replicate

Defaults everywhere; nothing is chosen on the held-out cells. One table a held-out cell type and seed, then the means.
"""

from __future__ import annotations

import argparse
import logging
import time
from itertools import product
from pathlib import Path

import pandas as pd
import scanpy as sc
import torch
import yaml

import scstate_lora as ssl

METRICS = ["pearson_delta", "e_distance", "mae", "variance_ratio"]


def data_arguments() -> argparse.ArgumentParser:
    """Arguments that say what an experiment's file holds."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("h5ad", type=Path)
    parser.add_argument("--pert-key", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--cell-type-key", required=True)
    parser.add_argument("--covariates", required=True, help="comma-separated columns of obs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="write all scores here")
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[data_arguments()]
    )
    parser.add_argument("--folds", help="comma-separated cell types to leave out; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", type=yaml.safe_load, default={}, help="options of the model, {prior: mean}")
    parser.add_argument("--objective", type=yaml.safe_load, default={}, help="of the objective, {shrinkage: 0}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)

    adata = sc.read_h5ad(args.h5ad)
    labels = adata.obs[args.cell_type_key].astype(str)
    perts = adata.obs[args.pert_key].astype(str)
    folds = args.folds.split(",") if args.folds else sorted(set(labels))
    targets = sorted(set(perts) - {args.control})
    tables = []
    for held_out, seed in product(folds, args.seeds):
        cells = adata.copy()
        start = time.perf_counter()
        ssl.STTransition.setup_anndata(
            cells,
            covariate_keys=args.covariates.split(","),
            pert_key=args.pert_key,
            control=args.control,
            cell_type_key=args.cell_type_key,
            holdout=[{args.cell_type_key: held_out, args.pert_key: target} for target in targets],
        )
        st = ssl.STTransition(cells, model=args.model, objective=args.objective, seed=seed)
        st.train(progress_bar=False)
        for target in targets:
            predicted = st.predict(target=target, contexts={args.cell_type_key: held_out})
            seconds = time.perf_counter() - start
            test = cells[cells.obs["scstate_split"] == "test"]
            train = cells[cells.obs["scstate_split"] != "test"]
            scores = ssl.tl.evaluate_perturbation(
                predicted, test, cells, train=train, context_key=args.cell_type_key, name="STTransition"
            )
            scores = scores[scores["context"] == held_out].assign(target=target, seed=seed, seconds=seconds)
            tables.append(scores)
            shown = scores.pivot_table(index="model", columns="metric", values="value", observed=True)
            print(f"\n{held_out}, {target}, seed {seed}: {seconds:.0f} s")
            print(shown.reindex(columns=METRICS).round(3).to_string(), flush=True)
    scores = pd.concat(tables)
    means = scores.groupby(["model", "metric"], observed=True)["value"].mean().unstack("metric")
    print(f"\nMean over {len(folds)} held-out cell types\n{means.reindex(columns=METRICS).round(3).to_string()}")
    own = scores[scores["model"] == "STTransition"]
    by_seed = own.groupby(["seed", "metric"], observed=True)["value"].mean().unstack("metric").reindex(columns=METRICS)
    print(f"\nBy seed\n{by_seed.round(3).to_string()}")
    wide = scores[scores["metric"] == "e_distance"].pivot_table(
        index=["context", "seed"], columns="model", values="value"
    )
    print(
        f"\nE-distance below the mean shift's: {(wide['STTransition'] < wide['mean shift']).sum()} of {len(wide)} folds"
    )
    print(f"seconds a fold, at most: {scores['seconds'].max():.0f}")
    if args.csv:
        scores.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
