from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scstate_lora.config import CovariateConfig
from scstate_lora.data.fields import (
    CategoricalCovariate,
    ContinuousCovariate,
    covariate_from_dict,
    covariate_to_dict,
    fit_covariates,
    obs_column,
    withhold,
)
from scstate_lora.data.labels import as_labels, label_of

DAYS = pd.date_range("2024-01-01", periods=24)


def _adata(values, **columns):
    frame = pd.DataFrame({"x": values, **columns})
    frame.index = [f"cell{i}" for i in range(len(frame))]
    return ad.AnnData(np.ones((len(frame), 2), np.float32), obs=frame)


def _fit(values, keys="x"):
    return fit_covariates(_adata(values), keys)[0]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("burn", "burn"),
        (np.str_("burn"), "burn"),
        (True, "True"),
        (np.bool_(False), "False"),
        (10, "10"),
        (10.0, "10"),
        (np.float32(0.1), "0.1"),
        (-2.0, "-2"),
        (12345678901, "12345678901"),
        (np.int8(3), "3"),
    ],
)
def test_label_of(value, label):
    assert label_of(value) == label


def test_labels_are_the_same_for_all_number_types():
    forms = [[10, 14], [10.0, 14.0], np.array([10, 14], np.int8), pd.Categorical([10.0, 14.0]), pd.array([10, 14])]
    for form in forms:
        labels = as_labels(pd.Series(form, index=["a", "b"]))
        assert labels.tolist() == ["10", "14"]
        assert labels.index.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (pd.Categorical(["b", "a"] * 12, categories=["c", "b", "a"]), ("a", "b")),  # an unused category
        (["b", "a"] * 12, ("a", "b")),
        (pd.array(["b", "a"] * 12, dtype="string"), ("a", "b")),
        ([True, False] * 12, ("False", "True")),
        (pd.array([True, False] * 12, dtype="boolean"), ("False", "True")),
        ([10, 14, 19] * 8, ("10", "14", "19")),
        (np.tile(np.float32([0.1, 0.5]), 12), ("0.1", "0.5")),
        (pd.array([1, 2] * 12, dtype="Int64"), ("1", "2")),
        (np.array([1, 2.5] * 12, dtype=object), ("1", "2.5")),
        (pd.Categorical(np.arange(24)), tuple(sorted(map(str, range(24))))),
    ],
)
def test_labels_bools_and_few_distinct_numbers_are_categorical(values, categories):
    covariate = _fit(values)
    assert covariate == CategoricalCovariate("x", categories)
    assert covariate.unknown == len(categories)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(24),
        np.arange(24, dtype=np.float32),
        pd.array(np.arange(24), dtype="Int64"),
        np.arange(24).astype(object),
        np.arange(24, dtype=np.uint8),
    ],
)
def test_many_distinct_numbers_are_continuous(values):
    covariate = _fit(values)
    assert isinstance(covariate, ContinuousCovariate)
    assert (covariate.mean, covariate.low, covariate.high) == (11.5, 0, 23)
    assert covariate.std == pytest.approx(np.arange(24).std())
    assert all(type(v) is float for v in (covariate.mean, covariate.std, covariate.low, covariate.high))


def test_eight_distinct_numbers_are_categorical_and_nine_continuous():
    assert _fit(np.arange(24) % 8).kind == "categorical"
    assert _fit(np.arange(24) % 9).kind == "continuous"


def test_the_dict_form_overrides():
    assert _fit([10, 14, 19] * 8, {"x": "continuous"}).kind == "continuous"
    assert _fit(["10", "14"] * 12, {"x": "continuous"}).mean == 12
    assert _fit(pd.Categorical([10, 14] * 12), {"x": "continuous"}).mean == 12
    assert len(_fit(np.arange(24.0), {"x": "categorical"}).categories) == 24


@pytest.mark.parametrize(
    "keys",
    [["x", "y"], ("x", "y"), pd.Index(["x", "y"]), np.array(["x", "y"]), {"x": None, "y": "categorical"}, iter("xy")],
)
def test_keys_in_any_collection(keys):
    covariates = fit_covariates(_adata(["a", "b"] * 12, y=["c", "d"] * 12), keys)
    assert [c.name for c in covariates] == ["x", "y"]


