"""Published checkpoints as a base: adapters on them, what is saved, what is found again, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from anndata.tests.helpers import assert_equal
from safetensors.torch import load_file, save_file
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.data.bound import BoundData
from scstate_lora.io.pickle.reader import load_torch
from scstate_lora.nn.lora import adapters_off
from tests.builders import QUICK, latent

ARC = Path(__file__).parents[2] / "data" / "arc"
FOLDER = ARC / "folder"
CKPT = ARC / "ckpt_embedded" / "model.ckpt"  # two layers, everything inside
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def genes():
    return ssl.SEBase.load(FOLDER).genes


@pytest.fixture(scope="module")
def cells(genes):
    """80 cells of counts in two conditions, not set up. Not to be changed."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.7, (80, 65)).astype(np.float32)
    obs = pd.DataFrame(
        {"condition": pd.Categorical(np.tile(["sham", "burn"], 40)), "cell_type": np.repeat(["B", "T"], 40)},
        index=[f"cell{i}" for i in range(80)],
    )
    names = [*genes, *(f"UNKNOWN{i}" for i in range(5))]
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=names))


def _model(cells, base, seed=0):
    adata = cells.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition", seed=seed)
    return ssl.LoRACovariateSE(adata, base=base, conditioning={"n_steps": 3}, seed=seed)


@pytest.fixture(scope="module")
def trained(cells):
    """A model on a published checkpoint, trained a little. Not to be changed."""
    model = _model(cells, CKPT)
    model.train(max_epochs=2, **QUICK)
    return model


@pytest.fixture
def moveable(tmp_path):
    """A copy of a published checkpoint."""
    path = tmp_path / "published" / "model.ckpt"
    path.parent.mkdir()
    shutil.copy(CKPT, path)
    return path


@pytest.fixture
def on_moveable(cells, moveable):
    """A model trained on it."""
    model = _model(cells, moveable)
    model.train(max_epochs=1, **QUICK)
    return model


def _base_of(model):
    return model.base.embed(BoundData(model.registry, model.adata))


@pytest.mark.parametrize("path", [FOLDER, CKPT, ARC / "safetensors", ARC / "no_dataset" / "model.ckpt"])
def test_base_embedding_before_training_is_that_of_the_checkpoint(cells, path):
    model = _model(cells, path)
    plain = ssl.tl.embed(cells.copy(), path, progress_bar=False)
    np.testing.assert_array_equal(_base_of(model), plain)
    np.testing.assert_array_equal(ssl.tl.embed(cells.copy(), model, progress_bar=False), plain)
    np.testing.assert_array_equal(ssl.tl.embed(model.adata, model, progress_bar=False), plain)


