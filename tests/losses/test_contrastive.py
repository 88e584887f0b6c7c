from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scstate_lora.losses import supervised_contrastive


def _cells(n: int = 12) -> torch.Tensor:
    return F.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(0)), dim=1)


def _naive(z: torch.Tensor, labels: list[int], temperature: float) -> float:
    """The published double sum, one pair at a time, in float64."""
    rows = z.double().tolist()

    def similar(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / temperature

    cells = []
    for i, label in enumerate(labels):
        positives = [j for j, other in enumerate(labels) if j != i and other == label]
        if positives:
            total = sum(math.exp(similar(i, j)) for j in range(len(labels)) if j != i)
            cells.append(-sum(math.log(math.exp(similar(i, j)) / total) for j in positives) / len(positives))
    return sum(cells) / len(cells)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2] * 4, [0] * 12, [0, 0, 0, 1, 1, 5, 7, 7, 7, 7, 9, 1]], ids=["even", "one", "with lone cells"]
)
def test_equals_a_naive_loop(labels: list[int], temperature: float) -> None:
    ours = supervised_contrastive(_cells(), torch.tensor(labels), temperature=temperature)
    assert ours.item() == pytest.approx(_naive(_cells(), labels, temperature), abs=1e-5)


@pytest.mark.parametrize("n", [1, 12])
def test_is_zero_with_gradient_when_all_are_alone(n: int) -> None:
    z = _cells(n).requires_grad_()
    loss = supervised_contrastive(z, torch.arange(n))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_gradient_is_finite_with_lone_and_equal_cells() -> None:
    z = torch.cat([_cells(6), _cells(6)]).requires_grad_()
    supervised_contrastive(z, torch.tensor([0, 0, 1, 1, 2, 3, 0, 0, 1, 1, 4, 5])).backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 0


def test_labels_together_are_better_than_mixed() -> None:
    centers = torch.eye(5)[torch.arange(12) % 3]
    together = supervised_contrastive(centers, torch.arange(12) % 3)
    mixed = supervised_contrastive(centers, torch.arange(12) // 4)
    assert together < mixed


def test_autocast_changes_nothing() -> None:
    labels = torch.arange(12) % 3
    plain = supervised_contrastive(_cells(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(supervised_contrastive(_cells(), labels), plain)
