"""What the optimiser of a plan does with hyper-connections."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scstate_lora.nn.hyper_connections import apply_mhc_to_transformer, mhc_parameters
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.training.se.compact_base import BasePlan

SIZES = SEConfig(token_dim=6, d_model=8, n_layers=1, n_heads=2, d_hid=12, output_dim=10, n_tokens=5)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SEEncoder(SIZES, torch.randn(15, SIZES.token_dim)).eval()


class Steps:
    estimated_stepping_batches = 10
    precision = "32-true"


@pytest.mark.parametrize("kind", ["streams", "features"])
def test_hyper_connections_are_trained_without_weight_decay(encoder, kind):
    plan = BasePlan(encoder, nn.Linear(10, 7), weights={"expression": 1.0}, lr=1e-3, weight_decay=0.3, warmup_steps=0)
    plan._trainer = Steps()
    (all_of_it,) = plan.configure_optimizers()["optimizer"].param_groups
    assert len(all_of_it["params"]) == len(list(plan.parameters()))
    assert plan.connections() is None
    apply_mhc_to_transformer(encoder, kind=kind, sinkhorn_iters=7)
    assert plan.connections() == {"encoder.transformer_encoder.layers.0": f"{kind}, 7 iterations"}
    encoder.binary_decoder.requires_grad_(requires_grad=False)
    others, connections = plan.configure_optimizers()["optimizer"].param_groups
    assert (others["weight_decay"], connections["weight_decay"]) == (0.3, 0.0)
    assert [id(p) for p in connections["params"]] == [id(p) for p in mhc_parameters(encoder).values()]
    assert len(others["params"]) == len(all_of_it["params"]) - len(list(encoder.binary_decoder.parameters()))
