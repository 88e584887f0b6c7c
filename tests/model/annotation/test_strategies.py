from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import scstate_lora as ssl
from scstate_lora.nn.lora import split_adapters
from tests.builders import QUICK, labelled_cells


@pytest.fixture(scope="session")
def at_first(base, fingerprint):
    """Hash of the base's encoder before any other fixture trains on it, and its weights."""
    return fingerprint(base.encoder), copy.deepcopy(base.encoder.state_dict())


def _moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_heads_leave_the_encoder_as_it_was(frozen):
    assert frozen.network.encoder is frozen.base.encoder
    assert not frozen.adapts_encoder
    embedding = frozen.get_latent_representation(key_added=None)
    np.testing.assert_array_equal(embedding, frozen.base.embed(frozen._bind()))
    assert frozen.history["cells"].unique().tolist() == ["left out: cell_type"]


def test_a_given_base_stays_bit_equal_whatever_is_trained(at_first, base, adapted, fingerprint):
    assert adapted.base.sha256() == base.sha256()
    assert fingerprint(base.encoder) == at_first[0]
    assert fingerprint(adapted.base.encoder) == at_first[0]
    assert adapted.adapts_encoder


def test_what_moves_in_the_encoder(at_first, adapted):
    own, adapters = split_adapters(adapted.network.encoder.state_dict())
    moved = _moved(at_first[1], own)
    if adapted.strategy == "lora":
        assert not moved
        assert any("lora_B" in name and tensor.any() for name, tensor in adapters.items())
    else:
        assert not adapters
        assert any("linear" in name for name in moved)
        assert any("attn" in name for name in moved)


def test_a_trained_encoder_embeds_otherwise(adapted, frozen, new_cells):
    one, other = (model.get_latent_representation(new_cells, key_added=None) for model in (adapted, frozen))
    assert one.shape == other.shape
    assert np.abs(one - other).max() > 1e-3
    assert (adapted.predict_proba(new_cells) - frozen.predict_proba(new_cells)).abs().max(axis=None) > 1e-6


def test_the_network_is_left_in_eval(adapted, new_cells):
    assert not any(module.training for module in adapted.network.modules())
    np.testing.assert_array_equal(*(adapted.predict_proba(new_cells).to_numpy() for _ in range(2)))


def test_heads_move_with_the_encoder(adapted, frozen):
    assert _moved(adapted.network.heads[0].state_dict(), frozen.network.heads[0].state_dict()) >= {"last", "last_bias"}


def _steps(history, cells):
    rows = history[(history["phase"] == "train") & (history["cells"] == cells)]
    return rows.groupby("epoch")["encoder"].unique().map(list).tolist()


def test_the_history_says_when_the_encoder_is_trained(adapted):
    first = 0.0 if adapted.strategy == "gradual" else 1.0
    assert _steps(adapted.history, "without the first fold") == [[first], [1.0], [1.0]]
    assert _steps(adapted.history, "all") == [[first], [1.0], [1.0]]


class _Watch:
    """Remember the encoder's weights, and the optimiser's rates, at the end of every epoch."""

    def __new__(cls):
        import lightning as L

        class Watch(L.Callback):
            def __init__(self):
                self.weights, self.rates = [], []

            def on_train_epoch_end(self, trainer, plan):
                self.weights.append(copy.deepcopy(plan.network.encoder.state_dict()))
                self.rates.append({group["initial_lr"] for group in trainer.optimizers[0].param_groups})

        return Watch()


@pytest.mark.parametrize("unfreeze_epoch", [1, 2])
def test_gradual_trains_the_encoder_from_the_epoch_on_that_it_says(reference, base, at_first, unfreeze_epoch, caplog):
    watch = _Watch()
    model = ssl.CellTypeClassifier(reference, base=base, head={"n_steps": 3})
    options = {"max_epochs": 3, "restore_best": False, "check_unknown": False, "callbacks": watch}
    with caplog.at_level("INFO", logger="scstate_lora"):
        model.train("gradual", unfreeze_epoch=unfreeze_epoch, **options, **QUICK)
    moved = [bool(_moved(at_first[1], weights)) for weights in watch.weights[:3]]
    assert moved == [epoch >= unfreeze_epoch for epoch in range(3)]
    assert moved == [bool(_moved(at_first[1], weights)) for weights in watch.weights[3:]]
    # Epochs are counted from 1 for readers.
    assert caplog.text.count(f"Epoch {unfreeze_epoch + 1}: the encoder is unfrozen and trained from here on.") == 2
    assert caplog.text.count("unfrozen") == 2
    assert watch.rates == [{1e-5, 1e-3}] * 6


