"""A classifier on each kind of base: one of genes by rank, an embedding of other origin, and none that fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import scstate_lora as ssl
from scstate_lora.model.annotation.rank_base import RankBase
from scstate_lora.nn.lora import split_adapters
from tests.builders import QUICK, labelled_cells
from tests.scmodelforge_files import GENES, Parts, torch_encoder

TRAINING = {"max_epochs": 2, "restore_best": False, "backbone_lr": 1e-3, "adapter_lr": 1e-2}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A base of genes by rank that knows 20 of the 60 genes."""
    return RankBase.load(Parts.of(torch_encoder()).write_folder(tmp_path_factory.mktemp("ranks") / "blood"))


@pytest.mark.parametrize("strategy", ["frozen", "lora", "full", "gradual"])
def test_strategies_on_a_base_of_ranks(classify, ranks, query, strategy, tmp_path):
    before = {name: tensor.clone() for name, tensor in ranks.tensors().items()}
    model = classify(labelled_cells(120), strategy, model={"base": ranks}, training=TRAINING)
    for name, tensor in ranks.tensors().items():
        assert torch.equal(tensor, before[name]), name
    own, adapters = split_adapters(model.network.encoder.state_dict())
    moved = any(not torch.equal(tensor, before[name]) for name, tensor in own.items())
    assert moved == (strategy in ("full", "gradual"))
    assert bool(adapters) == (strategy == "lora")
    same = np.allclose(model.get_latent_representation(query), ranks.embed(model._bind(query)), atol=1e-6)
    assert same == (strategy == "frozen")
    assert (model.predict(query)["scstate_celltype"] == query.obs["cell_type"]).mean() > 0.8
    model.save(tmp_path / "m")
    again = ssl.CellTypeClassifier.load(tmp_path / "m").predict_proba(query)
    pd.testing.assert_frame_equal(again, model.predict_proba(query), atol=1e-6)


@pytest.mark.parametrize("form", ["folder", "checkpoint"])
def test_a_base_of_ranks_by_its_path(reference, form, tmp_path):
    parts = Parts.of(torch_encoder())
    path = parts.write_folder(tmp_path / "a") if form == "folder" else parts.write_checkpoint(tmp_path / "a")
    model = ssl.CellTypeClassifier(reference, base=path)
    assert isinstance(model.base, RankBase)
    assert "genes by rank" in model.summary().set_index("part").loc["base", "note"]


def test_a_base_that_knows_hardly_any_gene_raises(ranks):
    adata = labelled_cells(60)
    adata.var_names = [*GENES[:1], *(f"OTHER{i}" for i in range(59))]
    ssl.CellTypeClassifier.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(ValueError, match="Only 1 of the data's 60 genes are in the base's vocabulary of 20"):
        ssl.CellTypeClassifier(adata, base=ranks)


def _embedded(adata):
    """The cells with an embedding that tells the types apart."""
    adata = adata.copy()
    codes = adata.obs["cell_type"].map({"CD4": 0, "CD8": 1, "B": 2, "monocyte": 3}).to_numpy()
    noise = np.random.default_rng(adata.n_obs).normal(0, 0.3, (adata.n_obs, 6))
    adata.obsm["X_other"] = (noise + np.eye(4, 6)[codes] * 2).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def on_embedding(classify):
    return classify(_embedded(labelled_cells(120, depth=40.0)), None, model={"base": None}, embed_key="X_other")


def test_an_embedding_is_the_base(on_embedding, new_cells, tmp_path):
    assert on_embedding.strategy == "frozen"
    query = _embedded(new_cells)
    assert (on_embedding.predict(query)["scstate_celltype"] == query.obs["cell_type"]).mean() > 0.95
    latent = on_embedding.get_latent_representation(query, key_added=None)
    np.testing.assert_array_equal(latent, on_embedding.base.embed(on_embedding._bind(query)))
    assert np.corrcoef(latent[:, 2], query.obsm["X_other"][:, 2])[0, 1] > 0.9
    assert on_embedding.targets["cell_type"].choice["strength"] > 0
    on_embedding.save(tmp_path / "m")
    again = ssl.CellTypeClassifier.load(tmp_path / "m").predict_proba(query)
    pd.testing.assert_frame_equal(again, on_embedding.predict_proba(query), atol=1e-6)
    with pytest.raises(KeyError, match="X_other"):
        on_embedding.predict(new_cells.copy())


@pytest.mark.parametrize("strategy", ["gradual", "full", "lora"])
def test_an_embedding_has_no_encoder_to_train_raises(on_embedding, strategy):
    with pytest.raises(ValueError, match=rf"strategy='{strategy}' trains an encoder.*obsm\['X_other'\].*'frozen'"):
        on_embedding.train(strategy, **QUICK)
    assert on_embedding.is_trained


def test_two_bases_raises(ranks):
    adata = _embedded(labelled_cells(60))
    ssl.CellTypeClassifier.setup_anndata(adata, labels_key="cell_type", embed_key="X_other")
    with pytest.raises(ValueError, match=r"base= and embed_key='X_other' each name a base\. Leave one out"):
        ssl.CellTypeClassifier(adata, base=ranks)
