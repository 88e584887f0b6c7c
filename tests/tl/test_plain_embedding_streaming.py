"""`embed` and `embed_file` on published checkpoints: forms of the data, batches, files, memory, interruptions."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora._logging import logger
from scstate_lora.data import stream
from scstate_lora.inference import embed as inference_embed

ARC = Path(__file__).parents[1] / "data" / "arc"
CHECKPOINT = ARC / "folder"
# Rounding, as the order of sums depends on the batch.
TOLERANCE = 1e-6
WIDTH = 18  # 8 of the cell and 10 of the data set


@pytest.fixture(scope="module")
def base():
    return ssl.SEBase.load(CHECKPOINT)


@pytest.fixture
def logged(caplog):
    """What the package logs, at info level."""
    caplog.set_level("INFO", logger="scstate_lora")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 cells of 20 tokens, with a batch size that divides 16."""
    monkeypatch.setattr(inference_embed, "_BLOCK_TOKENS", 16 * 20)


def _cells(base, n=100, *, seed=0, n_unknown=6, density=0.5):
    """Counts of the base's genes and some others, in the base's order; one cell expresses nothing."""
    genes = [*base.genes, *(f"UNKNOWN{i}" for i in range(n_unknown))]
    rng = np.random.default_rng(seed)
    x = sparse.random(n, len(genes), density=density, format="csr", random_state=rng, dtype=np.float32)
    x.data = np.ceil(30 * x.data**2)
    x = x.tolil()
    x[3] = 0
    obs = pd.DataFrame(
        {"day": pd.Categorical(rng.choice(["d1", "d2"], n))}, index=[f"cell{seed}-{i}" for i in range(n)]
    )
    return ad.AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=pd.DataFrame(index=genes))


@pytest.fixture(scope="module")
def cells(base):
    """100 cells. Not to be changed."""
    return _cells(base)


@pytest.fixture(scope="module")
def expected(cells, base):
    """Their embedding."""
    return tl.embed(cells.copy(), base, progress_bar=False)


def _embed(adata, base, **options):
    return tl.embed(adata, base, key_added=None, progress_bar=False, **options)


def _of(adata, embedding):
    return pd.DataFrame(embedding, index=adata.obs_names)


FORMS = {
    "as it was": lambda cells, _: cells.copy(),
    "CSC": lambda cells, _: ad.AnnData(sparse.csc_matrix(cells.X), obs=cells.obs, var=cells.var),
    "dense": lambda cells, _: ad.AnnData(cells.X.toarray(), obs=cells.obs, var=cells.var),
    "whole numbers": lambda cells, _: ad.AnnData(cells.X.astype(np.int32), obs=cells.obs, var=cells.var),
    "dense whole numbers": lambda cells, _: ad.AnnData(
        cells.X.toarray().astype(np.int16), obs=cells.obs, var=cells.var
    ),
    "float64": lambda cells, _: ad.AnnData(cells.X.astype(np.float64), obs=cells.obs, var=cells.var),
    "sparse array": lambda cells, _: ad.AnnData(sparse.csr_array(cells.X), obs=cells.obs, var=cells.var),
    "view": lambda cells, folder: _among_others(cells, folder, backed=False),
    "backed": lambda cells, folder: _backed(cells, folder),
    "backed CSC": lambda cells, folder: _backed(
        ad.AnnData(sparse.csc_matrix(cells.X), obs=cells.obs, var=cells.var), folder
    ),
    "backed dense": lambda cells, folder: _backed(ad.AnnData(cells.X.toarray(), obs=cells.obs, var=cells.var), folder),
    "backed view": lambda cells, folder: _among_others(cells, folder, backed=True),
}


def _backed(adata, folder):
    adata.write_h5ad(folder / "backed.h5ad")
    return ad.read_h5ad(folder / "backed.h5ad", backed="r")


def _among_others(cells, folder, *, backed):
    """A view of the cells among others that lie between them."""
    others = cells.copy()
    others.obs_names = [f"other{i}" for i in range(cells.n_obs)]
    both = ad.concat([cells, others])[np.arange(2 * cells.n_obs).reshape(2, -1).T.ravel()].copy()
    return (_backed(both, folder) if backed else both)[cells.obs_names]


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_the_data_gives_the_same_embedding(form, cells, expected, base, tmp_path):
    adata = FORMS[form](cells, tmp_path)
    np.testing.assert_array_equal(_embed(adata, base), expected)


