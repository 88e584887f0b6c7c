from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scstate_lora.config import STObjectiveConfig
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.nn.transition import StateTransition, STConfig
from scstate_lora.training.se.compact_base import BasePlan
from scstate_lora.training.st.plan import STPlan

SIZES = SEConfig(token_dim=6, d_model=8, n_layers=1, n_heads=2, d_hid=12, output_dim=10, n_tokens=5)
COMMON = {"lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SEEncoder(SIZES, torch.randn(15, SIZES.token_dim)).eval()


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(1)
    return {
        "genes": torch.randint(15, (6, 4), generator=generator),
        "values": 10 * torch.rand(6, 5, generator=generator),
        "target_genes": torch.tensor([1, 4, 9]),
        "targets": torch.rand(6, 3, generator=generator),
        "read_depth": torch.rand(6, generator=generator),
        "readout": torch.rand(6, 7, generator=generator),
    }


def test_base_terms_are_mean_squared_errors_of_both_readouts(encoder, cells):
    readout = nn.Linear(10, 7)
    plan = BasePlan(encoder, readout, weights={"expression": 1.0, "readout": 1.0}, **COMMON)
    terms = plan.terms(cells)
    embedding = encoder(cells["genes"], cells["values"])
    predicted = encoder.predict_expression(embedding, cells["target_genes"], cells["read_depth"])
    expected = ((predicted - cells["targets"]) ** 2).mean(), ((readout(embedding) - cells["readout"]) ** 2).mean()
    assert torch.allclose(terms["expression"], expected[0])
    assert torch.allclose(terms["readout"], expected[1])


def test_loss_is_the_weighted_sum_of_the_terms(encoder, cells):
    plan = BasePlan(encoder, nn.Linear(10, 7), weights={"expression": 2.0, "readout": 0.5, "other": 0.0}, **COMMON)
    assert plan.weights == {"expression": 2.0, "readout": 0.5}
    step = plan.training_step(cells, 0)
    assert set(step["logged"]) == {"loss", "expression", "readout"}
    expected = 2 * step["logged"]["expression"] + 0.5 * step["logged"]["readout"]
    assert torch.allclose(step["loss"], expected)
    assert not step["logged"]["loss"].requires_grad


def test_st_terms_are_the_unbiased_energy_distance_and_the_squared_deviation():
    torch.manual_seed(0)
    network = StateTransition(STConfig(5, 1, 8, 1, 2), {"day": CovariateSpec(None, 64)}).eval()
    batch = {
        "control": torch.rand(3, 4, 5),
        "target": torch.rand(3, 6, 5),
        "pert": torch.tensor([[1.0], [0.0], [1.0]]),
        "covariates": {"day": torch.rand(3, 4)},
    }
    plan = STPlan(network, objective=STObjectiveConfig(), weights={"energy": 1.0, "deviation": 1.0}, **COMMON)

    def energy(x, y):
        within_x = torch.cdist(x, x).sum() / (4 * 3)  # without a cell's pair with itself
        within_y = torch.cdist(y, y).sum() / (6 * 5)
        return 2 * torch.cdist(x, y).mean() - within_x - within_y

    for trained in (False, True):
        if trained:
            torch.nn.init.normal_(network.project_out[-1].weight)
            torch.nn.init.normal_(network.shift)
        predicted = network(batch["control"], batch["pert"], batch["covariates"])
        assert torch.equal(predicted.cells, batch["control"]) != trained
        terms = plan.terms(batch)
        expected = torch.stack([energy(x, y) for x, y in zip(predicted.cells, batch["target"], strict=True)]).mean()
        assert torch.allclose(terms["energy"], expected, atol=1e-5)
        assert terms["deviation"].item() == pytest.approx((predicted.change**2).sum(2).mean().item())
        assert (terms["deviation"] > 0) == trained


def test_learning_rate_rises_over_the_warm_up_and_falls_along_a_cosine(encoder):
    plan = BasePlan(
        encoder, nn.Linear(10, 7), lr=0.1, weight_decay=0.0, warmup_steps=4, weights={"expression": 1.0, "readout": 1.0}
    )
    plan.trainer = type("Trainer", (), {"estimated_stepping_batches": 40, "precision": "32-true"})()
    made = plan.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates[:5], [0.025, 0.05, 0.075, 0.1, 0.1])
    np.testing.assert_allclose(rates[22], 0.05)  # half way down
    assert (np.diff(rates[5:]) < 0).all()
    assert 0 < rates[-1] < 0.001


def test_only_what_is_trainable_is_optimised(encoder):
    encoder.transformer_encoder.requires_grad_(requires_grad=False)
    plan = BasePlan(encoder, nn.Linear(10, 7), weights={"expression": 1.0}, **COMMON)
    plan.trainer = type("Trainer", (), {"estimated_stepping_batches": 4, "precision": "32-true"})()
    optimised = {id(p) for group in plan.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    names = {name for name, p in plan.named_parameters() if id(p) in optimised}
    assert names == {n for n, _ in plan.named_parameters() if "transformer_encoder" not in n}
    assert 0 < len(names) < len(list(plan.parameters()))
