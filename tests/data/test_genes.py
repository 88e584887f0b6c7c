from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.data.genes import gene_names, match_genes, match_vocabulary, take_columns, unique_names

HUMAN = [f"GENE{i}" for i in range(20)]
ENSEMBL = [f"ENSG{i:011d}" for i in range(20)]
MOUSE_ENSEMBL = [f"ENSMUSG{i:011d}" for i in range(20)]


def test_gene_names_from_the_index_or_a_column():
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["symbol"] = pd.Categorical(["b", "a", "c"])
    assert gene_names(adata) == ["0", "1", "2"]
    assert gene_names(adata, "symbol") == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (["a", "b", "a"], ValueError, r"adata\.var\['symbol'\] holds 'a' more than once.*duplicated\(\)"),
        (["a", None, None], ValueError, r"adata\.var\['symbol'\] has 2 missing names of 3.*notna"),
    ],
)
def test_unusable_gene_column_raises(column, error, message):
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["symbol"] = column
    with pytest.raises(error, match=message):
        gene_names(adata, "symbol")


def test_absent_gene_column_raises():
    adata = ad.AnnData(np.ones((2, 3), np.float32))
    adata.var["symbol"] = ["a", "b", "c"]
    with pytest.raises(KeyError, match=r"adata\.var\['symbols'\] does not exist. Did you mean 'symbol'"):
        gene_names(adata, "symbols")


def test_names_that_are_equal_as_strings_raises():
    with pytest.raises(ValueError, match=r"x holds '1' more than once\. Names must be unique: do y"):
        unique_names([1, "1"], "x", "do y")


def test_genes_are_matched_by_name():
    assert match_genes(["c", "a", "x"], ["a", "b", "c"]).tolist() == [1, -1, 0]


def test_a_tenth_of_the_genes_is_enough():
    assert (match_genes([*HUMAN[:2], "other"], HUMAN) >= 0).sum() == 2


@pytest.mark.parametrize(
    ("available", "requested", "hint"),
    [
        ([g.capitalize() for g in HUMAN], HUMAN, r"Ignoring case 100% would match: mouse symbols"),
        (ENSEMBL, [f"{g}.3" for g in ENSEMBL], r"Without version suffixes .* 100% would match"),
        ([f"{g}.7" for g in ENSEMBL], ENSEMBL, r"Without version suffixes"),
        (MOUSE_ENSEMBL, ENSEMBL, r"Ensembl ids of two species \(ENSMUSG…, ENSG…\)"),
        (ENSEMBL, HUMAN, r"Name the column of adata\.var .*gene_key="),
        (HUMAN[:1], HUMAN, "gene_key="),
    ],
)
def test_under_a_tenth_of_the_genes_raises(available, requested, hint):
    with pytest.raises(ValueError, match=hint) as error:
        match_genes(available, requested)
    assert f"The data have {', '.join(available[:3])}" in str(error.value)
    assert f"the model has {', '.join(requested[:3])}" in str(error.value)
    assert "of the model's 20 genes" in str(error.value)


MOUSE = [f"Actb{i}" for i in range(20)]


def _cells(names, **columns):
    """Make an AnnData of these genes."""
    return ad.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(columns, index=list(names)))


def test_vocabulary_is_matched_by_var_names():
    match = match_vocabulary(_cells(["GENE3", "x", "GENE0"], other=["a", "b", "c"]), HUMAN)
    assert match.source == "adata.var_names"
    assert match.columns.tolist() == [0, 2]
    assert match.vocabulary.tolist() == [3, 0]
    assert match.columns.dtype == match.vocabulary.dtype == np.int64
    assert (match.n_data, match.n_vocabulary, match.coverage) == (3, 20, 2 / 3)
    assert str(match) == "2 of the data's 3 genes are in the base's vocabulary of 20 (by adata.var_names)"


def test_vocabulary_is_matched_by_plain_names():
    match = match_vocabulary(["x", "GENE3"], HUMAN)
    assert (match.source, match.columns.tolist(), match.vocabulary.tolist()) == ("the list of genes", [1], [3])


@pytest.mark.parametrize("kind", [object, "category", "string"])
def test_the_column_that_matches_most_genes_is_used(kind):
    columns = {"number": range(20), "few": [*HUMAN[:5], *"abcdefghijklmno"], "symbol": HUMAN[::-1]}
    adata = _cells(ENSEMBL, **columns)
    adata.var["symbol"] = adata.var["symbol"].astype(kind)
    adata.var["flag"] = True
    match = match_vocabulary(adata, HUMAN)
    assert match.source == "adata.var['symbol']"
    assert match.vocabulary.tolist() == list(range(19, -1, -1))
    assert match_vocabulary(adata, HUMAN, gene_key="few").columns.tolist() == [0, 1, 2, 3, 4]


def test_var_names_take_precedence_over_a_column_that_matches_as_many():
    assert match_vocabulary(_cells(HUMAN, symbol=HUMAN[::-1]), HUMAN).source == "adata.var_names"


@pytest.mark.parametrize(("of_data", "of_base"), [(".7", ""), ("", ".3"), (".7", ".3")])
def test_version_suffixes_of_ensembl_ids_do_not_matter(of_data, of_base):
    names, vocabulary = [g + of_data for g in ENSEMBL], [g + of_base for g in ENSEMBL[::-1]]
    assert match_vocabulary(_cells(names), vocabulary).vocabulary.tolist() == list(range(19, -1, -1))


