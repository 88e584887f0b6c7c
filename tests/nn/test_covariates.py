from __future__ import annotations

import pytest
import torch

from scstate_lora.nn.covariates import CategoricalEncoder, ContinuousEncoder, MultiCovariateEncoder

COVARIATES = {"condition": 2, "time.days": None, "mouse": 3}


def _encoder(dropout: float = 0.1) -> MultiCovariateEncoder:
    torch.manual_seed(0)
    return MultiCovariateEncoder(COVARIATES, 10, embed_dim=6, hidden_dims=(16, 8), dropout=dropout)


def _cells(n: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "condition": torch.arange(n) % 2,
        "time.days": torch.randn(n, generator=generator),
        "mouse": torch.arange(n) % 3,
    }


def test_shape_and_eval_is_deterministic() -> None:
    encoder = _encoder().eval()
    with torch.no_grad():
        first = encoder(_cells())
        assert first.shape == (8, 10)
        assert torch.equal(first, encoder(_cells()))


def test_default_widths_are_the_documented_ones() -> None:
    encoder = MultiCovariateEncoder({"a": 4, "b": None}, 32)
    shapes = {name: tuple(p.shape) for name, p in encoder.named_parameters() if p.ndim == 2}
    assert shapes == {
        "encoders.0.embedding.weight": (5, 256),
        "encoders.1.net.0.weight": (128, 1),
        "encoders.1.net.2.weight": (256, 128),
        "combination.net.0.weight": (1024, 512),
        "combination.net.2.weight": (512, 1024),
        "combination.net.4.weight": (32, 512),
    }


@pytest.mark.parametrize("name", list(COVARIATES))
def test_every_covariate_matters(name: str) -> None:
    encoder = _encoder().eval()
    cells = _cells()
    other = {**cells, name: cells[name] + 0.5 if COVARIATES[name] is None else (cells[name] + 1) % COVARIATES[name]}
    with torch.no_grad():
        assert ((encoder(cells) - encoder(other)).abs().amax(dim=1) > 1e-4).all()


def test_a_covariates_position_goes_by_name() -> None:
    encoder = _encoder().eval()
    cells = _cells()
    with torch.no_grad():
        assert torch.equal(encoder(cells), encoder(dict(reversed(cells.items()))))


def test_dropout_trains_the_unknown_vectors() -> None:
    encoder = _encoder(dropout=0.5).train()
    encoder(_cells(64)).square().sum().backward()
    for i, n in enumerate(COVARIATES.values()):
        part = encoder.encoders[i]
        gradient = part.unknown.grad if n is None else part.embedding.weight.grad[n]
        assert gradient is not None
        assert gradient.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_without_dropout_the_unknown_row_is_not_touched() -> None:
    encoder = _encoder(dropout=0.0).train()
    encoder(_cells()).square().sum().backward()
    assert encoder.encoders[0].embedding.weight.grad[2].abs().max() == 0
    assert encoder.encoders[1].unknown.grad is None or encoder.encoders[1].unknown.grad.abs().max() == 0


def test_dropped_values_have_no_influence() -> None:
    torch.manual_seed(0)
    dropped = torch.tensor([True, False])
    categorical, continuous = CategoricalEncoder(3, 4), ContinuousEncoder(output_dim=4)
    with torch.no_grad():
        rows = categorical(torch.tensor([1, 1]), dropped)
        assert torch.equal(rows[0], categorical.embedding.weight[3])
        assert torch.equal(rows[1], categorical.embedding.weight[1])
        rows = continuous(torch.tensor([5.0, 5.0]), dropped)
        assert torch.equal(rows[0], continuous.unknown)
        assert torch.allclose(rows[1], continuous(torch.tensor([5.0]))[0])


def test_each_covariate_of_each_cell_is_dropped_on_its_own() -> None:
    encoder = _encoder(dropout=0.5).train()
    seen: list[torch.Tensor] = []
    for part in encoder.encoders:
        part.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    torch.manual_seed(3)
    encoder(_cells(4000))
    shares = torch.stack(seen).float()
    assert (shares.mean(dim=1) - 0.5).abs().max() < 0.05
    assert torch.corrcoef(shares).triu(1).abs().max() < 0.08


def test_continuous_values_are_continuous() -> None:
    encoder = _encoder().eval()
    steps = torch.linspace(-3, 3, 601)
    cells = {
        "condition": torch.zeros(601, dtype=torch.long),
        "time.days": steps,
        "mouse": torch.ones(601, dtype=torch.long),
    }
    with torch.no_grad():
        vectors = encoder(cells)
    jumps = (vectors[1:] - vectors[:-1]).norm(dim=1)
    assert jumps.max() < 0.05
    assert (vectors[0] - vectors[-1]).norm() > 0.1
