from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import CategoricalCovariate, ContinuousCovariate
from scstate_lora.data.registry import Registry

COVARIATES = (CategoricalCovariate("day", ("10", "14", "19")), ContinuousCovariate("dose", 2.0, 1.0, 0.0, 4.0))
OBS = pd.DataFrame({"day": [10, 14, 19], "dose": [0.0, 1.0, 4.0]}, index=["a", "b", "c"])


@pytest.fixture
def registry():
    return Registry(
        var_names=["G0", "G1"],
        scale="counts",
        scale_reason="whole numbers",
        layer=None,
        gene_key=None,
        covariates=COVARIATES,
        pert_key=None,
        control=None,
        perturbations=[],
        cell_type_key=None,
        batch_key=None,
        context_keys=[],
    )


def _bind(registry, obs=OBS):
    return BoundData(registry, ad.AnnData(np.ones((3, 1)), obs=obs))


def _encoded(registry, covariates, obs=OBS):
    encoded = _bind(registry, obs).under(covariates).encode()
    return encoded["day"].tolist(), encoded["dose"].tolist()


def test_values_for_all_cells_or_for_each(registry):
    assert _encoded(registry, None) == ([0, 1, 2], [-2, -1, 2])
    assert _encoded(registry, {"day": 14.0}) == ([1, 1, 1], [-2, -1, 2])
    assert _encoded(registry, {"dose": 3, "day": "19"}) == ([2, 2, 2], [1, 1, 1])
    each = pd.DataFrame({"day": ["19", "10", "10"]}, index=OBS.index)
    assert _encoded(registry, each) == ([2, 0, 0], [-2, -1, 2])
    assert OBS["day"].tolist() == [10, 14, 19]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, float("nan"), np.float32("nan")])
def test_a_missing_value_withholds_a_covariate_from_all_cells(registry, missing):
    assert _encoded(registry, {"day": missing}) == ([3, 3, 3], [-2, -1, 2])
    days, doses = _encoded(registry, {"dose": missing})
    assert days == [0, 1, 2]
    assert np.isnan(doses).all()


@pytest.mark.parametrize("values", [["19", None, "10"], pd.Categorical(["19", None, "10"]), [19, np.nan, 10]])
def test_a_missing_value_withholds_a_covariate_from_one_cell(registry, values):
    each = pd.DataFrame({"day": values, "dose": [None, 2, 3]}, index=OBS.index)
    days, doses = _encoded(registry, each)
    assert days == [2, 3, 0]
    np.testing.assert_array_equal(doses, [np.nan, 0, 1])


def test_withheld_columns_survive_the_file(registry, tmp_path):
    for covariates in ({"day": None, "dose": None}, pd.DataFrame({"day": [19, None, 10]}, index=OBS.index)):
        moved = _bind(registry).under(covariates).covariate_values
        ad.AnnData(np.ones((3, 1)), obs=moved).write_h5ad(tmp_path / "a.h5ad")
        read = ad.read_h5ad(tmp_path / "a.h5ad").obs
        np.testing.assert_array_equal(read["day"].isna(), np.array(_encoded(registry, covariates)[0]) == 3)
        pd.testing.assert_frame_equal(read, moved, check_dtype=False)


def test_a_column_that_new_cells_lack_can_be_given_or_withheld(registry):
    assert _encoded(registry, {"day": None}, OBS[["dose"]])[0] == [3, 3, 3]
    with pytest.raises(KeyError, match=r"adata\.obs\['day'\] does not exist.*covariates={'day': \.\.\.}"):
        _encoded(registry, None, OBS[["dose"]])


def test_own_missing_values_raises_although_another_covariate_is_withheld(registry):
    obs = OBS.assign(day=[10, None, 19])
    with pytest.raises(ValueError, match=r"adata\.obs\['day'\] has 1 missing values of 3"):
        _encoded(registry, {"dose": None}, obs)


@pytest.mark.parametrize(
    ("covariates", "error", "message"),
    [
        ({"days": "10"}, KeyError, "'days' is not a covariate of this model. Did you mean 'day'"),
        ({"day": "15"}, ValueError, r"covariates\['day'\]='15' was never seen in training"),
        ({"dose": "high"}, ValueError, r"covariates\['dose'\] must be finite numbers, found 'high'"),
        ({"dose": np.inf}, ValueError, r"covariates\['dose'\] must be finite numbers, found inf"),
        ({"day": ["10", "14", "19"]}, TypeError, r"covariates\['day'\] must be one value for all cells"),
        ({"day": OBS["day"]}, TypeError, r"covariates\['day'\] is a Series"),
        ([("day", "10")], TypeError, "must be a dict or a DataFrame, found list"),
        (OBS.iloc[:2], ValueError, r"covariates has 2 rows; expected one per cell \(3\)"),
        (pd.DataFrame({"day": ["15", None, "10"]}, index=OBS.index), ValueError, "'15' was never seen"),
        (pd.DataFrame({"dose": [np.inf, None, 1]}, index=OBS.index), ValueError, "must be finite numbers"),
    ],
)
def test_unusable_values_raises(registry, covariates, error, message):
    with pytest.raises(error, match=message):
        _ = _bind(registry).under(covariates).covariate_values


def test_extrapolation_warns_at_the_calling_line(registry):
    with pytest.warns(
        UserWarning, match=r"covariates\['dose'\] ranges from 1 to 9, but training covered 0 to 4"
    ) as warned:
        _ = _bind(registry).under(pd.DataFrame({"dose": [1, None, 9]}, index=OBS.index)).covariate_values
    assert warned[0].filename == __file__
