from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.training.se.cell_batches import ExpressionTargets


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 3, (30, 8)) * (rng.random((30, 8)) < 0.6)
    return sparse.csr_matrix(values.astype(np.float32))


def test_targets_are_the_expression_of_known_genes_and_the_depth_is_the_mean_of_all_of_them(x):
    vocabulary = np.array([5, -1, 3, 0, -1, 2, 9, 1])
    drawn = ExpressionTargets(x, np.arange(20), vocabulary, 3).draw(x[20:], np.random.default_rng(1))
    column = {gene: i for i, gene in enumerate(vocabulary)}
    expected = x.toarray()[20:, [column[gene] for gene in drawn["target_genes"]]]
    assert len(set(drawn["target_genes"])) == 3
    assert -1 not in drawn["target_genes"]
    np.testing.assert_array_equal(drawn["targets"], expected)
    known = x.toarray()[20:, vocabulary >= 0]
    means = [row[row > 0].mean() if row.any() else 0 for row in known]
    np.testing.assert_allclose(drawn["read_depth"], means, rtol=1e-6)
    assert drawn["read_depth"].dtype == np.float32


def test_half_of_the_draws_follow_the_mean_of_the_rows_given(x):
    raised = x.tolil()
    raised[:20, 2] = 30.0
    raised[20:, 4] = 1e4  # not among the rows
    targets = ExpressionTargets(sparse.csr_matrix(raised), np.arange(20), np.arange(8), 1)
    mean = raised[:20].toarray().mean(0)
    np.testing.assert_allclose(targets.weights, 0.5 / 8 + 0.5 * mean / mean.sum(), rtol=1e-6)
    assert targets.weights.argmax() == 2
    assert targets.weights.sum() == pytest.approx(1)


def test_as_many_as_are_known_and_without_expression_all_alike(x):
    vocabulary = np.array([-1, 4, -1, -1, 1, -1, -1, -1])
    none = sparse.csr_matrix(x.shape, dtype=np.float32)
    targets = ExpressionTargets(none, np.arange(20), vocabulary, 99)
    np.testing.assert_allclose(targets.weights, 0.5)
    drawn = targets.draw(none[:3], np.random.default_rng(0))
    assert sorted(drawn["target_genes"]) == [1, 4]
    assert not drawn["targets"].any()
    assert not drawn["read_depth"].any()
