"""Labels and thresholds that a file format would stumble over."""

from __future__ import annotations

import json

import anndata as ad
import pytest

from tests.builders import labelled_cells


@pytest.fixture(scope="module")
def with_slashes(classify):
    """A classifier of labels that hold a slash, of which two differ in nothing else."""
    cells = labelled_cells(120)
    names = dict(zip(sorted(set(cells.obs["cell_type"])), ("a/b", "a_b", "c/d"), strict=False))
    cells.obs["cell_type"] = [names.get(name, name) for name in cells.obs["cell_type"].astype(str)]
    return classify(cells)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_labels_with_a_slash_are_kept_and_their_probabilities_can_be_written(with_slashes, query, tmp_path):
    table = with_slashes.predict(query)
    assert set(table["scstate_celltype"]) & {"a/b", "c/d"}
    assert "a/b" in with_slashes.predict_proba(query)
    columns = query.obsm["scstate_celltype_probability"].columns
    assert len(set(columns)) == len(columns)
    assert not [c for c in columns if "/" in c]
    query.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert list(again.obsm["scstate_celltype_probability"]) == list(columns)


def test_a_threshold_that_no_label_reaches_is_written_as_plain_json(frozen, query, monkeypatch):
    monkeypatch.setattr(type(frozen.targets["cell_type"].left_out), "threshold", lambda *_, **__: float("inf"))
    table = frozen.predict(query, max_error=0.01)
    assert (table["scstate_celltype"] == "Unknown").all()
    stored = query.uns["scstate_lora"]["annotate"]["scstate_celltype"]
    assert "Infinity" not in stored
    assert json.loads(stored)["threshold"] is None