def test_embedding_has_unit_length_and_the_data_sets_numbers(expected):
    assert expected.shape == (100, WIDTH)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected[:, :8], axis=1), 1, atol=1e-6)
    assert np.isfinite(expected).all()  # that of the cell without any expression too
    assert np.linalg.norm(expected[:, 8:], axis=1).std() > 0


def test_writing_into_a_view_leaves_its_parent_as_it_was(cells, expected, base):
    parent = cells.copy()
    view = parent[10:20]
    with pytest.warns(ad.ImplicitModificationWarning):
        tl.embed(view, base, progress_bar=False)
    np.testing.assert_allclose(view.obsm["X_state"], expected[10:20], atol=TOLERANCE)
    assert not parent.obsm
    assert not parent.uns


def test_a_backed_file_is_only_read(cells, expected, base, tmp_path):
    adata = _backed(cells.copy(), tmp_path)
    before = (tmp_path / "backed.h5ad").read_bytes()
    tl.embed(adata, base, progress_bar=False)
    np.testing.assert_array_equal(adata.obsm["X_state"], expected)
    adata.file.close()
    assert (tmp_path / "backed.h5ad").read_bytes() == before


def test_a_second_run_gives_equal_bits(cells, expected, base):
    for again in (base, CHECKPOINT, str(CHECKPOINT), CHECKPOINT / "se_tiny_epoch16.ckpt"):
        np.testing.assert_array_equal(_embed(cells.copy(), again), expected)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_batches_and_workers_change_nothing_but_rounding(cells, expected, base, batch_size, n_workers, small_blocks):
    found = _embed(cells.copy(), base, batch_size=batch_size, n_workers=n_workers)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_cell_embeds_alike_in_any_order_and_company(cells, expected, base):
    order = np.random.default_rng(1).permutation(cells.n_obs)
    for chosen in (order, order[:13], order[:1]):
        adata = cells[chosen].copy()
        found = _of(adata, _embed(adata, base))
        np.testing.assert_allclose(found, _of(cells, expected).loc[found.index], atol=TOLERANCE)


def test_the_seed_decides_ties_and_padding_only(cells, expected, base):
    other = _embed(cells.copy(), base, seed=1)
    assert np.abs(other - expected).max() > 1e-3
    np.testing.assert_array_equal(_embed(cells.copy(), base, seed=0), expected)
    # A sentence as long as there are genes holds them all, whatever the seed.
    whole = [_embed(cells.copy(), base, seed=seed, n_tokens=len(base.genes) + 1) for seed in (0, 1)]
    np.testing.assert_allclose(*whole, atol=TOLERANCE)


@pytest.mark.parametrize("n_tokens", [2, 10, 20, 61, 100])
def test_sentences_of_another_length(cells, expected, base, n_tokens):
    adata = cells.copy()
    found = tl.embed(adata, base, n_tokens=n_tokens, progress_bar=False)
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(found[:, :8], axis=1), 1, atol=1e-6)
    assert (np.abs(found - expected).max() < TOLERANCE) == (n_tokens == 20)
    assert adata.uns["scstate_lora"]["embed"]["X_state"]["n_tokens"] == n_tokens


def test_only_expressed_genes_are_a_sentence_without_padding(base):
    """Of a cell with k expressed genes that is the sentence of k + 1 tokens, in which nothing is random."""
    adata = _cells(base, 12, n_unknown=0)
    x = np.zeros(adata.shape, dtype=np.float32)
    for row, k in enumerate(range(1, 13)):
        x[row, 5 : 5 + k] = np.arange(k) + 1
    adata.X = x
    found = tl.embed(adata, base, n_tokens="expressed", progress_bar=False)
    assert adata.uns["scstate_lora"]["embed"]["X_state"]["n_tokens"] == "expressed"
    for row, k in enumerate(range(1, 13)):
        alone = _embed(adata.copy(), base, n_tokens=k + 1)
        np.testing.assert_allclose(found[row], alone[row], atol=TOLERANCE)
    np.testing.assert_allclose(_embed(adata, base, n_tokens="expressed", batch_size=5), found, atol=TOLERANCE)
    assert np.abs(_embed(adata, base) - found).max() > 1e-3


