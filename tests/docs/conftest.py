from __future__ import annotations

from functools import partialmethod

import matplotlib as mpl
import pytest

import scstate_lora as ssl
from scstate_lora.datasets import wound_healing
from tests.builders import QUICK, SMALL_SE


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Run the code of a page as it stands, but on fewer genes, with small models and short training, in a folder."""
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ssl.datasets, "wound_healing", lambda *_, **__: wound_healing(2500, n_genes=200))
    small = {"compact": SMALL_SE, "conditioning": {"n_steps": 20}}
    monkeypatch.setattr(ssl.LoRACovariateSE, "__init__", partialmethod(ssl.LoRACovariateSE.__init__, **small))
    by_few_steps = partialmethod(ssl.CellTypeClassifier.__init__, compact={"n_steps": 20}, head={"n_steps": 20})
    monkeypatch.setattr(ssl.CellTypeClassifier, "__init__", by_few_steps)
    for model in (ssl.LoRACovariateSE, ssl.STTransition):
        monkeypatch.setattr(model, "train", partialmethod(_train, model.train))
    return tmp_path


def _train(self, train, **_):
    train(self, 1, **QUICK)
