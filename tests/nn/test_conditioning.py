from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scstate_lora.nn.conditioning import Conditioner, Conditioning, CovariateHeads
from scstate_lora.nn.covariates import CovariateSpec, MultiCovariateEncoder


def _inputs(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random unit base embeddings, and covariate vectors as they come from their encoder."""
    torch.manual_seed(0)
    specs = {"a": CovariateSpec(3, 16), "b": CovariateSpec(None, 16)}
    encoder = MultiCovariateEncoder(specs, dim, hidden_dims=(32, 16)).eval()
    base = F.normalize(torch.randn(50, dim), dim=1)
    return base, encoder({"a": torch.arange(50) % 3, "b": torch.randn(50)}).detach()


@pytest.mark.parametrize("dim", [16, 128, 2048])
def test_starts_close_to_the_base_at_any_width(dim: int) -> None:
    base, covariates = _inputs(dim)
    with torch.no_grad():
        out = Conditioner(dim)(base, covariates)
    assert out.shape == (50, dim)
    assert torch.allclose(out.norm(dim=1), torch.ones(50), atol=1e-5)
    # Narrow embeddings lose a little to LayerNorm, which takes their mean out.
    assert F.cosine_similarity(out, base, dim=1).mean() > 0.9
    if dim > 16:
        assert F.cosine_similarity(out, base, dim=1).min() > 0.9


def test_covariates_matter_from_the_start_and_everything_gets_gradient() -> None:
    base, covariates = _inputs(32)
    conditioner = Conditioner(32)
    with torch.no_grad():
        assert (conditioner(base, covariates) - conditioner(base, covariates.flip(0))).abs().max() > 1e-3
    covariates.requires_grad_()
    base.requires_grad_()
    (conditioner(base, covariates) * torch.arange(32.0)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in [*conditioner.parameters(), base, covariates])


SPECS = {"condition": CovariateSpec(3, 8), "day": CovariateSpec(None, 8)}


def _heads() -> tuple[CovariateHeads, torch.Tensor]:
    torch.manual_seed(0)
    return CovariateHeads(SPECS, 16), F.normalize(torch.randn(6, 16), dim=1)


def test_heads_ask_for_categories_by_cross_entropy_and_for_numbers_by_squared_error() -> None:
    heads, z = _heads()
    codes, days = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6)
    category, number = (head(4 * z) for head in heads.heads)  # 4: the square root of the width
    by_cell = [-category[i].log_softmax(0)[codes[i]] for i in range(6)]
    expected = (torch.stack(by_cell).mean() + ((number[:, 0] - days) ** 2).mean()) / 2
    loss = heads.loss(z, {"condition": codes, "day": days})
    assert torch.allclose(loss, expected, atol=1e-6)


def test_unknown_values_are_not_asked_for() -> None:
    heads, z = _heads()
    days = torch.tensor([1.0, torch.nan, 0.5, torch.nan, torch.nan, -1.0])
    codes = torch.tensor([0, 3, 2, 3, 1, 3])  # 3 is "unknown"
    z.requires_grad_()
    loss = heads.loss(z, {"condition": codes, "day": days})
    loss.backward()
    assert loss.isfinite()
    assert (z.grad.abs().amax(1) > 0).tolist() == [True, False, True, False, True, True]
    few = [heads.loss(z[r], {"condition": codes[r], "day": days[r]}) for r in ([0, 2], [4], [5])]
    category, number = heads.heads
    expected = F.cross_entropy(category(4 * z[[0, 2, 4]]), codes[[0, 2, 4]]) + F.mse_loss(
        number(4 * z[[0, 2, 5]])[:, 0], days[[0, 2, 5]]
    )
    assert torch.allclose(loss, expected / 2, atol=1e-6)
    assert all(part.isfinite() for part in few)  # also where a covariate has no value at all


def test_a_covariate_without_values_has_loss_and_gradient_zero() -> None:
    heads, z = _heads()
    loss = heads.loss(z, {"condition": torch.full((6,), 3), "day": torch.full((6,), torch.nan)})
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())


def test_conditioning_is_its_encoder_and_conditioner() -> None:
    torch.manual_seed(0)
    conditioning = Conditioning(SPECS, 16, combine="add", hidden_dims=(8,))
    base = torch.randn(5, 16)
    covariates = {"condition": torch.tensor([0, 1, 2, 3, 0]), "day": torch.tensor([0.1, torch.nan, 2, 1, 0])}
    expected = conditioning.conditioner(base, conditioning.covariate_encoder(covariates))
    assert torch.equal(conditioning(base, covariates), expected)
    assert expected.isfinite().all()
    assert torch.allclose(expected.norm(dim=1), torch.ones(5), atol=1e-6)
    assert conditioning.dim == 16
