from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora._compat import mudata_without_pull
from scstate_lora.data.modalities import find_column

CELLS = [f"cell{i}" for i in range(6)]


def _mdata(**changed):
    rna = ad.AnnData(np.ones((6, 2), np.float32), obs=pd.DataFrame({"day": range(6)}, index=CELLS))
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(["d1", "d2", "d1", "d2"]),
            "used": [True, False, True, True],
            "plate": [10, 11, 10, 11],
            "CD3": [1.0, 2.0, 3.0, 4.0],
        },
        index=["cell4", "cell1", "cell0", "other"],
    )
    values = np.array([[0, 5], [1, 6], [2, 7], [3, 8]], np.float32)
    stored = sparse.csr_matrix(values) if changed.get("sparse") else values
    prot = ad.AnnData(stored, obs=obs, var=pd.DataFrame(index=["CD3", "CD4"]))
    with mudata_without_pull():
        mdata = mudata.MuData({"rna": rna, "prot": prot})
    mdata.obs["site"] = [f"site of {name}" for name in mdata.obs_names]
    return mdata


def _find(key, mdata=None, *, allow_variables=True):
    mdata = _mdata() if mdata is None else mdata
    return find_column(mdata, mdata["rna"], key, allow_variables=allow_variables)


def test_a_column_of_another_modality_is_matched_by_name():
    values, is_variable = _find("prot:donor")
    assert not is_variable
    assert values.index.tolist() == CELLS
    assert values.astype(object).where(values.notna(), None).tolist() == ["d1", "d2", None, None, "d1", None]


def test_missing_cells_leave_types_that_a_file_can_store(tmp_path):
    mdata = _mdata()
    adata = mdata["rna"].copy()
    for name in ("used", "plate", "donor"):
        adata.obs[f"prot:{name}"] = _find(f"prot:{name}", mdata).values.array
    assert adata.obs["prot:plate"].dropna().tolist() == [10, 11, 10]
    assert adata.obs["prot:used"].dropna().tolist() == ["True", "False", "True"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "a.h5ad").obs, adata.obs, check_dtype=False)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_variable_of_another_modality_is_read_if_no_column_has_its_name(is_sparse):
    mdata = _mdata(sparse=is_sparse)
    values, is_variable = _find("prot:CD4", mdata)
    assert is_variable
    np.testing.assert_array_equal(values, [7, 6, np.nan, np.nan, 5, np.nan])
    assert not _find("prot:CD3", mdata).is_variable
    with pytest.raises(KeyError, match=r"'prot:CD4': mdata\['prot'\]\.obs has no column 'CD4'"):
        _find("prot:CD4", mdata, allow_variables=False)


def test_a_plain_key_is_a_column_of_the_modality_or_else_of_the_mudata():
    mdata = _mdata()
    mdata.obs["day"] = -1
    assert _find("day", mdata) is None
    assert _find("site", mdata).values.tolist() == [f"site of {name}" for name in CELLS]
    assert _find("nowhere", mdata) is None


def test_a_column_of_the_modality_may_have_a_colon_in_its_name():
    mdata = _mdata()
    mdata["rna"].obs["x:y"] = mdata["rna"].obs["prot:z"] = 1
    assert _find("x:y", mdata) is None
    assert _find("prot:z", mdata) is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("prto:donor", r"'prto:donor': the MuData has no modality 'prto'\. Did you mean 'prot'"),
        ("prot:doner", r"mdata\['prot'\]\.obs has no column 'doner', nor var_names this name\. .*'donor'"),
        ("prot:CD44", r"mdata\['prot'\]\.obs has no column 'CD44', nor var_names this name\. .*'CD4'"),
    ],
)
def test_an_absent_column_raises(key, message):
    with pytest.raises(KeyError, match=message):
        _find(key)


def test_modalities_without_a_common_cell_raises():
    mdata = _mdata()
    mdata.mod["prot"].obs_names = [f"{name}-1" for name in mdata["prot"].obs_names]
    with pytest.raises(ValueError, match=r"mdata\['prot'\] has none of the 6 cells.*'cell4-1'.*'cell0'"):
        _find("prot:donor", mdata)


def test_names_that_are_not_unique_raises():
    mdata = _mdata()
    mdata.mod["prot"].var_names = ["CD4", "CD4"]
    with pytest.raises(ValueError, match=r"mdata\['prot'\]\.var_names holds 'CD4' 2 times"):
        _find("prot:CD4", mdata)
    mdata.mod["prot"].obs_names = ["cell0"] * 4
    with pytest.raises(ValueError, match=r"mdata\['prot'\]\.obs_names holds 'cell0' more than once.*make_unique"):
        _find("prot:donor", mdata)
