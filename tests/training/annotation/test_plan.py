from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scstate_lora.losses.labels import label_loss
from scstate_lora.nn.classifier import ClassifierNetwork, ResidualHeads
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.training.annotation.plan import ClassifierPlan

RATES = {
    "backbone_lr": 1e-5,
    "adapter_lr": 1e-4,
    "unfreeze_epoch": 1,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 2,
}


def _network(*, lora=False):
    torch.manual_seed(0)
    sizes = {"token_dim": 6, "d_model": 8, "n_heads": 2, "d_hid": 8, "n_layers": 1, "output_dim": 5, "n_tokens": 6}
    encoder = SEEncoder(SEConfig(**sizes), torch.randn(20, 6))
    if lora:
        add_lora(encoder, "default", r=2, alpha=4, dropout=0.0)
    heads = {key: ResidualHeads(5, n, hidden_dim=4, dropout=0.0, n_members=2) for key, n in (("type", 3), ("day", 1))}
    for part in heads.values():
        nn.init.normal_(part.last)
    return ClassifierNetwork(encoder, 5, heads)


def _batch(*, embedded, n=7):
    rng = np.random.default_rng(0)
    tokens = {
        "genes": torch.from_numpy(rng.integers(0, 20, (n, 5))),
        "values": torch.from_numpy(rng.random((n, 6)).astype(np.float32)),
    }
    embedding = torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32))
    goal = torch.from_numpy(rng.integers(0, 3, n)[:, None] == np.arange(3))
    return {
        **({"embedding": embedding} if embedded else {"tokens": tokens}),
        "start": {"type": torch.zeros(n, 3), "day": torch.zeros(n, 1)},
        "goal": {"type": goal, "day": torch.from_numpy(rng.normal(size=n).astype(np.float32))},
        "weights": {"type": torch.from_numpy(rng.random(n).astype(np.float32)), "day": torch.ones(n)},
    }


@pytest.mark.parametrize("lora", [False, True])
def test_every_part_has_its_learning_rate(lora):
    network = _network(lora=lora)
    rates = {
        id(p): group["lr"] for group in ClassifierPlan(network, **RATES).parameter_groups() for p in group["params"]
    }
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert rates.keys() == {id(p) for p in trained.values()}
    for name, parameter in trained.items():
        expected = 1e-3 if name.startswith("heads.") else 1e-4 if "lora_" in name else 1e-5
        assert rates[id(parameter)] == expected, name
    assert set(rates.values()) == ({1e-3, 1e-4} if lora else {1e-3, 1e-5})


def test_equal_rates_are_one_group_of_all():
    network = _network()
    plan = ClassifierPlan(network, **{**RATES, "backbone_lr": 1e-3})
    (group,) = plan.parameter_groups()
    assert len(group["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("embedded", [True, False])
def test_a_batch_of_embeddings_does_not_reach_the_encoder(embedded):
    network = _network()
    plan = ClassifierPlan(network, **RATES).train()
    terms = plan.terms(_batch(embedded=embedded))
    assert terms.keys() == {"type", "day", "encoder"}
    assert float(terms["encoder"]) == (not embedded)
    (terms["type"] + terms["day"]).backward()
    reached = any(p.grad is not None and p.grad.any() for p in network.encoder.parameters())
    assert reached == (not embedded)
    assert all(p.grad is not None for p in network.heads.parameters())


def test_a_term_is_the_weighted_mean_of_members_or_of_their_mean():
    network, batch = _network(), _batch(embedded=True)
    plan = ClassifierPlan(network, **RATES)
    with torch.no_grad():
        added = network.heads[0](batch["embedding"])
    goal, weights = batch["goal"]["type"], batch["weights"]["type"]
    of_members = (label_loss(added, goal) * weights).mean()
    of_mean = (label_loss(added.mean(0), goal) * weights).mean()
    torch.testing.assert_close(plan.train().terms(batch)["type"], of_members)
    torch.testing.assert_close(plan.eval().terms(batch)["type"], of_mean)
    assert of_mean < of_members