@pytest.mark.parametrize(
    ("n_tokens", "message"),
    [
        ("expresed", "n_tokens: 'expresed' must be a whole number, at least 2, or 'expressed'"),
        (1, "n_tokens: 1 must be a whole number, at least 2, or 'expressed'"),
        (True, "n_tokens: True must be a whole number"),
        (20.0, r"n_tokens: 20\.0 must be a whole number"),
    ],
)
def test_a_length_that_makes_no_sense_raises(cells, base, n_tokens, message):
    with pytest.raises(ValueError, match=message):
        _embed(cells.copy(), base, n_tokens=n_tokens)


def test_layer_scale_and_gene_column(cells, expected, base):
    adata = cells.copy()
    adata.layers["counts"] = adata.X
    adata.X = adata.X.copy()
    adata.X.data = np.log1p(adata.X.data)
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var_names = [f"ID{i}" for i in range(adata.n_vars)]
    found = tl.embed(adata, base, layer="counts", gene_key="symbol", input_scale="counts", progress_bar=False)
    np.testing.assert_array_equal(found, expected)
    record = adata.uns["scstate_lora"]["embed"]["X_state"]
    assert record["matrix"] == "adata.layers['counts']"
    assert "adata.var['symbol']" in record["genes"]
    assert record["scale"] == "counts"
    # log1p values are taken as they are: the same numbers here.
    np.testing.assert_array_equal(_embed(adata, base, gene_key="symbol"), expected)
    np.testing.assert_array_equal(_embed(adata, base, gene_key="symbol", input_scale="log1p"), expected)


@pytest.fixture(params=[".h5ad", ".zarr"])
def file(request, cells, tmp_path):
    """The cells as a file, with a layer, an embedding and something in uns."""
    adata = cells.copy()
    adata.layers["doubled"] = 2 * adata.X
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.uns["scstate_lora"] = {"embed": {"X_older": {"base": "older"}}}
    path = tmp_path / f"cells{request.param}"
    (adata.write_h5ad if request.param == ".h5ad" else adata.write_zarr)(path)
    return path


def _read(path):
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def _hash(path):
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return digest.hexdigest()


