from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from scstate_lora.config import STObjectiveConfig
from scstate_lora.losses import SET_DISTANCES
from scstate_lora.nn.transition import StateTransition, STConfig
from scstate_lora.training.st.plan import STPlan

COMMON = {"lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}


def _network(**changed) -> StateTransition:
    torch.manual_seed(0)
    network = StateTransition(STConfig(5, 2, 8, 1, 2, dropout=0.0, **changed), {}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def _batch(**more) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "control": torch.rand(3, 6, 5, generator=generator),
        "target": torch.rand(3, 7, 5, generator=generator),
        "pert": torch.eye(2)[[0, 1, 0]],
        "covariates": {},
        **more,
    }


def _plan(network, objective=None, **weights) -> STPlan:
    return STPlan(network, objective=STObjectiveConfig(**(objective or {})), weights=weights, **COMMON)


def test_distances_and_the_size_of_the_change_are_means_over_sets() -> None:
    network, batch = _network(), _batch()
    weights = dict.fromkeys(SET_DISTANCES, 1.0)
    terms = _plan(network, **weights, deviation=1.0, l1=1.0).terms(batch)
    predicted = network(batch["control"], batch["pert"], {})
    for name, distance in SET_DISTANCES.items():
        torch.testing.assert_close(terms[name], distance(predicted.cells, batch["target"]).mean())
    torch.testing.assert_close(terms["deviation"], predicted.change.square().sum(-1).mean())
    torch.testing.assert_close(terms["l1"], (predicted.cells - batch["control"]).abs().mean())


def test_the_decoder_learns_from_measured_cells_and_their_own_expression() -> None:
    network = _network(non_negative=False, n_decoded=4, decoder_dims=(6,))
    batch = _batch(target_genes=torch.rand(3, 7, 4))
    terms = _plan(network, energy=1.0, decoder=1.0).terms(batch)
    torch.testing.assert_close(terms["decoder"], F.mse_loss(network.decode(batch["target"]), batch["target_genes"]))


def test_confidence_is_the_loss_of_the_set_and_does_not_change_what_is_predicted() -> None:
    network, batch = _network(confidence_token=True), _batch()
    terms = _plan(network, energy=2.0, confidence=1.0).terms(batch)
    predicted = network(batch["control"], batch["pert"], {})
    by_set = 2 * SET_DISTANCES["energy"](predicted.cells, batch["target"])
    torch.testing.assert_close(terms["confidence"], F.mse_loss(predicted.confidence, by_set))
    terms["confidence"].backward()
    assert network.project_out[-1].weight.grad is None


def test_a_batch_that_is_not_known_is_left_out() -> None:
    network = _network(batch_classes=3)
    plan = _plan(network, energy=1.0, batch=1.0)
    known = _batch(batch_labels=torch.tensor([0, 2, -1]))
    scores = network(known["control"], known["pert"], {}).batch_scores
    expected = F.cross_entropy(scores[:2], torch.tensor([0, 2]))
    torch.testing.assert_close(plan.terms(known)["batch"], expected)
    assert plan.terms(_batch(batch_labels=torch.tensor([-1, -1, -1])))["batch"] == 0


def test_velocity_is_that_of_the_change_with_its_parts_logged_beside() -> None:
    network = _network()
    batch = _batch()
    change = (network(batch["control"], batch["pert"], {}).cells - batch["control"]).detach()
    plan = _plan(network, {"velocity_beta": 0.0}, energy=1.0, velocity=0.1, velocity_regularization=0.5)
    along = plan.terms(batch | {"velocity": 3 * change})
    against = plan.terms(batch | {"velocity": -change, "velocity_confidence": torch.ones(3, 6)})
    assert along["velocity"].item() == pytest.approx(0, abs=1e-5)
    assert against["velocity"].item() == pytest.approx(2, abs=1e-5)
    assert along["velocity_cos_similarity"].item() == pytest.approx(1, abs=1e-5)
    assert against["velocity_avg_confidence"].item() == 1
    assert against["velocity_regularization"] == 0  # velocity vouches for every cell
    assert "velocity_cos_similarity" not in plan.weights
    assert "velocity" not in plan.terms(batch)


def test_the_weight_of_the_velocity_rises_over_half_the_training_at_most() -> None:
    plan = _plan(_network(), {"velocity_warmup_steps": 1000}, energy=1.0, velocity=0.1)
    trainer = SimpleNamespace(estimated_stepping_batches=400, global_step=0, fit_loop=None)
    plan._trainer = trainer
    plan.train()
    rising = []
    for step in (0, 50, 100, 200, 399):
        type(plan).global_step = property(lambda self, step=step: step)
        rising.append(plan.weight("velocity"))
    assert rising == pytest.approx([0, 0.025, 0.05, 0.1, 0.1])
    assert plan.weight("energy") == 1
    plan.eval()  # validation losses compare from epoch to epoch
    type(plan).global_step = property(lambda self: 0)
    assert plan.weight("velocity") == 0.1
    del type(plan).global_step
