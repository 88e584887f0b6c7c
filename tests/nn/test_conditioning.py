from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scstate_lora.nn.conditioning import Conditioner
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
