from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.data.bound import BoundData
from scstate_lora.data.registry import Registry
from scstate_lora.model.se.inputs import (
    cell_type_codes,
    conditions,
    contrastive_labels,
    encode_inputs,
    extra_batch,
    inputs_of,
)

N = 24


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "condition": np.tile(["sham", "burn"], N // 2),
            "day": np.tile([10.0, 14.0, 19.0], N // 3),
            "dose": rng.uniform(0, 1, N),
            "mouse": np.repeat(["m1", "m2", "m3"], N // 3),
            "cell_type": np.tile(["B", "B", "T"], N // 3),
        },
        index=[f"c{i}" for i in range(N)],
    )
    return ad.AnnData(rng.poisson(1.0, (N, 6)).astype(np.float32), obs=obs)


def _registry(cells, **setup):
    ssl.LoRACovariateSE.setup_anndata(cells, **{"covariate_keys": ["condition"], "input_scale": "counts", **setup})
    return ssl.LoRACovariateSE(cells).registry


def test_the_batch_is_an_input_of_its_own_unless_it_is_a_covariate(cells):
    registry = _registry(cells, batch_key="mouse")
    assert [c.name for c in inputs_of(registry)] == ["condition", "mouse"]
    assert extra_batch(registry).name == "mouse"
    named = _registry(cells, covariate_keys=["condition", "mouse"], batch_key="mouse")
    assert [c.name for c in inputs_of(named)] == ["condition", "mouse"]
    assert extra_batch(named) is None
    without = _registry(cells)
    assert [c.name for c in inputs_of(without)] == ["condition"]
    assert extra_batch(without) is None


def test_batches_are_coded_and_those_never_seen_are_unknown(cells):
    registry = _registry(cells, batch_key="mouse")
    assert BoundData(registry, cells).batch_codes.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert encode_inputs(BoundData(registry, cells), with_batch=False)["mouse"].tolist() == [3] * N
    new = cells.copy()
    new.obs["mouse"] = ["m2", "m9", None] * 8
    assert BoundData(registry, new).batch_codes[:3].tolist() == [1, -1, -1]
    assert encode_inputs(BoundData(registry, new))["mouse"][:3].tolist() == [1, 3, 3]
    del new.obs["mouse"]
    assert BoundData(registry, new).batch_codes.tolist() == [-1] * N
    assert encode_inputs(BoundData(registry, new))["mouse"].tolist() == [3] * N
    assert BoundData(_registry(cells), cells).batch_codes.tolist() == [-1] * N


def test_inputs_are_encoded_under_own_and_other_values(cells):
    registry = _registry(cells, batch_key="mouse")
    own = encode_inputs(BoundData(registry, cells))
    burn = registry.covariates[0].categories.index("burn")
    assert own["condition"].tolist() == [1 - burn, burn] * (N // 2)
    moved = encode_inputs(BoundData(registry, cells).under({"condition": "burn"}))
    assert moved["condition"].tolist() == [burn] * N
    np.testing.assert_array_equal(moved["mouse"], own["mouse"])
    assert encode_inputs(BoundData(registry, cells).under({"condition": None}))["condition"].tolist() == [2] * N


def test_conditions_are_the_combinations_that_occur(cells):
    keys = {"condition": "categorical", "day": "continuous"}
    registry = _registry(cells, covariate_keys=keys, batch_key="mouse")
    codes = conditions(registry, encode_inputs(BoundData(registry, cells)))
    groups = cells.obs.groupby(["condition", "day"], observed=True).ngroup()
    assert len(set(codes)) == 6  # the mouse does not count
    assert len(set(zip(codes, groups, strict=True))) == 6
    only_batch = _registry(cells, covariate_keys=[], batch_key="mouse")
    assert conditions(only_batch, encode_inputs(BoundData(only_batch, cells))).tolist() == [0] * N


def test_a_number_with_many_values_is_cut_into_groups_of_equal_size(cells):
    registry = _registry(cells, covariate_keys={"dose": "continuous"})
    encoded = encode_inputs(BoundData(registry, cells))
    codes = conditions(registry, encoded)
    assert np.bincount(codes).tolist() == [6, 6, 6, 6]
    order = np.argsort(encoded["dose"])
    assert (np.diff(codes[order]) >= 0).all()
    encoded["dose"] = encoded["dose"].copy()
    encoded["dose"][:5] = np.nan
    codes = conditions(registry, encoded)
    assert len(set(codes[:5])) == 1
    assert codes[0] not in codes[5:]


def test_cell_types_are_coded_and_all_one_without(cells):
    assert cell_type_codes(BoundData(_registry(cells, cell_type_key="cell_type"), cells)).tolist() == [0, 0, 1] * 8
    assert cell_type_codes(BoundData(_registry(cells), cells)).tolist() == [0] * N


def test_contrastive_labels_are_what_was_asked_for(cells):
    typed, untyped = _registry(cells.copy(), cell_type_key="cell_type"), _registry(cells)
    combinations = np.arange(N) % 5
    of_types = np.tile([0, 0, 1], 8)
    for on, registry, expected in (
        ("auto", typed, of_types),
        ("cell_type", typed, of_types),
        ("covariates", typed, combinations),
        ("auto", untyped, combinations),
        ("covariates", untyped, combinations),
    ):
        np.testing.assert_array_equal(contrastive_labels(BoundData(registry, cells), combinations, on), expected)
    with pytest.raises(ValueError, match=r"contrastive_on='cell_type', but no cell_type_key was set up"):
        contrastive_labels(BoundData(untyped, cells), combinations, "cell_type")


def test_a_batch_without_training_cells_is_unknown(wound, setup):
    adata = wound.copy()
    held = sorted(adata.obs["mouse_id"].unique())[0]
    ssl.LoRACovariateSE.setup_anndata(
        adata, covariate_keys=["condition"], batch_key="mouse_id", holdout={"mouse_id": held}
    )
    registry = Registry.from_adata(adata)
    assert held not in registry.batch.categories
    assert len(registry.batch.categories) == adata.obs["mouse_id"].nunique() - 1
    codes = BoundData(registry, adata).batch_codes
    assert set(codes[(adata.obs["mouse_id"] == held).to_numpy()]) == {-1}
