from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.data.rank_tokens import RankTokenizer


def _counts(n_cells: int = 40, n_genes: int = 30, *, seed: int = 0) -> sparse.csr_matrix:
    """Small counts, so that many are equal, of cells of different depth, one of them empty."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.lognormal(0, 1, n_genes) * rng.lognormal(-0.5, 1, (n_cells, 1)))
    counts[3] = 0
    return sparse.csr_matrix(counts.astype(np.float32))


def _plain(x: sparse.csr_matrix, tokenizer: RankTokenizer) -> list[list[tuple[int, float]]]:
    """The sentences, slow and plain."""
    sentences = []
    for row in x.toarray():
        known = [(int(token), float(v)) for token, v in zip(tokenizer.vocabulary, row, strict=True) if token >= 0]
        factor = 1.0
        if tokenizer.target_sum is not None and any(v for _, v in known):
            factor = tokenizer.target_sum / sum(v for _, v in known)
        ranked = sorted([(token, v * factor) for token, v in known if v > 0], key=lambda item: (-item[1], item[0]))
        if tokenizer.log:
            ranked = [(token, float(np.log1p(v))) for token, v in ranked]
        if tokenizer.cls_id is not None:
            ranked = [(tokenizer.cls_id, 0.0), *ranked]
        sentences.append(ranked[: tokenizer.n_tokens])
    return sentences


@pytest.mark.parametrize(
    "options",
    [
        {"n_tokens": 100},
        {"n_tokens": 8},
        {"n_tokens": 8, "cls_id": None},
        {"n_tokens": 2},
        {"n_tokens": 100, "target_sum": 1e6},
        {"n_tokens": 12, "target_sum": None, "log": False},
    ],
)
def test_sentences_are_those_of_a_plain_sort(options: dict[str, object]) -> None:
    x = _counts()
    vocabulary = np.random.default_rng(1).permutation(x.shape[1]) + 4
    vocabulary[::7] = -1
    tokenizer = RankTokenizer(vocabulary, **options)
    found, expected = tokenizer(x), _plain(x, tokenizer)
    assert found["genes"].dtype == np.int64
    assert found["values"].dtype == np.float32
    assert found["mask"].shape == (40, max(len(sentence) for sentence in expected))
    for i, sentence in enumerate(expected):
        n = len(sentence)
        assert found["mask"][i].sum() == max(1, n)
        assert found["mask"][i, : max(1, n)].all()
        assert found["genes"][i, :n].tolist() == [token for token, _ in sentence]
        np.testing.assert_allclose(found["values"][i, :n], [v for _, v in sentence], rtol=1e-6)
        assert not found["genes"][i, n:].any()
        assert not found["values"][i, n:].any()


def test_the_order_of_columns_does_not_matter() -> None:
    x = _counts()
    vocabulary = np.arange(x.shape[1]) + 4
    columns = np.random.default_rng(2).permutation(x.shape[1])
    there = RankTokenizer(vocabulary, 20)(x)
    shuffled = RankTokenizer(vocabulary[columns], 20)(x[:, columns].tocsr())
    for name, array in there.items():
        np.testing.assert_array_equal(array, shuffled[name])


def test_neighbours_do_not_matter() -> None:
    x = _counts()
    tokenizer = RankTokenizer(np.arange(x.shape[1]) + 4, 20)
    together, alone = tokenizer(x), tokenizer(x[5])
    n = alone["genes"].shape[1]
    for name, array in alone.items():
        np.testing.assert_array_equal(together[name][5, :n], array[0])
    assert not together["mask"][5, n:].any()


def test_more_rows_than_one_integer_numbers() -> None:
    x = _counts()
    large = np.arange(x.shape[1]) + 2**29  # leaves three bits: eight rows at a time
    few = RankTokenizer(np.arange(x.shape[1]) + 4, 20)(x)
    many = RankTokenizer(large, 20)(x)
    is_gene = few["genes"] > 3
    np.testing.assert_array_equal(many["genes"][is_gene] - 2**29, few["genes"][is_gene] - 4)
    np.testing.assert_array_equal(many["values"], few["values"])


def test_a_cell_without_expression_reads_one_token() -> None:
    empty = sparse.csr_matrix((2, 5), dtype=np.float32)
    vocabulary = np.arange(5) + 4
    with_cls, without = RankTokenizer(vocabulary, 8)(empty), RankTokenizer(vocabulary, 8, cls_id=None)(empty)
    assert with_cls["genes"].tolist() == [[3], [3]]
    assert without["genes"].tolist() == [[0], [0]]
    assert with_cls["mask"].all()
    assert without["mask"].all()


def test_no_gene_known() -> None:
    tokens = RankTokenizer(np.full(30, -1), 8)(_counts())
    assert tokens["genes"].tolist() == [[3]] * 40


def test_stored_zeros_are_not_expressed() -> None:
    x = sparse.csr_matrix((np.array([2.0, 0.0], dtype=np.float32), np.array([1, 2]), np.array([0, 2])), shape=(1, 3))
    assert RankTokenizer(np.arange(3) + 4, 8)(x)["genes"].tolist() == [[3, 5]]
