from __future__ import annotations

import pytest
import torch

from scstate_lora.nn.context_shift import ContextShift, covariate_coordinates, n_coordinates
from scstate_lora.nn.covariates import CovariateSpec

PERT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
NOWHERE = torch.zeros(0)


def _fitted() -> ContextShift:
    """Two contexts that differ in the first gene; the first perturbation does 1 in one and 3 in the other."""
    module = ContextShift(3, 2, n_references=2, n_directions=1)
    module.basis.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
    module.points.copy_(torch.tensor([[-5.0], [5.0]]))
    module.perts.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    module.alpha.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]))
    return module


def test_a_context_shifts_as_those_like_it() -> None:
    shift = _fitted()(torch.tensor([[-5.0, 0, 0], [5.0, 0, 0]]), PERT[[0, 0]], NOWHERE)
    torch.testing.assert_close(shift, torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]))


def test_far_from_all_contexts_and_for_other_perturbations_it_is_zero() -> None:
    shift = _fitted()(torch.tensor([[500.0, 0, 0], [5.0, 0, 0]]), PERT, NOWHERE)
    assert shift.abs().max() < 1e-6


def test_genes_above_the_centre_change_by_a_share_of_that_when_perturbed() -> None:
    module = ContextShift(3, 2)
    module.slope.fill_(-0.5)
    module.centre.fill_(1.0)
    means = torch.tensor([[3.0, 1.0, 0.0]])
    torch.testing.assert_close(module(means, PERT[:1], NOWHERE), torch.tensor([[-1.0, 0.0, 0.5]]))
    assert module(means, torch.zeros(1, 2), NOWHERE).abs().max() == 0


def test_without_references_it_is_zero() -> None:
    assert ContextShift(3, 2)(torch.rand(4, 3), PERT[[0, 1, 0, 1]], NOWHERE).abs().max() == 0


def test_contexts_that_differ_in_covariates_alone_are_told_apart() -> None:
    module = ContextShift(3, 2, n_references=2, n_coordinates=1)
    module.points.copy_(torch.tensor([[-1.0], [1.0]]))
    module.perts.copy_(PERT[[0, 0]])
    module.alpha.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]]))
    module.reach.fill_(2.0)
    module.width.fill_(0.1)
    shift = module(torch.zeros(2, 3), PERT[[0, 0]], torch.tensor([[-0.5], [0.5]]))
    torch.testing.assert_close(shift[:, 1], torch.tensor([1.0, 3.0]))


def test_places_are_means_over_the_cells_that_tell() -> None:
    specs = {"day": CovariateSpec(None), "batch": CovariateSpec(2)}
    covariates = {
        "day": torch.tensor([[1.0, torch.nan, 2.0], [torch.nan] * 3]),
        "batch": torch.tensor([[0, 1, 2], [1, 1, 1]]),  # 2 is unknown
    }
    found = covariate_coordinates(covariates, specs)
    assert n_coordinates(specs) == found.shape[1] == 3
    half, whole = 0.5 / 2**0.5, 1 / 2**0.5
    torch.testing.assert_close(found, torch.tensor([[1.5, half, half], [0.0, 0.0, whole]]))
    one, other = (covariate_coordinates({"batch": torch.tensor([[i]])}, {"batch": specs["batch"]}) for i in (0, 1))
    assert (one - other).norm().item() == pytest.approx(1)
    assert covariate_coordinates({}, {}).numel() == 0
