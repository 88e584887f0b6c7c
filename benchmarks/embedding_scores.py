"""`tl.evaluate(metrics="all")` against the Benchmarker of scib-metrics: seconds, memory and values on simulated cells.

python benchmarks/embedding_scores.py [--cells 100000] [--dims 50] [--embeddings 5] [--benchmarker-embeddings 1]

One of the embeddings is the PCA of the counts; the others hold cell types and batches to different degrees. Each side
runs in a process of its own on the same file. The Benchmarker computes its full default set with neighbours on all
cores; BLAS has one thread in its process, which is its best setting: ARPACK inside kBET is several times slower with
more. Ours scores held-out neighbours and a probe of the batch besides. With fewer embeddings than ours
(`--benchmarker-embeddings`), times are compared per embedding. 0 leaves the Benchmarker out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

_N_GENES, _N_TYPES, _N_BATCHES = 200, 12, 6
_NAMES = {
    "isolated_labels": "isolated_labels",
    "nmi_kmeans": "nmi_ari_cluster_labels_kmeans_nmi",
    "ari_kmeans": "nmi_ari_cluster_labels_kmeans_ari",
    "silhouette_label": "silhouette_label",
    "clisi": "clisi_knn",
    "bras": "bras",
    "ilisi": "ilisi_knn",
    "kbet": "kbet_per_label",
    "graph_connectivity": "graph_connectivity",
    "pcr_comparison": "pcr_comparison",
}


def _simulated(n_cells: int, n_dims: int, n_embeddings: int) -> ad.AnnData:
    rng = np.random.default_rng(0)
    sizes = 1 / np.arange(1, _N_TYPES + 1)
    types = rng.choice(_N_TYPES, n_cells, p=sizes / sizes.sum())
    batches = rng.choice(_N_BATCHES, n_cells)
    batches[(types == _N_TYPES - 1) & (batches > 2)] = 0  # an isolated type
    of_type, of_batch = rng.normal(0, 0.6, (_N_TYPES, _N_GENES)), rng.normal(0, 0.2, (_N_BATCHES, _N_GENES))
    counts = rng.poisson(np.exp(of_type[types] + of_batch[batches] - 0.5)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": [f"type{i}" for i in types], "batch": [f"batch{i}" for i in batches]},
        index=[f"cell{i}" for i in range(n_cells)],
    ).astype("category")
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(_N_GENES)]))
    for i in range(n_embeddings - 1):
        centers = rng.normal(0, 0.5 + 0.25 * i, (_N_TYPES, n_dims))
        offsets = rng.normal(0, 0.4 - 0.1 * i, (_N_BATCHES, n_dims))
        x = centers[types] + offsets[batches] + rng.normal(size=(n_cells, n_dims))
        adata.obsm[f"X_{i}"] = x.astype(np.float32)
    return adata


def _ours(path: Path, names: list[str]) -> dict[str, dict[str, float]]:
    import scstate_lora as ssl

    adata = ad.read_h5ad(path)
    ssl.setup_anndata(adata, covariate_keys="batch", batch_key="batch", cell_type_key="cell_type")
    table = ssl.tl.evaluate(adata, [name for name in names if name != "PCA"], metrics="all")
    for row in table[table["reason"] != ""].itertuples():
        print(f"  {row.embedding} {row.metric}: {row.reason}")
    return {str(name): dict(zip(t["metric"], t["value"], strict=True)) for name, t in table.groupby("embedding")}


def _benchmarker(path: Path, names: list[str]) -> dict[str, dict[str, float]]:
    import scib_metrics.nearest_neighbors as nearest
    from scib_metrics.benchmark import Benchmarker

    adata = ad.read_h5ad(path)
    adata.obsm["PCA"] = np.load(path.with_suffix(".npy"))
    n_jobs = os.cpu_count() or 1
    benchmarker = Benchmarker(
        adata, "batch", "cell_type", names, pre_integrated_embedding_obsm_key="PCA", n_jobs=n_jobs, progress_bar=False
    )
    benchmarker.prepare(lambda x, n: nearest.pynndescent(x, n, random_state=0, n_jobs=n_jobs))
    benchmarker.benchmark()
    results = benchmarker.get_results(clean_names=False)
    return {
        name: {ours: float(results.loc[name, theirs]) for ours, theirs in _NAMES.items() if theirs in results}
        for name in names
    }


def _save_pca(path: Path) -> None:
    """Write the PCA that ours makes itself, for the other side."""
    import scstate_lora as ssl
    from scstate_lora.tl.embedded import embedding_matrices

    adata = ad.read_h5ad(path)
    ssl.setup_anndata(adata, batch_key="batch", cell_type_key="cell_type")
    np.save(path.with_suffix(".npy"), embedding_matrices(adata, [], n_pcs=50, seed=0)["PCA"])


_SIDES = {"tl.evaluate": _ours, "Benchmarker": _benchmarker}


def _work(side: str, path: Path, names: list[str]) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    values = _SIDES[side](path, names)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GB, of kilobytes on Linux
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "values": values}))


def _run(side: str, path: Path, names: list[str]) -> dict:
    environment = dict(os.environ)
    if side == "Benchmarker":
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", side, "--path", str(path), "--names", *names]
    lines = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    result = json.loads(lines[-1])
    each = result["seconds"] / len(names)
    load = os.getloadavg()[0]
    print("\n".join(line for line in lines[:-1] if line.startswith("  ")))
    print(
        f"{side}: {len(names)} embeddings in {result['seconds']:.0f} s ({result['cpu']:.0f} CPU s, {each:.0f} s each), "
        f"peak {result['peak']:.2f} GB, load {load:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=50)
    parser.add_argument("--embeddings", type=int, default=5)
    parser.add_argument("--benchmarker-embeddings", type=int, default=1)
    parser.add_argument("--work", choices=_SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        _work(args.work, args.path, args.names)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        adata = _simulated(args.cells, args.dims, args.embeddings)
        adata.write_h5ad(path)
        names = [*adata.obsm, "PCA"]
        print(f"{adata.n_obs} cells, {_N_TYPES} types, {_N_BATCHES} batches, embeddings {', '.join(names)}", flush=True)
        ours = _run("tl.evaluate", path, names)
        if not args.benchmarker_embeddings:
            return
        _save_pca(path)
        theirs = _run("Benchmarker", path, names[: args.benchmarker_embeddings])
    for name, values in theirs["values"].items():
        for metric, value in values.items():
            mine = ours["values"][name][metric]
            print(f"  {name} {metric}: {mine:.6f}, Benchmarker {value:.6f}, difference {abs(mine - value):.1e}")
    ratio = theirs["seconds"] / len(theirs["values"]) / (ours["seconds"] / len(ours["values"]))
    print(f"Benchmarker takes {ratio:.1f} times as long per embedding.")


if __name__ == "__main__":
    main()
