from __future__ import annotations

import torch

from scstate_lora.nn.context_shift import ContextShift

PERT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def _fitted() -> ContextShift:
    """Two contexts that differ in the first gene; the first perturbation does 1 in one and 3 in the other."""
    module = ContextShift(3, 2, n_references=2, n_directions=1)
    module.basis.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
    module.points.copy_(torch.tensor([[-5.0], [5.0]]))
    module.perts.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    module.alpha.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]))
    return module


def test_a_context_shifts_as_those_like_it() -> None:
    shift = _fitted()(torch.tensor([[-5.0, 0, 0], [5.0, 0, 0]]), PERT[[0, 0]])
    torch.testing.assert_close(shift, torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]))


def test_far_from_all_contexts_and_for_other_perturbations_it_is_zero() -> None:
    shift = _fitted()(torch.tensor([[500.0, 0, 0], [5.0, 0, 0]]), PERT)
    assert shift.abs().max() < 1e-6


def test_genes_above_the_centre_change_by_a_share_of_that_when_perturbed() -> None:
    module = ContextShift(3, 2)
    module.slope.fill_(-0.5)
    module.centre.fill_(1.0)
    means = torch.tensor([[3.0, 1.0, 0.0]])
    torch.testing.assert_close(module(means, PERT[:1]), torch.tensor([[-1.0, 0.0, 0.5]]))
    assert module(means, torch.zeros(1, 2)).abs().max() == 0


def test_without_references_it_is_zero() -> None:
    assert ContextShift(3, 2)(torch.rand(4, 3), PERT[[0, 1, 0, 1]]).abs().max() == 0