def test_no_keys_give_no_covariates():
    assert fit_covariates(_adata(["a", "b"]), ()) == ()


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ("X1", KeyError, r"adata\.obs\['X1'\] does not exist. Did you mean 'x'"),
        (["x", "x"], ValueError, "names 'x' more than once"),
        (["x", 3], TypeError, r"covariate_keys holds 3 \(int\)"),
        ([["x"]], TypeError, r"covariate_keys holds \['x'\] \(list\)"),
        ({3: "categorical"}, TypeError, r"key of adata.obs must be a string, found 3"),
        (None, TypeError, "must be a list of keys or a mapping.*NoneType"),
        ({"x": "categoric"}, ValueError, r"covariate_keys\['x'\]='categoric' is unknown. Did you mean 'categorical'"),
    ],
)
def test_unusable_keys_raises(keys, error, message):
    with pytest.raises(error, match=message):
        fit_covariates(_adata(["a", "b"] * 12), keys)


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical(["a", None, "b", "a"]),
        np.array(["a", None, "b", "a"], dtype=object),
        [1.0, np.nan, 3.0, 4.0],
        pd.array([1, None, 3, 4], dtype="Int64"),
        pd.array(["a", None, "b", "a"], dtype="string"),
    ],
)
def test_missing_values_raises(values):
    for keys in ("x", {"x": "continuous"}):
        with pytest.raises(ValueError, match=r"adata\.obs\['x'\] has 1 missing values of 4.*notna"):
            fit_covariates(_adata(values), keys)


@pytest.mark.parametrize("values", [DAYS, DAYS - DAYS[0], pd.Categorical(DAYS), DAYS.date])
@pytest.mark.parametrize("keys", ["x", {"x": "continuous"}, {"x": "categorical"}])
def test_dates_raises(values, keys):
    with pytest.raises(TypeError, match=r"adata\.obs\['x'\] holds dates or durations"):
        fit_covariates(_adata(values), keys)


def test_one_category_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] has one category only, 'a'.*Leave it out"):
        _fit(pd.Categorical(["a"] * 4, categories=["a", "b"]))


def test_constant_number_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] has one value only, 0\.1"):
        _fit([0.1] * 24, {"x": "continuous"})


def test_text_declared_continuous_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] is declared continuous but is not numeric.*categorical"):
        _fit(["day10", "day14"], {"x": "continuous"})


def test_infinite_number_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] holds 1 infinite values of 24"):
        _fit([np.inf, *range(23)])


def test_two_columns_of_one_name_raises():
    adata = _adata(["a", "b"])
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    with pytest.raises(ValueError, match="2 columns named 'x'"):
        obs_column(adata, "x")


def test_categorical_encode():
    covariate = CategoricalCovariate("x", ("10", "14", "a"))
    codes = covariate.encode(pd.Series([14.0, "a", 10, "10"], dtype=object))
    assert codes.tolist() == [1, 2, 0, 0]
    assert codes.dtype == np.int64


def test_categorical_encode_of_an_unseen_level_raises():
    covariate = CategoricalCovariate("x", ("day10", "day14"))
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] holds 'day15', never seen .* Did you mean 'day1"):
        covariate.encode(pd.Series(["day10", "day15"]))


def test_categorical_encode_of_a_missing_value_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] has 1 missing values"):
        CategoricalCovariate("x", ("a", "b")).encode(pd.Series(["a", None]))


def test_continuous_encode_standardises():
    values = np.random.default_rng(0).normal(30, 4, 24)
    covariate = _fit(values)
    encoded = covariate.encode(pd.Series(values))
    assert encoded.dtype == np.float32
    assert encoded.mean() == pytest.approx(0, abs=1e-6)
    assert encoded.std() == pytest.approx(1, abs=1e-6)
    outside = covariate.encode(pd.Series([covariate.mean + 9 * covariate.std]))
    assert outside[0] == pytest.approx(9)