def test_fresh_adapters_change_nothing(cells):
    model = _model(cells, CKPT, seed=5)
    encoder = model.base.encoder
    sites = {name.rsplit(".lora_A", 1)[0] for name, _ in encoder.named_parameters() if "lora_A" in name}
    expected = {f"transformer_encoder.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}
    assert {site.removeprefix("encoder.") for site in sites} == expected
    tokens = torch.randint(0, 60, (4, 19), generator=torch.Generator().manual_seed(0))
    values = torch.rand(4, 20, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        with_adapters = encoder(tokens, values)
        with adapters_off(encoder):
            without = encoder(tokens, values)
    torch.testing.assert_close(with_adapters, without, rtol=0, atol=0)


def test_queries_keys_and_values_are_those_of_the_fused_projection():
    """What the file stacks as one ``(3 d, d)`` projection gives the three that are computed apart here."""
    stored = load_file(ARC / "safetensors" / "model.safetensors")
    base = ssl.SEBase.load(ARC / "safetensors")
    h = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    for i, layer in enumerate(base.encoder.transformer_encoder.layers):
        name = f"transformer_encoder.layers.{i}"
        fused = F.linear(h, stored[f"{name}.qkv_proj.weight"], stored[f"{name}.qkv_proj.bias"])
        apart = [getattr(layer.self_attn, f"{p}_proj")(h) for p in "qkv"]
        torch.testing.assert_close(torch.cat(apart, dim=-1), fused, rtol=0, atol=1e-6)


def test_training_changes_the_adapters_and_never_the_base(cells):
    model = _model(cells, CKPT)
    base_before = {name: t.clone() for name, t in model.base.tensors().items()}
    sha256 = model.base.sha256()
    assert sha256 == ssl.SEBase.load(CKPT).sha256()
    adapters_before = {n: p.detach().clone() for n, p in model.base.encoder.named_parameters() if "lora_" in n}
    plain = _base_of(model)
    file = CKPT.read_bytes()
    model.train(max_epochs=2, **QUICK)
    assert model.base.sha256() == sha256
    for name, tensor in model.base.tensors().items():
        assert torch.equal(tensor, base_before[name]), name
    changed = [
        not torch.equal(p, adapters_before[n]) for n, p in model.base.encoder.named_parameters() if "lora_B" in n
    ]
    assert all(changed)
    assert len(changed) == 4
    np.testing.assert_array_equal(_base_of(model), plain)
    np.testing.assert_array_equal(ssl.tl.embed(cells.copy(), model, progress_bar=False), plain)
    assert CKPT.read_bytes() == file
    assert len(model.base_history) == 0


def test_conditioned_embedding_is_without_the_data_sets_numbers(trained):
    embedding = trained.get_latent_representation()
    adata = trained.adata
    assert embedding.shape == (80, 16)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    assert adata.obsm["X_scstate_base"].shape == (80, 16 + 10)
    np.testing.assert_array_equal(
        adata.obsm["X_scstate_base"], ssl.tl.embed(adata.copy(), CKPT, key_added=None, progress_bar=False)
    )
    moved = trained.get_latent_representation(covariates={"condition": "burn"})
    is_burn = (adata.obs["condition"] == "burn").to_numpy()
    np.testing.assert_allclose(moved[is_burn], embedding[is_burn], atol=TOLERANCE)
    assert np.abs(moved[~is_burn] - embedding[~is_burn]).max() > 1e-4


def test_summary_and_repr_name_the_base(trained):
    assert "ckpt_embedded (model.ckpt): 2 layers x 32, 20 tokens, 60 genes" in repr(trained)


def test_saved_without_the_base_which_is_found_again(trained, tmp_path):
    trained.save(tmp_path / "se")
    assert "base.safetensors" not in {file.name for file in (tmp_path / "se").iterdir()}
    notice = (tmp_path / "se" / "NOTICE").read_text()
    for part in ("ckpt_embedded (model.ckpt)", trained.base.sha256(), "Non-Commercial License"):
        assert part in notice
    described = json.loads((tmp_path / "se" / "model.json").read_text())["base"]
    assert described["source"] == str(CKPT)
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=trained.adata)
    np.testing.assert_array_equal(latent(loaded), latent(trained))
    np.testing.assert_array_equal(_base_of(loaded), _base_of(trained))
    assert loaded.base.source == str(CKPT)
    # Its directory is a base as well: that of the checkpoint.
    plain = ssl.tl.embed(trained.adata.copy(), tmp_path / "se", key_added=None, progress_bar=False)
    np.testing.assert_array_equal(plain, _base_of(trained))


def test_a_relative_path_is_found_from_elsewhere(cells, moveable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = _model(cells, "published/model.ckpt")
    model.train(max_epochs=1, **QUICK)
    model.save("se")
    monkeypatch.chdir(moveable.parent)
    loaded = ssl.LoRACovariateSE.load("../se", adata=model.adata)
    np.testing.assert_array_equal(latent(loaded), latent(model))


def test_a_base_that_was_moved_is_asked_for_raises(on_moveable, moveable, tmp_path):
    on_moveable.save(tmp_path / "se")
    moved = moveable.rename(tmp_path / "elsewhere.ckpt")
    with pytest.raises(FileNotFoundError, match=r"holds adapters only.*load\(\.\.\., base=\.\.\.\)") as caught:
        ssl.LoRACovariateSE.load(tmp_path / "se")
    assert str(moveable) in str(caught.value)
    for base in (moved, str(moved), ssl.SEBase.load(moved)):
        loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=on_moveable.adata, base=base)
        np.testing.assert_array_equal(latent(loaded), latent(on_moveable))
    loaded.save(tmp_path / "se")  # it remembers where the base is now
    again = ssl.LoRACovariateSE.load(tmp_path / "se", adata=on_moveable.adata)
    np.testing.assert_array_equal(latent(again), latent(on_moveable))


def test_another_base_raises(trained, on_moveable, moveable, tmp_path):
    trained.save(tmp_path / "se")
    with pytest.raises(
        ValueError, match=r"was trained on another base: ckpt_embedded \(model\.ckpt\).*this one is no_"
    ):
        ssl.LoRACovariateSE.load(tmp_path / "se", base=ARC / "no_rda" / "model.ckpt")
    # The same file's name and shapes, other numbers.
    on_moveable.save(tmp_path / "moveable")
    content = _content(moveable)
    content["state_dict"]["decoder.1.bias"] = content["state_dict"]["decoder.1.bias"] + 1
    torch.save(content, moveable)
    with pytest.raises(ValueError, match="was trained on another base"):
        ssl.LoRACovariateSE.load(tmp_path / "moveable")


def test_saved_with_the_base_it_needs_nothing_else(on_moveable, moveable, tmp_path):
    on_moveable.save(tmp_path / "se", save_base=True)
    shutil.rmtree(moveable.parent)
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=on_moveable.adata)
    np.testing.assert_array_equal(latent(loaded), latent(on_moveable))
    np.testing.assert_array_equal(_base_of(loaded), _base_of(on_moveable))
    assert loaded.base.sha256() == on_moveable.base.sha256()
    base = ssl.SEBase.load(tmp_path / "se")
    np.testing.assert_allclose(
        ssl.tl.embed(on_moveable.adata.copy(), base, progress_bar=False), _base_of(on_moveable), atol=TOLERANCE
    )


