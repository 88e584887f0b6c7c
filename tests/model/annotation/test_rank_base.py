from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scstate_lora.config import ComputeOptions, DataConfig
from scstate_lora.data.bound import BoundData
from scstate_lora.data.rank_tokens import RankTokenizer
from scstate_lora.data.register import register
from scstate_lora.data.registry import Registry
from scstate_lora.inference import embed_ranks
from scstate_lora.model.annotation.rank_base import RankBase, load_rank_base
from scstate_lora.nn.lora import add_lora
from tests.scmodelforge_files import GENES, Parts, torch_encoder

if TYPE_CHECKING:
    from pathlib import Path


def _counts(genes: list[str] = GENES, *, n_cells: int = 30, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.lognormal(0, 1, len(genes)) * rng.lognormal(0, 1, (n_cells, 1)))
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=genes))


def _bound(adata: ad.AnnData, **options: object) -> BoundData:
    register(adata, DataConfig(**options), seed=0)
    return BoundData(Registry.from_adata(adata), adata)


@pytest.fixture
def parts() -> Parts:
    return Parts.of(torch_encoder())


@pytest.fixture
def base(parts: Parts, tmp_path: Path) -> RankBase:
    return RankBase.load(parts.write_folder(tmp_path / "blood"))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_both_forms_embed_as_torchs_own_layers(pooling: str, tmp_path: Path) -> None:
    theirs, cells = torch_encoder(pooling=pooling), _bound(_counts())
    folder = RankBase.load(Parts.of(theirs).write_folder(tmp_path / "a"))
    checkpoint = RankBase.load(Parts.of(theirs).write_checkpoint(tmp_path / "b"))
    tokens = RankTokenizer(np.arange(len(GENES)) + 4, 12)(cells.matrix)
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(array) for name, array in tokens.items()}).numpy()
    embedding = folder.embed(cells)
    assert embedding.dtype == np.float32
    assert embedding.shape == (30, folder.dim)
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    np.testing.assert_array_equal(checkpoint.embed(cells), embedding)
    assert checkpoint.sha256() == folder.sha256()


def test_tokens_are_arguments_of_the_encoder(base: RankBase) -> None:
    cells, rows = _bound(_counts()), np.array([7, 2, 9])
    tokens = base.tokens(cells, rows)
    whole = base.embed(cells)
    with torch.no_grad():
        found = base.encoder(**{name: torch.from_numpy(array) for name, array in tokens.items()})
    np.testing.assert_allclose(found.numpy(), whole[rows], atol=1e-6)


def test_a_network_without_values_is_given_none(tmp_path: Path) -> None:
    base = RankBase.load(Parts.of(torch_encoder(use_expression_values=False)).write_folder(tmp_path / "a"))
    cells = _bound(_counts())
    assert base.tokens(cells, np.arange(3)).keys() == {"genes", "mask"}
    assert np.isfinite(base.embed(cells)).all()


def test_log1p_values_embed_as_their_counts(base: RankBase) -> None:
    adata = _counts()
    logged = adata.copy()
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    logged.X.data = np.log1p(logged.X.data * np.repeat(1e6 / totals, np.diff(logged.X.indptr))).astype(np.float32)
    cells = _bound(logged)
    assert cells.registry.scale == "log1p"
    np.testing.assert_allclose(base.embed(cells), base.embed(_bound(adata)), atol=1e-5)


def test_the_order_of_genes_and_others_beside_them_do_not_matter(base: RankBase) -> None:
    adata = _counts()
    others = _counts([f"OTHER{i}" for i in range(40)], seed=1)
    wide = ad.concat([others, adata[:, ::-1]], axis=1)
    np.testing.assert_array_equal(base.embed(_bound(wide)), base.embed(_bound(adata)))


