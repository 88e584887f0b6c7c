from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.data.tokens import Tokenizer, _mix, _unmix, cell_seeds


def _expression(n_cells=30, n_genes=50, density=0.5, *, levels=None, seed=0):
    """Random expression; `levels`: how many different values, so that there are ties."""
    rng = np.random.default_rng(seed)
    values = (
        rng.uniform(0.1, 3, (n_cells, n_genes)) if levels is None else rng.integers(1, levels + 1, (n_cells, n_genes))
    )
    return sparse.csr_matrix((values * (rng.random((n_cells, n_genes)) < density)).astype(np.float32))


def tokenize(x, seeds, *, n_tokens):
    """Tokenise data whose columns are the vocabulary."""
    genes, values, _ = Tokenizer.of_columns(x.shape[1], n_tokens=n_tokens)(x, seeds)
    return genes, values


def _in_order(genes, values):
    """Sentences sorted by gene, so that two orders compare."""
    order = np.argsort(genes, axis=1, kind="stable")
    return np.take_along_axis(genes, order, 1), np.take_along_axis(values[:, 1:], order, 1)


def _names(n, prefix="cell"):
    return [f"{prefix}{i}" for i in range(n)]


def _murmur(h):
    """The finaliser of MurmurHash3 in plain integers."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)


def _reference(x, seeds, n_tokens):
    """The tokeniser, slow and plain: sort by (value, random rank), fill with absent genes."""
    genes = np.zeros((x.shape[0], n_tokens - 1), dtype=np.int64)
    values = np.zeros((x.shape[0], n_tokens), dtype=np.float32)
    for cell, row in enumerate(x.toarray()):
        seed = int(seeds[cell])
        present = sorted(np.flatnonzero(row), key=lambda g: (row[g], _murmur(int(g) ^ seed)), reverse=True)
        absent = np.flatnonzero(row == 0).tolist()
        share = 100 * row.astype(np.float64) / row.sum(dtype=np.float64) if len(present) else None
        for i in range(n_tokens - 1):
            if i < len(present):
                gene = present[i]
            elif len(absent):
                draw = _murmur((seed + (i + 1) * 0x9E3779B9) % 2**32)
                place = draw * len(absent) >> 32
                gene = absent[place]
                if x.shape[1] >= n_tokens - 1:  # without replacement: the last one takes its place
                    absent[place] = absent[-1]
                    absent.pop()
            else:
                gene = present[i % len(present)]
            genes[cell, i] = gene
            values[cell, i + 1] = share[gene] if share is not None else 100 / x.shape[1]
    return genes, values


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize(("density", "n_tokens"), [(0.5, 11), (0.5, 41), (0.1, 33), (1.0, 21), (1.0, 120)])
def test_agrees_with_a_plain_reference(levels, density, n_tokens):
    x = _expression(density=density, levels=levels)
    seeds = cell_seeds(_names(x.shape[0]), 3)
    genes, values = tokenize(x, seeds, n_tokens=n_tokens)
    expected_genes, expected_values = _reference(x, seeds, n_tokens)
    assert genes.dtype == np.int64
    assert values.dtype == np.float32
    actual, expected = _in_order(genes, values), _in_order(expected_genes, expected_values)
    assert (actual[0] == expected[0]).all()
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)
    assert (values[:, 0] == 0).all()


def test_most_expressed_genes_with_their_share_of_the_total():
    x = sparse.csr_matrix(np.array([[0, 3, 1, 0, 4, 2]], dtype=np.float32))
    genes, values = tokenize(x, cell_seeds(["a"], 0), n_tokens=4)
    genes, shares = _in_order(genes, values)
    assert genes.tolist() == [[1, 4, 5]]
    np.testing.assert_allclose(shares, [[30, 40, 20]], rtol=1e-6)


def test_a_cell_depends_on_neither_order_nor_neighbours():
    x = _expression(levels=2, density=0.3)
    names = np.array(_names(x.shape[0]))
    genes, values = tokenize(x, cell_seeds(names, 0), n_tokens=31)
    order = np.random.default_rng(1).permutation(len(names))[:17]
    some_genes, some_values = tokenize(x[order], cell_seeds(names[order], 0), n_tokens=31)
    assert (some_genes == genes[order]).all()
    assert (some_values == values[order]).all()
    for i in range(5):
        assert (tokenize(x[[i]], cell_seeds(names[[i]], 0), n_tokens=31)[0] == genes[i]).all()


def test_stored_order_and_index_type_do_not_matter():
    x = _expression(levels=2)
    seeds = cell_seeds(_names(x.shape[0]), 0)
    backwards = sparse.csr_matrix(x.shape, dtype=np.float32)
    rows = [slice(a, b) for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)]
    backwards.indices = np.concatenate([x.indices[r][::-1] for r in rows]).astype(np.int64)
    backwards.data = np.concatenate([x.data[r][::-1] for r in rows])
    backwards.indptr = x.indptr.astype(np.int64)
    genes, values = tokenize(x, seeds, n_tokens=40)
    again, values_again = tokenize(backwards, seeds, n_tokens=40)
    (genes, values), (again, values_again) = _in_order(genes, values), _in_order(again, values_again)
    assert (genes == again).all()
    np.testing.assert_allclose(values, values_again, rtol=1e-6)


def test_input_is_not_changed():
    x = _expression(levels=2)
    copy = x.copy()
    tokenize(x, cell_seeds(_names(x.shape[0]), 0), n_tokens=100)
    assert (x.data == copy.data).all()
    assert (x.indices == copy.indices).all()


def test_ties_are_random_by_seed_and_cell_but_the_same_for_a_name():
    x = sparse.csr_matrix(np.ones((200, 40), dtype=np.float32))
    names = _names(200)
    genes, _ = tokenize(x, cell_seeds(names, 0), n_tokens=11)
    assert (genes == tokenize(x, cell_seeds(names, 0), n_tokens=11)[0]).all()
    assert (genes != tokenize(x, cell_seeds(names, 1), n_tokens=11)[0]).any(axis=1).all()
    assert (genes != tokenize(x, cell_seeds(_names(200, "other"), 0), n_tokens=11)[0]).any(axis=1).all()
    assert all(len(set(row)) == 10 for row in genes)
    # Every gene has the same chance of 1/4: 50 of 200 cells, standard deviation 6.
    taken = np.bincount(genes.ravel(), minlength=40)
    assert taken.min() > 20
    assert taken.max() < 80


def test_padding_samples_unexpressed_genes_uniformly():
    dense = np.zeros((300, 20), dtype=np.float32)
    dense[:, :5] = 1
    genes, values = tokenize(sparse.csr_matrix(dense), cell_seeds(_names(300), 0), n_tokens=26)
    assert (np.sort(genes[:, :5]) == np.arange(5)).all()
    assert (values[:, 1:6] == 20).all()
    assert genes[:, 5:].min() == 5
    assert (values[:, 6:] == 0).all()
    # 6000 draws of 15 genes: 400 each, standard deviation 19.
    drawn = np.bincount(genes[:, 5:].ravel(), minlength=20)[5:]
    assert drawn.min() > 300
    assert drawn.max() < 500


def test_with_enough_genes_padding_takes_each_unexpressed_gene_at_most_once():
    dense = np.zeros((300, 20), dtype=np.float32)
    dense[:, :5] = 1
    genes, values = tokenize(sparse.csr_matrix(dense), cell_seeds(_names(300), 0), n_tokens=13)
    assert all(len(set(row)) == 12 for row in genes)
    assert (values[:, 6:] == 0).all()
    # 2100 draws of 15 genes: 140 each, standard deviation 9.
    drawn = np.bincount(genes[:, 5:].ravel(), minlength=20)[5:]
    assert drawn.min() > 95
    assert drawn.max() < 185
    genes, _ = tokenize(sparse.csr_matrix(dense), cell_seeds(_names(300), 0), n_tokens=21)
    assert (np.sort(genes, axis=1) == np.arange(20)).all()


def test_a_sentence_is_repeated_if_all_genes_are_expressed():
    x = sparse.csr_matrix(np.array([[1, 3, 2]], dtype=np.float32))
    genes, values = tokenize(x, cell_seeds(["a"], 0), n_tokens=9)
    share = {1: 50, 2: 100 / 3, 0: 100 / 6}
    assert sorted(genes[0, :3]) == sorted(genes[0, 3:6]) == [0, 1, 2]
    np.testing.assert_allclose(values[0, 1:], [share[gene] for gene in genes[0]], rtol=1e-6)


def test_one_gene_and_an_empty_cell():
    genes, values = tokenize(sparse.csr_matrix(np.array([[2], [0]], np.float32)), cell_seeds(["a", "b"], 0), n_tokens=3)
    assert genes.tolist() == [[0, 0], [0, 0]]
    assert values.tolist() == [[0, 100, 100], [0, 100, 100]]
    empty = sparse.csr_matrix((1, 8), dtype=np.float32)
    genes, values = tokenize(empty, cell_seeds(["a"], 0), n_tokens=41)
    assert set(genes[0]) == set(range(8))
    assert (values[0, 1:] == 12.5).all()


def test_seeds_come_from_name_and_seed():
    seeds = cell_seeds(_names(1000), 0)
    assert seeds.dtype == np.uint32
    assert len(set(seeds)) == 1000
    assert (cell_seeds(["cell7", "cell3"], 0) == seeds[[7, 3]]).all()
    assert (cell_seeds(_names(1000), 1) != seeds).all()
    assert cell_seeds(["0\u0394"], 0).shape == (1,)
    assert cell_seeds([], 0).shape == (0,)


def test_the_random_rank_is_a_bijection():
    numbers = [0, 1, 2, 2**31, 2**32 - 1, *np.random.default_rng(0).integers(0, 2**32, 2000).tolist()]
    mixed = [int(_mix(n)) for n in numbers]
    assert [int(_unmix(m)) for m in mixed] == numbers
    assert mixed[1:] == [_murmur(n) for n in numbers[1:]]
    assert max(mixed) < 2**32


def _without(x, vocabulary):
    """The data as if it held the known genes only, in the vocabulary's order."""
    columns = np.flatnonzero(vocabulary >= 0)
    return x[:, columns[np.argsort(vocabulary[columns])]]


