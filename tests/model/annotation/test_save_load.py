"""Saved and loaded, in other chunks, from files, in other processes: the same labels and probabilities."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.model.annotation import outputs
from scstate_lora.model.annotation.rank_base import RankBase
from tests.builders import QUICK, labelled_cells
from tests.scmodelforge_files import Parts, torch_encoder


def _predicted(model, cells, **options):
    cells = cells.copy()
    table = model.predict(cells, max_error=0.1, sets=True, **options)
    return table, model.predict_proba(cells, all_levels=True)


def _same(one, other):
    (table, proba), (again, proba_again) = one, other
    np.testing.assert_allclose(proba_again, proba, atol=1e-6)
    pd.testing.assert_frame_equal(again, table, rtol=1e-5, atol=1e-6)


def test_loaded_is_the_same(adapted, new_cells, tmp_path):
    adapted.save(tmp_path / "m", save_base=True)
    loaded = ssl.CellTypeClassifier.load(tmp_path / "m")
    _same(_predicted(adapted, new_cells), _predicted(loaded, new_cells))
    np.testing.assert_array_equal(
        loaded.get_latent_representation(new_cells, key_added=None),
        adapted.get_latent_representation(new_cells, key_added=None),
    )
    assert loaded.strategy == adapted.strategy
    for name in ("history", "scores", "unknown_check"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(adapted, name), check_dtype=False)
    assert not any(p.requires_grad for p in loaded.network.parameters())
    loaded.save(tmp_path / "again")
    _same(_predicted(adapted, new_cells), _predicted(ssl.CellTypeClassifier.load(tmp_path / "again"), new_cells))


def test_a_base_that_was_trained_here_is_always_saved(frozen, new_cells, tmp_path):
    with pytest.raises(ValueError, match="this base was trained here and is nowhere else"):
        frozen.save(tmp_path / "m", save_base=False)
    assert not (tmp_path / "m").exists()
    frozen.save(tmp_path / "m")
    _same(_predicted(frozen, new_cells), _predicted(ssl.CellTypeClassifier.load(tmp_path / "m"), new_cells))
    notice = (tmp_path / "m" / "NOTICE").read_text()
    assert frozen.base.sha256() in notice


_OTHER_PROCESS = """
import sys, anndata as ad, scstate_lora as ssl
model = ssl.CellTypeClassifier.load(sys.argv[1])
cells = ad.read_h5ad(sys.argv[2])
model.predict(cells, max_error=0.1, sets=True).to_csv(sys.argv[3])
model.predict_proba(cells, all_levels=True).to_csv(sys.argv[4])
"""


def test_in_another_process_the_same(lora, new_cells, tmp_path):
    lora.save(tmp_path / "m", save_base=True)
    new_cells.write_h5ad(tmp_path / "cells.h5ad")
    paths = [str(tmp_path / name) for name in ("m", "cells.h5ad", "labels.csv", "proba.csv")]
    environment = {**os.environ, "PYTHONPATH": str(Path(ssl.__file__).parents[1]), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", _OTHER_PROCESS, *paths], check=True, env=environment)
    table, proba = _predicted(lora, new_cells)
    again = pd.read_csv(paths[2], index_col=0, keep_default_na=False)
    assert again["scstate_celltype"].tolist() == table["scstate_celltype"].tolist()
    assert again["scstate_celltype_set"].tolist() == table["scstate_celltype_set"].tolist()
    np.testing.assert_allclose(pd.read_csv(paths[3], index_col=0), proba, atol=1e-6)


@pytest.mark.parametrize("chunk", [7, 89])
def test_chunks_do_not_matter(lora, new_cells, monkeypatch, chunk):
    whole = _predicted(lora, new_cells)
    monkeypatch.setattr(outputs, "_CHUNK", chunk)
    _same(whole, _predicted(lora, new_cells))


@pytest.mark.parametrize("form", ["dense", "csc", "float64", "view", "backed"])
def test_the_form_of_the_matrix_does_not_matter(lora, new_cells, monkeypatch, form, tmp_path):
    whole = _predicted(lora, new_cells)
    cells = new_cells.copy()
    if form == "backed":
        monkeypatch.setattr(outputs, "_CHUNK", 40)
        cells.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        table = lora.predict(backed, max_error=0.1, sets=True)
        assert "scstate_celltype_probability" in backed.obsm
        _same(whole, (table, lora.predict_proba(backed, all_levels=True)))
        backed.file.close()
        return
    if form == "view":
        cells = ad.concat([cells, labelled_cells(20, seed=8)])[:90]
    else:
        cells.X = {"dense": cells.X.toarray(), "csc": cells.X.tocsc(), "float64": cells.X.astype(np.float64)}[form]
        assert sparse.issparse(cells.X) == (form != "dense")
    _same(whole, _predicted(lora, cells))


def test_a_compact_base_from_a_directory_is_saved_along(reference, base, new_cells, tmp_path):
    base.save(tmp_path / "base")
    model = ssl.CellTypeClassifier(reference, base=tmp_path / "base", head={"n_steps": 3})
    model.train("frozen", check_unknown=False, **QUICK)
    model.save(tmp_path / "m")
    (tmp_path / "base").rename(tmp_path / "gone")
    _same(_predicted(model, new_cells), _predicted(ssl.CellTypeClassifier.load(tmp_path / "m"), new_cells))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An encoder of genes by rank, as it is published."""
    return Parts.of(torch_encoder()).write_folder(tmp_path_factory.mktemp("bases") / "ranks")


