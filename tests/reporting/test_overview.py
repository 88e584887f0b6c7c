"""What the first lines of the page say of the data."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scstate_lora._constants import OBS_SPLIT
from scstate_lora.config import DataConfig
from scstate_lora.data.registry import Registry
from scstate_lora.reporting.overview import data_in_words


@pytest.fixture
def cells() -> AnnData:
    x = np.random.default_rng(0).poisson(2.0, (8, 5)).astype(np.float32)
    return AnnData(x, obs=pd.DataFrame({"batch": list("aabbaabb")}, index=[f"c{i}" for i in range(8)]))


def _said(cells: AnnData, split: list[str] | None, **options: int) -> str:
    registry = Registry.create(cells, DataConfig(batch_key="batch"))
    if split is not None:
        cells.obs[OBS_SPLIT] = pd.Categorical(split, categories=["train", "val", "test"])
    return data_in_words(cells, registry, **options)


def test_held_out_cells_are_said_to_be_unseen_only_where_others_trained(cells: AnnData) -> None:
    assert "Held out, so that no model saw them: 2 cells" in _said(cells, ["train"] * 6 + ["test"] * 2)
    alone = _said(cells, ["test"] * 8)
    assert "no model saw" not in alone
    assert "what the model was trained on is not known here" in alone
    assert "the 90 training cells are in a file of their own" in _said(cells, ["test"] * 8, n_train=90)


def test_nothing_held_out_is_said(cells: AnnData) -> None:
    assert "no model was trained on these cells" in _said(cells, None)
    assert "No cell was held out" in _said(cells, ["train"] * 8)
