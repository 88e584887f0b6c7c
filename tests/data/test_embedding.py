from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.embedding import read_embedding

VALUES = np.random.default_rng(0).normal(size=(48, 5))


@pytest.mark.parametrize(
    "stored",
    [
        VALUES,
        VALUES.astype(np.float16).astype(np.float32),
        sparse.csr_matrix(VALUES),
        sparse.csc_array(VALUES),
        VALUES.round().astype(np.int8),
        np.asfortranarray(VALUES),
    ],
)
def test_any_kind_of_array_is_read_as_float32(adata, stored):
    adata.obsm["X_mine"] = stored
    read = read_embedding(adata, "X_mine")
    expected = stored.toarray() if sparse.issparse(stored) else stored
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.asarray(expected).astype(np.float32))


def test_a_dataframe_is_read_as_float32(adata):
    adata.obsm["X_mine"] = pd.DataFrame(VALUES, index=adata.obs_names, columns=list("abcde"))
    np.testing.assert_array_equal(read_embedding(adata, "X_mine"), VALUES.astype(np.float32))


def test_the_registry_holds_key_and_width(adata):
    adata.obsm["X_mine"] = VALUES
    registry = Registry.create(adata, DataConfig(embed_key="X_mine"))
    assert (registry.embed_key, registry.embed_width) == ("X_mine", 5)
    assert Registry.from_json(registry.to_json()) == registry
    np.testing.assert_array_equal(BoundData(registry, adata[:7]).embedding, VALUES[:7].astype(np.float32))
    new = adata.copy()
    new.obsm["X_mine"] = VALUES[:, :4]
    with pytest.raises(ValueError, match=r"adata\.obsm\['X_mine'\] has 4 columns; the model was set up on 5"):
        _ = BoundData(registry, new).embedding
    del new.obsm["X_mine"]
    with pytest.raises(KeyError, match=r"adata\.obsm\['X_mine'\] does not exist"):
        _ = BoundData(registry, new).embedding


def test_no_registered_embedding_raises(adata):
    with pytest.raises(ValueError, match=r"setup_anndata\(adata, embed_key="):
        _ = BoundData(Registry.create(adata, DataConfig()), adata).embedding


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("X_mime", KeyError, r"adata\.obsm\['X_mime'\] does not exist. Did you mean 'X_mine'"),
        ("narrow", ValueError, r"adata\.obsm\['narrow'\] has the shape \(48, 1\)"),
        ("cube", ValueError, r"adata\.obsm\['cube'\] has the shape \(48, 5, 2\)"),
        ("holes", ValueError, r"adata\.obsm\['holes'\] is missing or infinite in 2 of 48 cells"),
        ("huge", ValueError, "missing or infinite in 48 of 48"),
        ("text", TypeError, r"adata\.obsm\['text'\] must hold numbers"),
        ("complex", TypeError, r"adata\.obsm\['complex'\] must hold numbers"),
    ],
)
def test_unusable_embedding_raises(adata, key, error, message):
    holes = VALUES.copy()
    holes[3, 1], holes[5, 2:] = np.nan, np.inf
    text = pd.DataFrame({"a": ["x"] * 48, "b": ["y"] * 48}, index=adata.obs_names)
    adata.obsm.update({"X_mine": VALUES, "narrow": VALUES[:, :1], "cube": np.ones((48, 5, 2)), "holes": holes})
    adata.obsm.update({"huge": VALUES * 1e60, "text": text, "complex": VALUES * 1j})
    with pytest.raises(error, match=message):
        Registry.create(adata, DataConfig(embed_key=key))
    assert list(adata.uns) == []


def _named(adata, columns="abcde", values=VALUES):
    return pd.DataFrame(values, index=adata.obs_names, columns=list(columns))


def test_named_columns_are_matched_by_name(adata):
    adata.obsm["X_mine"] = _named(adata)
    registry = Registry.from_json(Registry.create(adata, DataConfig(embed_key="X_mine")).to_json())
    assert registry.embed_columns == list("abcde")
    new = adata.copy()
    new.obsm["X_mine"] = _named(adata).assign(more=1.0)[["more", *"edcba"]]
    np.testing.assert_array_equal(BoundData(registry, new).embedding, VALUES.astype(np.float32))
    np.testing.assert_array_equal(BoundData(registry, new[5:9]).embedding, VALUES[5:9].astype(np.float32))


def test_absent_named_columns_raises(adata):
    adata.obsm["X_mine"] = _named(adata)
    registry = Registry.create(adata, DataConfig(embed_key="X_mine"))
    adata.obsm["X_mine"] = _named(adata, "abcxy")
    with pytest.raises(ValueError, match=r"adata\.obsm\['X_mine'\] lacks 2 of the 5 columns .*: 'd', 'e'\. It has 'a'"):
        _ = BoundData(registry, adata).embedding


def test_a_column_named_twice_raises(adata):
    adata.obsm["X_mine"] = _named(adata, "abcda")
    with pytest.raises(ValueError, match=r"adata\.obsm\['X_mine'\]\.columns holds 'a' more than once"):
        Registry.create(adata, DataConfig(embed_key="X_mine"))


def test_an_array_in_place_of_named_columns_warns(adata):
    adata.obsm["X_mine"] = _named(adata)
    registry = Registry.create(adata, DataConfig(embed_key="X_mine"))
    adata.obsm["X_mine"] = VALUES
    with pytest.warns(UserWarning, match=r"adata\.obsm\['X_mine'\] has no names of columns.*by position"):
        np.testing.assert_array_equal(BoundData(registry, adata).embedding, VALUES.astype(np.float32))


def test_a_table_in_place_of_an_array_is_read_by_position(adata):
    adata.obsm["X_mine"] = VALUES
    registry = Registry.create(adata, DataConfig(embed_key="X_mine"))
    assert registry.embed_columns is None
    adata.obsm["X_mine"] = _named(adata)
    np.testing.assert_array_equal(BoundData(registry, adata).embedding, VALUES.astype(np.float32))


def test_columns_that_a_file_turned_to_text_are_found(adata, tmp_path):
    adata.obsm["X_mine"] = _named(adata, range(5))
    registry = Registry.create(adata, DataConfig(embed_key="X_mine"))
    adata.obsm["X_mine"] = _named(adata, map(str, range(5)))[list("43210")]
    np.testing.assert_array_equal(BoundData(registry, adata).embedding, VALUES.astype(np.float32))
