from __future__ import annotations

import pytest
import torch

from scstate_lora.nn.covariates import CategoricalEncoder, ContinuousEncoder, CovariateSpec, MultiCovariateEncoder

COVARIATES = {"condition": 2, "time.days": None, "mouse": 3}


def _encoder(combine: str = "concat_mlp") -> MultiCovariateEncoder:
    torch.manual_seed(0)
    specs = {name: CovariateSpec(n, 6) for name, n in COVARIATES.items()}
    return MultiCovariateEncoder(specs, 10, combine=combine, hidden_dims=(16, 8))


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
    encoder = MultiCovariateEncoder({"a": CovariateSpec(4), "b": CovariateSpec(None)}, 32)
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


def _unknown(cells: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.full_like(values, torch.nan if COVARIATES[name] is None else COVARIATES[name])
        for name, values in cells.items()
    }


@pytest.mark.parametrize("combine", ["concat_mlp", "add"])
def test_unknown_values_train_their_own_vectors_and_no_gradient_is_nan(combine: str) -> None:
    encoder = _encoder(combine)
    cells = _cells(64)
    hidden = torch.rand(64, generator=torch.Generator().manual_seed(2)) < 0.5
    mixed = {name: torch.where(hidden, other, cells[name]) for name, other in _unknown(cells).items()}
    (encoder(mixed) * torch.arange(10.0)).sum().backward()
    for i, n in enumerate(COVARIATES.values()):
        part = encoder.encoders[i]
        gradient = part.unknown.grad if n is None else part.embedding.weight.grad[n]
        assert gradient.abs().max() > 0
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_known_values_leave_the_unknown_vectors_alone() -> None:
    encoder = _encoder()
    encoder(_cells()).square().sum().backward()
    assert encoder.encoders[0].embedding.weight.grad[2].abs().max() == 0
    assert encoder.encoders[1].unknown.grad.abs().max() == 0


def test_unknown_is_one_vector_whatever_the_other_cells_are() -> None:
    torch.manual_seed(0)
    categorical, continuous = CategoricalEncoder(3, 4), ContinuousEncoder(output_dim=4)
    torch.nn.init.normal_(continuous.unknown)
    with torch.no_grad():
        assert torch.equal(categorical(torch.tensor([3, 1])), categorical.embedding.weight[[3, 1]])
        rows = continuous(torch.tensor([torch.nan, 5.0]))
        assert torch.equal(rows[0], continuous.unknown)
        assert torch.allclose(rows[1], continuous(torch.tensor([5.0]))[0])


def test_each_combination_is_encoded_once() -> None:
    encoder = _encoder().eval()
    seen: list[int] = []
    encoder.combination.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    cells = _cells(6)
    cells["time.days"] = torch.tensor([torch.nan, 0.5, torch.nan, 0.5, torch.nan, 0.5])
    alone = encoder(cells)
    order = torch.tensor([3, 0, 0, 5, 1, 2, 4, 4, 3])
    together = encoder({name: values[order] for name, values in cells.items()})
    assert seen == [6, 6]
    assert torch.allclose(together, alone[order], atol=1e-6)
    encoder({name: torch.full_like(values, 0)[:1].expand(500) for name, values in cells.items()})
    same = torch.ones(4).long()
    encoder({"condition": same, "time.days": torch.full((4,), torch.nan), "mouse": same})
    assert seen == [6, 6, 1, 1]


def test_training_mode_draws_nothing() -> None:
    encoder = _encoder().train()
    assert torch.equal(encoder(_cells(200)), encoder(_cells(200)))


def test_added_covariates_do_not_interact_before_the_norm() -> None:
    encoder = _encoder("add").eval()
    encoder.combination.norm = torch.nn.Identity()
    vectors = {}
    with torch.no_grad():
        for a in (0, 1):
            for b in (0, 1):
                cell = {"condition": torch.tensor([a]), "time.days": torch.tensor([0.3]), "mouse": torch.tensor([b])}
                vectors[a, b] = encoder(cell)[0]
    torch.testing.assert_close(vectors[1, 1] - vectors[0, 1], vectors[1, 0] - vectors[0, 0])
    assert (vectors[1, 1] - vectors[0, 1]).abs().max() > 1e-3


def test_each_covariate_has_the_width_and_activation_of_its_spec() -> None:
    specs = {"a": CovariateSpec(3, 5), "b": CovariateSpec(None, 7, 11, "tanh")}
    for combine, first in (("concat_mlp", (4, 12)), ("add", (9, 5))):
        encoder = MultiCovariateEncoder(specs, 9, combine=combine, hidden_dims=(4,))
        a, b = encoder.encoders
        assert a.embedding.weight.shape == (4, 5)
        assert (b.net[0].weight.shape, b.net[2].weight.shape) == ((11, 1), (7, 11))
        assert isinstance(b.net[1], torch.nn.Tanh)
        assert next(encoder.combination.parameters()).shape == first
        assert encoder({"a": torch.tensor([0, 3]), "b": torch.tensor([0.0, torch.nan])}).shape == (2, 9)


def test_unusable_options_raises() -> None:
    with pytest.raises(ValueError, match="combine='sum' is unknown"):
        _encoder("sum")
    with pytest.raises(ValueError, match=r"activation='elu' is unknown\. Choose one of 'silu', 'relu', 'gelu', 'tanh'"):
        ContinuousEncoder(activation="elu")
    with pytest.raises(ValueError, match="at least one covariate"):
        MultiCovariateEncoder({}, 4)


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