def test_continuous_encode_of_a_missing_value_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] has 1 missing values of 2"):
        _fit(np.arange(24)).encode(pd.Series([1.0, None]))


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical(["a", None, "b", "a"]),
        np.array(["a", None, "b", "a"], dtype=object),
        np.array(["a", np.nan, "b", "a"], dtype=object),
        pd.array(["a", None, "b", "a"], dtype="string"),
    ],
)
def test_missing_labels_are_unknown_if_declared_so(values):
    covariate = _fit(values, {"x": {"allow_missing": True}})
    assert covariate == CategoricalCovariate("x", ("a", "b"), allow_missing=True)
    codes = covariate.encode(pd.Series(values))
    assert codes.tolist() == [0, 2, 1, 0]
    assert codes.dtype == np.int64


@pytest.mark.parametrize(
    "values",
    [
        [np.nan, *range(1, 24)],
        pd.array([None, *range(1, 24)], dtype="Int64"),
        np.array([None, *range(1, 24)], dtype=object),
    ],
)
def test_missing_numbers_are_unknown_if_declared_so(values):
    for declared in ({"allow_missing": True}, {"type": "continuous", "allow_missing": True}):
        covariate = _fit(values, {"x": declared})
        assert (covariate.mean, covariate.low, covariate.high) == (12, 1, 23)
        encoded = covariate.encode(pd.Series(values))
        assert np.isnan(encoded[0])
        assert encoded[1:].mean() == pytest.approx(0, abs=1e-6)
        assert encoded.dtype == np.float32


def test_missing_values_may_be_allowed_for_one_encoding():
    categorical, continuous = CategoricalCovariate("x", ("a", "b")), _fit(np.arange(24))
    assert categorical.encode(pd.Series(["b", None]), allow_missing=True).tolist() == [1, 2]
    assert np.isnan(continuous.encode(pd.Series([1.0, None]), allow_missing=True)).tolist() == [False, True]
    with pytest.raises(ValueError, match="never seen"):
        categorical.encode(pd.Series(["c", None]), allow_missing=True)
    with pytest.raises(ValueError, match="1 infinite values of 2"):
        continuous.encode(pd.Series([np.inf, None]), allow_missing=True)


@pytest.mark.parametrize("values", [[None] * 4, pd.Categorical([None] * 4, categories=["a", "b"]), [np.nan] * 4])
@pytest.mark.parametrize("kind", [None, "categorical", "continuous"])
def test_only_missing_values_raises(values, kind):
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] holds missing values only"):
        _fit(values, {"x": {"type": kind, "allow_missing": True}})


def test_missing_values_do_not_count_as_a_category_raises():
    with pytest.raises(ValueError, match="one category only, 'a'"):
        _fit(["a", None, "a"], {"x": {"allow_missing": True}})
    with pytest.raises(ValueError, match="one value only, 2"):
        _fit([2, None, 2], {"x": {"type": "continuous", "allow_missing": True}})


def test_missing_values_raises_and_names_both_remedies():
    with pytest.raises(ValueError, match=r"adata\[adata\.obs\['x'\]\.notna\(\)\].*{'x': {'allow_missing': True}}"):
        _fit(["a", None, "b"])
    with pytest.raises(ValueError, match=r"1 missing values of 3.*allow_missing"):
        _fit([1, np.nan, 3], {"x": "continuous"})


def test_withhold_replaces_each_value_independently():
    rng = np.random.default_rng(0)
    encoded = {"a": rng.integers(0, 3, (200, 50)), "b": rng.normal(size=(200, 50)).astype(np.float32)}
    hidden = withhold(encoded, {"a": 3, "b": np.nan, "pert": 9}, 0.3, np.random.default_rng(1))
    a, b = hidden["a"] == 3, np.isnan(hidden["b"])
    assert (hidden["a"].dtype, hidden["b"].dtype) == (np.int64, np.float32)
    assert [a.mean(), b.mean(), (a & b).mean()] == pytest.approx([0.3, 0.3, 0.09], abs=0.02)
    np.testing.assert_array_equal(hidden["a"][~a], encoded["a"][~a])
    np.testing.assert_array_equal(hidden["b"][~b], encoded["b"][~b])
    assert encoded["a"].max() == 2
    again = withhold(encoded, {"a": 3, "b": np.nan}, 0.3, np.random.default_rng(1))
    np.testing.assert_array_equal(again["b"], hidden["b"])
    for share, expected in ((0.0, 0), (1.0, 1)):
        assert (withhold(encoded, {"a": 3, "b": np.nan}, share, rng)["a"] == 3).mean() == expected


