"""RNA velocity of simulated cells beside the truth, and of a developing tissue beside the order of its cell types.

    python benchmarks/velocity.py
    python benchmarks/velocity.py --data pancreas_velocity.h5ad --course "Ngn3 high EP" "Pre-endocrine" Beta

Simulated: median over cells of the cosine between computed and true velocity, in genes with a fit (as it is, and with
the mean over cells taken off) and projected to a PCA of 50; beside it that of shuffled cells, and of an oracle, which
knows every gene's rates and has the same noisy counts, with moments over the same number of neighbours.

Real: for every step of a course, over the cells of the first type, the cosine of projected velocity and the way to the
second type's centre; and where a random walk by the transition probabilities leads, as the mean change of the place on
the course, beside that of a walk over the same cells at random.
"""

from __future__ import annotations

import argparse
import logging
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

import scstate_lora as ssl
from scstate_lora.pp import scvelo_steps

PCA = "X_pca"


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of every row, ``(n_cells,)``; NaN for a row without length."""
    with np.errstate(invalid="ignore"):
        return (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))


def add_pca(adata: AnnData, n_top_genes: int | None) -> np.ndarray:
    """Write a PCA of log1p expression to `adata`; return the loadings, ``(n_genes, 50)``, zero for genes not used."""
    logged = AnnData(adata.layers["spliced"].copy(), var=adata.var[[]])
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    if n_top_genes is not None:
        sc.pp.highly_variable_genes(logged, n_top_genes=n_top_genes)
    sc.pp.pca(logged, n_comps=50)
    adata.obsm[PCA] = logged.obsm[PCA]
    return logged.varm["PCs"]


def oracle(adata: AnnData, n_neighbors: int) -> np.ndarray:
    """Velocity by the true rates from noisy counts averaged over neighbours, ``(n_cells, n_genes)``."""
    work = scvelo_steps.working_copy(
        adata.layers["spliced"], adata.layers["unspliced"], adata.obs_names, adata.var_names
    )
    index = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(adata.obsm[PCA])
    mean = index.kneighbors_graph(adata.obsm[PCA]) / n_neighbors
    spliced, unspliced = ((mean @ work.layers[name]).toarray() for name in ("spliced", "unspliced"))
    return unspliced * adata.var["true_beta"].to_numpy() - spliced * adata.var["true_gamma"].to_numpy()


def simulated(n_cells: int, depth: float, modes: list[str], n_neighbors: int, seed: int) -> pd.DataFrame:
    adata = ssl.datasets.wound_healing(n_cells, depth=depth, seed=seed)
    loadings = add_pca(adata, None)
    truth = adata.layers["velocity"]
    # The velocity of log1p(s), s the expected counts per 10,000, turns into that of the components by their loadings.
    truth_pca = truth / np.exp(adata.layers["mean"]) @ loadings
    order = np.random.default_rng(seed).permutation(n_cells)
    rows = []

    def score(name: str, genes: np.ndarray, projected: np.ndarray | None, seconds: float) -> None:
        fitted = np.isfinite(genes).all(axis=0)
        x, y = genes[:, fitted], truth[:, fitted]
        row = {"mode": name, "fitted": fitted.mean(), "seconds": seconds}
        for label, reference, reference_pca in (("", y, truth_pca), (" (shuffled)", y[order], truth_pca[order])):
            row[f"genes{label}"] = np.nanmedian(cosines(x, reference))
            row[f"centred{label}"] = np.nanmedian(cosines(x - x.mean(0), reference - reference.mean(0)))
            if projected is not None:
                row[f"PCA{label}"] = np.nanmedian(cosines(projected, reference_pca))
        rows.append(row)

    score("oracle", oracle(adata, n_neighbors), None, np.nan)
    ssl.pp.velocity(adata, key_added="velocity", basis=PCA, n_neighbors=n_neighbors)
    score("truth, projected", truth, adata.obsm[f"velocity_{PCA}"], np.nan)
    for mode in modes:
        start = time.perf_counter()
        ssl.pp.velocity(adata, mode=mode, key_added=mode, basis=PCA, n_neighbors=n_neighbors)
        score(mode, adata.layers[mode], adata.obsm[f"{mode}_{PCA}"], time.perf_counter() - start)
    return pd.DataFrame(rows)


def transition_matrix(adata: AnnData, key: str, n_neighbors: int) -> sparse.csr_matrix:
    """Transition probabilities of velocities in a layer, among the cells in which a walk may go."""
    used = np.isfinite(adata.layers[key]).all(axis=0)
    work = scvelo_steps.working_copy(
        adata.layers["spliced"], adata.layers["unspliced"], adata.obs_names, adata.var_names
    )[:, used].copy()
    scvelo_steps.add_neighbors(work, space=adata.obsm[PCA][:, :30], n_pcs=30, n_neighbors=n_neighbors, seed=0)
    matrix = scvelo_steps.transitions(work, adata.layers[key][:, used], n_jobs=1)[1]
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix)


def real(
    path: str, label: str, courses: list[list[str]], modes: list[str], n_neighbors: int, n_steps: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    adata = sc.read_h5ad(path)
    add_pca(adata, 2000)
    types = adata.obs[label].astype(str).to_numpy()
    unknown = {name for course in courses for name in course} - set(types)
    if unknown:
        msg = f"{path}: adata.obs[{label!r}] has no {sorted(unknown)}; it has {sorted(set(types))}."
        raise SystemExit(msg)
    steps, walks = [], []
    for mode in modes:
        start = time.perf_counter()
        ssl.pp.velocity(adata, mode=mode, key_added=mode, basis=PCA, n_neighbors=n_neighbors)
        print(f"{mode}: {time.perf_counter() - start:.1f} s", flush=True)
        place, projected = adata.obsm[PCA], adata.obsm[f"{mode}_{PCA}"]
        matrix = transition_matrix(adata, mode, n_neighbors)
        at_random = matrix.copy()
        at_random.data[:] = np.repeat(1 / np.diff(matrix.indptr), np.diff(matrix.indptr))
        for course in courses:
            for one, two in pairwise(course):
                way = place[types == two].mean(0) - place[types == one].mean(0)
                found = cosines(projected[types == one], way[None])
                # Velocities of other cells of the same type, and thus of the same number.
                shuffled = cosines(np.random.default_rng(0).permutation(projected)[types == one], way[None])
                steps.append(
                    {
                        "mode": mode,
                        "step": f"{one} -> {two}",
                        "median cosine": np.nanmedian(found),
                        "share above 0": (found > 0).mean(),
                        "shuffled": np.nanmedian(shuffled),
                    }
                )
            rank = {name: i for i, name in enumerate(course)}
            on = np.isin(types, course)
            stage = np.array([rank.get(name, 0) for name in types], dtype=float)
            row = {"mode": mode, "course": " -> ".join(course)}
            for name, walk in (("velocity", matrix), ("at random", at_random)):
                inside = walk[on][:, on]
                totals = np.asarray(inside.sum(axis=1)).ravel()
                inside = sparse.diags(np.divide(1, totals, out=np.zeros(len(totals)), where=totals > 0)) @ inside
                after = stage[on]
                for _ in range(n_steps):  # the expected stage after the steps, given the cell at the start
                    after = inside @ after
                row[f"change of stage, {name}"] = (after - stage[on]).mean()
            walks.append(row)
    return pd.DataFrame(steps), pd.DataFrame(walks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="H5AD", help="cells with layers spliced and unspliced")
    parser.add_argument("--label", default="clusters", help="column of cell types")
    parser.add_argument("--course", nargs="+", action="append", default=[], help="cell types in order; repeatable")
    parser.add_argument("--modes", nargs="+", default=["deterministic", "stochastic"])
    parser.add_argument("--n-cells", type=int, default=1000)
    parser.add_argument("--depth", type=float, default=2000)
    parser.add_argument("--n-neighbors", type=int, default=30)
    parser.add_argument("--n-steps", type=int, default=5, help="of the random walk")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    pd.set_option("display.width", 200, "display.max_columns", 20, "display.precision", 3)
    if args.data is None:
        print(simulated(args.n_cells, args.depth, args.modes, args.n_neighbors, args.seed).to_string(index=False))
        return
    for table in real(args.data, args.label, args.course, args.modes, args.n_neighbors, args.n_steps):
        print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
