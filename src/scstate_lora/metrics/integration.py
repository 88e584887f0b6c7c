"""The metrics of scIB: whether an embedding keeps cell types apart and mixes batches.

Values are those of scib-metrics :cite:p:`luecken2022`, and the neighbour counts, clusters and totals are those of its
Benchmarker. Its own functions compute what costs little time. Silhouettes and kBET's neighbours are computed here
in another way, to the same value.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scstate_lora.metrics.diffusion import kbet_per_label
from scstate_lora.metrics.neighbors import neighbor_graph
from scstate_lora.metrics.silhouette import batch_silhouette, cosine_silhouette_samples, silhouette_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

N_NEIGHBORS = {"lisi": 90, "kbet": 50, "connectivity": 15}
"""Neighbours of a cell, itself among them, that LISI, kBET and graph connectivity look at."""

BIO, BATCH = "bio_conservation", "batch_correction"
TOTAL = "scib_total"
WEIGHTS = {BIO: 0.6, BATCH: 0.4}
"""Weights of the two means in the total."""


@dataclass(frozen=True, eq=False)
class IntegratedCells:
    """Cells of an embedding, and what several metrics have in common: neighbours, silhouettes and clusters.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``, finite.
    labels
        Cell type of every cell, ``(n_cells,)``.
    batches
        Batch of every cell, ``(n_cells,)``.
    unintegrated
        Principal components of the same cells before integration, ``(n_cells, n_components)``.
    """

    x: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    unintegrated: np.ndarray

    @cached_property
    def label_codes(self) -> np.ndarray:
        """Number of every cell's type, by name."""
        return np.unique(self.labels.astype(str), return_inverse=True)[1]

    @cached_property
    def batch_codes(self) -> np.ndarray:
        """Number of every cell's batch, by name."""
        return np.unique(self.batches.astype(str), return_inverse=True)[1]

    @cached_property
    def neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances of the nearest cells, ``(n_cells, 90)``, as many as there are."""
        return neighbor_graph(self.x, min(max(N_NEIGHBORS.values()), len(self.x)))

    def nearest(self, metric: str) -> Any:
        """Return the neighbours that a metric looks at, as scib-metrics takes them."""
        from scib_metrics.nearest_neighbors import NeighborsResults

        n = N_NEIGHBORS[metric]
        if len(self.x) < n:
            msg = f"{n} neighbours are looked at, and there are {len(self.x)} cells"
            raise ValueError(msg)
        rows, distances = self.neighbors
        return NeighborsResults(rows[:, :n], distances[:, :n])

    @cached_property
    def silhouettes(self) -> np.ndarray:
        """Silhouette of every cell by type, scaled to 0 and 1, ``(n_cells,)``."""
        self.need_labels()
        return (silhouette_samples(self.x, self.label_codes) + 1) / 2

    @cached_property
    def agreement(self) -> tuple[float, float]:
        """NMI and ARI of k-means clusters, one for each type, with the types."""
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        self.need_labels()
        clusters = _kmeans(self.x, int(self.label_codes.max()) + 1)
        return (
            float(normalized_mutual_info_score(self.label_codes, clusters)),
            float(adjusted_rand_score(self.label_codes, clusters)),
        )

    def need_labels(self) -> None:
        """Raise a ValueError if all cells are of one type."""
        if not np.any(self.label_codes):
            msg = f"two cell types are needed; all {len(self.labels)} cells are {str(self.labels[0])!r}"
            raise ValueError(msg)

    def need_batches(self) -> None:
        """Raise a ValueError if all cells are of one batch."""
        if not np.any(self.batch_codes):
            msg = f"two batches are needed; all {len(self.batches)} cells are {str(self.batches[0])!r}"
            raise ValueError(msg)


def isolated_labels(cells: IntegratedCells) -> float:
    """Mean silhouette of the types that occur in the fewest batches, averaged over these types, 0 to 1.

    Parameters
    ----------
    cells
        The cells.
    """
    pairs = np.unique(np.column_stack([cells.label_codes, cells.batch_codes]), axis=0)
    n_batches = np.bincount(pairs[:, 0])
    rarest = np.flatnonzero(n_batches == n_batches.min())
    return float(np.mean([cells.silhouettes[cells.label_codes == label].mean() for label in rarest]))


def nmi_kmeans(cells: IntegratedCells) -> float:
    """Normalised mutual information of k-means clusters, one for each type, and types, 0 to 1.

    Parameters
    ----------
    cells
        The cells.
    """
    return cells.agreement[0]


def ari_kmeans(cells: IntegratedCells) -> float:
    """Rand index of k-means clusters and types, adjusted for chance: 0 is chance, 1 is the same groups.

    Parameters
    ----------
    cells
        The cells.
    """
    return cells.agreement[1]


def silhouette_label(cells: IntegratedCells) -> float:
    """Mean silhouette of the cells by type, 0 to 1.

    Parameters
    ----------
    cells
        The cells.
    """
    return float(cells.silhouettes.mean())


def clisi(cells: IntegratedCells) -> float:
    """Median LISI of types among neighbours, scaled: 1 if all neighbours are of one type, 0 if all types are mixed.

    Parameters
    ----------
    cells
        The cells.
    """
    from scib_metrics import clisi_knn

    cells.need_labels()
    return float(clisi_knn(cells.nearest("lisi"), cells.label_codes))


def silhouette_batch(cells: IntegratedCells) -> float:
    """1 minus the absolute silhouette of batches within types, as scIB has it.

    Parameters
    ----------
    cells
        The cells.
    """
    cells.need_batches()
    return batch_silhouette(cells.x, cells.label_codes, cells.batch_codes)


def bras(cells: IntegratedCells) -> float:
    """Batch silhouette by cosine distance to the mean of all other batches, BRAS :cite:p:`rautenstrauch2025`.

    Parameters
    ----------
    cells
        The cells.
    """
    cells.need_batches()
    return batch_silhouette(cells.x, cells.label_codes, cells.batch_codes, samples=cosine_silhouette_samples)


def ilisi(cells: IntegratedCells) -> float:
    """Median LISI of batches among neighbours, scaled: 1 if all batches are mixed, 0 if neighbours are of one batch.

    Parameters
    ----------
    cells
        The cells.
    """
    from scib_metrics import ilisi_knn

    cells.need_batches()
    return float(ilisi_knn(cells.nearest("lisi"), cells.batch_codes))


def kbet(cells: IntegratedCells) -> float:
    """Share of neighbourhoods within types that have the batches of their type, by :func:`kbet_per_label`.

    Parameters
    ----------
    cells
        The cells.
    """
    cells.need_batches()
    return kbet_per_label(cells.nearest("kbet").knn_graph_connectivities.tocsr(), cells.label_codes, cells.batch_codes)


def graph_connectivity(cells: IntegratedCells) -> float:
    """Share of a type's cells that neighbours connect to each other, averaged over types.

    Parameters
    ----------
    cells
        The cells.
    """
    from scib_metrics import graph_connectivity as connectivity

    return float(connectivity(cells.nearest("connectivity"), cells.label_codes))


def pcr_comparison(cells: IntegratedCells) -> float:
    """Share of the variance between batches that integration removed: 1 all of it, 0 none, or more than before.

    Parameters
    ----------
    cells
        The cells.
    """
    from scib_metrics import pcr_comparison as comparison

    cells.need_batches()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PCR comparison score is negative", UserWarning)
        value = float(comparison(cells.unintegrated, cells.x, cells.batch_codes, categorical=True))
    if not np.isfinite(value):
        msg = "batches explain no variance before integration"
        raise ValueError(msg)
    return value


class IntegrationMetric(NamedTuple):
    """A metric and the mean that it enters, if any."""

    score: Callable[[IntegratedCells], float]
    part_of: str | None
    is_of_batches: bool = True


INTEGRATION: dict[str, IntegrationMetric] = {
    "isolated_labels": IntegrationMetric(isolated_labels, BIO, is_of_batches=False),
    "nmi_kmeans": IntegrationMetric(nmi_kmeans, BIO, is_of_batches=False),
    "ari_kmeans": IntegrationMetric(ari_kmeans, BIO, is_of_batches=False),
    "silhouette_label": IntegrationMetric(silhouette_label, BIO, is_of_batches=False),
    "clisi": IntegrationMetric(clisi, BIO, is_of_batches=False),
    "bras": IntegrationMetric(bras, BATCH),
    "ilisi": IntegrationMetric(ilisi, BATCH),
    "kbet": IntegrationMetric(kbet, BATCH),
    "graph_connectivity": IntegrationMetric(graph_connectivity, BATCH),
    "pcr_comparison": IntegrationMetric(pcr_comparison, BATCH),
    "silhouette_batch": IntegrationMetric(silhouette_batch, None),
}
"""All metrics by name, in the order of the table."""


def total_scores(values: Mapping[str, float]) -> dict[str, float]:
    """Average the metrics of an embedding as scIB does: 0.6 x types kept + 0.4 x batches mixed.

    Raw values are averaged. scIB rescales every metric by the best and the worst of the embeddings that are compared;
    a total would then change with the company that an embedding keeps.

    Parameters
    ----------
    values
        Values by name of the metric; NaN counts as not computed.

    Returns
    -------
    The two means and the total by name; NaN where one of their metrics has no value.
    """
    means = {
        part: float(
            np.mean([values.get(name, np.nan) for name, metric in INTEGRATION.items() if metric.part_of == part])
        )
        for part in WEIGHTS
    }
    return means | {TOTAL: sum(WEIGHTS[part] * mean for part, mean in means.items())}


def _kmeans(x: np.ndarray, n_clusters: int) -> np.ndarray:
    """Cluster as scib-metrics does, ``(n_cells,)``.

    Its k-means goes on for 300 rounds even when nothing changes any more. Here it stops at its own tolerance, and
    rounds from there on end when no cell changes its cluster.
    """
    from scib_metrics.utils import KMeans

    fitted = KMeans(n_clusters, max_iter=1)
    fitted.fit(np.array(x, dtype=np.float32))  # a copy: it is changed in place
    clusters, centers = fitted.labels_, np.asarray(fitted.cluster_centroids_, dtype=np.float64)
    for _ in range(300):
        sizes = np.bincount(clusters, minlength=n_clusters)
        sums = np.stack([np.bincount(clusters, weights=column, minlength=n_clusters) for column in x.T], axis=1)
        centers = sums / np.maximum(sizes, 1)[:, None]
        changed = np.argmin((centers**2).sum(axis=1) - 2 * x @ centers.T, axis=1)
        if np.array_equal(changed, clusters):
            break
        clusters = changed
    return clusters