def test_from_file_to_file_is_what_embed_gives(file, cells, expected, base, tmp_path):
    before = _hash(file)
    out = tmp_path / "results" / f"embedded{file.suffix}"
    tl.embed_file(file, base, out=out, progress_bar=False)
    assert _hash(file) == before
    written, read = _read(out), _read(file)
    np.testing.assert_array_equal(written.obsm["X_state"], expected)
    assert written.obsm["X_state"].dtype == np.float32
    assert set(written.uns["scstate_lora"]["embed"]) == {"X_older", "X_state"}
    del written.obsm["X_state"]
    pd.testing.assert_frame_equal(written.obs, read.obs)
    pd.testing.assert_frame_equal(written.var, read.var)
    assert (written.X != cells.X).nnz == 0
    assert (written.layers["doubled"] != read.layers["doubled"]).nnz == 0
    assert list(written.obsm) == ["X_pca"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_record_is_the_same_in_memory_and_after_reading(file, cells, base, tmp_path):
    adata = cells.copy()
    tl.embed(adata, base, key_added="X_mine", n_tokens=15, seed=4, progress_bar=False)
    adata.write_h5ad(tmp_path / "embedded.h5ad")
    out = tmp_path / f"embedded_file{file.suffix}"
    tl.embed_file(file, base, out=out, key_added="X_mine", n_tokens=15, seed=4, progress_bar=False)
    record = adata.uns["scstate_lora"]["embed"]["X_mine"]
    assert (record["n_tokens"], record["seed"], record["scale"]) == (15, 4, "counts")
    assert record["base"] == "folder (se_tiny_epoch16.ckpt)"
    assert "non-commercial" in record["licence"]
    assert record["genes"].startswith("60 of the data's 66 genes")
    for read in (ad.read_h5ad(tmp_path / "embedded.h5ad"), _read(out)):
        assert dict(read.uns["scstate_lora"]["embed"]["X_mine"]) == record


def test_the_embedding_alone_as_npy(file, expected, base, tmp_path):
    tl.embed_file(file, base, out=tmp_path / "embedding.npy", progress_bar=False)
    np.testing.assert_array_equal(np.load(tmp_path / "embedding.npy"), expected)


def test_options_hold_for_files(file, cells, base, tmp_path):
    out = tmp_path / "embedding.npy"
    tl.embed_file(
        str(file),
        str(CHECKPOINT),
        out=str(out),
        layer="doubled",
        input_scale="counts",
        n_tokens="expressed",
        seed=2,
        batch_size=9,
        n_workers=2,
        progress_bar=False,
    )
    doubled = cells.copy()
    doubled.X = 2 * doubled.X
    alike = _embed(doubled, base, n_tokens="expressed", seed=2)
    np.testing.assert_allclose(np.load(out), alike, atol=TOLERANCE)


def test_the_input_may_be_the_output(file, expected, base):
    tl.embed_file(file, base, out=file, progress_bar=False)
    tl.embed_file(file, base, out=file, progress_bar=False)
    np.testing.assert_array_equal(_read(file).obsm["X_state"], expected)


def test_another_ending_raises(file, base, tmp_path):
    other = ".zarr" if file.suffix == ".h5ad" else ".h5ad"
    for name in (f"out{other}", "out", "out.csv"):
        with pytest.raises(ValueError, match=rf"must end in \{file.suffix}, as the input does, or in \.npy"):
            tl.embed_file(file, base, out=tmp_path / name, progress_bar=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tl.embed_file(tmp_path / f"nowhere{file.suffix}", base, out=tmp_path / f"out{file.suffix}", progress_bar=False)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "many"), [(".h5ad", 50_000), (".zarr", 20_000)])
def test_memory_hardly_grows_with_the_file(ending, many, cells, base, tmp_path, monkeypatch):
    _embed(cells.copy(), base)  # what is compiled or imported once counts for neither
    monkeypatch.setattr(stream, "_CHUNK_VALUES", 50_000)
    monkeypatch.setattr(inference_embed, "_BLOCK_TOKENS", 500 * 20)
    peaks, matrix = {}, 0
    for n in (2_000, many):
        adata = _cells(base, n, n_unknown=340, density=0.2)
        matrix = adata.X.data.nbytes + adata.X.indices.nbytes
        path = tmp_path / f"{n}{ending}"
        (adata.write_h5ad if ending == ".h5ad" else adata.write_zarr)(path)
        del adata
        gc.collect()
        tracemalloc.start()
        tl.embed_file(path, base, out=tmp_path / f"out{n}{ending}", batch_size=250, progress_bar=False)
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The names of the cells and obs are in memory, some 300 bytes a cell; the matrix is not.
    assert peaks[many] < peaks[2_000] + 400 * many
    assert matrix > 600 * many


class _Interrupted(Exception):
    pass


class _Watch:
    """Count the cells that a network computes, and stop it after some."""

    def __init__(self, base, stop_after=None):
        self.n_cells, self.stop_after, self.base = 0, stop_after, base

    def _hook(self, _module, inputs):
        if self.stop_after is not None and self.n_cells >= self.stop_after:
            raise _Interrupted
        self.n_cells += len(inputs[0])

    def __enter__(self):
        self.handle = self.base.encoder.register_forward_pre_hook(self._hook)
        return self

    def __exit__(self, *_):
        self.handle.remove()


def test_an_interrupted_embedding_is_continued(cells, base, tmp_path, small_blocks, logged):
    undisturbed = _embed(cells.copy(), base, batch_size=8)
    adata, folder = cells.copy(), tmp_path / "resume" / "here"
    with _Watch(base, stop_after=40), pytest.raises(_Interrupted):
        tl.embed(adata, base, batch_size=8, resume=folder, progress_bar=False)
    assert not adata.obsm
    assert not adata.uns
    with _Watch(base) as watch:
        found = tl.embed(adata, base, batch_size=8, resume=folder, progress_bar=False)
    assert watch.n_cells == 100 - 32  # two blocks of 16 were done
    assert "32 of 100 cells are done" in logged.text
    np.testing.assert_array_equal(found, undisturbed)
    np.testing.assert_array_equal(adata.obsm["X_state"], undisturbed)
    assert not folder.exists()