@pytest.fixture(scope="module")
def on_published(reference, published):
    """Adapters on it. Not to be changed."""
    model = ssl.CellTypeClassifier(reference, base=published, head={"n_steps": 6})
    model.train("lora", max_epochs=2, restore_best=False, adapter_lr=1e-2, check_unknown=False, **QUICK)
    return model


def test_adapters_alone_are_saved_beside_a_published_base(on_published, published, new_cells, tmp_path):
    on_published.save(tmp_path / "m")
    assert not list((tmp_path / "m").rglob("base*.safetensors"))
    with safe_open(next((tmp_path / "m").rglob("encoder.safetensors")), "numpy") as saved:
        assert all("lora_" in name for name in saved.keys())
    expected = _predicted(on_published, new_cells)
    _same(expected, _predicted(ssl.CellTypeClassifier.load(tmp_path / "m"), new_cells))
    moved = published.rename(published.with_name("moved"))
    try:
        with pytest.raises((FileNotFoundError, ValueError), match=r"base=\.\.\."):
            ssl.CellTypeClassifier.load(tmp_path / "m")
        _same(expected, _predicted(ssl.CellTypeClassifier.load(tmp_path / "m", base=moved), new_cells))
        _same(expected, _predicted(ssl.CellTypeClassifier.load(tmp_path / "m", base=RankBase.load(moved)), new_cells))
        on_published.save(tmp_path / "whole", save_base=True)
        _same(expected, _predicted(ssl.CellTypeClassifier.load(tmp_path / "whole"), new_cells))
    finally:
        moved.rename(published)


def test_another_base_is_refused(on_published, lora, base, tmp_path):
    on_published.save(tmp_path / "ranks")
    parts = Parts.of(torch_encoder())
    parts.state["encoder.layers.0.norm1.bias"] += 1
    other = parts.write_folder(tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on another base"):
        ssl.CellTypeClassifier.load(tmp_path / "ranks", base=other)
    lora.save(tmp_path / "compact")
    changed = copy.deepcopy(base)
    with torch.no_grad():
        next(changed.encoder.parameters()).add_(1)
    with pytest.raises(ValueError, match="another base"):
        ssl.CellTypeClassifier.load(tmp_path / "compact", base=changed)


def test_another_kind_of_model_is_refused(lora, tmp_path):
    lora.save(tmp_path / "m", save_base=True)
    with pytest.raises(ValueError, match=r"holds a CellTypeClassifier, not a .*ssl\.CellTypeClassifier\.load"):
        ssl.LoRACovariateSE.load(tmp_path / "m")


def test_a_loaded_model_may_have_cells_and_be_trained_again(lora, reference, new_cells, tmp_path):
    lora.save(tmp_path / "m", save_base=True)
    loaded = ssl.CellTypeClassifier.load(tmp_path / "m", adata=reference.copy())
    assert len(loaded.predict(key_added=None)) == 240
    loaded.train("frozen", check_unknown=False, **QUICK)
    assert not loaded.adapts_encoder
    assert len(loaded.predict(new_cells, key_added=None)) == 90
    without = ssl.CellTypeClassifier.load(tmp_path / "m")
    with pytest.raises(ValueError, match=r"was loaded without data\. Pass adata="):
        without.predict()