def test_genes_outside_the_vocabulary_are_ignored():
    x = _expression(n_genes=40, levels=3)
    seeds = cell_seeds(_names(x.shape[0]), 0)
    vocabulary = np.full(40, -1)
    vocabulary[[3, 7, 8, 20, 31, 32, 39]] = [60, 5, 61, 2, 40, 41, 3]
    genes, values, lengths = Tokenizer(vocabulary, 5)(x, seeds)
    assert np.isin(genes, vocabulary[vocabulary >= 0]).all()
    matched = _without(x, vocabulary)
    names = np.sort(vocabulary[vocabulary >= 0])
    alone = Tokenizer(names, 5)(matched, seeds)
    actual, expected = _in_order(genes, values), _in_order(alone.genes, alone.values)
    assert (actual[0] == expected[0]).all()
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)
    assert (lengths == np.minimum(np.diff(matched.indptr), 4)).all()


def test_a_cell_depends_on_gene_names_and_not_on_gene_order():
    x = _expression(n_genes=40, density=0.3, levels=2)
    seeds = cell_seeds(_names(x.shape[0]), 0)
    order = np.random.default_rng(0).permutation(40)
    shuffled = sparse.csr_matrix(x[:, order])
    genes, values, _ = Tokenizer.of_columns(40, n_tokens=20)(x, seeds)
    again, values_again, _ = Tokenizer(order, 20)(shuffled, seeds)
    actual, expected = _in_order(again, values_again), _in_order(genes, values)
    assert (actual[0] == expected[0]).all()
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)