def test_it_may_be_interrupted_again_and_continued_otherwise(cells, expected, base, tmp_path, small_blocks):
    """Batches, workers and where the cells are do not matter to what is there already."""
    folder = tmp_path / "resume"
    with _Watch(base, stop_after=20), pytest.raises(_Interrupted):
        _embed(cells.copy(), base, batch_size=4, resume=folder)
    again = ssl.SEBase.load(CHECKPOINT)
    with _Watch(again, stop_after=50) as watch, pytest.raises(_Interrupted):
        _embed(_backed(cells.copy(), tmp_path), again, batch_size=8, n_workers=2, resume=folder)
    assert watch.n_cells == 56  # of which 48 in whole blocks
    with _Watch(base) as watch:
        found = _embed(cells.copy(), base, resume=folder)
    assert watch.n_cells == 100 - 16 - 48
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_an_interrupted_file_is_continued(file, expected, base, tmp_path, small_blocks):
    out = tmp_path / "out" / f"embedded{file.suffix}"
    with _Watch(base, stop_after=60), pytest.raises(_Interrupted):
        tl.embed_file(file, base, out=out, batch_size=4, progress_bar=False)
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == [f".{out.name}.partial"]
    with _Watch(base) as watch:
        tl.embed_file(file, base, out=out, batch_size=4, progress_bar=False)
    assert watch.n_cells == 100 - 48
    np.testing.assert_allclose(_read(out).obsm["X_state"], expected, atol=TOLERANCE)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_failure_to_write_costs_no_cell(file, expected, base, tmp_path, monkeypatch):
    """All cells are computed when the file is written; what is done stays for the next time."""
    out = tmp_path / f"out{file.suffix}"

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tl.plain_embedding, "write_embedding", fail)
        with pytest.raises(OSError, match="No space left"):
            tl.embed_file(file, base, out=out, progress_bar=False)
    with _Watch(base) as watch:
        tl.embed_file(file, base, out=out, progress_bar=False)
    assert watch.n_cells == 0
    np.testing.assert_array_equal(_read(out).obsm["X_state"], expected)


def _other_values(cells):
    cells.X.data[50] += 1


def _other_names(cells):
    cells.obs_names = [f"{name}b" for name in cells.obs_names]


def _swapped_genes(cells):
    names = cells.var_names.to_list()
    names[0], names[1] = names[1], names[0]
    cells.var_names = names


def _moved_values(cells):
    cells.X.data[:200] = cells.X.data[:200][::-1].copy()


OTHER = {
    "base": (ARC / "folder" / "se_tiny_epoch4.ckpt", {}, None, r"base was folder \(se_tiny_epoch16"),
    "weights of one name": (None, {}, None, "weights was"),
    "seed": (CHECKPOINT, {"seed": 1}, None, "seed was 0, is 1"),
    "n_tokens": (CHECKPOINT, {"n_tokens": 10}, None, "n_tokens was 20, is 10"),
    "n_tokens, expressed": (CHECKPOINT, {"n_tokens": "expressed"}, None, "n_tokens was 20, is expressed"),
    "scale": (CHECKPOINT, {"arc_per_cell_scale": True}, None, "scale was counts, is guessed"),
    "layer": (CHECKPOINT, {"layer": "same"}, None, r"matrix was adata\.X, is adata\.layers\['same'\]"),
    "values": (CHECKPOINT, {}, _other_values, "cells and their values was"),
    "names of cells": (CHECKPOINT, {}, _other_names, "cells and their values was"),
    "names of genes": (CHECKPOINT, {}, _swapped_genes, "cells and their values was"),
    "places of values": (CHECKPOINT, {}, _moved_values, "cells and their values was"),
    "precision": (CHECKPOINT, {"precision": "bf16"}, None, "precision was fp32, is bf16"),
    "number of cells": (CHECKPOINT, {}, lambda cells: cells._inplace_subset_obs(slice(0, 50)), "shape"),
}


