"""Tutorials were executed from the first cell to the last, run as they stand, and say what they do not show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))
tutorials = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def _cells(path: Path, kind: str) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == kind]


def test_there_are_some():
    assert TUTORIALS


@tutorials
def test_it_was_executed_in_order_without_an_error(path):
    cells = _cells(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


@tutorials
def test_it_asks_a_question_and_ends_with_what_it_does_not_show(path):
    texts = [cell["source"] for cell in _cells(path, "markdown")]
    assert texts[0].splitlines()[0].endswith("?")
    assert texts[-1].startswith("## What this does not show")


@pytest.mark.slow
@tutorials
@pytest.mark.filterwarnings("ignore")  # of other packages, and of groups that are too small at this size
def test_its_code_runs(path, quick):
    names: dict[str, Any] = {}
    for cell in _cells(path, "code"):
        exec(cell["source"], names)
    plt.close("all")
    if path.stem == "quickstart":
        assert list(quick.glob("runs/*.html"))
