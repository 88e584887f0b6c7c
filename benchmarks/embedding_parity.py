"""`tl.evaluate(metrics="scib")` beside scib-metrics called directly: every metric that both have, on the same cells.

    python benchmarks/embedding_parity.py KANG.h5ad [--label cell_type] [--batch replicate]

Two embeddings of the counts in X: principal components, and the same with half of the mean of each batch taken out.
Neighbours for scib-metrics are those of scikit-learn, exact, each cell first. kBET is compared twice: as scib-metrics
computes it, with an approximate search for neighbours by diffusion, and with an exact one in its place. PCR comparison
is in float32 there and in float64 here, which shows in the sixth digit.
"""

from __future__ import annotations

import argparse
import sys
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.neighbors import NearestNeighbors

import scstate_lora as ssl
from scstate_lora.data import log_expression
from scstate_lora.metrics.components import sparse_pca


def nearest(x: np.ndarray, n_neighbors: int) -> NeighborsResults:
    """Exact neighbours, each cell the first of its own."""
    distances, rows = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(x).kneighbors(x)
    for i, row in enumerate(rows):  # equal cells may come before it
        at = np.flatnonzero(row == i)
        row[: at[0] + 1 if len(at) else n_neighbors] = np.concatenate([[i], row[: at[0] if len(at) else -1]])
    distances[:, 0] = 0
    return NeighborsResults(rows, distances.astype(np.float32))


def theirs(x: np.ndarray, before: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> dict[str, float]:
    """Call every metric of scib-metrics, with the neighbour counts of its Benchmarker."""
    all_nearest = nearest(x, 90)
    of = {n: NeighborsResults(all_nearest.indices[:, :n], all_nearest.distances[:, :n]) for n in (15, 50, 90)}
    clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(x, labels)
    kbet = scib_metrics.kbet_per_label(of[50], batches, labels)
    exact = NeighborsResults(of[50].indices, of[50].distances)
    with mock.patch.object(
        scib_metrics.nearest_neighbors, "pynndescent", lambda x, n_neighbors: nearest(x, n_neighbors)
    ):
        kbet_exact = scib_metrics.kbet_per_label(exact, batches, labels)
    return {
        "isolated_labels": scib_metrics.isolated_labels(x, labels, batches),
        "nmi_kmeans": clusters["nmi"],
        "ari_kmeans": clusters["ari"],
        "silhouette_label": scib_metrics.silhouette_label(x, labels),
        "clisi": scib_metrics.clisi_knn(of[90], labels),
        "bras": scib_metrics.bras(x, labels, batches),
        "ilisi": scib_metrics.ilisi_knn(of[90], batches),
        "kbet": kbet_exact,
        "kbet, approximate search": kbet,
        "graph_connectivity": scib_metrics.graph_connectivity(of[15], labels),
        "pcr_comparison": scib_metrics.pcr_comparison(before, x, batches, categorical=True),
        "silhouette_batch": scib_metrics.silhouette_batch(x, labels, batches),
    }


def main() -> None:
    """Print ours, theirs and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help=".h5ad with counts")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--batch", default="replicate")
    arguments = parser.parse_args()
    adata = ad.read_h5ad(arguments.data)
    ssl.setup_anndata(adata, covariate_keys=[arguments.batch], cell_type_key=arguments.label, batch_key=arguments.batch)
    expression = log_expression(adata)
    pca = sparse_pca(expression, 50, seed=0).transform(expression)  # what tl.evaluate compares with
    labels, batches = (adata.obs[key].to_numpy().astype(str) for key in (arguments.label, arguments.batch))
    mixed = pca.copy()
    for batch in np.unique(batches):
        mixed[batches == batch] -= pca[batches == batch].mean(axis=0) / 2
    adata.obsm["X_principal"], adata.obsm["X_mixed"] = pca, mixed
    table = ssl.tl.evaluate(adata, ["X_principal", "X_mixed"], metrics="scib")
    rows = []
    for key, x in (("X_principal", pca), ("X_mixed", mixed)):
        own = table[table["embedding"] == key].set_index("metric")["value"]
        for metric, value in theirs(x, pca, labels, batches).items():
            mine = own[metric.split(",")[0]]
            rows.append(
                {"embedding": key, "metric": metric, "ours": mine, "scib-metrics": float(value)}
                | {"difference": abs(mine - float(value))}
            )
    found = pd.DataFrame(rows)
    sys.stdout.write(found.to_string(index=False, float_format=lambda x: f"{x:.7g}") + "\n")


if __name__ == "__main__":
    main()
