from __future__ import annotations

import mudata
import numpy as np
import pandas as pd
import torch
import zarr

from scstate_lora._compat import mudata_without_pull, open_zarr, read_csv, zarr_path
from scstate_lora._compat_torch import clamp_min, total_norm
from scstate_lora._utils import did_you_mean


def test_clamp_has_slope_one_at_its_bound():
    values = torch.tensor([-1.0, 1.0, 3.0, float("nan")], requires_grad=True)
    clamped = clamp_min(values, 1)
    clamped.sum().backward()
    assert torch.equal(clamped[:3], torch.tensor([1.0, 1.0, 3.0]))
    assert clamped[3].isnan()
    assert values.grad.tolist() == [0, 1, 1, 1]


def test_total_norm_is_that_of_all_values():
    tensors = [torch.randn(3, 4), torch.randn(5)]
    torch.testing.assert_close(total_norm(tensors), torch.cat([tensor.flatten() for tensor in tensors]).norm())


def test_numbers_are_read_as_they_were_written(tmp_path):
    numbers = np.random.default_rng(0).random(10_000) * 1e-7
    pd.DataFrame({"x": numbers}).to_csv(tmp_path / "x.csv", index=False)
    assert np.array_equal(read_csv(tmp_path / "x.csv")["x"], numbers)


def test_a_zarr_store_is_read_by_what_it_holds(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    zarr.consolidate_metadata(group.store)
    group["later"] = np.arange(3)
    opened = open_zarr(tmp_path / "a.zarr", "r")
    assert opened["later"][:].tolist() == [0, 1, 2]
    assert zarr_path(opened["later"]).endswith("a.zarr/later")


def test_a_mudata_copies_no_columns(tmp_path):
    cells = mudata.AnnData(np.ones((2, 1)), obs=pd.DataFrame({"own": [1, 2]}, index=["a", "b"]))
    with mudata_without_pull():
        assert list(mudata.MuData({"rna": cells}).obs) == []


def test_the_matrix_is_no_layer_to_suggest():
    assert "None" not in did_you_mean("count", [None, "raw"])
