from __future__ import annotations

import pytest
import torch

from scstate_lora.nn import SinkhornKnopp


def _logits(*shape, std=1.0, seed=0, dtype=torch.float32):
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _largest_error(matrix):
    return max((matrix.sum(axis) - 1).abs().max().item() for axis in (-1, -2))


@pytest.mark.parametrize("std", [0.0, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("n_iters", [1, 10])
@pytest.mark.parametrize("shape", [(500, 4, 4), (2, 3, 7, 7), (64, 64)])
def test_rows_and_columns_sum_to_one_whatever_the_logits(std, n_iters, shape):
    matrix = SinkhornKnopp(n_iters)(_logits(*shape, std=std))
    assert matrix.shape == shape
    assert matrix.min() >= 0
    assert _largest_error(matrix) < 1e-5


def test_converges_to_the_scaled_exponentials():
    logits = _logits(4, 4, dtype=torch.float64)
    matrix = SinkhornKnopp(200)(logits)
    # The only doubly stochastic matrix of the form D1 exp(logits) D2: the double differences of its logarithm are kept.
    ratio = (matrix.log() - logits).detach()
    ratio = ratio - ratio.mean(0) - ratio.mean(1, keepdim=True) + ratio.mean()
    assert matrix.dtype == torch.float64
    assert ratio.abs().max() < 1e-10


def test_ten_iterations_are_near_the_limit_at_a_standard_deviation_of_one():
    logits = _logits(1000, 4, 4)
    difference = (SinkhornKnopp(10)(logits) - SinkhornKnopp(500)(logits)).abs().amax((-1, -2))
    assert difference.max() < 1e-2
    assert difference.mean() < 1e-4


def test_logits_of_an_identity_give_the_known_diagonal():
    diagonals = [SinkhornKnopp()(b * torch.eye(4)).diagonal().mean().item() for b in (1, 2, 4, 6)]
    assert diagonals == pytest.approx([0.475, 0.711, 0.948, 0.993], abs=1e-3)


def test_extreme_logits_neither_overflow_nor_underflow():
    logits = torch.tensor([[1e4, -1e4], [0.0, 1e4]], requires_grad=True)
    matrix = SinkhornKnopp()(logits)
    matrix[0, 0].backward()
    assert torch.allclose(matrix, torch.eye(2))
    assert logits.grad.isfinite().all()


def test_gradient_is_that_of_the_numbers_returned():
    logits = _logits(3, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(SinkhornKnopp(10), logits)


@pytest.mark.parametrize("std", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("n", [4, 128])
def test_rounding_does_not_disturb_the_gradient(n, std):
    # Where the iteration has converged, what sums lack is rounding; to divide by it would give any gradient at all.
    weights = _logits(50 if n == 4 else 2, n, n, seed=1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        logits = _logits(*weights.shape, std=std).to(dtype).requires_grad_()
        (SinkhornKnopp()(logits) * weights).sum().backward()
        gradients.append(logits.grad.double())
    single, double = gradients
    assert (single - double).abs().max() < 1e-3 * double.abs().max()


def test_reordered_logits_give_the_reordered_matrix():
    logits, order = _logits(6, 6), torch.tensor([3, 0, 5, 1, 2, 4])
    assert torch.allclose(SinkhornKnopp()(logits)[order], SinkhornKnopp()(logits[order]), atol=1e-6)


def test_computes_in_float32_under_autocast_and_on_half_precision():
    logits = _logits(100, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = SinkhornKnopp()(logits)
    assert torch.equal(matrix, SinkhornKnopp()(logits))
    half = SinkhornKnopp()(logits.bfloat16())
    assert half.dtype == torch.float32
    assert _largest_error(half) < 1e-5


def test_matrices_that_are_not_square_raise():
    with pytest.raises(ValueError, match=r"\(3, 4\).*square"):
        SinkhornKnopp()(torch.zeros(3, 4))


def test_no_iterations_raise():
    with pytest.raises(ValueError, match="n_iters is 0"):
        SinkhornKnopp(0)
