"""Cells as counts again, and what they are tested against."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora import metrics
from scstate_lora.data.matrix import log_normalize
from scstate_lora.metrics.de_tables import DEReference
from scstate_lora.metrics.profiles import profile_of
from scstate_lora.tl.scoring.count_sides import CountReference, dense_counts, sparse_counts


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Whole numbers from 0 to tens of thousands; not to be changed."""
    rng = np.random.default_rng(0)
    return rng.poisson(rng.lognormal(1, 2.5, size=(40, 60))).astype(np.float32)


def test_counts_come_back_from_their_logs(counts):
    totals = counts.sum(axis=1, dtype=np.float64)
    logged = log_normalize(sparse.csr_matrix(counts), "counts", totals)
    np.testing.assert_array_equal(dense_counts(logged.toarray(), totals / 1e4), counts)
    np.testing.assert_array_equal(sparse_counts(logged, totals / 1e4).toarray(), counts)
    np.testing.assert_allclose(
        dense_counts(logged.toarray(), None), counts / totals[:, None] * 1e4, rtol=1e-4, atol=1e-5
    )


def test_one_profile_stays_one(counts):
    logged = np.log1p(counts[0])
    same = dense_counts(np.broadcast_to(logged, (30, 60)), None)
    assert same.strides[0] == 0
    np.testing.assert_allclose(same[7], counts[0], rtol=1e-5)
    assert profile_of(same).noise == 0
    np.testing.assert_allclose(profile_of(same).expression, profile_of(np.ascontiguousarray(same)).expression)
    assert profile_of(np.ascontiguousarray(same)).noise == pytest.approx(0, abs=1e-9)


def test_a_dense_set_has_the_profile_and_the_table_of_a_sparse_one(counts):
    one, rest = counts[:15], counts[15:]
    whole = metrics.count_profiles(sparse.csr_matrix(one))
    np.testing.assert_allclose(profile_of(one).expression, whole.expression, rtol=1e-12)
    np.testing.assert_allclose(profile_of(one).noise, whole.noise, rtol=1e-9)
    table = metrics.de_table(one, [0] * 15, rest)
    for ours, expected in zip(DEReference.of(rest).table(one), table, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_two_halves_test_the_genes_that_both_express(counts):
    one, rest = counts[:20].copy(), counts[20:].copy()
    one[:, 3], rest[:, 5] = 0, 0
    pair = CountReference.of(sparse.csr_matrix(one)).common(CountReference.of(sparse.csr_matrix(rest)))
    tables = [reference.side(counts[:10]).table for reference in pair]
    assert not {3, 5} & set(tables[0].genes)
    np.testing.assert_array_equal(tables[0].genes, tables[1].genes)
    kept = [i for i in range(60) if i in tables[0].genes]
    whole = metrics.de_table(counts[:10], [0] * 10, one)
    np.testing.assert_array_equal(tables[0].p_value[0], whole.p_value[0][np.isin(whole.genes, kept)])


def test_controls_without_counts_cannot_test():
    empty = CountReference.of(sparse.csr_matrix((4, 6), dtype=np.float32))
    assert "No gene has a mean above 5" in empty.few
    assert empty.side(np.ones((3, 6), dtype=np.float32)).table is None
    full = CountReference.of(sparse.csr_matrix(np.ones((4, 6), dtype=np.float32)))
    assert all("No gene has a mean above 5" in side.few for side in full.common(empty))
    left, right = np.tile([[5.0, 0.0]], (3, 1)), np.tile([[0.0, 5.0]], (3, 1))
    apart = CountReference.of(sparse.csr_matrix(left)).common(CountReference.of(sparse.csr_matrix(right)))
    assert apart[0].few == "no gene is expressed in both halves of the control cells"


def test_only_as_many_cells_are_tested_as_asked(counts):
    reference = CountReference.of(sparse.csr_matrix(counts))
    drawn = reference.side(counts * 2 + 1, most=5)
    whole = reference.side(counts * 2 + 1)
    assert drawn.table.p_value.min() > whole.table.p_value.min()
    np.testing.assert_array_equal(drawn.profile.expression, whole.profile.expression)
