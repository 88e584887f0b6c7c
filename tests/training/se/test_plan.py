from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scstate_lora.losses import CONTRASTIVE, energy_distance
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.training.distributed import share
from scstate_lora.training.se.plan import SEPlan

SIZES = SEConfig(token_dim=6, d_model=8, n_layers=1, n_heads=2, d_hid=12, output_dim=10, n_tokens=5)
SPECS = {"condition": CovariateSpec(2, 4), "day": CovariateSpec(None, 4)}
TERMS = ("reconstruction", "contrastive", "covariates", "preservation", "counterfactual", "batch")
SIDE = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4])
MOVED_SIDE = torch.tensor([1, 1, 1, 0, 0, 0, 3, 3, 3, 2, 2, -1])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = SEEncoder(SIZES, torch.randn(15, SIZES.token_dim)).requires_grad_(requires_grad=False)
    add_lora(encoder, r=2, alpha=4, dropout=0.0, targets=("q", "v"))
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:  # as after some steps: A gets gradient too
            nn.init.normal_(weight, std=0.1)
    return encoder


@pytest.fixture
def batch():
    """Twelve cells on two pairs of sides and one that is alone; three batches, of which one is not known."""
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    own = {"condition": SIDE % 2, "day": rand(12)}
    withheld = {"condition": own["condition"].clone(), "day": own["day"].clone()}
    withheld["condition"][[0, 7]] = 2
    withheld["day"][[3, 4]] = torch.nan
    return {
        "genes": torch.randint(15, (12, 4), generator=generator),
        "values": 10 * rand(12, 5),
        "base": torch.randn(12, 10, generator=generator),
        "covariates": withheld,
        "own": own,
        "moved": {"condition": torch.where(MOVED_SIDE < 0, SIDE, MOVED_SIDE) % 2, "day": own["day"].flip(0)},
        "labels": torch.tensor([0, 0, 1, 1, 2, 0, 1, 1, 0, 0, 1, 5]),
        "side": SIDE,
        "moved_side": MOVED_SIDE,
        "context": torch.tensor([0] * 6 + [1] * 3 + [2] * 3),
        "batches": torch.tensor([0, 0, 1, 1, 1, 2, 0, 0, 0, 1, 1, -1]),
        "target_genes": torch.tensor([1, 4, 9]),
        "targets": rand(12, 3),
        "read_depth": rand(12),
    }


