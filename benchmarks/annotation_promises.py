"""What the confidence, the tree, the "unknown" and the shift of CellTypeClassifier are worth on cells it has not seen.

    python benchmarks/annotation_promises.py pbmc_symphony.h5ad:cell_type:batch \
        --tree '{"T": ["T_CD4", "T_CD8"], "Mono": ["Mono_CD14", "Mono_CD16"]}' --seeds 0 1 2
    python benchmarks/annotation_promises.py kang_muscat.h5ad:cell_type:replicate:condition=ctrl \
        --tree '{"T": ["CD4 T cells", "CD8 T cells"], "Mono": ["CD14+ Monocytes", "FCGR3A+ Monocytes"]}'

Data are named as for ``annotation.py``. Everything is the default, and nothing is chosen on a test cell.

promises
    Calibration error of the stated confidence; with ``max_error=0.05`` and the tree, the share of cells with a label of
    some level (and with a leaf), and errors among these, a label being right if the cell's own is below or above it;
    coverage and mean size of sets of labels of 95 %.
targets
    Gain in accuracy by the shift: on the whole test set, on targets of a single type, and on 10 to 100 cells of one to
    four types.
novelty
    Every type with 5 training and 5 test cells is left out of the training, the base's included. AUROC of its test
    cells against the known ones, and the share of them that is found with 5 % of the known ones rejected.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time

import numpy as np
import pandas as pd

import scstate_lora as ssl
from _annotation_data import FEW, Cells, Fold
from scstate_lora import metrics

COLUMN = "scstate_celltype"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--tree", type=json.loads, default={}, help="JSON: {coarse: [labels]}")
    parser.add_argument("--parts", nargs="+", default=["promises", "novelty"], choices=["promises", "novelty"])
    parser.add_argument("--strategy", default="frozen", help="of the models; the encoder is that of the compact base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    logging.getLogger("scstate_lora").setLevel(logging.ERROR)
    for part in options.parts:
        begun = time.perf_counter()
        rows = [
            row
            for fold in Cells.read(options.data).folds()
            for seed in options.seeds
            for row in {"promises": _promises, "novelty": _novelty}[part](fold, seed, options)
        ]
        table = pd.DataFrame(rows)
        print(f"\n## {part} ({time.perf_counter() - begun:.0f} s, load {os.getloadavg()[0]:.1f})")
        if part == "novelty":
            print(table.groupby("type")[["auroc", "found"]].mean().round(3).to_string())
            print("mean over folds and types:", table[["auroc", "found"]].mean().round(3).to_dict())
            continue
        kinds = table.pop("kind")
        shown = table[kinds == "promises"].dropna(axis=1, how="all")
        print(shown.round(3).to_string(index=False))
        print("mean:", shown.select_dtypes("number").drop(columns="seed").mean().round(4).to_dict())
        print("gain by the shift:")
        print(table[kinds != "promises"].groupby([kinds, "fold"])["gain"].describe().round(4).to_string())


def _model(fold: Fold, seed: int, options: argparse.Namespace, train: np.ndarray | None = None) -> tuple:
    cells = fold.train.copy() if train is None else fold.train[train].copy()
    present = set(cells.obs[fold.label_key].astype(str))
    below = {parent: [n for n in names if n in present] for parent, names in options.tree.items()}
    placed = {name for names in below.values() for name in names}
    tree = {**{p: names for p, names in below.items() if names}, **{n: None for n in present if n not in placed}}
    ssl.CellTypeClassifier.setup_anndata(
        cells, labels_key=fold.label_key, batch_key=fold.batch_key, label_tree=tree if options.tree else None
    )
    model = ssl.CellTypeClassifier(cells, seed=seed)
    model.train(options.strategy, progress_bar=False, logger=False, check_unknown=False)
    return model, model.targets[fold.label_key]


def _promises(fold: Fold, seed: int, options: argparse.Namespace):
    model, target = _model(fold, seed, options)
    plain, raw = (model.predict(fold.test, adapt=adapt, key_added=None) for adapt in (True, False))
    correct = plain[COLUMN].to_numpy() == fold.truth
    promised = model.predict(fold.test, max_error=0.05, sets=True, key_added=None)
    given, tree = promised[COLUMN].to_numpy(), target.tree
    labelled = given != "Unknown"
    known = np.isin(fold.truth, tree.names)
    wrong = np.ones(len(given), dtype=bool)  # of a type without training cells any label is
    both = known & labelled
    inside = (tree.members[tree.positions(given[both])] & tree.allowed(fold.truth[both])).any(axis=1)
    wrong[both] = ~inside
    sets = promised[f"{COLUMN}_set"].str.split("|")
    row = {"kind": "promises", "fold": fold.name, "seed": seed, "accuracy": correct.mean()}
    yield row | {
        "ece": metrics.expected_calibration_error(plain[f"{COLUMN}_confidence"].to_numpy(), correct),
        "labelled": labelled.mean(),
        "leaf": np.isin(given, target.classes).mean(),
        "errors": wrong[labelled].mean(),
        "coverage": np.mean([t in s for t, s in zip(fold.truth[known], sets[known], strict=True)]),
        "set_size": promised[f"{COLUMN}_set_size"].mean(),
    }
    gain = {"kind": "all cells", "fold": fold.name, "gain": correct.mean() - (raw[COLUMN] == fold.truth).mean()}
    yield gain
    yield from _targets(fold, seed, model)


def _targets(fold: Fold, seed: int, model: ssl.CellTypeClassifier):
    """Gain on small targets; the cells are computed once, and every target shifted on its own."""
    from scstate_lora.model.annotation.outputs import compute_outputs

    target = model.targets[fold.label_key]
    logits, _ = compute_outputs(model.registry, fold.test, model.base, model.network, model.targets)[target.key]
    names = np.array(target.classes)
    types = [t for t in names if np.sum(fold.truth == t) >= FEW]

    def gain(kind: str, cells: np.ndarray) -> dict:
        shifted, _ = target.shift(logits[cells], np.full(len(cells), "target"))
        before, after = (np.mean(names[z.argmax(axis=1)] == fold.truth[cells]) for z in (logits[cells], shifted))
        return {"kind": kind, "fold": fold.name, "gain": after - before}

    rng = np.random.default_rng(seed)
    for t in types:
        of_type = np.flatnonzero(fold.truth == t)
        yield gain("one type", of_type)
        for n in (10, 30, 100):
            if n <= len(of_type):
                yield gain("10-100 cells of one type", rng.choice(of_type, n, replace=False))
    for _ in range(100):
        n = int(rng.integers(10, 101))
        chosen = rng.choice(types, rng.integers(1, min(4, len(types)) + 1), replace=False)
        mix = rng.choice(chosen, n, p=rng.dirichlet(np.ones(len(chosen))))
        cells = np.concatenate([rng.choice(np.flatnonzero(fold.truth == t), np.sum(mix == t)) for t in chosen])
        yield gain("10-100 cells of 1-4 types", cells)


def _novelty(fold: Fold, seed: int, options: argparse.Namespace):
    for left in np.unique(fold.labels):
        if min(np.sum(fold.labels == left), np.sum(fold.truth == left)) < FEW:
            continue
        model, _ = _model(fold, seed, options, train=fold.labels != left)
        score = model.predict(fold.test, key_added=None)[f"{COLUMN}_unknown_score"].to_numpy()
        known = np.isin(fold.truth, model.labels)
        check = metrics.novelty_check(
            np.concatenate([score[known], score[fold.truth == left]]),
            np.repeat([False, True], [known.sum(), np.sum(fold.truth == left)]),
        )
        yield {"type": left, "fold": fold.name, "auroc": check.auroc, "found": check.found}


if __name__ == "__main__":
    main()
