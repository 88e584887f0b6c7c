from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy as sc

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData


@pytest.fixture
def with_raw(adata):
    """Counts in raw, of ten genes more than X."""
    adata.X = adata.X.toarray()
    whole = adata.copy()
    part = adata[:, :20].copy()
    part.raw = whole
    return part


@pytest.mark.parametrize("case", ["scaled", "normalised", "square roots"])
def test_refused_values_with_counts_in_raw_say_how_to_use_them(with_raw, case):
    if case == "square roots":
        with_raw.X = np.sqrt(with_raw.X)
    else:
        sc.pp.normalize_total(with_raw)
        if case == "scaled":
            sc.pp.log1p(with_raw)
            sc.pp.scale(with_raw)
    with pytest.raises(
        ValueError, match=r"adata\.X .*adata\.raw holds counts of 30 genes: raw = adata\.raw\.to_adata\(\)"
    ):
        Registry.create(with_raw, DataConfig())
    assert Registry.create(with_raw.raw.to_adata(), DataConfig()).scale == "counts"


def test_log_values_in_raw_are_called_so(with_raw):
    logged = with_raw.raw.to_adata()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    scaled = logged.copy()
    scaled.raw = logged
    sc.pp.scale(scaled)
    with pytest.raises(ValueError, match=r"adata\.raw holds log1p values of 30 genes"):
        Registry.create(scaled, DataConfig())


def test_nothing_is_said_of_raw_that_is_of_no_use(with_raw):
    sc.pp.scale(with_raw)
    with_raw.raw = with_raw
    with pytest.raises(ValueError, match="negative values") as refused:
        Registry.create(with_raw, DataConfig())
    assert "raw" not in str(refused.value)


def test_new_cells_on_another_scale_than_the_model_are_found_in_raw(adata, with_raw):
    registry = Registry.create(with_raw.copy(), DataConfig())
    sc.pp.normalize_total(with_raw)
    sc.pp.log1p(with_raw)
    with pytest.raises(ValueError, match=r"model was set up on counts .*adata\.raw holds counts"):
        _ = BoundData(registry, with_raw).matrix


def test_values_that_only_pass_as_log1p_warns(with_raw):
    sc.pp.normalize_total(with_raw)
    sc.pp.log1p(with_raw)
    sc.pp.scale(with_raw, zero_center=False)
    with pytest.warns(UserWarning, match=r"adata\.X passes as log1p values, but .*adata\.raw holds counts of 30 genes"):
        Registry.create(with_raw, DataConfig())


def test_log_values_of_the_counts_in_raw_are_no_reason_to_warn(with_raw):
    whole = with_raw.raw.to_adata()
    sc.pp.normalize_total(whole)
    sc.pp.log1p(whole)
    with_raw.X = whole.X[:, :20]  # of an unknown sum, as genes are left out
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Registry.create(with_raw, DataConfig())
