from __future__ import annotations

import torch
from torch import nn

from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

CONFIG = SEConfig(token_dim=6, d_model=8, n_layers=2, n_heads=2, d_hid=12, output_dim=10, n_tokens=5, dropout=0.3)


def _network() -> ConditionedSE:
    torch.manual_seed(0)
    encoder = SEEncoder(CONFIG, torch.randn(15, CONFIG.token_dim))
    add_lora(encoder, r=2, alpha=4, dropout=0.2, targets=("q", "v"))
    specs = {"condition": CovariateSpec(2, 4), "day": CovariateSpec(None, 4)}
    return ConditionedSE(encoder, Conditioning(specs, CONFIG.output_dim, hidden_dims=(12,)))


def _cells() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    genes = torch.randint(15, (6, 4), generator=generator)
    values = 10 * torch.rand(6, 5, generator=generator)
    return genes, values, {"condition": torch.arange(6) % 2, "day": torch.randn(6, generator=generator)}


def test_gives_the_adapted_and_the_conditioned_embedding() -> None:
    network = _network().eval()
    genes, values, covariates = _cells()
    with torch.no_grad():
        adapted, conditioned = network(genes, values, covariates)
        moved = network(genes, values, {**covariates, "condition": 1 - covariates["condition"]})
        assert torch.equal(adapted, network.encoder(genes, values))
    assert conditioned.shape == (6, CONFIG.output_dim)
    assert torch.allclose(conditioned.norm(dim=1), torch.ones(6), atol=1e-6)
    # Another condition moves the conditioned embedding, not the encoder's.
    assert torch.equal(moved[0], adapted)
    assert ((moved[1] - conditioned).abs().amax(dim=1) > 1e-4).all()


def test_train_keeps_the_frozen_encoder_in_eval() -> None:
    network = _network().train()
    assert network.conditioning.training
    training = [name for name, child in network.encoder.named_modules() if child.training]
    assert training
    assert all("lora_dropout" in name for name in training)
    assert not network.eval().conditioning.training
    assert not [c for c in network.modules() if isinstance(c, nn.Dropout) and c.training]


def test_adapters_covariates_and_conditioning_are_trained_and_nothing_else() -> None:
    network = _network().train()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    before = {name: p.clone() for name, p in network.named_parameters()}
    for _ in range(3):  # LoRA's A waits for B, a covariate's "unknown" vector for a cell in which it is dropped
        optimizer.zero_grad()
        _, conditioned = network(*_cells())
        asked = network.conditioning.heads.loss(conditioned, _cells()[2])
        ((conditioned * torch.arange(10.0)).sum() + asked).backward()
        optimizer.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    unknown = {"conditioning.covariate_encoder.encoders.1.unknown"}
    frozen = {name for name in before if name.startswith("encoder.") and "lora_" not in name}
    assert moved | unknown == before.keys() - frozen
