"""Our State Transition model beside that of arc-state 0.11.1: speed and memory of training, and accuracy.

    python benchmarks/st_against_arc.py speed --arc-python PATH/TO/python [--repeats 5] [--threads 2]
    python benchmarks/st_against_arc.py kang kang_muscat.h5ad --arc-python PATH/TO/python --seconds 60 \
        [--folds "B cells"] [--ours scores_of_leave_one_out.csv]

``--arc-python`` has arc-state and needs nothing of ours. Each side runs in a process of its own with the same number of
threads, on the CPU, in float32. Numbers that were taken while the machine had other work are of no use.

speed
    One architecture on both sides, arc-state's ``state_sm`` made narrower: LLaMA without positions, a feed-forward four
    times as wide as the rest, dropout in encoder and head only, the residual in the latent space, the energy distance
    of predicted and measured sets. The numbers of trained parameters are compared and must be equal. Timed is the step
    alone, that is ``training_step`` (forward and loss), backward and AdamW (ours as the plan makes it, arc-state's as
    torch makes it, like the Adam of ``tx train``), in a plain loop after a few steps that are not timed; the batches,
    the same on both sides, are in memory before. Each frees its gradients where its own training does: ours after the
    step, arc-state's after the next forward pass, as Lightning has it. No clipping, logging or loading of data. The two
    take turns (arc, ours, arc, ours, ...), each time in a fresh process; of the ratio the table has the median of the
    pairs' ratios and their range. Memory is the most that was resident, less what the imports took; beside it that of
    the whole process. ``--checkpointing`` has ours keep less for the gradient, as
    ``train(gradient_checkpointing=True)`` does.
kang
    One cell type's perturbed cells are left out, once for each type. arc-state's ``state_sm``, made narrower, trains
    for a given wall time on sets of the other cells, drawn as its own loader draws them (cell type by cell type, the
    controls of every type, of the left-out one too, being targets like the others), with the optimiser, learning rate
    and clipping of ``tx train``, on log1p of counts per 10,000. It then predicts the left-out cells from all control
    cells of their type. ``--ours`` is what ``leave_one_out.py --csv`` wrote, and is printed beside. Scores are those of
    ``scstate_lora.metrics`` on both sides: the genes must be the same, so either leave ``--n-genes`` alone, or see that
    both chose all genes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from _serve import Worker
from against_arc import Row, compare, line, write
from leave_one_out import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

WARM_UP = 3
MEMORY_BAR = 0.7
BESIDE = ["STTransition", "mean shift", "linear", "no change", "ceiling"]


def speed(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    sizes = {
        "n_sets": arguments.sets,
        "set_len": arguments.set_len,
        "n_genes": arguments.n_genes or 1500,
        "n_perts": 10,
        "checkpointing": arguments.checkpointing,
        **network_sizes(arguments),
    }
    pairs = []
    for _ in range(arguments.repeats):
        theirs, ours = (measure(side, arguments, sizes, work) for side in ("arc", "our"))
        if ours["trained"] != theirs["trained"]:
            counts = f"{ours['trained']} trained parameters, arc-state {theirs['trained']}"
            msg = f"Not one architecture: {counts}."
            raise ValueError(msg)
        pairs.append((ours, theirs))
        print(f"  ours {ours['rate']:.0f} cells/s, arc-state {theirs['rate']:.0f}", file=sys.stderr, flush=True)
    ours, theirs = pairs[0]
    frozen = theirs["all"] - theirs["trained"]
    case = f"{sizes['n_sets']} x {sizes['set_len']} cells, {sizes['n_genes']} genes"
    note = f"{ours['trained']} each; arc-state has {frozen} more in a token table, which is never read"
    yield Row("speed", "parameters that train", "", ours["trained"], theirs["trained"], note=note)
    yield compare("speed", f"step of {case}", "cells/s", [(o["rate"], t["rate"]) for o, t in pairs], bar=1)
    yield memory_row(
        "peak memory over the imports'",
        [tuple(side["peak"] - side["before"] for side in pair) for pair in pairs],
        note=f"arc-state's token table is {4 * frozen / 1e6:.0f} MB of its",
        judged=True,
    )
    yield memory_row("peak memory of the process", [tuple(side["peak"] for side in pair) for pair in pairs])


def network_sizes(arguments: argparse.Namespace) -> dict[str, int]:
    return {"hidden": arguments.hidden, "layers": arguments.layers, "heads": arguments.heads}


def measure(side: str, arguments: argparse.Namespace, sizes: dict[str, int], work: Path) -> dict[str, float]:
    """Train for some steps in a fresh process; cells a second, memory and numbers of parameters."""
    python = arguments.arc_python if side == "arc" else sys.executable
    with Worker(python, f"_{side}_st_worker.py", threads=arguments.threads, log=work / f"{side}.log") as worker:
        found = worker("prepare", sizes=sizes)
        worker("steps", n_steps=WARM_UP)
        found |= worker("steps", n_steps=arguments.steps)
    return {**found, "rate": arguments.steps * sizes["n_sets"] * sizes["set_len"] / found["seconds"]}


def memory_row(case: str, pairs: list[tuple[float, ...]], *, judged: bool = False, note: str = "") -> Row:
    ratios = [ours / arc for ours, arc in pairs]
    ours, arc = (median(side) / 1e6 for side in zip(*pairs, strict=True))
    met = {"bar": f"ratio <= {MEMORY_BAR:g}", "met": median(ratios) <= MEMORY_BAR} if judged else {}
    return Row("speed", case, "MB", ours, arc, median(ratios), min(ratios), max(ratios), note=note, **met)


def kang(arguments: argparse.Namespace, work: Path) -> pd.DataFrame:
    """Train and score arc-state for each left-out cell type, in the form of ``leave_one_out.py``'s table."""
    import pandas as pd
    import scanpy as sc

    adata = sc.read_h5ad(arguments.h5ad)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    types, perts = (adata.obs[key].astype(str).to_numpy() for key in (arguments.cell_type_key, arguments.pert_key))
    targets = sorted(set(perts) - {arguments.control})
    beside = None if arguments.ours is None else pd.read_csv(arguments.ours)
    tables = []
    for held_out in arguments.folds.split(",") if arguments.folds else sorted(set(types)):
        train = ~((types == held_out) & (perts != arguments.control))
        if train.all():
            msg = f"{held_out!r} has no perturbed cells: it cannot be left out."
            raise ValueError(msg)
        x = genes_of(adata, train, arguments.n_genes)
        fold, out = work / "fold.npz", work / "predicted.npz"
        kinds = np.unique(types, return_inverse=True)[1]
        codes = np.array([[arguments.control, *targets].index(pert) for pert in perts])
        np.savez(fold, x=x, types=kinds, perts=codes, train=train)
        sizes = {"n_sets": arguments.sets, "set_len": arguments.set_len, "lr": arguments.lr, **network_sizes(arguments)}
        with Worker(
            arguments.arc_python, "_arc_st_worker.py", threads=arguments.threads, log=work / "arc.log"
        ) as worker:
            told = worker(
                "fold", path=str(fold), out=str(out), sizes=sizes, seconds=arguments.seconds, seed=arguments.seed
            )
        predicted = np.load(out)
        print(
            f"\n{held_out}: {told['steps']} steps in {told['seconds']:.0f} s, loss {told['first_loss']:.3g} in the "
            f"first tenth of them, {told['last_loss']:.3g} in the last"
        )
        for code, target in enumerate(targets, start=1):
            if f"pert_{code}" not in predicted:
                continue
            real, control = (x[(types == held_out) & (codes == which)] for which in (code, 0))
            scores = score(predicted[f"pert_{code}"], real, control)
            tables += [
                {"model": "arc-state", "context": held_out, "target": target, "metric": metric, "value": value}
                for metric, value in scores.items()
            ]
            shown = pd.DataFrame({"arc-state": scores}).T
            if beside is not None:
                rows = beside[(beside["context"] == held_out) & (beside["target"] == target)]
                shown = pd.concat([shown, by_model(rows)])
            print(f"{target}\n{shown[METRICS].round(3).to_string()}", flush=True)
    table = pd.DataFrame(tables)
    means = by_model(table)
    if beside is not None:
        same = beside[beside["context"].isin(table["context"])]
        means = pd.concat([means, by_model(same)])
    print(f"\nMean over {table['context'].nunique()} held-out cell types\n{means[METRICS].round(3).to_string()}")
    return table