def test_cls_takes_the_value_of_a_matched_gene_by_its_position_in_the_data():
    x = sparse.csr_matrix(np.array([[9, 1, 2, 3, 4], [9, 1, 2, 0, 0], [0, 0, 0, 0, 0]], dtype=np.float32))
    vocabulary = np.array([-1, 7, 6, 5, 4])
    seeds = cell_seeds(["a", "b", "c"], 0)
    _, values, _ = Tokenizer(vocabulary, 4, cls_gene=2)(x, seeds)
    np.testing.assert_allclose(values[:, 0], [30, 0, 25], rtol=1e-6)
    _, values, _ = Tokenizer(vocabulary, 4, cls_gene=9)(x, seeds)  # there is no such gene
    assert (values[:, 0] == 0).all()


def test_without_padding_the_length_is_the_number_of_expressed_genes():
    x = _expression(n_genes=30, density=0.3)
    x.data[x.indptr[4] : x.indptr[5]] = 0
    x.eliminate_zeros()
    seeds = cell_seeds(_names(x.shape[0]), 0)
    padded = Tokenizer(np.arange(30), 11)(x, seeds)
    short = Tokenizer(np.arange(30), 11, pad=False)(x, seeds)
    assert (short.lengths == np.minimum(np.diff(x.indptr), 10)).all()
    assert short.lengths[4] == 0
    assert short.lengths.max() == 10
    for cell, length in enumerate(short.lengths):
        assert (short.genes[cell, :length] == padded.genes[cell, :length]).all()
        assert (short.values[cell, 1 : length + 1] == padded.values[cell, 1 : length + 1]).all()


def test_two_columns_of_one_gene_are_two_tokens():
    x = sparse.csr_matrix(np.array([[3, 1, 2]], dtype=np.float32))
    genes, values, lengths = Tokenizer(np.array([5, 5, 8]), 4)(x, cell_seeds(["a"], 0))
    assert sorted(genes[0]) == [5, 5, 8]
    np.testing.assert_allclose(sorted(values[0, 1:]), [100 / 6, 100 / 3, 50], rtol=1e-6)
    assert lengths.tolist() == [3]
