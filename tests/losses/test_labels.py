from __future__ import annotations

import numpy as np
import torch

from scstate_lora.losses.labels import label_loss


def test_a_fine_label_is_the_cross_entropy():
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 2, 1, 1, 0])
    goal = classes[:, None] == torch.arange(3)
    for member, found in zip(logits, label_loss(logits, goal), strict=True):
        torch.testing.assert_close(found, torch.nn.functional.cross_entropy(member, classes, reduction="none"))


def test_a_coarse_label_costs_what_is_outside_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    goal = torch.tensor([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(label_loss(logits, goal), [-np.log(0.8), 0.0], atol=1e-6)


def test_a_coarse_label_does_not_move_its_classes_against_each_other():
    logits = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    label_loss(logits, torch.tensor([[True, True, False]])).sum().backward()
    slope = logits.grad[0]
    assert slope[0] == slope[1] < 0 < slope[2]


def test_a_number_costs_half_of_its_squared_error():
    outputs = torch.tensor([[[1.0], [3.0]], [[0.0], [2.0]]])
    expected = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    torch.testing.assert_close(label_loss(outputs, torch.tensor([0.0, 3.0])), expected)


def test_logits_far_apart_stay_finite():
    logits = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = label_loss(logits, torch.tensor([[False, True]]))
    loss.sum().backward()
    assert loss.item() == 2000
    assert torch.isfinite(logits.grad).all()
