from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scstate_lora.losses import CONTRASTIVE, info_nce, nt_xent, supervised_contrastive


def _cells(n: int = 12) -> torch.Tensor:
    return F.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(0)), dim=1)


def _naive(z: torch.Tensor, labels: list[int], temperature: float, *, kind: str) -> float:
    """The published sums, one pair at a time, in float64."""
    rows = z.double().tolist()

    def similar(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / temperature

    cells = []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == label]
        if not positives:
            continue
        if kind == "ntxent":
            positives = [j for j in positives if j > i][:1] or positives[:1]
        pairs = []
        for j in positives:
            against = [k for k in others if k == j or labels[k] != label] if kind == "infonce" else others
            pairs.append(-math.log(math.exp(similar(i, j)) / sum(math.exp(similar(i, k)) for k in against)))
        cells.append(sum(pairs) / len(pairs))
    return sum(cells) / len(cells)


@pytest.mark.parametrize("kind", CONTRASTIVE)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2] * 4, [0] * 12, [0, 0, 0, 1, 1, 5, 7, 7, 7, 7, 9, 1]], ids=["even", "one", "with lone cells"]
)
def test_equals_a_naive_loop(labels: list[int], temperature: float, kind: str) -> None:
    ours = CONTRASTIVE[kind](_cells(), torch.tensor(labels), temperature=temperature)
    assert ours.item() == pytest.approx(_naive(_cells(), labels, temperature, kind=kind), abs=1e-5)


def test_losses_go_by_the_names_of_options() -> None:
    assert CONTRASTIVE == {"supcon": supervised_contrastive, "infonce": info_nce, "ntxent": nt_xent}


@pytest.mark.parametrize("kind", CONTRASTIVE)
@pytest.mark.parametrize("n", [1, 12])
def test_is_zero_with_gradient_when_all_are_alone(n: int, kind: str) -> None:
    z = _cells(n).requires_grad_()
    loss = CONTRASTIVE[kind](z, torch.arange(n))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_gradient_is_finite_with_lone_and_equal_cells(kind: str) -> None:
    z = torch.cat([_cells(6), _cells(6)]).requires_grad_()
    CONTRASTIVE[kind](z, torch.tensor([0, 0, 1, 1, 2, 3, 0, 0, 1, 1, 4, 5])).backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 0


def test_without_negatives_infonce_has_nothing_to_say() -> None:
    z = _cells().requires_grad_()
    loss = info_nce(z, torch.zeros(12, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert z.grad.abs().max() == 0


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_a_cell_that_is_alone_with_its_label_only_pushes(kind: str) -> None:
    """It has no loss of its own, but others are to keep away from it."""
    z, labels = _cells(), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 5])
    far = z.clone()
    far[-1] = -F.normalize(z[:-1].mean(0), dim=0)
    assert CONTRASTIVE[kind](far, labels) < CONTRASTIVE[kind](z, labels)


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_labels_together_are_better_than_mixed(kind: str) -> None:
    centers = torch.eye(5)[torch.arange(12) % 3]
    together = CONTRASTIVE[kind](centers, torch.arange(12) % 3)
    mixed = CONTRASTIVE[kind](centers, torch.arange(12) // 4)
    assert together < mixed


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_autocast_changes_nothing(kind: str) -> None:
    labels = torch.arange(12) % 3
    plain = CONTRASTIVE[kind](_cells(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(CONTRASTIVE[kind](_cells(), labels), plain)