def test_the_same_version_takes_precedence_and_dots_in_symbols_are_kept():
    vocabulary = ["ENSG00000000001.1", "ENSG00000000001.2", "RP11.1"]
    match = match_vocabulary(_cells(["RP11.2", "ENSG00000000001.2", "ENSG00000000001.9", "RP11.1"]), vocabulary)
    assert match.columns.tolist() == [1, 2, 3]
    assert match.vocabulary.tolist() == [1, 0, 2]


def test_repeated_and_missing_names_of_a_column_are_kept_and_skipped():
    symbols = pd.Categorical(["GENE1", None, "GENE2", "GENE1", "x", "GENE1"])
    match = match_vocabulary(_cells("abcdef", symbol=symbols), HUMAN)
    assert match.columns.tolist() == [0, 2, 3, 5]
    assert match.vocabulary.tolist() == [1, 2, 1, 1]
    assert "4 of the data's 6 genes" in str(match)
    assert str(match).endswith("(by adata.var['symbol']; 2 of them repeat a gene)")
    with_nan = pd.Series(["GENE1", np.nan, 3], index=list("abc"), dtype=object)
    assert match_vocabulary(_cells("abc", symbol=with_nan), [*HUMAN, "nan", "3"]).columns.tolist() == [0]


def test_a_column_that_repeats_few_genes_is_not_used():
    adata = _cells([*HUMAN[:5], *"abcdefghijklmno"], nearest=["GENE1"] * 20)
    assert match_vocabulary(adata, HUMAN).source == "adata.var_names"


def test_log_line_groups_digits():
    names = [f"G{i}" for i in range(1200)]
    assert str(match_vocabulary(_cells(names), names)).startswith("1,200 of the data's 1,200 genes")


def test_repeated_var_names_raises():
    adata = _cells(["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = ["GENE1", "GENE1"]
    with pytest.raises(ValueError, match=r"adata\.var_names holds 'GENE1' more than once.*var_names_make_unique"):
        match_vocabulary(adata, HUMAN)


def test_absent_column_for_the_vocabulary_raises():
    with pytest.raises(KeyError, match=r"adata\.var\['symbols'\] does not exist. Did you mean 'symbol'"):
        match_vocabulary(_cells(["a"], symbol=["GENE1"]), HUMAN, gene_key="symbols")


def test_a_tenth_of_the_smaller_set_is_enough():
    large = [f"GENE{i}" for i in range(1000)]
    assert len(match_vocabulary(["GENE1", *"abcdefghi"], large).columns) == 1
    assert len(match_vocabulary([*HUMAN[:2], *(f"x{i}" for i in range(500))], HUMAN).columns) == 2
    with pytest.raises(ValueError, match="Only 1 of the data's 11 genes"):
        match_vocabulary(["GENE1", *"abcdefghij"], large)


@pytest.mark.parametrize(
    ("adata", "vocabulary", "hint"),
    [
        (_cells([g.capitalize() for g in HUMAN]), HUMAN, r"Ignoring case 100% would match: mouse symbols"),
        (_cells([g.capitalize() for g in HUMAN[:5]]), [*HUMAN, *ENSEMBL * 5], r"Ignoring case 100% would match"),
        (_cells(MOUSE_ENSEMBL, symbol=[g.capitalize() for g in HUMAN]), HUMAN, r"Ignoring case 100% would match"),
        (_cells(MOUSE), HUMAN, r"look like mouse symbols \(Actb\) against human ones"),
        (_cells(MOUSE_ENSEMBL), ENSEMBL, r"Ensembl ids of two species \(ENSMUSG…, ENSG…\)"),
        (_cells(MOUSE_ENSEMBL), HUMAN, r"other than human \(ENSMUSG…\).*symbols of the human orthologues"),
        (_cells(ENSEMBL, kind=["Gene Expression"] * 20), HUMAN, r"Ensembl ids, the base symbols: add a column"),
        (_cells(HUMAN), ENSEMBL, r"The base uses Ensembl ids \(ENSG…\), the data do not: add a column"),
        (_cells([f"p{i}" for i in range(20)]), HUMAN, r"Add a column with such names to adata\.var"),
    ],
)
def test_genes_outside_of_the_vocabulary_raises(adata, vocabulary, hint):
    with pytest.raises(ValueError, match=hint) as error:
        match_vocabulary(adata, vocabulary)
    assert f"Only 0 of the data's {adata.n_vars} genes are in the base's vocabulary" in str(error.value)
    assert f"adata.var_names has {', '.join(adata.var_names[:3])}, …" in str(error.value)
    assert f"the base has {', '.join(vocabulary[:3])}, …" in str(error.value)


def test_a_column_that_does_not_match_raises_and_suggests_one_that_does():
    adata = _cells(ENSEMBL, kind=["protein"] * 20, symbol=HUMAN, empty=[None] * 20)
    with pytest.raises(ValueError, match=r"adata\.var\['symbol'\] would match 20: leave out gene_key='kind'"):
        match_vocabulary(adata, HUMAN, gene_key="kind")
    with pytest.raises(ValueError, match=r"adata\.var\['empty'\] has no names; the base has"):
        match_vocabulary(adata, HUMAN, gene_key="empty")


def test_columns_are_taken_in_order_and_absent_ones_are_zero():
    x = sparse.random(6, 5, density=0.6, format="csr", dtype=np.float32, random_state=0)
    taken = take_columns(x, np.array([4, -1, 0]))
    assert (taken.toarray()[:, [0, 2]] == x.toarray()[:, [4, 0]]).all()
    assert (taken.toarray()[:, 1] == 0).all()
    assert taken.dtype == np.float32
    assert taken.has_sorted_indices
    assert take_columns(x, np.arange(5)) is x
