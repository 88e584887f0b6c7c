from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scstate_lora.data.perturbations import PerturbationTable, key_of, spellings

FEATURES = pd.DataFrame(
    {"a": [1.0, 2.0, 3.0, 9.0], "b": [0.0, 1.0, 0.0, 1.0], "same": 5.0}, index=["A", "B", "C", "new"]
)


def _features(**changed) -> PerturbationTable:
    return PerturbationTable.of_features(FEATURES, **{"trained": ["A", "B", "C"], "control": "none", **changed})


def test_one_hot_gives_every_perturbation_a_column_and_the_control_none() -> None:
    table = PerturbationTable.one_hot(["A", "none", "B"], "none")
    assert table.control == "none"
    assert table.encode(["B", "none", "A"]).tolist() == [[0, 1], [0, 0], [1, 0]]


def test_a_combination_is_the_sum_of_its_parts_unless_in_the_table() -> None:
    table = PerturbationTable.one_hot(["none", "A", "B", "A+C"], "none")
    assert table.encode(["A+B", "A + B", "A+C"]).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"target='A\+D': its part 'D' was not seen in training"):
        table.encode(["A+D"])


def test_features_are_standardised_over_training_perturbations_and_constant_ones_dropped() -> None:
    table = _features()
    assert table.dim == 3
    trained = table.encode(["A", "B", "C"])
    assert (trained[:, 0] == 1).all()
    np.testing.assert_allclose(trained[:, 1:].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(trained[:, 1:]).sum(axis=1).mean(), 1, rtol=1e-5)
    assert table.encode(["none"]).tolist() == [[0, 0, 0]]
    assert table.encode(["new"])[0, 1] > trained[:, 1].max()
    np.testing.assert_allclose(table.encode(["A+new"]), table.encode(["A"]) + table.encode(["new"]))


def test_an_unknown_perturbation_raises() -> None:
    with pytest.raises(ValueError, match=r"target='nwe' has no row in pert_features. Did you mean 'new'"):
        _features().encode(["nwe"])
    with pytest.raises(ValueError, match=r"target='C' was not seen in training.*pert_features="):
        PerturbationTable.one_hot(["none", "A"], "none").encode(["C"])


def test_wrong_features_raises() -> None:
    def of(frame):
        return PerturbationTable.of_features(frame, trained=["A", "B"], control="none")

    with pytest.raises(TypeError, match=r"must be a DataFrame.*found dict"):
        of({"A": [1.0]})
    with pytest.raises(TypeError, match="numeric in every column; not numeric: 'b'"):
        of(FEATURES.astype({"b": str}))
    with pytest.raises(ValueError, match="'A' in several rows"):
        of(pd.concat([FEATURES, FEATURES.loc[["A"]]]))
    with pytest.raises(ValueError, match="missing or infinite for 'B'"):
        of(FEATURES.replace({"a": {2.0: np.nan}}))
    with pytest.raises(ValueError, match=r"1 of the 2 training perturbations have no row in pert_features: 'B'"):
        of(FEATURES.drop(index="B"))
    with pytest.raises(ValueError, match="No column of pert_features differs"):
        of(FEATURES[["same"]])


def test_training_combinations_need_features_of_their_parts() -> None:
    assert _features(trained=["A", "B+C"]).dim == 3
    with pytest.raises(ValueError, match="'D'"):
        _features(trained=["A", "B+D"])


def test_survives_json_and_an_array() -> None:
    table = _features()
    again = PerturbationTable.from_dict(json.loads(json.dumps(table.to_dict())), table.values)
    assert again.names == table.names
    np.testing.assert_array_equal(again.encode(["A", "new"]), table.encode(["A", "new"]))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("B+A", "A+B"),
        (" A + B", "A+B"),
        ("A+A", "A"),
        ("A+none", "A"),
        ("none + B+A", "A+B"),
        ("none+none", "none"),
        ("none", "none"),
        ("Na+", "Na+"),
        ("+A", "+A"),
        ("CD4+CD25+", "CD4+CD25+"),
    ],
)
def test_every_spelling_of_a_perturbation_has_one_key(name, key) -> None:
    assert key_of(name, "none") == key


def test_a_control_of_two_parts_is_dropped_as_a_whole() -> None:
    assert key_of("guide2+guide1", "guide1+guide2") == "guide1+guide2"
    assert key_of("A+guide1+guide2", "guide1+guide2") == "A"
    assert key_of("A+guide1", "guide1+guide2") == "A+guide1"
    assert key_of("A+none", "none+none") == "A"


def test_one_spelling_per_perturbation_is_kept_whatever_their_order() -> None:
    chosen = {"none": "none", "A+B": "A+B", "A": "A", "C": "C+none"}
    for names in (("B+A", "A + B", "A+B", "none+A", "A", "C+none", "none+none"), ("A", "A+B", "C+none", "B+A")):
        assert spellings(names, "none") == chosen


def test_vectors_are_found_in_any_spelling() -> None:
    table = PerturbationTable.one_hot(["none", "A", "B", "C+A"], "none")
    assert table.encode(["A+C", "none + A", "B+none", "none+none"]).tolist() == [
        [0, 0, 1],
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]
    assert table.describes("B+A")
    assert not table.describes("A+D")


def test_features_need_no_row_of_the_control_and_any_spelling_of_a_combination() -> None:
    features = pd.DataFrame({"a": [1.0, 2.0, 7.0]}, index=["A", "B", "B + A"])
    table = PerturbationTable.of_features(features, trained=["A+none", "B", "A+B"], control="none")
    plain = PerturbationTable.of_features(
        features.set_axis(["A", "B", "A+B"]), trained=["A", "B", "A+B"], control="none"
    )
    np.testing.assert_array_equal(table.encode(["none+A", "B", "A+B+none"]), plain.encode(["A", "B", "A+B"]))
    twice = pd.concat([features, features[2:].set_axis(["A+B"])])
    with pytest.raises(ValueError, match=r"'B \+ A' in several rows \(also written 'A\+B'\)"):
        PerturbationTable.of_features(twice, trained=["A"], control="none")


def test_features_of_numbers_are_found_by_their_labels() -> None:
    table = PerturbationTable.of_features(
        pd.DataFrame({"a": [1.0, 2.0]}, index=[10.0, 0.1]), trained=["10", "0.1"], control="0"
    )
    assert table.encode(["10"]).shape == (1, 2)
