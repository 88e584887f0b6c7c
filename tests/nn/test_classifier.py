from __future__ import annotations

import pytest
import torch
from torch import nn

from scstate_lora.nn.classifier import ClassifierNetwork, ResidualHeads
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

SIZES = {"hidden_dim": 8, "dropout": 0.5, "n_members": 3}


def _heads(n_outputs=4, **options):
    torch.manual_seed(0)
    return ResidualHeads(6, n_outputs, **{**SIZES, **options})


def _embedding(n=10):
    return 3 + 2 * torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("hidden_dim", [8, None])
def test_heads_add_nothing_at_first_and_learn(hidden_dim):
    heads = _heads(hidden_dim=hidden_dim)
    added = heads(_embedding())
    assert added.shape == (3, 10, 4)
    assert not added.any()
    added[..., 0].sum().backward()
    assert heads.last.grad.any()
    assert (hidden_dim is None) == (not hasattr(heads, "first"))


def test_members_differ_and_do_not_touch_each_other():
    heads = _heads().eval()
    nn.init.ones_(heads.last)
    before = heads(_embedding()).detach()
    assert not torch.allclose(before[0], before[1])
    with torch.no_grad():
        heads.first[2] += 1
    after = heads(_embedding())
    assert torch.equal(after[:2], before[:2])
    assert not torch.allclose(after[2], before[2])


def test_embeddings_are_standardised_and_a_constant_entry_is_none_to_divide_by():
    heads, embedding = _heads(hidden_dim=None, n_members=1).eval(), _embedding(200)
    embedding[:, 2] = 5
    heads.standardise(embedding)
    with torch.no_grad():
        heads.last[0, :4, :] = torch.eye(4)
    seen = heads(embedding)[0]
    torch.testing.assert_close(seen.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.tensor([1.0, 1, 0, 1]), atol=1e-4, rtol=0)
    new = embedding.clone()
    new[:, 2] = 6
    assert heads(new)[0, :, 2].tolist() == [1] * 200  # not a million standard deviations
    assert {"mean", "sd"} <= heads.state_dict().keys()  # saved with the heads


def test_dropout_in_training_only():
    heads = _heads()
    nn.init.ones_(heads.last)
    assert not torch.equal(heads.train()(_embedding()), heads(_embedding()))
    assert torch.equal(heads.eval()(_embedding()), heads(_embedding()))


def _encoder():
    torch.manual_seed(0)
    config = SEConfig(token_dim=6, d_model=8, n_heads=2, d_hid=8, n_layers=1, output_dim=5, n_tokens=6, dropout=0.1)
    return SEEncoder(config, torch.randn(20, 6))


def test_a_frozen_encoder_stays_in_eval():
    network = ClassifierNetwork(_encoder().requires_grad_(requires_grad=False), 5, {"a": _heads(), "b": _heads(1)})
    network.train()
    assert network.heads[0].training
    assert not any(module.training for module in network.encoder.modules())
    network.encoder.requires_grad_(requires_grad=True)
    assert network.train().encoder.training
    assert not network.eval().encoder.training
    assert not network.heads[0].training


def test_of_an_adapted_encoder_only_adapters_drop_out():
    encoder = _encoder()
    add_lora(encoder, "default", r=2, alpha=4, dropout=0.5)
    ClassifierNetwork(encoder, 5, {"a": _heads()}).train()
    training = {name for name, module in encoder.named_modules() if isinstance(module, nn.Dropout) and module.training}
    assert training
    assert all("lora" in name for name in training)


def test_every_target_has_its_heads():
    heads = {"type": _heads(4), "day": _heads(1)}
    network = ClassifierNetwork(None, 6, heads)
    assert {name: added.shape for name, added in network(_embedding()).items()} == {
        "type": (3, 10, 4),
        "day": (3, 10, 1),
    }
    assert network.heads_by_target() == heads
    assert network.train().heads[1].training
