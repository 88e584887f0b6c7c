"""What LoRACovariateSE achieves beside PCA, its base's plain embedding and scVI, on cells it was not trained on.

    python benchmarks/covariates.py celltype kang_muscat.h5ad --covariates condition,replicate \
        --cell-type-key cell_type --batch-key replicate --probe condition --seeds 0 1 --scvi ENV/bin/python
    python benchmarks/covariates.py unseen kang_muscat.h5ad --covariates condition,replicate \
        --cell-type-key cell_type --leave "cell_type=*,condition=stim"
    python benchmarks/covariates.py unseen --simulate 5000 --covariates condition,timepoint \
        --cell-type-key cell_type --leave "condition=sham,timepoint=day14;condition=burn,timepoint=day19"

Options of the model come from ``--set PART.OPTION=VALUE ...`` with the parts setup, model, lora, conditioning,
objective, compact and train; all others are the package's defaults. Nothing is chosen on held-out cells.

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
    one covariate away for itself, then the mean. A model that forgets the cell and keeps the covariates does well by
    distances in its own embedding. So ``PCA means`` asks for more: a ridge regression from the embedding to the PCA of
    expression, fitted on training cells, and the squared distance of the moved cells' mean there to that of the real
    ones, less what it comes to by chance (``decoded real``: that of the real cells' own embedding, the error of the
    regression). The diagonal raises E-distances, of half the cells most, so that the ceiling can lie above a perfect
    model and the skill means little where groups are small; ``unbiased`` leaves the diagonal out.
time
    Simulated wounds at days 10, 14 and 19; training sees 10 and 19, time is continuous. The cells before and after are
    moved to day 14 and compared with the real ones, within cell type and condition. Beside: the cells before and after
    as they are (neighbours), and shifted on the line between their means (interpolation). Skill: 0 = interpolation, 1 =
    ceiling.
null
    A covariate without signal, or made so by ``--shuffle``: what held-out probes find of it where the model is told the
    covariate and where it is not; the accuracy of the cell type; validation losses after the first and the last epoch.
speed
    Seconds and peak memory of a fresh process, with the compact base and with a PCA by ``embed_key``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import scanpy as sc
import torch

import _covariate_celltype
import _covariate_null
import _covariate_speed
import _covariate_time
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

    times = commands.add_parser("time", help="a day that training never saw")
    _add_cells(times)
    times.add_argument("--time-key", default="time_days")
    times.add_argument("--days", type=float, nargs=3, default=[10, 14, 19], metavar=("BEFORE", "DAY", "AFTER"))
    times.add_argument("--within", default="cell_type,condition", help="columns within which cells are compared")
    add_arguments(times, covariates="time_days:continuous,condition", cell_type_key="cell_type")

    null = commands.add_parser("null", help="a covariate without signal")
    _add_cells(null)
    null.add_argument("--shuffle", metavar="COLUMN", help="shuffle this column of obs over the cells first")
    null.add_argument("--label", help="column whose nearest-neighbour accuracy is shown; the cell type by default")
    add_arguments(null)

    speed = commands.add_parser("speed", help="seconds and memory of training")
    _add_cells(speed)
    speed.add_argument("--one", choices=_covariate_speed.WAYS, help=argparse.SUPPRESS)
    add_arguments(speed, covariates="condition,timepoint", cell_type_key="cell_type")

    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    commands_by_name = {"celltype": _celltype, "unseen": _unseen, "time": _time, "null": _null, "speed": _speed}
    table = commands_by_name[args.command](args)
    if args.csv and table is not None:
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


def _show_notes(table: pd.DataFrame) -> None:
    for note in dict.fromkeys(table["note"].dropna()) if "note" in table else ():
        print(note)


def _celltype(args: argparse.Namespace) -> pd.DataFrame:
    table = _covariate_celltype.run(_cells(args), args)
    numbers = table.drop(columns=["seed", "note"], errors="ignore").groupby("embedding", sort=False)
    shown = numbers.mean()
    if len(args.seeds) > 1:
        shown = shown.join(numbers[["knn"]].std().rename(columns={"knn": "knn sd"}))
    _show(shown)
    _show_notes(table)
    return table


def _unseen(args: argparse.Namespace) -> pd.DataFrame:
    table = _covariate_unseen.run(_cells(args), args)
    _show(_covariate_unseen.summarise(table, by_fold=True))
    print("\nMean over folds")
    _show(_covariate_unseen.summarise(table, by_fold=False))
    return table


def _time(args: argparse.Namespace) -> pd.DataFrame:
    table = _covariate_time.run(_cells(args), args)
    _show(_covariate_time.summarise(table))
    return table


def _null(args: argparse.Namespace) -> pd.DataFrame:
    table = _covariate_null.run(_cells(args), args)
    _show(table.drop(columns=["seed", "note"], errors="ignore").groupby("embedding", sort=False).mean())
    _show_notes(table)
    return table


def _speed(args: argparse.Namespace) -> pd.DataFrame | None:
    if args.one:
        print(json.dumps(_covariate_speed.one(_cells(args), args)))
        return None
    table = _covariate_speed.run(args)
    _show(table)
    return table


if __name__ == "__main__":
    main()
