from __future__ import annotations

import pytest
import torch

from scstate_lora.losses import energy_distance
from scstate_lora.nn.backbones import GPT2Backbone
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.transition import StateTransition, STConfig

CONFIG = STConfig(n_genes=11, n_perturbations=3, hidden=16, n_layers=2, n_heads=4, dropout=0.1)
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
    control = torch.randn(n_sets, n_cells, CONFIG.n_genes, generator=generator).clamp(min=0)
    covariates = {
        "day": torch.randn(n_sets, n_cells, generator=generator),
        "batch": torch.randint(3, (n_sets, n_cells), generator=generator),
    }
    return control, torch.arange(n_sets) % CONFIG.n_perturbations, covariates


@pytest.mark.parametrize("training", [False, True])
def test_untrained_says_exactly_no_change(training: bool) -> None:
    control, pert, covariates = _sets()
    network = _network().train(training)
    assert torch.equal(network(control, pert, covariates), control)


def test_cells_in_another_order_are_predicted_the_same() -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets(n_cells=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        predicted = network(control, pert, covariates)
        shuffled = network(control[:, order], pert, {name: v[:, order] for name, v in covariates.items()})
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
        together = network(control, pert, covariates)
        alone = network(control[1:2], pert[1:2], {name: v[1:2] for name, v in covariates.items()})
    assert (together[1] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["pert", "day", "batch"])
def test_perturbation_and_covariates_matter(name: str) -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets()
    other = {**covariates, "day": covariates["day"] + 1} if name == "day" else dict(covariates)
    if name == "batch":
        other["batch"] = (covariates["batch"] + 1) % 3
    with torch.no_grad():
        predicted = network(control, pert, covariates)
        changed = network(control, (pert + 1) % 3 if name == "pert" else pert, other)
    assert ((predicted - changed).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_never_negative_and_unexpressed_genes_can_rise() -> None:
    network = _trained_like(_network())
    control, pert, covariates = _sets()
    predicted = network(control, pert, covariates)
    assert predicted.min() == 0
    untrained = _network()
    zeros = torch.zeros_like(control)
    untrained(zeros, pert, covariates).sum().backward()
    assert (untrained.project_out[-1].bias.grad == zeros[..., 0].numel()).all()


def test_head_gets_gradient_first_then_all_parameters() -> None:
    control, pert, covariates = _sets()
    target = control + torch.randn(control.shape, generator=torch.Generator().manual_seed(4)).abs()
    network = _network().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def step() -> set[str]:
        optimizer.zero_grad()
        energy_distance(network(control, pert, covariates), target).mean().backward()
        optimizer.step()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        return {name for name, g in gradients.items() if g is not None and g.abs().max() > 0}

    torch.manual_seed(5)
    assert step() == {"project_out.2.weight", "project_out.2.bias", "shift"}
    moved = set()
    covariates["day"][0, 0] = torch.nan  # unknown
    for _ in range(2):
        moved |= step()
    assert moved == {name for name, _ in network.named_parameters()}


def test_learns_a_shift() -> None:
    control, pert, covariates = _sets(n_sets=2, n_cells=32)
    shift = torch.zeros(2, 1, CONFIG.n_genes)
    shift[0, 0, :4], shift[1, 0, 6:] = 1.0, 1.0
    network = _network()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    torch.manual_seed(6)
    before = energy_distance(control, control + shift).mean()
    for _ in range(150):
        optimizer.zero_grad()
        energy_distance(network(control, pert, covariates), control + shift).mean().backward()
        optimizer.step()
    with torch.no_grad():
        network.eval()
        after = energy_distance(network(control, pert, covariates), control + shift).mean()
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
    backbone = GPT2Backbone(128, 8, 4)
    std = {name: p.std().item() for name, p in backbone.named_parameters() if p.ndim == 2}
    for name, value in std.items():
        assert value == pytest.approx(0.02 / 4 if "c_proj" in name else 0.02, rel=0.05), name


def test_sets_of_any_length_also_one_cell() -> None:
    network = _trained_like(_network({}))
    for n_cells in (1, 2, 300):
        control, pert, _ = _sets(n_cells=n_cells)
        assert network(control, pert, {}).shape == control.shape


def test_dropout_acts_in_training_only() -> None:
    network = _trained_like(_network({}))
    control, pert, _ = _sets()
    with torch.no_grad():
        assert torch.equal(network(control, pert, {}), network(control, pert, {}))
        network.train()
        assert not torch.allclose(network(control, pert, {}), network(control, pert, {}), atol=1e-3)


def test_config_survives_a_dict() -> None:
    assert STConfig(**CONFIG.to_dict()) == CONFIG


def test_shift_moves_every_cell_alike_and_deviation_is_what_remains() -> None:
    control, pert, covariates = _sets()
    network = _network()
    with torch.no_grad():
        network.shift.copy_(torch.rand(network.shift.shape, generator=torch.Generator().manual_seed(6)))
    predicted = network(control, pert, covariates)
    assert torch.equal(network.deviation(control, pert, covariates), torch.zeros_like(control))
    torch.testing.assert_close(predicted, control + network.shift[pert].unsqueeze(1))
