from __future__ import annotations

import pytest
import torch

from scstate_lora.losses import SET_DISTANCES, mmd, mse_of_means, sinkhorn


def _cells(n: int, shift: float = 0.0, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, 8, generator=generator) + shift + mean


@pytest.mark.parametrize("name", SET_DISTANCES)
def test_every_distance_gives_one_number_a_set_and_grows_with_the_shift(name: str) -> None:
    distance = SET_DISTANCES[name]
    near, far = distance(_cells(40), _cells(30, 0.3, seed=1)), distance(_cells(40), _cells(30, 1.0, seed=1))
    assert near.shape == (2,)
    assert near.dtype == torch.float32
    assert (near < far).all()


@pytest.mark.parametrize("name", SET_DISTANCES)
@pytest.mark.parametrize("mean", [0.0, 5.0, 30.0])
def test_far_from_zero_and_under_autocast_it_is_that_of_float64_at_zero(name: str, mean: float) -> None:
    distance = SET_DISTANCES[name]
    expected = distance(_cells(40).double().float(), _cells(30, 0.5, seed=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(_cells(40, mean=mean), _cells(30, 0.5, seed=1, mean=mean))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sinkhorn", "mmd", "mse"])
def test_equal_sets_are_at_no_distance_with_a_finite_gradient(name: str) -> None:
    x = _cells(20).requires_grad_()
    found = SET_DISTANCES[name](x, _cells(20))
    assert found.abs().max() < 1e-4
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_sinkhorn_of_a_translation_is_half_its_square_in_units_of_the_spread() -> None:
    x = _cells(60)
    spread = (x - x.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    found = sinkhorn(x + 2.0, x)
    torch.testing.assert_close(found, 0.5 * (2.0**2 * 8) / spread**2, rtol=0.02, atol=0.0)


def test_mmd_and_means_are_what_they_say() -> None:
    x, y = _cells(25), _cells(35, 0.4, seed=1)
    torch.testing.assert_close(mse_of_means(x, y), (x.mean(1) - y.mean(1)).square().sum(-1))
    assert (mmd(x, x + 100) > 0.9).all()
    assert (mmd(x, x + 100) <= 2).all()


def test_order_of_cells_does_not_matter() -> None:
    x, y = _cells(25), _cells(25, 0.4, seed=1)
    for distance in SET_DISTANCES.values():
        torch.testing.assert_close(distance(x, y), distance(x.flip(1), y.flip(1)), rtol=1e-4, atol=1e-5)
