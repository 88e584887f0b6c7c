from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from scstate_lora.losses import energy_distance
from scstate_lora.nn.backbones import BackboneConfig, GPT2Backbone
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.transition import StateTransition, STConfig, move_expression

CONFIG = STConfig(n_inputs=11, pert_dim=3, hidden=16, n_layers=2, n_heads=4, dropout=0.1)
PERTS = torch.eye(3)
COVARIATES = {"day": CovariateSpec(None, 64), "batch": CovariateSpec(3, 64)}


def _network(covariates: dict[str, CovariateSpec] | None = None) -> StateTransition:
    torch.manual_seed(0)
    return StateTransition(CONFIG, COVARIATES if covariates is None else covariates)


def _trained_like(network: StateTransition) -> StateTransition:
    """Weights away from zero, so that the output says something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def _sets(n_sets: int = 3, n_cells: int = 9) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    control = torch.randn(n_sets, n_cells, CONFIG.n_inputs, generator=generator).clamp(min=0)
    covariates = {
        "day": torch.randn(n_sets, n_cells, generator=generator),
        "batch": torch.randint(3, (n_sets, n_cells), generator=generator),
    }
    return control, PERTS[torch.arange(n_sets) % 3], covariates


@pytest.mark.parametrize("training", [False, True])
def test_untrained_says_exactly_no_change(training: bool) -> None:
    control, pert, covariates = _sets()
    network = _network().train(training)
    assert torch.equal(network(control, pert, covariates).cells, control)


def test_cells_in_another_order_are_predicted_the_same() -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets(n_cells=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        predicted = network(control, pert, covariates).cells
        shuffled = network(control[:, order], pert, {name: v[:, order] for name, v in covariates.items()}).cells
    assert (predicted - control).abs().max() > 0.1
    assert (shuffled - predicted[:, order]).abs().max() < 1e-5


def test_every_cell_influences_every_other_of_its_set_only() -> None:
    network = _trained_like(_network({}))
    control, pert, _ = _sets(n_sets=2, n_cells=6)
    influence = torch.zeros(2, 6, 2, 6)
    for set_, cell in [(s, c) for s in range(2) for c in range(6)]:
        leaf = control.clone().requires_grad_()
        representation = network.represent(leaf, pert, {})[set_, cell]
        (representation * torch.arange(float(CONFIG.hidden))).sum().backward()
        influence[set_, cell] = leaf.grad.abs().amax(-1)
    assert (influence[0, :, 0] > 1e-6).all()
    assert (influence[1, :, 1] > 1e-6).all()
    assert influence[0, 0, 0, 5] > 1e-6  # the first cell by the last: no causal mask
    assert influence[0, :, 1].max() == 0
    assert influence[1, :, 0].max() == 0


def test_a_set_alone_is_predicted_as_among_others() -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets()
    with torch.no_grad():
        together = network(control, pert, covariates).cells
        alone = network(control[1:2], pert[1:2], {name: v[1:2] for name, v in covariates.items()}).cells
    assert (together[1] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["pert", "day", "batch"])
def test_perturbation_and_covariates_matter(name: str) -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets()
    other = {**covariates, "day": covariates["day"] + 1} if name == "day" else dict(covariates)
    if name == "batch":
        other["batch"] = (covariates["batch"] + 1) % 3
    with torch.no_grad():
        predicted = network(control, pert, covariates).cells
        changed = network(control, pert.roll(1, dims=1) if name == "pert" else pert, other).cells
    assert ((predicted - changed).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_never_negative_and_unexpressed_genes_can_rise() -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets()
    predicted = network(control, pert, covariates).cells
    assert predicted.min() == 0
    untrained = _network()
    zeros = torch.zeros_like(control)
    untrained(zeros, pert, covariates).cells.sum().backward()
    assert (untrained.project_out[-1].bias.grad == zeros[..., 0].numel() / 2).all()


def test_head_gets_gradient_first_then_all_parameters() -> None:
    control, pert, covariates = _sets()
    target = control + torch.randn(control.shape, generator=torch.Generator().manual_seed(4)).abs()
    network = _network().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def step() -> set[str]:
        optimizer.zero_grad()
        energy_distance(network(control, pert, covariates).cells, target).mean().backward()
        optimizer.step()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        return {name for name, g in gradients.items() if g is not None and g.abs().max() > 0}

    torch.manual_seed(5)
    assert step() == {"project_out.3.weight", "project_out.3.bias"}
    moved = set()
    covariates["day"][0, 0] = torch.nan  # unknown
    for _ in range(2):
        moved |= step()
    assert moved == {name for name, _ in network.named_parameters()}


def test_learns_a_shift() -> None:
    control, pert, covariates = _sets(n_sets=2, n_cells=32)
    shift = torch.zeros(2, 1, CONFIG.n_inputs)
    shift[0, 0, :4], shift[1, 0, 6:] = 1.0, 1.0
    network = _network()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    torch.manual_seed(6)
    before = energy_distance(control, control + shift).mean()
    for _ in range(150):
        optimizer.zero_grad()
        energy_distance(network(control, pert, covariates).cells, control + shift).mean().backward()
        optimizer.step()
    with torch.no_grad():
        network.eval()
        after = energy_distance(network(control, pert, covariates).cells, control + shift).mean()
    assert after < 0.1 * before


def test_no_token_or_position_tables() -> None:
    network = StateTransition(STConfig(50, 2, hidden=32, n_layers=3, n_heads=4), {})
    backbone = network.transformer_backbone
    assert not [name for name, _ in network.named_parameters() if "wte" in name or "wpe" in name]
    assert not [child for child in backbone.modules() if isinstance(child, torch.nn.Embedding)]
    block = 12 * 32**2 + 13 * 32
    assert sum(p.numel() for p in backbone.parameters()) == 3 * block + 2 * 32


def test_backbone_starts_as_gpt2_does() -> None:
    torch.manual_seed(0)
    backbone = GPT2Backbone(BackboneConfig("gpt2", 128, 8, 4))
    std = {name: p.std().item() for name, p in backbone.named_parameters() if p.ndim == 2}
    for name, value in std.items():
        assert value == pytest.approx(0.02 / 4 if "c_proj" in name else 0.02, rel=0.05), name


def test_sets_of_any_length_also_one_cell() -> None:
    network = _trained_like(_network({}))
    for n_cells in (1, 2, 300):
        control, pert, _ = _sets(n_cells=n_cells)
        assert network(control, pert, {}).cells.shape == control.shape


def test_dropout_acts_in_training_only() -> None:
    network = _trained_like(_network({}))
    control, pert, _ = _sets()
    with torch.no_grad():
        assert torch.equal(network(control, pert, {}).cells, network(control, pert, {}).cells)
        network.train()
        assert not torch.allclose(network(control, pert, {}).cells, network(control, pert, {}).cells, atol=1e-3)


def test_config_survives_a_dict() -> None:
    assert STConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


def test_shift_moves_every_cell_alike_and_deviation_is_what_remains() -> None:
    control, pert, covariates = _sets()
    torch.manual_seed(0)
    network = StateTransition(replace(CONFIG, non_negative=False), COVARIATES)
    with torch.no_grad():
        network.shift.copy_(torch.rand(network.shift.shape, generator=torch.Generator().manual_seed(6)))
    predicted = network(control, pert, covariates)
    assert torch.equal(predicted.change, torch.zeros_like(control))
    torch.testing.assert_close(predicted.cells, control + (pert @ network.shift).unsqueeze(1))


def _of(**changed: object) -> StateTransition:
    torch.manual_seed(0)
    return _trained_like(StateTransition(replace(CONFIG, **changed), {}))


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("residual", ["output", "latent", "none"])
def test_every_form_is_equivariant(backbone: str, residual: str) -> None:
    network = _of(backbone=backbone, residual=residual, confidence_token=True, batch_classes=2)
    control, pert, _ = _sets(n_cells=30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        predicted, shuffled = network(control, pert, {}), network(control[:, order], pert, {})
    assert (shuffled.cells - predicted.cells[:, order]).abs().max() < 1e-5
    assert (shuffled.confidence - predicted.confidence).abs().max() < 1e-5
    assert (shuffled.batch_scores - predicted.batch_scores).abs().max() < 1e-5


def test_a_latent_residual_adds_the_encoded_cell_before_the_head() -> None:
    network, without = _of(residual="latent"), _of(residual="none")
    without.load_state_dict(network.state_dict())
    control, pert, _ = _sets()
    mixed, basal = network.represent(control, pert, {}), network.basal_encoder(control)
    assert network.shift is None
    torch.testing.assert_close(network(control, pert, {}).cells, network.project_out(mixed + basal).clamp(min=0))
    torch.testing.assert_close(without(control, pert, {}).cells, network.project_out(mixed).clamp(min=0))


def test_an_embedding_may_be_negative() -> None:
    network = _of(non_negative=False)
    control, pert, _ = _sets()
    assert network(control - 1, pert, {}).cells.min() < 0


def test_tokens_beside_the_cells_change_them_and_tell_of_the_set() -> None:
    network = _of(confidence_token=True, batch_classes=4)
    control, pert, _ = _sets()
    predicted = network(control, pert, {})
    assert predicted.cells.shape == control.shape
    assert predicted.confidence.shape == (3,)
    assert (predicted.confidence >= 0).all()
    assert predicted.batch_scores.shape == (3, 4)
    with torch.no_grad():
        network.confidence_token.confidence_token.mul_(-3)
        network.batch_token.batch_token.mul_(-3)
    other = network(control, pert, {})
    assert (other.cells - predicted.cells).abs().max() > 1e-4
    assert (other.batch_scores - predicted.batch_scores).abs().max() > 1e-4


def test_a_table_of_batches_is_added_to_every_cell() -> None:
    network = _of(n_batches=3)
    control, pert, _ = _sets()
    batches = torch.zeros(3, 9, dtype=torch.int64)
    first, second = (network(control, pert, {}, b).cells for b in (batches, batches + 1))
    assert (first - second).abs().max() > 1e-3
    with pytest.raises(ValueError, match="batch="):
        network(control, pert, {})


def test_expression_is_decoded_from_the_predicted_embedding() -> None:
    network = _of(non_negative=False, n_decoded=7, decoder_dims=(12,))
    control, pert, _ = _sets()
    decoded = network.decode(network(control, pert, {}).cells)
    assert decoded.shape == (3, 9, 7)
    assert decoded.min() >= 0
    with pytest.raises(ValueError, match="no gene decoder"):
        _of().decode(control)


def test_encoders_and_head_have_the_layers_asked_for() -> None:
    network = _of(n_encoder_layers=3, n_decoder_layers=1, basal_mlp=False)
    names = set(network.state_dict())
    assert {"pert_encoder.0.weight", "pert_encoder.3.weight", "pert_encoder.6.weight", "basal_encoder.weight"} <= names
    assert network.project_out[0].weight.shape == (11, 16)


def test_a_frozen_backbone_stays_in_eval_but_for_its_adapters_dropout() -> None:
    network = _network({})
    network.transformer_backbone.requires_grad_(False)
    add_lora(network.transformer_backbone, r=2, alpha=4, dropout=0.5)
    network.train()
    drops = {
        name: m.training for name, m in network.transformer_backbone.named_modules() if type(m).__name__ == "Dropout"
    }
    assert {training for name, training in drops.items() if "lora_dropout" in name} == {True}
    assert {training for name, training in drops.items() if "lora_dropout" not in name} == {False}
    assert network.basal_encoder[2].training


@pytest.mark.parametrize("change", [-0.3, 0.2])
def test_expression_is_moved_by_its_change_on_average_and_keeps_its_spread(change: float) -> None:
    generator = torch.Generator().manual_seed(0)
    control = torch.rand(1, 4000, 1, generator=generator) * (torch.rand(1, 4000, 1, generator=generator) < 0.8)
    moved = move_expression(control, torch.full_like(control, change))
    added = (control + change).clamp(min=0)
    wanted = control.mean() + change
    assert (moved.mean() - wanted).abs() <= 0.55 * (added.mean() - wanted).abs() + 1e-3
    assert (moved.std() > added.std()) == (change > 0)


def test_a_gene_that_is_hardly_there_rises_in_all_cells_alike() -> None:
    control = torch.zeros(1, 100, 1)
    control[0, 0] = 0.01
    moved = move_expression(control, torch.ones_like(control))
    assert (moved - 1).abs().max() < 0.02


def test_no_change_gives_the_control_to_the_bit() -> None:
    control = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0)).mul(3).sub(1).clamp(min=0)
    assert torch.equal(move_expression(control, torch.zeros_like(control)), control)