def test_values_that_cannot_be_standardised_raises():
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] ranges from -1e\+308 to 1e\+308"):
        _fit([-1e308, 1e308] * 12, {"x": "continuous"})
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] ranges from 0 to"):
        _fit([0, 5e-324] * 12, {"x": "continuous"})
    with pytest.raises(
        ValueError, match=r"holds 1e\+300, which is too far outside the range seen in training \(0 to 23\)"
    ):
        _fit(np.arange(24)).encode(pd.Series([1.0, 1e300]))


def test_values_that_are_neither_labels_nor_numbers_raises():
    with pytest.raises(TypeError, match=r"adata\.obs\['x'\] holds list values"):
        _fit(pd.Series([[1], [2]] * 12).to_numpy())
    with pytest.raises(ValueError, match=r"adata\.obs\['x'\] is declared continuous but is not numeric: complex"):
        _fit(np.arange(24) * 1j, {"x": "continuous"})


def test_options_outside_of_a_list_raises():
    with pytest.raises(ValueError, match=r"covariate_keys=\[{'name': 'x', \.\.\.}\]"):
        _fit(["a", "b"], {"name": "x", "type": "categorical"})


OPTIONS = {"embed_dim": 12, "continuous_encoder": {"hidden_dim": 7, "activation": "gelu"}, "type": "continuous"}


@pytest.mark.parametrize(
    "keys",
    [
        {"x": OPTIONS},
        [{"name": "x", **OPTIONS}],
        CovariateConfig(name="x", **OPTIONS),
        [CovariateConfig(name="x", **OPTIONS)],
        {"x": CovariateConfig(name="x", **OPTIONS)},
    ],
)
def test_options_of_a_covariate_in_every_form(keys):
    covariate = _fit(np.arange(24), keys)
    assert (covariate.kind, covariate.embed_dim, covariate.hidden_dim, covariate.activation) == (
        "continuous",
        12,
        7,
        "gelu",
    )


def test_options_can_be_mixed_with_keys_and_kinds():
    adata = _adata(["a", "b"] * 12, y=np.arange(24.0), z=[1, 2] * 12)
    for keys in (["x", {"name": "y", "embed_dim": 3}, "z"], {"x": None, "y": {"embed_dim": 3}, "z": "categorical"}):
        x, y, z = fit_covariates(adata, keys)
        assert [c.kind for c in (x, y, z)] == ["categorical", "continuous", "categorical"]
        assert [c.embed_dim for c in (x, y, z)] == [256, 3, 256]


def test_the_number_of_categories_is_checked():
    assert _fit(["a", "b", "c"], {"x": {"num_categories": 3}}).categories == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"num_categories=4, but adata\.obs\['x'\] holds 3: 'a', 'b', 'c'\."):
        _fit(["a", "b", "c"], {"x": {"num_categories": 4}})
    with pytest.raises(ValueError, match=r"num_categories=4, but adata\.obs\['x'\] is treated as continuous"):
        _fit(np.arange(24), {"x": {"num_categories": 4}})


def test_a_continuous_encoder_for_labels_raises():
    with pytest.raises(ValueError, match=r"continuous_encoder, but adata\.obs\['x'\] is treated as categorical"):
        _fit(["a", "b"], {"x": {"continuous_encoder": {"hidden_dim": 4}}})


@pytest.mark.parametrize("values", [["a", "b"] * 12, np.arange(24, dtype=np.float32)])
def test_covariate_survives_json(values):
    covariate = _fit(values)
    assert covariate_from_dict(json.loads(json.dumps(covariate_to_dict(covariate)))) == covariate