def by_model(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean of every metric, one row a model, those that are of interest here."""
    table = scores.groupby(["model", "metric"], observed=True)["value"].mean().unstack("metric")
    return table.loc[[model for model in ["arc-state", *BESIDE] if model in table.index]]


def genes_of(adata: Any, train: np.ndarray, n_genes: int | None) -> np.ndarray:
    """Expression ``(n_cells, n_genes)``, dense: of all genes, or of those most variable in the training cells."""
    import scanpy as sc

    chosen = np.ones(adata.n_vars, dtype=bool)
    if n_genes is not None and n_genes < adata.n_vars:
        table = sc.pp.highly_variable_genes(adata[train], n_top_genes=n_genes, inplace=False)
        chosen = table["highly_variable"].to_numpy()
    return np.asarray(adata.X[:, chosen].toarray(), dtype=np.float32)


def score(predicted: np.ndarray, real: np.ndarray, control: np.ndarray) -> dict[str, float]:
    from scstate_lora import metrics

    means = [cells.mean(axis=0, dtype=np.float64) for cells in (predicted, real, control)]
    return {
        "pearson_delta": metrics.pearson_delta(*means),
        "e_distance": metrics.energy_distance(predicted, real),
        "mae": metrics.mae(*means[:2]),
        "variance_ratio": metrics.variance_ratio(predicted, real),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--arc-python", required=True, help="a Python that has arc-state")
    common.add_argument("--threads", type=int, default=2)
    common.add_argument("--sets", type=int, default=8, help="sets per step")
    common.add_argument("--set-len", type=int, default=64, help="cells per set")
    common.add_argument("--hidden", type=int, default=256)
    common.add_argument("--layers", type=int, default=4)
    common.add_argument("--heads", type=int, default=4)
    common.add_argument("--n-genes", type=int, help="1500 for speed; for kang the most variable ones, by default all")
    common.add_argument("--out", type=Path, action="append", default=[], help=".csv or .json of speed, .csv of kang")
    parts = parser.add_subparsers(dest="part", required=True)
    timed = parts.add_parser("speed", parents=[common], help="time and memory of training")
    timed.add_argument("--repeats", type=int, default=5)
    timed.add_argument("--steps", type=int, default=20, help="steps that are timed")
    timed.add_argument("--checkpointing", action="store_true", help="ours computes blocks again for the gradient")
    scored = parts.add_parser("kang", parents=[common], help="accuracy on cell types left out")
    scored.add_argument("h5ad", type=Path, help="counts")
    scored.add_argument("--seconds", type=float, default=60, help="training, for each fold")
    scored.add_argument("--pert-key", default="condition")
    scored.add_argument("--control", default="ctrl")
    scored.add_argument("--cell-type-key", default="cell_type")
    scored.add_argument("--folds", help="comma-separated cell types to leave out; all by default")
    scored.add_argument("--lr", type=float, default=1e-4, help="that of tx train by default")
    scored.add_argument("--seed", type=int, default=0)
    scored.add_argument("--ours", type=Path, help="scores that leave_one_out.py --csv wrote")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        try:
            if arguments.part == "kang":
                table = kang(arguments, work)
                for path in arguments.out:
                    table.to_csv(path, index=False)
                return
            rows = list(speed(arguments, work))
        except RuntimeError:  # a worker stopped, and its log goes with the folder
            for log in sorted(work.glob("*.log")):
                sys.stderr.write(log.read_text()[-3000:])
            raise
    print("\n".join(line(row) for row in rows))
    for path in arguments.out:
        write(path, rows)


if __name__ == "__main__":
    main()
