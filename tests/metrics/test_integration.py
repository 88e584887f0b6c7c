from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import silhouette_samples as sklearn_silhouettes

from scstate_lora.metrics import silhouette as silhouette_module
from scstate_lora.metrics.diffusion import kbet_per_label
from scstate_lora.metrics.integration import BATCH, BIO, INTEGRATION, TOTAL, IntegratedCells, total_scores
from scstate_lora.metrics.neighbors import neighbor_graph
from scstate_lora.metrics.silhouette import (
    batch_silhouette,
    cosine_silhouette_samples,
    distance_sums,
    silhouette_samples,
)


def _cells(*, n=400, n_dims=12, seed=0, shift=0.0):
    """Three types in three batches, each batch displaced; the third type is in two batches only."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    batches = rng.choice(3, n)
    batches[(labels == 2) & (batches == 2)] = 0
    centers, offsets = rng.normal(size=(3, n_dims)) * 0.8, rng.normal(size=(3, n_dims)) * 0.3
    x = (centers[labels] + offsets[batches] + rng.normal(size=(n, n_dims)) + shift).astype(np.float32)
    before = np.column_stack([x, offsets[batches] * 3]).astype(np.float32)
    return IntegratedCells(x, np.array(["B", "NK", "T"])[labels], np.array(["b0", "b1", "b2"])[batches], before)


def _by_scib(cells: IntegratedCells) -> dict[str, float]:
    """Every metric by scib-metrics' own function, on the same neighbours."""
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

    rows, distances = cells.neighbors
    nearest = {n: NeighborsResults(rows[:, :n], distances[:, :n]) for n in (15, 50, 90)}
    x, labels, batches = cells.x, cells.labels, cells.batches
    clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(x, labels)
    scores = {
        "isolated_labels": scib_metrics.isolated_labels(x, labels, batches),
        "nmi_kmeans": clusters["nmi"],
        "ari_kmeans": clusters["ari"],
        "silhouette_label": scib_metrics.silhouette_label(x, labels),
        "clisi": scib_metrics.clisi_knn(nearest[90], labels),
        "ilisi": scib_metrics.ilisi_knn(nearest[90], batches),
        "graph_connectivity": scib_metrics.graph_connectivity(nearest[15], labels),
        "pcr_comparison": scib_metrics.pcr_comparison(cells.unintegrated, x, batches, categorical=True),
        "silhouette_batch": scib_metrics.silhouette_batch(x, labels, batches),
    }
    if hasattr(scib_metrics, "bras"):  # from 0.5.5 on
        scores["bras"] = scib_metrics.bras(x, labels, batches)
    return scores


def test_scores_equal_those_of_scib_metrics():
    cells = _cells(n=250)
    for name, expected in _by_scib(cells).items():
        assert INTEGRATION[name].score(cells) == pytest.approx(float(expected), abs=1e-6), name


@pytest.mark.slow  # umap and pynndescent compile themselves
def test_kbet_equals_that_of_scib_metrics():
    import scib_metrics

    cells = _cells(n=600)
    expected = scib_metrics.kbet_per_label(cells.nearest("kbet"), cells.batches, cells.labels)
    assert 0.05 < expected < 0.95
    assert INTEGRATION["kbet"].score(cells) == pytest.approx(float(expected), abs=1e-6)


