from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scstate_lora.workflow.results_file import FORMAT_VERSION, Results, compare, describe_file, package_versions


@pytest.fixture
def table():
    """A table of every type, with values that JSON has no number for."""
    return pd.DataFrame(
        {
            "metric": ["mae", "sd_r2"],
            "value": [1 / 3, np.nan],
            "lowest": [0.0, -np.inf],
            "highest": [np.inf, 1.0],
            "n_control": [3, 40],
            "counts": [True, False],
            "reason": ["", None],
        }
    )


@pytest.fixture
def results(table, tmp_path):
    cells = tmp_path / "cells.h5ad"
    cells.write_bytes(b"not read")
    return Results(
        command="evaluate",
        settings={"control": "sham", "seed": 3, "holdout": [{"type": "B"}]},
        files={"real": describe_file(cells, tmp_path)},
        versions=package_versions(),
        split={"source": "holdout=", "fingerprint": "ab", "train": 2, "val": 0, "test": 3},
        tables={"perturbation": table},
    )


def test_what_is_written_is_read(results, table, tmp_path):
    results.write(tmp_path / "results.json")
    read = Results.read(tmp_path / "results.json")
    pd.testing.assert_frame_equal(read.tables["perturbation"], table, check_exact=True)
    assert read.settings == results.settings
    assert read.files == results.files
    assert read.split == results.split
    assert read.versions == results.versions


def test_it_is_strict_json_with_one_row_a_line(results, tmp_path):
    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    results.write(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["format_version"] == FORMAT_VERSION
    stored = content["tables"]["perturbation"]
    assert stored["columns"] == [
        {"name": "metric", "type": "text"},
        {"name": "value", "type": "number"},
        {"name": "lowest", "type": "number"},
        {"name": "highest", "type": "number"},
        {"name": "n_control", "type": "integer"},
        {"name": "counts", "type": "boolean"},
        {"name": "reason", "type": "text"},
    ]
    assert stored["rows"][0] == ["mae", 1 / 3, 0.0, "inf", 3, True, ""]
    assert stored["rows"][1] == ["sd_r2", None, "-inf", 1.0, 40, False, None]
    assert sum(line.strip().startswith('["') for line in text.splitlines()) == 2


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    results.write(tmp_path / "a.json")
    Results.read(tmp_path / "a.json").write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_files_are_known_by_content_and_found_beside_the_results(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "runs").mkdir()
    inside, outside = describe_file(tmp_path / "x", tmp_path), describe_file(tmp_path / "x", tmp_path / "runs")
    assert inside == {
        "path": "x",
        "bytes": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert outside["path"] == str((tmp_path / "x").resolve())


def test_versions_are_those_of_what_computes():
    versions = package_versions()
    assert {"python", "scstate-lora", "anndata", "numpy", "scipy", "scikit-learn", "scib-metrics", "torch"} <= set(
        versions
    )
    assert versions["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not JSON"),
        ('{"format": "other"}', "holds no results of scstate_lora"),
        ("[1]", "holds no results of scstate_lora"),
        ('{"format": "scstate_lora results", "format_version": 99}', "format version is 99, and this version"),
        ('{"format": "scstate_lora results", "format_version": 1, "command": "run"}', "lacks 'settings'"),
    ],
)
def test_other_files_raise(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        Results.read(path)
    assert str(path) in str(raised.value)


def test_no_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        Results.read(tmp_path / "results.json")


def _scores(**values):
    return pd.DataFrame(
        {
            "model": ["m", "linear"],
            "metric": ["mae", "mae"],
            "value": [0.5, 2.0],
            "n_measured": [4, 4],
            "reason": ["", ""],
        }
        | values
    )


def test_equal_tables_have_the_same_numbers():
    found = compare({"perturbation": _scores()}, {"perturbation": _scores(value=[0.5 + 1e-8, 2.0])})
    assert found.same == 4
    assert found.is_same
    assert found.different.empty


def test_differences_are_named_by_row_and_column():
    now = _scores(value=[0.5, 2.1], n_measured=[4, np.nan])
    found = compare({"perturbation": _scores()}, {"perturbation": now.iloc[::-1]})  # the order does not matter
    assert found.same == 2
    assert not found.is_same
    assert found.different.to_dict("records") == [
        {
            "table": "perturbation",
            "row": "linear, mae",
            "column": "n_measured",
            "recorded": 4.0,
            "now": pytest.approx(np.nan, nan_ok=True),
        },
        {"table": "perturbation", "row": "linear, mae", "column": "value", "recorded": 2.0, "now": 2.1},
    ]


def test_absent_rows_columns_and_tables_are_different():
    found = compare({"perturbation": _scores(), "audit": _scores()}, {"perturbation": _scores().iloc[:1, :3]})
    assert found.same == 1
    assert found.absent == ["audit", "perturbation: linear, mae", "perturbation: column n_measured"]
    assert not found.is_same


def test_new_rows_are_told_and_do_not_make_a_difference():
    found = compare({"perturbation": _scores().iloc[:1]}, {"perturbation": _scores()})
    assert found.is_same
    assert found.new == 2
