from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scstate_lora.metrics import de_table, rank_sums


def _counts(rng, n, *, fold=1.0):
    return rng.poisson(np.linspace(0.02, 4, 40) * fold, size=(n, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    control = _counts(rng, 70)
    perturbed = np.concatenate([_counts(rng, n, fold=rng.gamma(4, 0.25, 40)) for n in (25, 31, 2)])
    perturbed[3] = 0  # a cell without counts
    code = np.repeat([0, 1, 2], (25, 31, 2))
    shuffled = rng.permutation(len(code))
    return perturbed[shuffled], code[shuffled], control


def _per_million(counts):
    return np.round(1e6 * counts.astype(np.float64) / np.maximum(counts.sum(axis=1, keepdims=True), 1), 6)


def test_is_the_test_of_scipy(cells):
    perturbed, code, control = cells
    table = de_table(sparse.csr_matrix(perturbed), code, sparse.csr_matrix(control), min_cpm=0)
    base = _per_million(control)
    np.testing.assert_array_equal(table.genes, np.flatnonzero(control.any(axis=0)))
    for row in range(3):
        own = _per_million(perturbed[code == row])
        expected = stats.mannwhitneyu(own, base, method="asymptotic").pvalue[table.genes]
        np.testing.assert_allclose(table.p_value[row], expected, rtol=1e-9)
        np.testing.assert_allclose(table.fdr[row], stats.false_discovery_control(expected), rtol=1e-9)
        fold = np.log2((own.mean(axis=0) + 1e-9) / (base.mean(axis=0) + 1e-9))
        np.testing.assert_allclose(table.lfc[row], fold[table.genes], rtol=1e-6)
    assert (table.p_value < 0.01).any()
    assert (table.p_value > 0.5).any()


def test_by_hand():
    # Shares of the second gene: 1/4, 2/4, 3/4 perturbed; 0, 1/4, 1/2 control. U = 1.5 + 2.5 + 3 = 7 of 9.
    perturbed, control = np.array([[3, 1], [2, 2], [1, 3]]), np.array([[4, 0], [3, 1], [2, 2]])
    table = de_table(perturbed, [0, 0, 0], control)
    # Two ties of two: variance = 9 / 12 * (7 - 12 / 30); z = (7 - 4.5 - 0.5) / sd.
    p = 2 * stats.norm.sf(2 / np.sqrt(0.75 * (7 - 0.4)))
    np.testing.assert_allclose(table.p_value, [[p, p]])
    np.testing.assert_allclose(table.lfc, [[np.log2(2 / 3), 1.0]], rtol=1e-12)


def test_equal_shares_of_different_totals_are_ties():
    # 1 of 3 and 7 of 21 are the same share, though 1e6 / 3 and 7 / (21 / 1e6) differ in their last bit.
    perturbed, control = np.array([[1, 2]] * 5), np.array([[7, 14], [3, 6], [5, 10], [11, 22]])
    np.testing.assert_array_equal(de_table(perturbed, [0] * 5, control).p_value, 1.0)


def test_blocks_of_genes_make_no_difference(cells, monkeypatch):
    perturbed, code, control = cells
    whole = de_table(perturbed, code, control, min_cpm=0)
    monkeypatch.setattr(rank_sums, "_VALUES_PER_BLOCK", 100)
    for values, expected in zip(de_table(perturbed, code, control, min_cpm=0), whole, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_only_genes_above_a_mean_of_the_controls_are_tested(cells):
    perturbed, code, control = cells
    mean = _per_million(control).mean(axis=0)
    threshold = float(np.median(mean))
    table = de_table(perturbed, code, control, min_cpm=threshold)
    np.testing.assert_array_equal(table.genes, np.flatnonzero(mean > threshold))
    np.testing.assert_array_equal(
        table.p_value, de_table(perturbed, code, control, min_cpm=0).p_value[:, mean[mean > 0] > threshold]
    )
    with pytest.raises(ValueError, match="No gene has a mean above 1000000"):
        de_table(perturbed, code, control, min_cpm=1e6)


def test_the_controls_themselves_differ_in_nothing(cells):
    control = cells[2]
    table = de_table(control, [0] * len(control), control)
    np.testing.assert_array_equal(table.fdr, 1.0)
    np.testing.assert_allclose(table.lfc, 0, atol=1e-12)


def test_input_is_left_as_it_was(cells):
    perturbed, code, control = cells
    counts = sparse.csr_matrix(perturbed)
    counts.data[0] = 0  # an explicit zero, and rows whose indices are unsorted
    counts.indices[:2] = counts.indices[1::-1]
    counts.has_canonical_format = False
    before = counts.copy()
    table = de_table(counts, code, control)
    np.testing.assert_array_equal(counts.indices, before.indices)
    np.testing.assert_array_equal(counts.data, before.data)
    np.testing.assert_array_equal(table.p_value, de_table(counts.toarray(), code, control).p_value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbation": [0, 1]}, "one per cell"),
        ({"perturbation": np.full(58, 0.5)}, "whole numbers from 0 on"),
        ({"perturbation": np.full(58, 1)}, "Perturbation 0 has no cell"),
        ({"cells": -np.ones((58, 40))}, "cells must be raw counts"),
        ({"control": np.full((3, 40), np.nan)}, "control must be raw counts"),
        ({"control": np.ones((3, 39))}, "cells has 40 genes and control has 39"),
        ({"control": np.ones((0, 40))}, "at least one cell"),
    ],
)
def test_what_does_not_fit_raises(cells, change, message):
    arguments = dict(zip(("cells", "perturbation", "control"), cells, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        de_table(**arguments)
