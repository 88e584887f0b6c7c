"""The code of the quickstart runs as it stands, and scores model and baselines with as many control cells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*too few control cells to train on:UserWarning")
def test_model_and_baselines_have_the_same_controls(quick):
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(code, names)
    scores = names["scores"]
    assert scores["n_control"].gt(0).all()
    assert (scores.groupby(["context", "metric"])["n_control"].nunique() == 1).all()
    test = names["adata"][(names["adata"].obs["scstate_split"] == "test").to_numpy()]
    n_controls = test.obs.loc[test.obs["condition"] == "sham", "cell_type"].value_counts()
    for context in set(scores["context"]) - {"all"}:
        assert set(scores.loc[scores["context"] == context, "n_control"]) == {n_controls[context]}
    assert len(names["pred"]) > n_controls.sum()  # the prediction has more, which do not count
    assert (quick / "report.html").exists()
