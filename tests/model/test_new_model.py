"""A model is one class on the shared stones: it touches neither wing, nor anything that knows the two models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from scstate_lora.model import BaseModel
from tests.builders import wound


class TypeMeans(BaseModel):
    """Name the cell type whose mean expression is nearest."""

    writes = "nothing"

    def train(self) -> None:
        cells = self._bind().take(self._bind().rows("train"))
        self.types = sorted(set(cells.cell_types))
        means = [cells.logged[cells.cell_types == name].mean(axis=0) for name in self.types]
        self.network = self._build(np.asarray(np.vstack(means), dtype=np.float32))
        self.history = pd.DataFrame({"step": [1], "loss": [0.0]})

    def predict(self, adata=None) -> list[str]:
        self._require_trained("predict()")
        cells = torch.as_tensor(self._bind(adata).logged.toarray(), dtype=torch.float32)
        return [self.types[i] for i in torch.cdist(cells, self.network.weight).argmin(dim=1)]

    @staticmethod
    def _build(means) -> nn.Embedding:
        return nn.Embedding.from_pretrained(torch.as_tensor(means), freeze=False)

    def _parts(self):
        return [("means", getattr(self, "network", None), "one per cell type")]

    def _metadata(self):
        return {"types": self.types}

    def _tensors(self):
        return {"means": self.network.state_dict()}

    def _restore(self, metadata, tensors, **given):
        self.types = metadata["types"]
        self.network = self._build(tensors["means"]["weight"])


@pytest.fixture(scope="module")
def adata():
    adata = wound(400)
    TypeMeans.setup_anndata(adata, cell_type_key="cell_type")
    return adata


def test_a_new_model_trains_predicts_and_comes_back(adata, tmp_path):
    model = TypeMeans(adata)
    with pytest.raises(ValueError, match="TypeMeans is not trained"):
        model.predict()
    model.train()
    predicted = model.predict()
    assert np.mean(np.array(predicted) == adata.obs["cell_type"].to_numpy()) > 0.8
    assert model.summary().set_index("part").loc["means", "parameters"] == 11 * adata.n_vars

    model.save(tmp_path / "means")
    loaded = TypeMeans.load(tmp_path / "means", adata=adata)
    assert loaded.predict() == predicted
    assert "trained, 1 steps" in repr(loaded)
    with pytest.raises(ValueError, match="holds a TypeMeans"):
        type("Other", (TypeMeans,), {}).load(tmp_path / "means")
