from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scanpy as sc

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.log_scale import check_scales, noted_base, scale_name
from scstate_lora.data.stream import open_cells

if TYPE_CHECKING:
    import anndata as ad

KEYS = {"pert_key": "condition", "control": "sham"}


def _logged(adata, *, target_sum=None, base=None, note=True) -> ad.AnnData:
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=target_sum)
    sc.pp.log1p(logged, base=base)
    if not note:
        del logged.uns["log1p"]
    return logged


def _register(adata, **options) -> BoundData:
    return BoundData(Registry.from_json(Registry.create(adata, DataConfig(**KEYS, **options)).to_json()), adata)


@pytest.mark.parametrize(
    ("target_sum", "name"),
    [(None, "log1p"), (1e4, "log1p_cp10k"), (10_050, "log1p_cp10k"), (1e6, "log1p_cpm"), (1234.5, "log1p_cp1234")],
)
def test_the_name_of_a_scale(target_sum, name):
    assert scale_name(target_sum) == name


@pytest.mark.parametrize("base", [None, 2, 10])
@pytest.mark.parametrize("note", [True, False])
@pytest.mark.parametrize("target_sum", [1e4, 1e6, 777.0])
def test_any_logarithm_is_read_as_the_natural_one(adata, base, note, target_sum):
    cells = _register(_logged(adata, target_sum=target_sum, base=base, note=note))
    expected = _logged(adata, target_sum=target_sum).X.toarray()
    np.testing.assert_allclose(cells.matrix.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(cells.logged.toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(cells.log_counts.toarray(), expected, rtol=1e-5)
    assert cells.registry.target_sum == pytest.approx(target_sum, rel=1e-4)
    assert ("base" in cells.registry.scale_reason) == (base is not None)


def test_a_base_that_is_only_noted_is_read(adata):
    """Genes were left out after the normalisation, so that the sums say nothing."""
    cells = _register(_logged(adata, target_sum=1e4, base=2)[:, :20].copy())
    np.testing.assert_allclose(cells.matrix.toarray(), _logged(adata, target_sum=1e4).X[:, :20].toarray(), rtol=1e-5)
    assert cells.registry.target_sum is None


def test_a_note_beside_counts_is_ignored(adata):
    adata.uns["log1p"] = {"base": 2}
    cells = _register(adata)
    np.testing.assert_array_equal(cells.matrix.toarray(), adata.X.toarray())
    assert cells.registry.target_sum == 1e4


def test_a_note_that_the_values_refute_is_ignored(adata):
    logged = _logged(adata, target_sum=1e4)
    logged.uns["log1p"] = {"base": 2}
    np.testing.assert_array_equal(_register(logged).matrix.toarray(), logged.X.toarray())


@pytest.mark.parametrize("base", [None, 2])
def test_log_values_are_converted_to_a_target_sum(adata, base):
    cells = _register(_logged(adata, target_sum=1e6, base=base), target_sum=1e4)
    np.testing.assert_allclose(cells.logged.toarray(), _logged(adata, target_sum=1e4).X.toarray(), rtol=1e-4, atol=1e-5)
    assert cells.registry.target_sum == 1e4


def test_counts_are_normalised_to_a_target_sum(adata):
    cells = _register(adata, target_sum=500)
    np.testing.assert_allclose(cells.logged.toarray(), _logged(adata, target_sum=500).X.toarray(), rtol=1e-5)
    assert cells.registry.target_sum == 500


def test_conversion_of_an_unknown_sum_raises(adata):
    with pytest.raises(ValueError, match=r"target_sum=10000 cannot be reached: adata\.X is log1p.*unknown"):
        _register(_logged(adata)[:, :20].copy(), target_sum=1e4)


def test_new_cells_of_another_target_sum_raises(adata):
    registry = _register(_logged(adata, target_sum=1e4)).registry
    with pytest.raises(ValueError, match=r"per 1,000,000, but the model was set up on log1p of counts per 10,000"):
        _ = BoundData(registry, _logged(adata, target_sum=1e6)).logged
    part = BoundData(registry, _logged(adata, target_sum=1e6)[:, :20].copy())  # unknown
    with pytest.warns(UserWarning, match="are not in the data"):
        assert part.logged.shape == (48, 30)


def test_new_cells_in_another_base_are_converted(adata):
    cells = _register(_logged(adata, target_sum=1e4, base=2))
    new = BoundData(cells.registry, _logged(adata, target_sum=1e4))
    np.testing.assert_allclose(new.logged.toarray(), cells.logged.toarray(), rtol=1e-5)
    part = BoundData(cells.registry, _logged(adata, target_sum=1e4, base=2, note=False)[:10].copy())
    np.testing.assert_allclose(part.logged.toarray(), cells.logged[:10].toarray(), rtol=1e-5)


def test_registries_of_version_0_1_know_the_sum_of_counts_alone(adata):
    for cells, target_sum in ((adata, 1e4), (_logged(adata), None)):
        stored = json.loads(_register(cells).registry.to_json())
        for name in ("log_base", "source_sum", "target_sum", "embed_columns"):
            del stored[name]
        registry = Registry.from_json(json.dumps(stored))
        assert registry.target_sum == target_sum
        assert BoundData(registry, cells).logged.shape == (48, 30)


def test_scales_that_differ_raises():
    check_scales({"pred": 1e4, "real": 10_010.0, "train": 1e4})
    check_scales({"pred": None, "real": None})
    with pytest.raises(
        ValueError, match=r"pred is log1p of counts per 10,000, but real is log1p of counts per 1,000,000"
    ):
        check_scales({"pred": 1e4, "real": 1e6})


def test_an_unknown_scale_beside_a_known_one_warns():
    with pytest.warns(UserWarning, match="real is log1p of counts per 10,000, but the scale of pred is unknown"):
        check_scales({"pred": None, "real": 1e4})


@pytest.mark.parametrize("normalised", [False, True])
def test_square_roots_raises(adata, normalised):
    if normalised:
        sc.pp.normalize_total(adata, target_sum=1e4)
    adata.X = np.sqrt(adata.X)
    with pytest.raises(ValueError, match=r"adata\.X is neither counts nor log1p.*square-root-transformed"):
        _register(adata)
    with pytest.raises(ValueError, match="square-root-transformed"):
        _register(adata, input_scale="log1p")


def test_square_roots_of_new_cells_raises(adata):
    registry = _register(_logged(adata)).registry
    adata.X = np.sqrt(adata.X)
    with pytest.raises(ValueError, match="square-root-transformed"):
        _ = BoundData(registry, adata).matrix


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
@pytest.mark.parametrize("base", [None, 2])
def test_a_file_keeps_the_note_on_the_base(adata, ending, base, tmp_path):
    path = tmp_path / f"cells.{ending}"
    logged = _logged(adata, base=base)[:, :20].copy()
    (logged.write_h5ad if ending == "h5ad" else logged.write_zarr)(path)
    assert noted_base(open_cells(path)) == (math.e if base is None else base)
