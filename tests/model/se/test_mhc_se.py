"""Hyper-connections on the SE base: they belong to an adapter, learn with it, and leave the base as it is."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch

import scstate_lora as ssl
from scstate_lora.config import MHCConfig
from scstate_lora.data.bound import BoundData
from scstate_lora.nn.hyper_connections import mhc_layers, mhc_parameters
from tests.builders import NEEDS_FORK, NO_DROPOUT, QUICK, Stop, latent

OPTIONS = {**QUICK, "batch_size": 32}
# No longer than it takes to see that all that is to be trained is.
SHORT = {**OPTIONS, "max_epochs": 1, "lr": 3e-3, "restore_best": False}


class Watch(L.Callback):
    """What the connections' gradients were at the second step, and how far they moved at most."""

    def __init__(self):
        self.first, self.second, self.moved, self.decay = {}, {}, {}, {}

    def on_train_start(self, trainer, plan):
        self.first = {name: p.detach().clone() for name, p in mhc_parameters(plan).items()}
        self.moved = dict.fromkeys(self.first, 0.0)
        for group in trainer.optimizers[0].param_groups:
            self.decay |= {id(p): group["weight_decay"] for p in group["params"]}

    def on_before_optimizer_step(self, trainer, plan, optimizer):
        if trainer.global_step == 1:
            self.second = {name: p.grad.abs().max().item() for name, p in mhc_parameters(plan).items()}

    def on_train_batch_end(self, trainer, plan, *args):
        for name, p in mhc_parameters(plan).items():
            self.moved[name] = max(self.moved[name], (p - self.first[name]).abs().max().item())


@pytest.fixture(scope="module")
def cells(wound, setup):
    """Cells that were set up. Not to be changed."""
    adata = wound[:150].copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    return adata


@pytest.fixture(scope="module")
def base(wound, setup, make_se):
    """A base of two layers, of a few steps."""
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    sizes = {"n_steps": 5, "d_model": 16, "d_hid": 32, "n_layers": 2, "n_heads": 2, "output_dim": 16, "n_tokens": 33}
    model = make_se(adata, compact=sizes)
    model.train_base(**QUICK)
    return model.base


@pytest.fixture(scope="module")
def make(cells, make_se, base):
    """Make a model on the shared base."""
    return lambda **options: make_se(cells.copy(), base=base, **{"lora": NO_DROPOUT, **options})


@pytest.fixture(scope="module")
def connected(make):
    """A model trained without connections and then with them, on what, and its embeddings. Not to be changed."""
    model = make()
    model.train(**SHORT)
    before = latent(model)
    model.train(**SHORT, mhc=True)
    return model, before, latent(model)


def _names(model):
    return [name for name, _ in model.base.encoder.named_parameters()]


@pytest.mark.parametrize(
    "mhc",
    [{"kind": kind, "dynamic": dynamic} for kind in ("streams", "features") for dynamic in (False, True)],
    ids=str,
)
def test_at_first_it_embeds_as_without_them(make, mhc):
    model = make()
    model.train(**SHORT)
    before, plain = latent(model), model.base.embed(BoundData(model.registry, model.adata))
    with model.adapters.connected(MHCConfig.parse(mhc, name="mhc")):
        assert len(mhc_layers(model.base.encoder)) == 2
        np.testing.assert_allclose(latent(model), before, atol=1e-5)
        np.testing.assert_array_equal(model.base.embed(BoundData(model.registry, model.adata)), plain)


@pytest.mark.parametrize("kind", ["streams", "features"])
@pytest.mark.parametrize("lora", [NO_DROPOUT, False], ids=["adapters", "none"])
def test_all_of_them_learn_and_sums_stay_one(make, kind, lora):
    model, watch = make(lora=lora), Watch()
    sha256, plain = model.base.sha256(), model.base.embed(BoundData(model.registry, model.adata))
    model.train(**{**SHORT, "max_epochs": 7}, mhc={"kind": kind}, callbacks=watch)
    assert model.history["step"].max() >= 21
    parameters = mhc_parameters(model.network)
    assert set(parameters) == {name.removeprefix("network.") for name in watch.first}
    assert len(parameters) >= 2 * 3
    for name, second in watch.second.items():
        assert second > 0, name
        assert watch.moved[name] > 1e-3, name
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad and id(parameter) in watch.decay:
            assert watch.decay[id(parameter)] == (0 if name in parameters else 0.01), name
    table = model.mhc_diagnostics()
    assert table["distance_from_identity"].min() > 1e-4
    assert table[["row_error", "column_error"]].to_numpy().max() < 1e-3
    assert table["composite_forward_gain"].to_numpy() == pytest.approx(1, abs=1e-3)
    assert model.base.sha256() == sha256
    np.testing.assert_array_equal(model.base.embed(BoundData(model.registry, model.adata)), plain)


