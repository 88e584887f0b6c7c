import numpy as np
import pandas as pd
import pytest

from scstate_lora.data.labels import as_labels, joined_levels, label_of


@pytest.mark.parametrize("dose", [0.1, 0.3, 1 / 3, 2.7, 1e-5, 123.456])
def test_a_dose_has_one_label_in_every_precision(dose):
    single = np.float32(dose)
    labels = {label_of(value) for value in (dose, single, float(single), np.float64(single), str(float(single)))}
    assert len(labels) == 1
    assert float(labels.pop()) == pytest.approx(dose, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (10, "10"),
        (10.0, "10"),
        (0.5, "0.5"),
        (True, "True"),
        ("1.50", "1.50"),
        (b"burn", "burn"),
        (np.bytes_("brûlé".encode()), "brûlé"),
        (b"\xff", "\\xff"),
        (" burn\t", "burn"),
        (b"burn ", "burn"),
        (np.nan, "nan"),
        (1234567.5, "1234567.5"),
    ],
)
def test_the_label_of_a_value(value, label):
    assert label_of(value) == label


@pytest.mark.parametrize("as_category", [False, True])
def test_text_bytes_and_blanks_name_one_level(as_category):
    column = pd.Series(["burn", b"burn", "burn ", "sham"], name="arm", dtype="category" if as_category else object)
    labels = as_labels(column)
    assert labels.tolist() == ["burn", "burn", "burn", "sham"]
    assert {k: sorted(v) for k, v in joined_levels(column, labels).items()} == {
        "burn": ["'burn '", "'burn'", "b'burn'"]
    }


def test_precisions_that_were_concatenated_are_one_level():
    doses = np.array([0.1, 0.7])
    column = pd.Series(np.concatenate([doses.astype(np.float32), doses]))
    labels = as_labels(column)
    assert labels.tolist() == ["0.1", "0.7", "0.1", "0.7"]
    assert set(joined_levels(column, labels)) == {"0.1", "0.7"}
