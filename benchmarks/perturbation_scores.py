"""Time and memory of the scores of a predicted screen: ours beside cell-eval2 0.20, on one machine.

    python benchmarks/perturbation_scores.py --peers-python PATH/TO/python [--cells 100000] [--repeats 1]

``--peers-python`` has cell-eval2 0.20, and needs nothing of ours. A simulated screen, CSR float32 counts in two
``.h5ad`` files: 2,000 genes, 200 perturbations, a tenth of the cells controls, about 3,000 counts a cell. The
prediction is another draw with effects of half the size, with the measured controls. Ours is run twice: the functions
of cell-eval2's six scores, and the complete table of ``tl.evaluate_perturbation``: 29 metrics of the model, five
baselines that learn from a quarter of the measured perturbations under other names, and the replicate. Each runs in a
process of its own, from the files to the scores, without compilation (a run at a hundredth of the size goes before);
memory is the most that was resident. They take turns. The load that other work puts on the machine is printed beside:
numbers taken under load are of no use but for their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from _peers_worker import peak_memory

CONTROL = "non-targeting"
SIX = (
    "pds_cosine",
    "expr_mse_unbiased_capped_norm",
    "de_wilcoxon_direction_fidelity_yield_raw",
    "de_wilcoxon_direction_reach_raw",
    "de_wilcoxon_sig_jaccard",
    "de_wilcoxon_lfc_nmae",
)
DEPTH = 3000


def write_screen(folder: Path, n_cells: int, n_genes: int, n_perturbations: int) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    genes = [f"gene{i:05d}" for i in range(n_genes)]
    base = rng.gamma(0.4, 1, n_genes)
    effects = rng.normal(0, 0.5, (n_perturbations, n_genes)) * (rng.random((n_perturbations, n_genes)) < 0.1)
    label = np.concatenate([np.full(n_cells // 10, -1), np.arange(n_cells - n_cells // 10) % n_perturbations])
    names = np.array([*genes[:n_perturbations], CONTROL])
    paths, control = [], None
    for side, size in (("real", 1.0), ("pred", 0.5)):
        profiles = base * np.exp(size * np.concatenate([effects, np.zeros((1, n_genes))]))
        profiles /= profiles.sum(axis=1, keepdims=True)
        blocks = []
        for start in range(0, n_cells, 5000):
            rows = label[start : start + 5000]
            depth = DEPTH * rng.lognormal(0, 0.3, (len(rows), 1))
            blocks.append(sparse.csr_matrix(rng.poisson(depth * profiles[rows]).astype(np.float32)))
        counts = sparse.vstack(blocks, format="csr")
        control = counts[label < 0] if control is None else control
        cells = ad.AnnData(
            sparse.vstack([control, counts[label >= 0]], format="csr"),
            obs=pd.DataFrame({"target": names[label]}, index=[f"cell{i}" for i in range(n_cells)]),
            var=pd.DataFrame(index=genes),
        )
        paths.append(folder / f"{side}-{n_cells}.h5ad")
        cells.write_h5ad(paths[-1])
    return paths[1], paths[0]


def run_ours(pred_path: str, real_path: str) -> dict[str, object]:
    """Compute the six from the files, as the worker of the peers does."""
    from scstate_lora import metrics

    start = time.perf_counter()
    real, pred = ad.read_h5ad(real_path), ad.read_h5ad(pred_path)
    labels = [side.obs["target"].to_numpy().astype(str) for side in (pred, real)]
    names = sorted(set(labels[1]) - {CONTROL})
    control = real.X[labels[1] == CONTROL]
    targets = real.var_names.get_indexer(names)
    tables, profiles = [], []
    steps = {"read": time.perf_counter() - start}
    for side, label in zip((pred, real), labels, strict=True):
        counts, code = side.X[label != CONTROL], np.searchsorted(names, label[label != CONTROL])
        begin = time.perf_counter()
        tables.append(metrics.de_table(counts, code, control))
        steps["DE tables"] = steps.get("DE tables", 0) + time.perf_counter() - begin
        begin = time.perf_counter()
        profiles.append(metrics.count_profiles(counts, code))
        steps["profiles"] = steps.get("profiles", 0) + time.perf_counter() - begin
    base = metrics.count_profiles(control)
    scores = (metrics.direction_fidelity_yield, metrics.direction_reach, metrics.sig_jaccard, metrics.lfc_nmae)
    values = [
        metrics.pds_cosine(*(side.expression - base.expression for side in profiles), targets=targets).mean(),
        metrics.unbiased_errors(*profiles, base, targets=targets).normalized,
        *(np.nanmean(score(*tables, targets=targets)) for score in scores),
    ]
    return {"means": dict(zip(SIX, map(float, values), strict=True)), "seconds": time.perf_counter() - start} | {
        "steps": steps
    }


def run_table(pred_path: str, real_path: str) -> dict[str, object]:
    """Make the complete table from the files."""
    from scstate_lora import tl
    from scstate_lora.config import DataConfig
    from scstate_lora.data import Registry

    start = time.perf_counter()
    real, pred = ad.read_h5ad(real_path), ad.read_h5ad(pred_path)
    label = real.obs["target"].to_numpy().astype(str)
    names = sorted(set(label) - {CONTROL})
    quarter = names[: len(names) // 4]
    train = real[np.isin(label, quarter) | ((label == CONTROL) & (np.arange(len(label)) % 2 == 0))].copy()
    train.obs_names = [f"train_{name}" for name in train.obs_names]
    train.obs["target"] = [name if name == CONTROL else f"other_{name}" for name in train.obs["target"]]
    for cells in (real, train):
        Registry.create(cells, DataConfig(pert_key="target", control=CONTROL, context_keys=[])).write(cells)
    pred = pred[(pred.obs["target"] != CONTROL).to_numpy()].copy()
    steps = {"read": time.perf_counter() - start}
    table = tl.evaluate_perturbation(pred, real, real, context_key=[], train=train, pert_key="target")
    values = table[(table["model"] == "model") & (table["perturbation"] == "all")].set_index("metric")["value"]
    means = [float(values[name.removeprefix("de_wilcoxon_").removesuffix("_raw")]) for name in SIX]
    return {"means": dict(zip(SIX, means, strict=True)), "seconds": time.perf_counter() - start} | {"steps": steps}


def run(command: list[str | Path], out: Path) -> dict:
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main() -> None:
    own = {"--ours": run_ours, "--table": run_table}
    if sys.argv[1:2] and sys.argv[1] in own:
        result = own[sys.argv[1]](*sys.argv[2:4])
        result["memory_mb"] = peak_memory()
        Path(sys.argv[4]).write_text(json.dumps(result))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--perturbations", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        out, config = work / "out.json", work / "config.json"
        config.write_text(json.dumps({"metrics": list(SIX), "targets": None}))
        worker = Path(__file__).with_name("_peers_worker.py")
        results: dict[str, list[dict]] = {"ours": [], "ours, the complete table": [], "cell-eval2": []}
        shape = arguments.genes, arguments.perturbations
        for is_timed, n_cells in ((False, max(arguments.cells // 100, 1000)), (True, arguments.cells)):
            paths = write_screen(work, n_cells, *shape)
            for _ in range(arguments.repeats if is_timed else 1):
                load = os.getloadavg()[0]
                ours, table = (run([sys.executable, Path(__file__), mode, *paths, out], out) for mode in own)
                theirs = run([arguments.peers_python, worker, "cell-eval2", *paths, out, config], out)
                if is_timed:
                    results["ours"].append(ours)
                    results["ours, the complete table"].append(table)
                    results["cell-eval2"].append(theirs)
                    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in ours["steps"].items())
                    sys.stdout.write(f"load {load:.1f} before; ours: {steps}\n")
    for name, runs in results.items():
        seconds, memory = median(r["seconds"] for r in runs), max(r["memory_mb"] for r in runs)
        sys.stdout.write(f"{name}: {seconds:.1f} s, {memory / 1024:.2f} GB\n")
    for name in SIX:
        ours, table, theirs = (runs[-1]["means"][name] for runs in results.values())
        largest = max(abs(ours - theirs), abs(table - theirs))
        sys.stdout.write(f"{name}: {ours:.6f} {table:.6f} {theirs:.6f} {largest:.1e}\n")


if __name__ == "__main__":
    main()