def test_the_base_stays_without_them(connected, base):
    model, before, after = connected
    assert np.abs(after - before).max() > 1e-4
    assert model.base.sha256() == base.sha256()
    model.get_latent_representation()
    np.testing.assert_array_equal(model.adata.obsm["X_scstate_lora"], after)
    np.testing.assert_array_equal(
        model.adata.obsm["X_scstate_base"], base.embed(BoundData(model.registry, model.adata))
    )
    copied = model.base.copy()
    assert not mhc_layers(copied.encoder)
    assert copied.sha256() == base.sha256()
    assert set(model.base.tensors()) == set(base.tensors())


def test_without_lora_cells_go_through_the_connections(make):
    model = make(lora=False)
    model.train(**SHORT)
    before = latent(model)
    assert not model.adapts_base
    model.train(**SHORT, mhc={"kind": "streams", "layer_indices": [-1]})
    assert model.adapts_base
    assert list(mhc_layers(model.base.encoder)) == ["transformer_encoder.layers.1"]
    seen = []
    model.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    own, moved = latent(model), latent(model, covariates={"condition": "burn"})
    assert sum(seen) == 300  # the base's own embedding is cached, this one is not
    assert np.abs(own - before).max() > 1e-5
    from scstate_lora.model.se.conditioned_cells import ConditionedCells

    np.testing.assert_allclose(
        ConditionedCells(model.adapters, BoundData(model.registry, model.adata)).under({"condition": "burn"}),
        moved,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="has no LoRA: there is nothing to merge"):
        model.merge_adapter()


@pytest.mark.parametrize("mhc", [{"dynamic": True}, {"kind": "features", "layer_indices": [0]}], ids=str)
def test_saved_and_loaded_to_the_bit(make, tmp_path, mhc):
    model = make()
    model.train(**SHORT, mhc=mhc)
    model.save(tmp_path / "se")
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=model.adata)
    np.testing.assert_array_equal(latent(loaded), latent(model))
    stored, found = mhc_parameters(model.network), mhc_parameters(loaded.network)
    assert list(stored) == list(found)
    assert all(torch.equal(stored[name], found[name]) for name in stored)
    assert repr(loaded) == repr(model)
    assert loaded.base.sha256() == model.base.sha256()
    loaded.train(**SHORT)  # what was loaded is trained further, connections as well
    assert not torch.equal(mhc_parameters(loaded.network)[next(iter(stored))], stored[next(iter(stored))])


def test_lora_files_are_those_of_a_model_without_connections(connected, make, tmp_path):
    from safetensors.torch import load_file

    model, _, _ = connected
    other = make()
    other.train(**SHORT)
    for one, name in ((model, "connected"), (other, "other")):
        one.save(tmp_path / name)
    files = {name: {f.name for f in (tmp_path / name).iterdir()} for name in ("connected", "other")}
    assert files["connected"] - files["other"] == {"mhc.default.safetensors"}
    for file in ("lora.default", "base"):
        one, two = (load_file(tmp_path / name / f"{file}.safetensors") for name in ("connected", "other"))
        assert set(one) == set(two)
    connections = load_file(tmp_path / "connected" / "mhc.default.safetensors")
    assert sum(t.numel() for t in connections.values()) == 2 * (4 * 4 + 2 * 4) + 4