def test_batches_do_not_matter(base: RankBase, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = _bound(_counts())
    whole = base.embed(cells)
    for batch_size in (1, 7):
        found = base.embed(cells, options=ComputeOptions(batch_size=batch_size))
        np.testing.assert_allclose(found, whole, atol=1e-6)
    monkeypatch.setattr(embed_ranks, "_BLOCK", 8)
    monkeypatch.setitem(embed_ranks._ACTIVATIONS, "cpu", 3 * 12 * 40)  # three full sentences
    np.testing.assert_allclose(base.embed(cells), whole, atol=1e-6)


def test_adapters_are_not_part_of_the_base(base: RankBase) -> None:
    cells = _bound(_counts())
    before, identity, names = base.embed(cells), base.sha256(), list(base.tensors())
    add_lora(base.encoder, r=2, alpha=4, dropout=0.0, targets=("q", "v"))
    for name, parameter in base.encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert list(base.tensors()) == names
    assert base.sha256() == identity
    np.testing.assert_array_equal(base.embed(cells), before)
    np.testing.assert_array_equal(base.copy().embed(cells), before)


def test_a_copy_has_weights_of_its_own(base: RankBase) -> None:
    copy, identity = base.copy(), base.sha256()
    assert copy.sha256() == identity
    with torch.no_grad():
        copy.encoder.transformer_encoder.layers[0].linear1.weight.add_(1)
    assert base.sha256() == identity
    assert copy.sha256() != identity


def test_identity_is_of_all_that_determines_the_embedding(parts: Parts, tmp_path: Path) -> None:
    folder = parts.write_folder(tmp_path / "a")
    config = parts.exported()
    mean = {**config, "model_config": {**config["model_config"], "pooling": "mean"}}
    short = {**config, "tokenizer_config": {**config["tokenizer_config"], "max_genes": 5}}
    loaded = [
        RankBase.load(folder),
        RankBase.load(folder, config=mean),
        RankBase.load(folder, config=short),
        RankBase.load(folder, genes=GENES[::-1]),
    ]
    assert len({base.sha256() for base in loaded}) == 4


def test_restored_from_what_is_saved(base: RankBase) -> None:
    metadata = json.loads(json.dumps(base.metadata()))
    restored = RankBase.restore(metadata, {name: tensor.clone() for name, tensor in base.tensors().items()})
    cells = _bound(_counts())
    np.testing.assert_array_equal(restored.embed(cells), base.embed(cells))
    assert restored.metadata() == base.metadata()
    assert restored.note() == "blood (model.safetensors): 2 layers x 16, up to 12 genes by rank, cls pooling, 20 genes"
    tensors = base.tensors()
    tensors.pop("norm.weight")
    with pytest.raises(ValueError, match=r"missing: norm\.weight"):
        RankBase.restore(metadata, tensors)


def test_loaded_again_from_its_source(parts: Parts, tmp_path: Path) -> None:
    parts.preprocessing = {"target_sum": 100.0}
    file = parts.write_checkpoint(tmp_path / "a")
    metadata = RankBase.load(file).metadata()
    for name in ("config.yaml", "gene_vocab.json"):  # neither is needed again
        (file.parent / name).unlink()
    assert RankBase.load_again(metadata, "a model").sha256() == metadata["sha256"]

    parts.state["encoder.layers.0.norm1.bias"] += 1
    shutil.rmtree(file.parent)
    parts.write_checkpoint(tmp_path / "a")
    with pytest.raises(ValueError, match="a model was trained on another base"):
        RankBase.load_again(metadata, "a model")
    shutil.rmtree(file.parent)
    with pytest.raises(FileNotFoundError, match=r"no longer is\. Say where it is: load\(\.\.\., base=\.\.\.\)"):
        RankBase.load_again(metadata, "a model")


def test_a_base_that_knows_hardly_any_gene_raises(base: RankBase) -> None:
    known = [*GENES[:2], *(f"OTHER{i}" for i in range(30))]
    assert load_rank_base(base, _bound(_counts(known)).registry).sha256() == base.sha256()
    few = [GENES[0], *(f"OTHER{i}" for i in range(30))]
    cells = _bound(_counts(few))
    with pytest.raises(ValueError, match=r"Only 1 of the data's 31 genes are in the base's vocabulary of 20"):
        load_rank_base(base, cells.registry)
    with pytest.raises(ValueError, match="Only 1 of the data's 31 genes"):
        base.tokens(cells, np.arange(3))


def test_another_species_raises(parts: Parts, tmp_path: Path) -> None:
    human = [f"ENSG{i:011d}" for i in range(20)]
    base = RankBase.load(parts.write_folder(tmp_path / "a"), genes=human)
    cells = _bound(_counts([f"ENSMUSG{i:011d}" for i in range(20)]))
    with pytest.raises(ValueError, match="Ensembl ids of two species"):
        load_rank_base(base, cells.registry)


def test_other_names_that_match_are_suggested(base: RankBase) -> None:
    adata = _counts([f"ENSG{i:011d}" for i in range(20)])
    adata.var["symbol"] = GENES
    with pytest.raises(ValueError, match=r"set up with gene_key='symbol'"):
        load_rank_base(base, _bound(adata).registry, adata)
    registry = _bound(adata, gene_key="symbol").registry
    assert load_rank_base(base, registry, adata).match(registry).n_matched == 20


def test_counts_cannot_be_had_from_log1p_raises(parts: Parts, tmp_path: Path) -> None:
    parts.preprocessing = {"normalize": None, "log1p": False}
    base = RankBase.load(parts.write_checkpoint(tmp_path / "a"))
    adata = _counts()
    assert np.isfinite(base.embed(_bound(adata.copy()))).all()
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match="trained on counts that are not normalised"):
        base.embed(_bound(adata))