def test_kbet_equals_that_of_scib_metrics_on_exact_neighbors(monkeypatch):
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

    cells = _cells(n=300)
    rows, distances = cells.neighbors
    graph = sparse.csr_matrix(
        (np.exp(-distances[:, 1:20]).ravel(), rows[:, 1:20].ravel(), np.arange(0, 19 * 300 + 1, 19)), shape=(300, 300)
    )
    graph = graph.maximum(graph.T).astype(np.float32)
    monkeypatch.setattr(
        scib_metrics.nearest_neighbors,
        "pynndescent",
        lambda x, n_neighbors: NeighborsResults(*neighbor_graph(x, n_neighbors)),
    )
    known = NeighborsResults(rows, distances)
    known.__dict__["knn_graph_connectivities"] = graph
    expected = scib_metrics.kbet_per_label(known, cells.batches, cells.labels)
    assert 0.05 < expected < 0.95
    found = kbet_per_label(graph, cells.label_codes, cells.batch_codes)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_kbet_of_a_type_in_pieces_is_zero_and_of_small_types_not_computed():
    pieces = sparse.block_diag([np.ones((4, 4))] * 10).tocsr()
    batches = np.arange(40) % 2
    assert kbet_per_label(pieces, np.zeros(40, dtype=int), batches) == 0.0
    with pytest.raises(ValueError, match="no cell type has 10 cells of two batches"):
        kbet_per_label(pieces, np.arange(40) // 4, batches)


@pytest.mark.parametrize("tile", [7, 768])
def test_silhouettes_equal_those_of_sklearn_far_from_zero(monkeypatch, tile):
    monkeypatch.setattr(silhouette_module, "_TILE", tile)
    cells = _cells(shift=100.0)
    expected = sklearn_silhouettes(cells.x.astype(np.float64), cells.labels)
    assert silhouette_samples(cells.x, cells.label_codes) == pytest.approx(expected, abs=1e-4)
    assert silhouette_samples(cells.x, cells.label_codes).mean() == pytest.approx(expected.mean(), abs=1e-6)


def test_distances_within_a_tight_group_keep_their_digits():
    rng = np.random.default_rng(0)
    x = np.concatenate([1000 + 1e-2 * rng.normal(size=(50, 3)), rng.normal(size=(50, 3))]).astype(np.float32)
    sums = distance_sums(x, np.repeat([0, 1], 50))
    exact = np.linalg.norm(x[:50, None].astype(float) - x[None, :50], axis=-1).sum(axis=1)
    assert sums[:50, 0] == pytest.approx(exact, rel=1e-4)


def test_silhouette_of_a_lone_cell_is_zero_and_of_one_group_raises():
    x = np.random.default_rng(0).normal(size=(6, 2))
    assert silhouette_samples(x, np.array([0, 1, 1, 1, 1, 1]))[0] == 0
    assert cosine_silhouette_samples(x, np.array([0, 1, 1, 1, 1, 1]))[0] == 0
    for samples in (silhouette_samples, cosine_silhouette_samples):
        with pytest.raises(ValueError, match="two groups"):
            samples(x, np.zeros(6, dtype=int))


def test_cosine_silhouette_of_a_cell_at_zero_raises():
    x = np.ones((4, 2))
    x[2] = 0
    with pytest.raises(ValueError, match="0 in all dimensions for 1 cells"):
        cosine_silhouette_samples(x, np.array([0, 0, 1, 1]))


def test_batch_silhouette_of_types_in_one_batch_raises():
    with pytest.raises(ValueError, match="no cell type has cells of two batches"):
        batch_silhouette(np.ones((4, 2)), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))


def test_metrics_of_one_batch_or_one_type_say_what_is_needed():
    cells = _cells(n=120)
    one_batch = IntegratedCells(cells.x, cells.labels, np.full(120, "only"), cells.unintegrated)
    for name in ("bras", "ilisi", "kbet", "pcr_comparison", "silhouette_batch"):
        with pytest.raises(ValueError, match="two batches are needed; all 120 cells are 'only'"):
            INTEGRATION[name].score(one_batch)
    assert 0 < INTEGRATION["isolated_labels"].score(one_batch) < 1
    one_type = IntegratedCells(cells.x, np.full(120, "B"), cells.batches, cells.unintegrated)
    for name in ("isolated_labels", "nmi_kmeans", "ari_kmeans", "silhouette_label", "clisi"):
        with pytest.raises(ValueError, match="two cell types are needed; all 120 cells are 'B'"):
            INTEGRATION[name].score(one_type)
    assert 0 < INTEGRATION["graph_connectivity"].score(one_type) <= 1


def test_fewer_cells_than_neighbors_raises():
    with pytest.raises(ValueError, match="90 neighbours are looked at, and there are 60 cells"):
        INTEGRATION["clisi"].score(_cells(n=60))


def test_pcr_comparison_is_never_negative_and_warns_of_nothing():
    cells = _cells()
    swapped = IntegratedCells(cells.unintegrated, cells.labels, cells.batches, cells.x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert INTEGRATION["pcr_comparison"].score(swapped) == 0.0
    assert INTEGRATION["pcr_comparison"].score(cells) > 0.1


def test_totals_are_weighted_as_scib_does():
    values = {name: float(metric.part_of == BIO) for name, metric in INTEGRATION.items()}
    assert total_scores(values) == {BIO: 1.0, BATCH: 0.0, TOTAL: pytest.approx(0.6)}
    values |= {"bras": 1.0, "silhouette_batch": 1.0}  # the latter does not count
    assert total_scores(values) == {BIO: 1.0, BATCH: pytest.approx(0.2), TOTAL: pytest.approx(0.68)}
    assert np.isnan(total_scores(values | {"kbet": np.nan})[TOTAL])


def test_neighbor_graph_has_every_cell_first_even_among_equal_cells():
    x = np.repeat(np.random.default_rng(0).normal(size=(5, 3)), 8, axis=0)
    rows, distances = neighbor_graph(x, 4)
    assert (rows[:, 0] == np.arange(40)).all()
    assert (distances[:, 0] == 0).all()
    assert all(len(set(row)) == 4 for row in rows)
    assert (np.diff(distances, axis=1) >= -1e-6).all()