def _plan(encoder, weights=None, *, contrastive="supcon"):
    torch.manual_seed(2)
    network = ConditionedSE(encoder, Conditioning(SPECS, SIZES.output_dim, hidden_dims=(8,))).eval()
    options = {"temperature": 0.5, "lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}
    return SEPlan(network, contrastive=contrastive, weights=weights or dict.fromkeys(TERMS, 1.0), **options)


@pytest.mark.parametrize("contrastive", CONTRASTIVE)
def test_terms_of_single_cells_equal_their_definitions(encoder, batch, contrastive):
    plan = _plan(encoder, contrastive=contrastive)
    terms = plan.terms(batch)
    assert tuple(terms) == TERMS
    assert all(term.shape == () for term in terms.values())
    # What is withheld is not known to the embedding of these terms.
    _, z = plan.network(batch["genes"], batch["values"], batch["covariates"])
    predicted = encoder.predict_expression(z, batch["target_genes"], batch["read_depth"])
    assert torch.allclose(terms["reconstruction"], ((predicted - batch["targets"]) ** 2).mean())
    cosine = (z * F.normalize(batch["base"], dim=1)).sum(1)
    assert torch.allclose(terms["preservation"], 1 - cosine.mean(), atol=1e-6)
    expected = CONTRASTIVE[contrastive](z, batch["labels"], temperature=0.5)
    assert torch.allclose(terms["contrastive"], expected, atol=1e-6)
    asked = plan.network.conditioning.heads.loss(z, batch["covariates"])
    assert torch.allclose(terms["covariates"], asked, atol=1e-6)


def test_counterfactual_compares_moved_cells_with_those_measured_there(encoder, batch):
    plan = _plan(encoder)
    term = plan.terms(batch)["counterfactual"]
    adapted, own = plan.network(batch["genes"], batch["values"], batch["own"])
    moved = plan.network.condition(adapted, batch["moved"])
    expected = 0
    for side, n_moved in ((0, 3), (1, 3), (2, 2), (3, 3)):
        distance = energy_distance(moved[side == MOVED_SIDE], own[side == SIDE])
        expected = expected + n_moved * distance / 11
    assert term.item() == pytest.approx(expected.item(), abs=1e-6)


def test_batch_term_compares_each_batch_with_the_others_of_its_context(encoder, batch):
    plan = _plan(encoder, {"batch": 1.0})
    term = plan.terms(batch)["batch"]
    _, own = plan.network(batch["genes"], batch["values"], batch["own"])
    # Context 0 has cells 0, 1 of batch 0, cells 2 to 4 of batch 1, and cell 5 of batch 2, alone and so only among the
    # others. Context 1 has one batch; in context 2 the only other cell is of no known batch.
    first = energy_distance(own[[0, 1]], own[[2, 3, 4, 5]])
    second = energy_distance(own[[2, 3, 4]], own[[0, 1, 5]])
    assert term.item() == pytest.approx(((2 * first + 3 * second) / 5).item(), abs=1e-6)


def test_batch_term_is_zero_where_no_context_has_two_batches(encoder, batch):
    plan = _plan(encoder, {"batch": 1.0})
    for batches in (batch["context"], torch.full((12,), -1)):
        term = plan.terms({**batch, "batches": batches})["batch"]
        assert term.item() == 0
        term.backward()  # with gradient, as every process must have one


class _Shifted(nn.Module):
    """Conditioning that adds a shift to the cells of condition 1."""

    encoder = None

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.asked = []

    def condition(self, base, covariates):
        self.asked.append(len(base))
        return base + covariates["condition"][:, None] * self.shift


def _shift_plan(shift, **weights):
    options = {"contrastive": "supcon", "temperature": 0.1, "lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}
    return SEPlan(_Shifted(shift), weights=weights, **options)


def _experiment(seed, n=12):
    """Cells of condition 0, and of condition 1 which measures 1 more in all directions."""
    condition = torch.arange(2 * n) // n
    base = torch.randn(2 * n, 4, generator=torch.Generator().manual_seed(seed))
    covariates = {"own": {"condition": condition}, "moved": {"condition": 1 - condition}}
    return {
        **covariates,
        "covariates": covariates["own"],
        "base": base + condition[:, None],  # no conditioning took the shift out
        "side": condition,
        "moved_side": 1 - condition,
    }


def test_counterfactual_is_zero_on_average_where_moved_and_measured_agree_and_else_positive():
    agree, differ = [], []
    for seed in range(150):
        cells = _experiment(seed)
        cells["base"] = cells["base"] - cells["own"]["condition"][:, None]  # the base does not know the condition
        agree.append(_shift_plan(1.0, counterfactual=1.0).terms(cells)["counterfactual"].item())
        differ.append(_shift_plan(1.0, counterfactual=1.0).terms(_experiment(seed))["counterfactual"].item())
    agree, differ = torch.tensor(agree), torch.tensor(differ)
    assert agree.min() < 0 < agree.max()  # unbiased
    assert agree.mean().abs() < 4 * agree.std() / 150**0.5
    assert differ.min() > 0


class _Gated(nn.Module):
    """Conditioning that scales directions. A shift would teach nothing: moved and measured cells both get it."""

    encoder = None

    def __init__(self):
        super().__init__()
        self.gates = nn.Parameter(torch.ones(4))

    def condition(self, base, covariates):
        return base * self.gates


def test_counterfactual_teaches_to_take_the_condition_out():
    """Where the base says what the condition did, moved cells would carry it along."""
    plan = _shift_plan(0.0, counterfactual=1.0)
    plan.network = _Gated()
    optimizer = torch.optim.Adam(plan.parameters(), lr=0.05)
    for seed in range(100):
        cells = _experiment(seed)
        cells["base"] = cells["base"] + cells["own"]["condition"][:, None] * torch.tensor([1.0, -1.0, -1.0, -1.0])
        optimizer.zero_grad()
        plan.terms(cells)["counterfactual"].backward()
        optimizer.step()
    gates = plan.network.gates.detach().abs()
    assert gates[0] < 0.1  # the direction in which the base has the condition
    assert gates[1:].min() > 0.5


def test_a_term_of_weight_zero_is_not_computed(encoder, batch):
    plan = _shift_plan(1.0, preservation=1.0, counterfactual=0.0)
    assert list(plan.terms(_experiment(0))) == ["preservation"]
    plan.network.asked.clear()
    plan.terms(_experiment(0))
    assert plan.network.asked == [24]  # with some withheld; no term asks for their own or moved ones
    for term in TERMS:
        only = _plan(encoder, {**dict.fromkeys(TERMS, 0.0), term: 2.0}).terms(batch)
        assert list(only) == [term]
        assert torch.allclose(only[term], _plan(encoder).terms(batch)[term], atol=1e-6)


def test_every_part_that_is_trained_gets_gradient(encoder, batch):
    plan = _plan(encoder)
    plan.training_step(batch, 0)["loss"].backward()
    without = {name for name, p in plan.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert without == set()
    frozen = {name for name, p in plan.named_parameters() if p.grad is None}
    assert frozen == {n for n, _ in plan.named_parameters() if n.startswith("network.encoder.") and "lora_" not in n}


def test_without_sentences_the_base_embedding_stands_for_the_encoders(encoder, batch):
    network = _plan(encoder).network
    with torch.no_grad():
        adapted = network.adapt(batch["genes"], batch["values"])
    terms = _plan(encoder).terms({**batch, "base": adapted})
    bare = {name: value for name, value in batch.items() if name not in ("genes", "values")}
    for name, term in _plan(encoder).terms({**bare, "base": adapted}).items():
        assert torch.allclose(term, terms[name], atol=1e-6), name


def test_only_a_base_with_a_transformer_can_be_compiled_or_checkpointed(encoder):
    assert _plan(encoder).backbone() is encoder.transformer_encoder
    with pytest.raises(ValueError, match="SEPlan cannot be compiled or checkpointed"):
        _shift_plan(0.0, preservation=1.0).backbone()


class _Loss(nn.Module):
    """A plan as DDP takes it."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def forward(self, batch):
        return self.plan.training_step(batch, 0)["loss"]


@pytest.mark.parametrize("sentences", [True, False])
def test_two_processes_get_the_gradients_of_one(encoder, batch, in_processes, sentences):
    cut = {"genes", "values"} if sentences else {"base"}
    if not sentences:
        batch = {name: value for name, value in batch.items() if name not in ("genes", "values")}
        encoder.requires_grad_(requires_grad=False)

    def gradients(rank):
        plan = _plan(encoder)
        part = share(batch, shared=batch.keys() - cut, rank=rank, n_processes=2)
        model = DistributedDataParallel(_Loss(plan))
        loss = model(part)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in plan.named_parameters() if p.requires_grad}

    together = in_processes(gradients)
    plan = _plan(encoder)
    loss = plan.training_step(batch, 0)["loss"]
    loss.backward()
    for found, grads in together:
        assert torch.allclose(found, loss, atol=1e-6)
        for name, parameter in plan.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(grads[name], parameter.grad, atol=1e-6), name
        assert any("lora_" in name for name in grads) == sentences
