"""Fine-tuning a model that arc-state trained on the same data, beside training its network from its random start.

    python benchmarks/fine_tune.py kang_muscat.h5ad --arc-python PATH/TO/python --steps 600 [--folds "B cells"]

One cell type's perturbed cells are left out of everything, once for each type. arc-state trains its ``state_sm``, made
narrower, by ``tx train`` on the rest; the folder it leaves is fine-tuned here on the same cells. Scored are the cells
that were left out. Beside: the folder as it is; the same network from its random start (what ``tx train`` leaves with
a learning rate of 0), for as many steps, at several learning rates; and STTransition's own from scratch.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import scanpy as sc
import torch

import scstate_lora as ssl
from leave_one_out import METRICS

BESIDE = ["mean shift", "no change"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("h5ad", type=Path, help="counts")
    parser.add_argument("--arc-python", required=True, help="a Python that has arc-state")
    parser.add_argument("--steps", type=int, default=600, help="of arc-state's training")
    parser.add_argument("--epochs", type=int, default=5, help="of ours, fine-tuned and from the random start")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 1e-3], help="from the random start")
    parser.add_argument("--folds", help="comma-separated cell types to leave out; all by default")
    parser.add_argument("--pert-key", default="condition")
    parser.add_argument("--control", default="ctrl")
    parser.add_argument("--cell-type-key", default="cell_type")
    parser.add_argument("--batch-key", default="replicate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    adata = sc.read_h5ad(args.h5ad)
    folds = args.folds.split(",") if args.folds else sorted(set(adata.obs[args.cell_type_key].astype(str)))
    tables = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        _write_cells(adata, args, work)
        for held_out in folds:
            tables += _fold(adata, held_out, args, work)
    scores = pd.concat(tables)
    if args.csv:
        scores.to_csv(args.csv, index=False)
    means = scores.pivot_table(index="model", columns="metric", values="value", observed=True, sort=False)
    print(f"\nMean over {len(folds)} held-out cell types\n{means.reindex(columns=METRICS).round(3).to_string()}")


def _write_cells(adata: Any, args: argparse.Namespace, work: Path) -> None:
    """Write log1p of counts per 10,000 as arc-state reads it, all genes being "variable"."""
    cells = adata.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    cells.obsm["X_hvg"] = cells.X.toarray()
    cells.var["highly_variable"], cells.var["gene_name"] = True, cells.var_names
    for key in (args.pert_key, args.cell_type_key, args.batch_key):
        cells.obs[key] = cells.obs[key].astype(str).astype("category")
    (work / "cells").mkdir()
    cells.write_h5ad(work / "cells" / "own.h5ad")


def _pretrain(held_out: str, perts: list[str], args: argparse.Namespace, work: Path, *, steps: int, lr: float) -> Path:
    """Have arc-state train on all but the left-out cells; gives the folder that it leaves."""
    split, out = work / "split.toml", work / f"{held_out} {steps} {lr:g}".replace(" ", "_").replace("+", "")
    split.write_text(
        f'[datasets]\nown = "{work / "cells"}"\n\n[training]\nown = "train"\n\n[zeroshot]\n\n'
        f'[fewshot."own.{held_out}"]\nval = {perts}\ntest = []\n'
    )
    command = [args.arc_python, Path(__file__).with_name("_arc_pretrain.py"), split, out, "--steps", steps, "--lr", lr]
    for name in ("pert_key", "control", "cell_type_key", "batch_key"):
        command += [f"--{name.replace('_', '-')}", getattr(args, name)]
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    if done.returncode:
        msg = f"arc-state stopped:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        raise RuntimeError(msg)
    return out


def _fold(adata: Any, held_out: str, args: argparse.Namespace, work: Path) -> list[pd.DataFrame]:
    perts = sorted(set(adata.obs[args.pert_key].astype(str)) - {args.control})
    trained = _pretrain(held_out, perts, args, work, steps=args.steps, lr=1e-4)
    start = _pretrain(held_out, perts, args, work, steps=1, lr=0.0)
    cells = adata.copy()
    ssl.STTransition.setup_anndata(
        cells,
        covariate_keys=[args.batch_key],
        pert_key=args.pert_key,
        control=args.control,
        cell_type_key=args.cell_type_key,
        holdout=[{args.cell_type_key: held_out, args.pert_key: pert} for pert in perts],
    )
    variants: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
        "pretrained, as it is": ({"pretrained": trained}, None),
        "pretrained, LoRA": ({"pretrained": trained, "finetune": "lora"}, {}),
        "pretrained, all weights": ({"pretrained": trained, "finetune": "full"}, {}),
        **{
            f"random start, lr {lr:g}": ({"pretrained": start, "finetune": "full"}, {"lr": lr, "warmup_steps": 20})
            for lr in args.rates
        },
        "STTransition from scratch": ({}, {}),
    }
    tables = []
    for name, (made, training) in variants.items():
        began = time.perf_counter()
        st = ssl.STTransition(cells, **made)
        if training is not None:
            st.train(args.epochs, progress_bar=False, logger=False, **training)
        predicted = st.predict(target=perts, contexts={args.cell_type_key: held_out})
        test, train = (cells[(cells.obs["scstate_split"] == "test") == is_test] for is_test in (True, False))
        scores = ssl.tl.evaluate_perturbation(
            predicted, test, cells, train=train, context_key=args.cell_type_key, name=name
        )
        scores = scores[scores["context"] == held_out]
        tables.append(scores[scores["model"] == name].assign(held_out=held_out))
        steps = 0 if training is None else int(st.history["step"].max())
        print(f"{held_out}, {name}: {steps} steps, {time.perf_counter() - began:.0f} s", flush=True)
    return [*tables, scores[scores["model"].isin(BESIDE)].assign(held_out=held_out)]


if __name__ == "__main__":
    main()