def test_a_base_that_is_nowhere_else_cannot_be_left_out_raises(cells, tmp_path):
    small = {"n_steps": 2, "d_model": 16, "d_hid": 16, "n_layers": 1, "n_heads": 2, "output_dim": 8, "n_tokens": 17}
    adata = cells.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition")
    model = ssl.LoRACovariateSE(adata, compact=small, conditioning={"n_steps": 3})
    model.train(max_epochs=1, **QUICK)
    with pytest.raises(ValueError, match="save_base=False, but this base was trained here and is nowhere else"):
        model.save(tmp_path / "se", save_base=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", [FOLDER, CKPT, ARC / "no_counts" / "model.ckpt", ARC / "no_rda" / "model.ckpt"])
def test_a_converted_base_gives_equal_bits(cells, path, tmp_path):
    base = ssl.SEBase.load(path)
    base.save(tmp_path / "converted")
    assert {file.name for file in (tmp_path / "converted").iterdir()} == {"model.json", "base.safetensors", "NOTICE"}
    assert base.licence in (tmp_path / "converted" / "NOTICE").read_text()
    converted = ssl.SEBase.load(tmp_path / "converted")
    assert converted.sha256() == base.sha256()
    assert (converted.genes, converted.name, converted.licence) == (base.genes, base.name, base.licence)
    assert converted.encoder.config == base.encoder.config
    embeddings = [ssl.tl.embed(cells.copy(), b, progress_bar=False) for b in (base, converted)]
    np.testing.assert_array_equal(*embeddings)


def test_models_share_a_base_without_touching_each_other(cells):
    base = ssl.SEBase.load(CKPT)
    plain = ssl.tl.embed(cells.copy(), base, progress_bar=False)
    first, second = _model(cells, base), _model(cells, base, seed=1)
    fresh = _model(cells, base, seed=1)
    first.train(max_epochs=1, **QUICK)
    before = latent(first)
    weights = [m.base.encoder.cls_token.data_ptr() for m in (first, second)]
    assert weights == [base.encoder.cls_token.data_ptr()] * 2  # not copied
    second.train(max_epochs=1, **QUICK)
    np.testing.assert_array_equal(latent(first), before)
    np.testing.assert_array_equal(ssl.tl.embed(cells.copy(), base, progress_bar=False), plain)
    assert not any("lora_" in name for name, _ in base.encoder.named_parameters())
    fresh.train(max_epochs=1, **QUICK)  # as if nobody else had had the base
    np.testing.assert_array_equal(latent(fresh), latent(second))


def test_a_models_base_serves_another_model(trained, cells):
    other = _model(cells, trained.base)
    np.testing.assert_array_equal(_base_of(other), _base_of(trained))
    np.testing.assert_array_equal(_base_of(_model(cells, CKPT)), _base_of(other))


class _Evil:
    """Touches a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch '{self.path}'",)


def _content(path):
    """A checkpoint's contents, to be changed."""
    content = load_torch(path, mmap=False)
    return {**content, "state_dict": dict(content["state_dict"])}


def _write_code(folder, source):
    content = _content(source)
    torch.save({**content, "callbacks": _Evil(folder / "was_run")}, folder / "model.ckpt")
    return folder / "model.ckpt"


def _write_pickle(folder, _source):
    (folder / "model.ckpt").write_bytes(pickle.dumps({"state_dict": _Evil(folder / "was_run")}))
    return folder / "model.ckpt"


def _truncate(folder, source):
    content = source.read_bytes()
    (folder / "model.ckpt").write_bytes(content[: len(content) // 2])
    return folder / "model.ckpt"


def _truncate_safetensors(folder, _source):
    shutil.copytree(ARC / "safetensors", folder / "se")
    content = (folder / "se" / "model.safetensors").read_bytes()
    (folder / "se" / "model.safetensors").write_bytes(content[: len(content) // 2])
    return folder / "se"


def _change(change):
    def write(folder, source):
        content = _content(source)
        change(content["state_dict"])
        torch.save(content, folder / "model.ckpt")
        return folder / "model.ckpt"

    return write


def _st(folder, _source):
    state = {"pert_encoder.0.weight": torch.zeros(3, 3), "project_out.0.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": state, "hyper_parameters": {"input_dim": 3}}, folder / "final.ckpt")
    return folder / "final.ckpt"


def _without_proteins(folder, _source):
    shutil.copytree(FOLDER, folder / "se")
    (folder / "se" / "protein_embeddings.pt").unlink()
    return folder / "se"


def _without_config(folder, _source):
    shutil.copytree(ARC / "safetensors", folder / "se")
    (folder / "se" / "config.yaml").unlink()
    return folder / "se"


def _h5ad(folder, _source):
    ad.AnnData(np.ones((3, 3), dtype=np.float32)).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def _empty(folder, _source):
    (folder / "empty").mkdir()
    return folder / "empty"


def _extra(state):
    state["transformer_encoder.layers.0.strange.weight"] = torch.zeros(2, 2)


def _misshapen(state):
    state["transformer_encoder.layers.1.qkv_proj.weight"] = torch.zeros(97, 32)


def _truncated_own(folder, source):
    ssl.SEBase.load(source).save(folder / "own")
    content = (folder / "own" / "base.safetensors").read_bytes()
    (folder / "own" / "base.safetensors").write_bytes(content[: len(content) // 2])
    return folder / "own"


def _own_without_a_tensor(folder, source):
    ssl.SEBase.load(source).save(folder / "own")
    file = folder / "own" / "base.safetensors"
    tensors = load_file(file)
    del tensors["cls_token"]
    save_file(tensors, file)
    return folder / "own"


BAD = {
    "code in a checkpoint": (_write_code, ValueError, r"(posix|nt|os)\.system"),
    "code in a pickle": (_write_pickle, ValueError, r"(posix|nt|os)\.system"),
    "truncated checkpoint": (_truncate, ValueError, "truncated or damaged"),
    "truncated safetensors": (_truncate_safetensors, ValueError, "truncated or damaged"),
    "missing tensor": (_change(lambda state: state.pop("cls_token")), ValueError, "cls_token"),
    "missing tensor of a layer": (
        _change(lambda state: state.pop("transformer_encoder.layers.1.norm1.bias")),
        ValueError,
        r"transformer_encoder\.layers\.1\.norm1\.bias",
    ),
    "extra tensor": (_change(_extra), ValueError, r"layers\.0\.strange\.weight"),
    "tensor of another shape": (_change(_misshapen), ValueError, r"layers\.1\.qkv_proj\.weight.*97"),
    "ST checkpoint": (_st, ValueError, "is an ST .* not an SE"),
    "no protein embeddings": (_without_proteins, (ValueError, FileNotFoundError), r"protein_embeddings\.pt"),
    "no configuration": (_without_config, (ValueError, FileNotFoundError), r"config\.yaml"),
    "nothing there": (lambda folder, _: folder / "nowhere", FileNotFoundError, "nowhere"),
    "cells": (_h5ad, ValueError, r"cells\.h5ad is an HDF5 file \(cells\), not a model"),
    "empty folder": (_empty, FileNotFoundError, "it holds: nothing"),
    "truncated save": (_truncated_own, ValueError, "truncated or damaged"),
    "save without a tensor": (_own_without_a_tensor, ValueError, "missing: cls_token"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_base_raises_and_nothing_is_written(what, cells, tmp_path):
    write, error, message = BAD[what]
    path = write(tmp_path, CKPT)
    adata = cells.copy()
    with pytest.raises(error, match=f"(?s){message}"):
        ssl.SEBase.load(path)
    with pytest.raises(error, match=f"(?s){message}"):
        ssl.tl.embed(adata, path, progress_bar=False)
    with pytest.raises(error, match=f"(?s){message}"):
        ssl.setup_anndata(adata, covariate_keys="condition", base=path)
    assert not adata.obsm
    assert not adata.uns
    assert list(adata.obs) == ["condition", "cell_type"]
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition")
    before = adata.copy()
    with pytest.raises(error, match=f"(?s){message}"):
        ssl.LoRACovariateSE(adata, base=path)
    assert_equal(dict(adata.uns), dict(before.uns))
    assert not adata.obsm
    assert not (tmp_path / "was_run").exists()


def test_saved_with_its_base_and_saved_again_it_still_needs_nothing_else(on_moveable, moveable, tmp_path):
    on_moveable.save(tmp_path / "se", save_base=True)
    shutil.rmtree(moveable.parent)
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=on_moveable.adata)
    loaded.save(tmp_path / "again")
    again = ssl.LoRACovariateSE.load(tmp_path / "again", adata=on_moveable.adata)
    np.testing.assert_array_equal(latent(again), latent(on_moveable))


def test_a_model_on_a_converted_base_loads_without_the_checkpoint(cells, moveable, tmp_path):
    ssl.SEBase.load(moveable).save(tmp_path / "converted")
    shutil.rmtree(moveable.parent)
    model = _model(cells, tmp_path / "converted")
    model.train(max_epochs=1, **QUICK)
    model.save(tmp_path / "se")
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=model.adata)
    np.testing.assert_array_equal(latent(loaded), latent(model))


def test_genes_that_only_a_column_names_are_to_be_named_at_set_up_raises(cells):
    cells = cells.copy()
    cells.var["symbol"] = cells.var_names
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    with pytest.raises(ValueError, match="set up with gene_key='symbol'"):
        ssl.setup_anndata(cells, covariate_keys="condition", base=CKPT)
    ssl.setup_anndata(cells, covariate_keys="condition", base=CKPT, gene_key="symbol")