@pytest.mark.parametrize(("strategy", "rates"), [("full", {1e-6, 2e-3}), ("lora", {3e-5, 2e-3})])
def test_learning_rates_are_those_given(reference, base, strategy, rates):
    watch = _Watch()
    model = ssl.CellTypeClassifier(reference, base=base, head={"n_steps": 3})
    options = {"backbone_lr": 1e-6, "adapter_lr": 3e-5, "head_lr": 2e-3, "check_unknown": False, "callbacks": watch}
    model.train(strategy, max_epochs=1, **options, **QUICK)
    assert watch.rates[0] == rates


@pytest.mark.parametrize("strategy", ["gradual", "full", "lora"])
def test_without_a_gain_the_encoder_is_as_it_was_and_that_is_said(
    reference, base, at_first, strategy, caplog, fingerprint
):
    model = ssl.CellTypeClassifier(reference, base=base, head={"n_steps": 6})
    harmful = {"backbone_lr": 1.0, "adapter_lr": 1.0, "head_lr": 1.0, "warmup_steps": 0, "unfreeze_epoch": 0}
    with caplog.at_level("INFO", logger="scstate_lora"):
        model.train(strategy, max_epochs=1, check_unknown=False, **harmful, **QUICK)
    assert "the encoder is left as it was" in caplog.text
    assert not model.adapts_encoder
    assert fingerprint(model.network.encoder) == at_first[0]
    assert model.strategy == strategy
    trained = model.history[model.history["phase"] == "train"]
    assert (trained["cells"] == "without the first fold").all()
    assert len(trained)


@pytest.mark.parametrize("strategy", ["gradual", "full", "lora", "frozen"])
def test_no_strategy_is_worse_than_its_linear_start(classify, strategy):
    model = classify(labelled_cells(200, seed=4, depth=60.0), strategy, training={"max_epochs": 3})
    choice = model.targets["cell_type"].choice
    assert choice["loss"] <= choice["start_loss"]
    trials = model.history[model.history["cells"] == "without the first fold"]
    if model.adapts_encoder:
        assert trials.loc[trials["best"].fillna(value=False).astype(bool), "loss"].min() < trials["loss"].max()
    scores = model.scores.set_index("method")["accuracy"]
    assert scores["CellTypeClassifier"] >= scores["linear start"] - 0.01


def test_training_again_begins_anew(classify, frozen, new_cells):
    cells = labelled_cells(120)
    model = classify(cells, "full", training={"max_epochs": 1, "restore_best": False})
    assert model.adapts_encoder
    model.train("frozen", check_unknown=False, **QUICK)
    assert not model.adapts_encoder
    again = classify(cells.copy())
    np.testing.assert_array_equal(model.predict_proba(new_cells), again.predict_proba(new_cells))


@pytest.mark.parametrize("strategy", ["lora", "gradual"])
def test_the_same_for_a_seed_and_another_for_another(classify, new_cells, strategy):
    training = {"max_epochs": 2, "restore_best": False}
    one, two, other = (classify(labelled_cells(120), strategy, training=training, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.predict_proba(new_cells), two.predict_proba(new_cells))
    np.testing.assert_array_equal(one.history["loss"], two.history["loss"])
    assert (one.predict_proba(new_cells) - other.predict_proba(new_cells)).abs().max(axis=None) > 1e-6


def test_the_summary_says_what_was_trained(frozen, adapted):
    shown = adapted.summary().set_index("part")
    of_base = shown.loc["base"]
    whole = sum(p.numel() for p in adapted.network.encoder.parameters())
    adapters = sum(p.numel() for name, p in adapted.network.encoder.named_parameters() if "lora_" in name)
    assert of_base["trained"] == (adapters if adapted.strategy == "lora" else whole)
    assert "chosen on left-out batches" in shown.loc["cell_type", "note"]
    assert frozen.summary().set_index("part").loc["base", "trained"] == 0
    assert "CellTypeClassifier (trained" in repr(adapted)
