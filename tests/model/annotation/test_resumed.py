"""A training of the encoder that broke off, and goes on from its checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

import scstate_lora as ssl
from tests.builders import NO_DROPOUT, QUICK, Stop, labelled_cells

TRAINING = {"max_epochs": 3, "backbone_lr": 1e-3, "adapter_lr": 1e-2, "check_unknown": False, **QUICK, "logger": True}


def _model(base):
    adata = labelled_cells(120)
    ssl.CellTypeClassifier.setup_anndata(adata, labels_key="cell_type", batch_key="donor")
    return ssl.CellTypeClassifier(adata, base=base, lora=NO_DROPOUT, head={"n_steps": 3})


@pytest.mark.parametrize("restore_best", [False, True])
@pytest.mark.parametrize("strategy", ["lora", "gradual"])
def test_resumed_is_as_never_stopped(base, new_cells, strategy, restore_best, tmp_path):
    options = {**TRAINING, "restore_best": restore_best}
    whole, stopped = _model(base), _model(base)
    whole.train(strategy, run_folder=tmp_path / "whole", **options)
    n_steps = int(whole.history.loc[whole.history["cells"] == "without the first fold", "step"].max())
    with pytest.raises(RuntimeError, match="stopped here"):
        stopped.train(strategy, run_folder=tmp_path / "run", callbacks=Stop(n_steps - 1), **options)
    assert not stopped.is_trained
    stopped.train(strategy, resume_from=tmp_path / "run", **options)
    np.testing.assert_allclose(stopped.predict_proba(new_cells), whole.predict_proba(new_cells), atol=1e-5)
    np.testing.assert_allclose(stopped.history["loss"], whole.history["loss"], atol=1e-5)
    assert stopped.adapts_encoder == whole.adapts_encoder


def test_a_training_that_broke_off_leaves_the_model_as_it_was(base, new_cells):
    model = _model(base)
    model.train("frozen", check_unknown=False, **QUICK)
    before, history = model.predict_proba(new_cells), model.history
    with pytest.raises(RuntimeError, match="stopped here"):
        model.train("full", max_epochs=2, callbacks=Stop(2), check_unknown=False, **QUICK)
    np.testing.assert_array_equal(model.predict_proba(new_cells), before)
    assert model.history is history
    assert model.strategy == "frozen"