@pytest.mark.parametrize("what", OTHER)
def test_continuing_with_something_else_raises(what, cells, base, tmp_path, small_blocks):
    path, options, change, message = OTHER[what]
    folder = tmp_path / "resume"
    with _Watch(base, stop_after=40), pytest.raises(_Interrupted):
        _embed(cells.copy(), base, batch_size=8, resume=folder)
    kept = _hash(folder)
    other = ssl.SEBase.load(CHECKPOINT if path is None else path)
    if path is None:
        other.encoder.cls_token.data = other.encoder.cls_token.data + 0.1
    adata = cells.copy()
    adata.layers["same"] = adata.X.copy()
    if change is not None:
        change(adata)
    with pytest.raises(ValueError, match=f"interrupted embedding of something else.*{message}"):
        _embed(adata, other, batch_size=8, resume=folder, **options)
    assert _hash(folder) == kept


def test_a_folder_of_something_else_raises(cells, base, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something other than an interrupted embedding"):
        _embed(cells.copy(), base, resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def _wait_for_cells(progress, process, seconds=60):
    """Wait until some cells are done, and say how many."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if progress.exists() and (done := json.loads(progress.read_text())["done"]):
            return done
        time.sleep(0.02)
    return pytest.fail(f"no cell was done before the end: {process.communicate()[1]}")


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on(base, tmp_path):
    n = 2_000
    adata = _cells(base, n)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "embedded.h5ad"
    hidden = tmp_path / ".embedded.h5ad.partial"
    # Long sentences, so that it takes some seconds, and every block is kept, so that there is time to kill it.
    options = ["--base", CHECKPOINT, "--out", out, "--n-tokens", "1000"]
    program = "from scstate_lora import cli; from scstate_lora.io import partial; partial._INTERVAL = 0; cli.main()"
    command = [sys.executable, "-c", program, "embed", tmp_path / "cells.h5ad", *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        done = _wait_for_cells(hidden / "progress.json", process)
        process.kill()
    assert process.returncode != 0
    assert not out.exists()
    done = json.loads((hidden / "progress.json").read_text())["done"]
    assert 0 < done < n
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"Resuming from {hidden}: {done} of {n} cells are done." in again.stderr
    assert f"Wrote {out}" in again.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "embedded.h5ad"]
    # A cell's embedding does not depend on its company: those before and after the kill, and the last.
    rows = np.r_[0:10, done - 10 : done + 10, n - 10 : n]
    alone = _embed(adata[rows].copy(), base, n_tokens=1000)
    np.testing.assert_allclose(ad.read_h5ad(out).obsm["X_state"][rows], alone, atol=TOLERANCE)


def test_a_length_may_be_a_number_of_numpy(cells, base):
    of_numpy = _embed(cells.copy(), base, n_tokens=np.int64(10))
    np.testing.assert_array_equal(of_numpy, _embed(cells.copy(), base, n_tokens=10))


def test_rows_lost_from_the_folder_are_computed_again(cells, base, tmp_path, small_blocks):
    undisturbed = _embed(cells.copy(), base, batch_size=8)
    with _Watch(base, stop_after=40), pytest.raises(_Interrupted):
        _embed(cells.copy(), base, batch_size=8, resume=tmp_path / "resume")
    rows = tmp_path / "resume" / "rows.f32"
    rows.write_bytes(rows.read_bytes()[:100])
    continued = _embed(cells.copy(), base, batch_size=8, resume=tmp_path / "resume")
    np.testing.assert_allclose(continued, undisturbed, atol=1e-6)


def test_continuing_from_a_file_raises(cells, base, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds something other"):
        _embed(cells, base, resume=tmp_path / "notes.txt")


def test_a_file_without_a_known_ending_raises(base, tmp_path):
    with pytest.raises(ValueError, match=r"must be an \.h5ad file or a \.zarr directory"):
        tl.embed_file(tmp_path, base, out=tmp_path / "o.h5ad", progress_bar=False)
