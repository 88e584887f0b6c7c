"""What LoRACovariateSE achieves beside PCA, its base's plain embedding and scVI, on cells it was not trained on.

    python benchmarks/covariates.py celltype kang_muscat.h5ad --covariates condition,replicate \
        --cell-type-key cell_type --batch-key replicate --probe condition --seeds 0 1 --scvi ENV/bin/python
    python benchmarks/covariates.py unseen kang_muscat.h5ad --covariates condition,replicate \
        --cell-type-key cell_type --leave "cell_type=*,condition=stim"
    python benchmarks/covariates.py unseen --simulate 5000 --covariates condition,timepoint \
        --cell-type-key cell_type --leave "condition=sham,timepoint=day14;condition=burn,timepoint=day19"

Options of the model come from ``--set PART.OPTION=VALUE ...`` with the parts setup, model, lora, objective, compact and
train; all others are the package's defaults. Nothing is chosen on held-out cells.

celltype
    30 % of the cells of every type and combination are held out of everything. They are scored against the training
    cells: knn (accuracy of the cell type, 10 neighbours), asw and ilisi (silhouette of the type and mixing of batches,
    scaled as by scib-metrics), probe (logistic regression; ridge for a continuous covariate) fitted on training cells,
    withheld (the same probe where the model was not told that covariate). PCA and scVI see the training cells only too.
unseen
    Combinations are left out (``*``: a fold for every level; ``;``: several combinations in one fold). The other cells
    are embedded as if under the combination, and compared with the real ones by E-distance 2 E|x-y| - E|x-x'| -
    E|y-y'| within cell type. Beside: the same cells under their own covariates (no change); shifted by the mean
    difference that other cell types or other levels show (mean shift); half of the real cells against the other half
    (ceiling). Skill: 0 = mean shift, 1 = ceiling. ``pooled``: all moved cells at once; ``single``: each group that is
    one covariate away for itself, then the mean.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import scanpy as sc
import torch

import _covariate_celltype
import _covariate_unseen
import scstate_lora as ssl
from _covariate_model import add_arguments

if TYPE_CHECKING:
    import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)

    celltype = commands.add_parser("celltype", help="held-out cells: cell type, covariates, batch")
    _add_cells(celltype)
    celltype.add_argument("--probe", help="columns of obs; the covariates by default")
    celltype.add_argument("--scvi", metavar="PYTHON", help="interpreter of an environment with scvi-tools")
    add_arguments(celltype)

    unseen = commands.add_parser("unseen", help="counterfactuals to combinations never seen")
    _add_cells(unseen)
    unseen.add_argument("--leave", nargs="+", required=True, metavar="KEY=VALUE,...")
    add_arguments(unseen)

    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    table = {"celltype": _celltype, "unseen": _unseen}[args.command](args)
    if args.csv:
        table.to_csv(args.csv, index=False)


def _add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("h5ad", type=Path, nargs="?")
    parser.add_argument("--simulate", type=int, metavar="CELLS", help="the wound-healing simulator in place of a file")


def _cells(args: argparse.Namespace) -> sc.AnnData:
    if (args.h5ad is None) == (args.simulate is None):
        sys.exit("Name a file or --simulate CELLS, one of them.")
    adata = sc.read_h5ad(args.h5ad) if args.simulate is None else ssl.datasets.wound_healing(args.simulate, seed=0)
    for layer in list(adata.layers):  # not read here; copies of the cells would carry them along
        del adata.layers[layer]
    return adata


def _show(table: pd.DataFrame) -> None:
    print(table.round(3).to_string(na_rep=""), flush=True)


def _celltype(args: argparse.Namespace) -> pd.DataFrame:
    table = _covariate_celltype.run(_cells(args), args)
    numbers = table.drop(columns=["seed", "note"], errors="ignore").groupby("embedding", sort=False)
    shown = numbers.mean()
    if len(args.seeds) > 1:
        shown = shown.join(numbers[["knn"]].std().rename(columns={"knn": "knn sd"}))
    _show(shown)
    for note in dict.fromkeys(table["note"].dropna()) if "note" in table else ():
        print(note)
    return table


def _unseen(args: argparse.Namespace) -> pd.DataFrame:
    table = _covariate_unseen.run(_cells(args), args)
    _show(_covariate_unseen.summarise(table, by_fold=True))
    print("\nMean over folds")
    _show(_covariate_unseen.summarise(table, by_fold=False))
    return table


if __name__ == "__main__":
    main()
