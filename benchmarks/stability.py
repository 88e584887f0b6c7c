"""LoRA with and without hyper-connections, by seeds and learning rates: how steady training is, and what it gives.

    python benchmarks/stability.py kang_muscat.h5ad --pert-key condition --control ctrl --cell-type-key cell_type
        --covariates condition,replicate --leave "CD4 T cells" --seeds 0 1 2 3 4

One split: the perturbed cells of one cell type are left out. Loss variance over the last tenth of the steps, gradient
spikes an epoch, best validation loss and the scores on the cells that were left out; mean and 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy import stats

import scstate_lora as ssl
from leave_one_out import data_arguments

SCORES = ["pearson_delta", "e_distance", "mae"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[data_arguments()]
    )
    parser.add_argument("--leave", required=True, help="cell type whose perturbed cells are left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 1e-2])
    parser.add_argument("--kinds", nargs="+", default=["streams", "features"])
    parser.add_argument("--prior", default="mean", help="'context' solves for nearly all, so that little is trained")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)

    adata = sc.read_h5ad(args.h5ad)
    perts = sorted(set(adata.obs[args.pert_key].astype(str)) - {args.control})
    ssl.STTransition.setup_anndata(
        adata,
        covariate_keys=args.covariates.split(","),
        pert_key=args.pert_key,
        control=args.control,
        cell_type_key=args.cell_type_key,
        holdout=[{args.cell_type_key: args.leave, args.pert_key: pert} for pert in perts],
    )
    forms = {"ST-LoRA": False, **{f"ST-LoRA-mHC, {kind}": {"kind": kind} for kind in args.kinds}}
    rows = []
    for rate in args.rates:
        for seed in args.seeds:
            for name, mhc in forms.items():
                rows.append(_train(adata, args, perts, name=name, mhc=mhc, rate=rate, seed=seed))
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if args.csv:
        table.to_csv(args.csv, index=False)
    columns = [c for c in table if c not in ("model", "lr", "seed")]
    shown = table.groupby(["lr", "model"], sort=False)[columns].agg(_interval)
    print(f"\nMean and 95 % interval over {len(args.seeds)} seeds\n{shown.to_string()}")


def _train(adata, args, perts, *, name: str, mhc, rate: float, seed: int) -> dict:
    st = ssl.STTransition(adata, model={"prior": args.prior}, finetune="lora", seed=seed)
    st.train(args.epochs, lr=rate, mhc=mhc, progress_bar=False, logger=False)
    row = {"model": name, "lr": rate, "seed": seed}
    steady = ssl.tl.stability(st).set_index("metric")["value"]
    row |= {m: steady[m] for m in ("loss_variance", "gradient_spikes", "seconds_per_epoch", "peak_memory_mb")}
    val = st.history[st.history["phase"] == "val"]["loss"]
    row |= {"val_first": val.iloc[0], "val_best": val.min()}
    for pert in perts:
        predicted = st.predict(target=pert, contexts={args.cell_type_key: args.leave})
        test = adata[adata.obs["scstate_split"] == "test"]
        scores = ssl.tl.evaluate_perturbation(predicted, test, adata, context_key=args.cell_type_key)
        own = scores[(scores["model"] == "model") & (scores["context"] == args.leave)].set_index("metric")["value"]
        row |= {f"{metric}": own[metric] for metric in SCORES}
    return row


def _interval(values: pd.Series) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.3g} ± {half:.2g}"


if __name__ == "__main__":
    main()
