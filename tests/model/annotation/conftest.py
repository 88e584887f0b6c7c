from __future__ import annotations

import pytest

import scstate_lora as ssl
from tests.builders import LABEL_TREE, QUICK, SMALL_SE, labelled_cells


@pytest.fixture(scope="session")
def reference():
    """240 labelled cells of four types from three donors, set up with a tree. Not to be changed."""
    adata = labelled_cells(240)
    ssl.CellTypeClassifier.setup_anndata(adata, labels_key="cell_type", batch_key="donor", label_tree=LABEL_TREE)
    return adata


@pytest.fixture(scope="session")
def new_cells():
    """90 further cells. Not to be changed."""
    return labelled_cells(90, seed=1)


@pytest.fixture
def query(new_cells):
    """A fresh copy of the further cells."""
    return new_cells.copy()


@pytest.fixture(scope="session")
def frozen(reference):
    """A classifier whose heads alone were trained, on a compact base of its own. Not to be changed."""
    model = ssl.CellTypeClassifier(reference, compact=SMALL_SE, head={"n_steps": 6})
    model.train("frozen", **QUICK)
    return model


@pytest.fixture(scope="session")
def base(frozen):
    """The compact base, to be given to others. Not to be changed."""
    return frozen.base


@pytest.fixture(scope="session")
def classify(base):
    """Set up cells, and train a classifier of them with heads alone on the base, unless asked for another strategy."""

    def train(adata, strategy="frozen", *, model=None, seed=0, training=None, **setup):
        setup = {"labels_key": "cell_type", "batch_key": "donor", **setup}
        ssl.CellTypeClassifier.setup_anndata(adata, **setup)
        made = ssl.CellTypeClassifier(adata, **{"base": base, "head": {"n_steps": 6}, **(model or {})}, seed=seed)
        made.train(strategy, **{"check_unknown": False, **QUICK, **(training or {})})
        return made

    return train


ENCODER = {"max_epochs": 3, "restore_best": False, "backbone_lr": 1e-3, "adapter_lr": 1e-2, "check_unknown": False}
"""A training of the encoder that leaves traces, whatever it does to the loss."""


@pytest.fixture(scope="session", params=["gradual", "full", "lora"])
def adapted(request, reference, base):
    """A classifier whose encoder was trained, whatever the loss said. Not to be changed."""
    return _adapt(reference, base, request.param)


@pytest.fixture(scope="session")
def lora(reference, base):
    """As `adapted`, by adapters alone."""
    return _adapt(reference, base, "lora")


def _adapt(reference, base, strategy):
    model = ssl.CellTypeClassifier(reference, base=base, head={"n_steps": 6})
    model.train(strategy, **ENCODER, **QUICK)
    return model