def test_adapters_do_not_share_connections(make, tmp_path):
    model, embedded = make(), {}
    for name, mhc in (("default", False), ("streams", True), ("features", {"kind": "features"})):
        if name != "default":
            model.add_adapter(name)
            assert not mhc_layers(model.base.encoder)
        model.train(**SHORT, mhc=mhc)
        embedded[name] = latent(model)
    for name in ("default", "features", "streams", "default"):
        model.set_adapter(name)
        np.testing.assert_array_equal(latent(model), embedded[name])
        assert len(mhc_layers(model.base.encoder)) == 2 * (name != "default")
    model.set_adapter("streams")
    model.save(tmp_path / "se")
    loaded = ssl.LoRACovariateSE.load(tmp_path / "se", adata=model.adata)
    for name, embedding in embedded.items():
        loaded.set_adapter(name)
        np.testing.assert_array_equal(latent(loaded), embedding)
    model.delete_adapter("features")
    np.testing.assert_array_equal(latent(model), embedded["streams"])
    model.set_adapter("default")
    model.delete_adapter("streams")
    assert not any(".inner." in name or ".mixing." in name for name in _names(model))
    with pytest.raises(ValueError, match=r"no hyper-connections: train it with \.train\(mhc=True\)"):
        model.mhc_diagnostics()


@pytest.mark.parametrize("lora", [NO_DROPOUT, False], ids=["adapters", "none"])
def test_resumed_training_equals_an_uninterrupted_one(make, same_training, tmp_path, lora):
    options = {**OPTIONS, "max_epochs": 3, "lr": 3e-3, "logger": True, "mhc": True}
    whole, stopped, resumed = (make(lora=lora) for _ in range(3))
    whole.train(**options, run_folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped here"):
        stopped.train(**options, run_folder=tmp_path / "part", callbacks=Stop(4))
    for mhc, found in (
        ({"n_streams": 3}, "res_logits"),
        ({"sinkhorn_iters": 20}, "10 iterations.*20 iterations"),
        (False, "mixing"),
    ):
        with pytest.raises(ValueError, match=found):
            resumed.train(**{**options, "mhc": mhc}, resume_from=tmp_path / "part")
        assert not mhc_layers(resumed.network)  # nothing was trained
    resumed.train(**options, resume_from=tmp_path / "part")
    same_training((whole.network, whole.history), (resumed.network, resumed.history), tolerance=1e-6)
    np.testing.assert_allclose(latent(resumed), latent(whole), atol=1e-6)


def test_checkpoints_hold_what_is_trained_and_the_best_weights_are_put_back(make, tmp_path):
    class Worse(L.Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 2:
                for head in plan.network.conditioning.heads.parameters():
                    head.data.mul_(-1000)

    model = make()
    options = {**SHORT, "lr": 0.01, "max_epochs": 3, "logger": True, "restore_best": True, "run_folder": tmp_path}
    model.train(**options, mhc=True, callbacks=Worse())
    assert not model.history["best"].iloc[-1]
    best, last = (
        torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        for name in ("best", "last")
    )
    trained = {f"network.{name}" for name, p in model.network.named_parameters() if p.requires_grad}
    assert set(best) == trained
    connections = mhc_parameters(model.network)
    assert {f"network.{name}" for name in connections} < trained
    assert all(torch.equal(best[f"network.{name}"], p) for name, p in connections.items())
    assert any(not torch.equal(last[f"network.{name}"], p) for name, p in connections.items())


def test_recomputed_activations_change_no_weight(make, same_training):
    one, two = make(), make()
    one.train(**SHORT, mhc=True)
    two.train(**SHORT, mhc=True, gradient_checkpointing=True)
    same_training((one.network, one.history), (two.network, two.history), tolerance=1e-6)


@pytest.mark.slow
@NEEDS_FORK
def test_two_processes_train_what_one_does(make, same_training):
    one, two = make(), make()
    one.train(**SHORT, mhc={"dynamic": True})
    two.train(**SHORT, mhc={"dynamic": True}, devices=2, strategy="ddp_fork")
    same_training((one.network, one.history), (two.network, two.history), tolerance=1e-4)


def test_merged_it_embeds_the_same(connected, tmp_path):
    model, _, after = connected
    model.merge_adapter()
    try:
        np.testing.assert_allclose(latent(model), after, atol=1e-5)
        assert len(mhc_layers(model.base.encoder)) == 2
        model.save(tmp_path / "se")
    finally:
        model.unmerge_adapter()
    np.testing.assert_array_equal(latent(model), after)
    np.testing.assert_array_equal(latent(ssl.LoRACovariateSE.load(tmp_path / "se", adata=model.adata)), after)


def test_summary_counts_them_as_a_row_of_their_own(connected):
    table = connected[0].summary().set_index("part")
    assert list(table.index[:3]) == ["base", "LoRA", "hyper-connections"]
    row = table.loc["hyper-connections"]
    assert row["parameters"] == row["trained"] == 2 * (4 * 4 + 2 * 4) + 4
    assert row["note"] == "4 streams, around all layers, 10 Sinkhorn iterations"
    assert table.loc["LoRA", "parameters"] == table.loc["LoRA", "trained"] == 2 * 2 * 4 * (16 + 16)
    assert table.loc["base", "trained"] == 0
    counted = table.loc[table.index[:3], "parameters"].sum()
    assert counted == sum(p.numel() for p in connected[0].base.encoder.parameters())


def test_diagnostics_one_row_a_layer(connected, make, tmp_path):
    model, _, _ = connected
    table, matrices = model.mhc_diagnostics(), model.mhc_matrices()
    assert table["layer"].tolist() == list(matrices) == [0, 1]
    assert set(table["kind"]) == {"streams"}
    assert set(table["size"]) == {4}
    for row in table.itertuples():
        matrix = matrices[row.layer]
        assert row.forward_gain == pytest.approx(np.abs(matrix).sum(1).max(), abs=1e-6)
        assert row.distance_from_identity == pytest.approx(np.linalg.norm(matrix - np.eye(4)) / 2, abs=1e-6)
    by_input = make()
    by_input.train(**{**SHORT, "lr": 1e-2}, mhc={"dynamic": True})
    seen = by_input.mhc_matrices()[1]
    by_input.save(tmp_path / "se")
    without_cells = ssl.LoRACovariateSE.load(tmp_path / "se")
    assert np.abs(without_cells.mhc_matrices()[1] - seen).max() > 1e-6  # without their part


def test_asked_for_again(connected, make):
    model, _, _ = connected
    with pytest.raises(
        ValueError,
        match=r"with other options: kind='streams' exists, 'features' is requested.*Leave mhc out",
    ):
        model.train(**SHORT, mhc={"kind": "features"})
    again = make()
    again.train(**SHORT, mhc=True)
    first = {name: p.detach().clone() for name, p in mhc_parameters(again.network).items()}
    for mhc in (True, False):
        again.train(**SHORT, mhc=mhc)
        assert set(mhc_parameters(again.network)) == set(first)
        assert any(not torch.equal(p, first[name]) for name, p in mhc_parameters(again.network).items())


def test_what_is_not_possible_raises_before_any_training(make, make_se, cells, setup):
    model = make()
    for mhc, error, found in (
        ({"layer_indices": [2]}, ValueError, r"mhc: layer_indices has \[2\], but the transformer has 2 layers"),
        ({"knd": "streams"}, ValueError, "Did you mean 'kind'"),
        ("streams", ValueError, "mhc='streams' is not allowed: .*dictionary or instance of MHCConfig"),
    ):
        with pytest.raises(error, match=found):
            model.train(**SHORT, mhc=mhc)
    with pytest.raises(TypeError, match="Did you mean 'mhc'"):
        model.train(**SHORT, mch=True)
    assert not model.is_trained
    compact = make_se(cells.copy())
    with pytest.raises(ValueError, match="the transformer has 1 layers"):
        compact.train(**SHORT, mhc={"layer_indices": [1]})
    assert compact.base is None
    adata = cells.copy()
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
    ssl.LoRACovariateSE.setup_anndata(adata, **setup, embed_key="X_pca")
    with pytest.raises(ValueError, match=r"the base here is the embedding adata\.obsm\['X_pca'\]"):
        make_se(adata).train(**SHORT, mhc=True)


def test_what_breaks_before_the_first_step_leaves_no_connections(make):
    class Broken(L.Callback):
        def on_train_start(self, *args):
            raise RuntimeError("before the first step")

    model = make()
    model.train(**SHORT)
    before = latent(model)
    with pytest.raises(RuntimeError, match="before the first step"):
        model.train(**SHORT, mhc=True, callbacks=Broken())
    assert not mhc_layers(model.base.encoder)
    np.testing.assert_array_equal(latent(model), before)
    assert not any(".inner." in name for name in _names(model))
