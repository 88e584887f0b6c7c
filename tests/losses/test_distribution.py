from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from scstate_lora.losses import energy_distance, grouped_energy_distance


def _sets(mean: float = 0.0, shift: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 60, generator=generator) + mean
    y = 1.2 * torch.randn(3, 30, 60, generator=generator) + mean + shift
    return x, y


def _reference(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """The U-statistic in float64, set by set."""
    a, b = x.detach().double().numpy(), y.detach().double().numpy()
    return np.array([2 * cdist(i, j).mean() - _within(i) - _within(j) for i, j in zip(a, b, strict=True)])


def _within(cells: np.ndarray) -> float:
    """Mean distance between two different cells."""
    return pdist(cells).mean()


@pytest.mark.parametrize("mean", [0.0, 5.0, 30.0])
def test_equals_the_float64_reference_wherever_the_data_lie(mean: float) -> None:
    x, y = _sets(mean)
    ours = energy_distance(x, y)
    assert ours.shape == (3,)
    assert ours.dtype == torch.float32
    assert np.abs(ours.numpy() - _reference(x, y)).max() < 1e-4
    assert torch.equal(energy_distance(x[0], y[0]), ours[0])


def test_of_one_number_a_cell_by_hand() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    # Between: |0-1|, |0-5|, |2-1|, |2-5| have mean 2.5; within: 2 and 4.
    assert energy_distance(x, y).item() == pytest.approx(2 * 2.5 - 2 - 4, abs=1e-6)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_does_not_depend_on_the_order_and_is_symmetric(mean: float) -> None:
    x, y = _sets(mean)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(energy_distance(x, y), energy_distance(x[:, order], y), atol=1e-5)
    assert torch.allclose(energy_distance(x, y), energy_distance(y, x), atol=1e-5)


def test_a_cell_and_its_copy_in_the_other_set_are_at_distance_zero() -> None:
    x, _ = _sets(30.0)
    # Of 40 x 40 pairs between the sets, 40 are a cell and its copy; within a set, those are left out.
    within = np.array([_within(cells) for cells in x.double().numpy()])
    assert np.abs(energy_distance(x, x).numpy() - 2 * within * (39 / 40 - 1)).max() < 1e-4
    assert energy_distance(torch.zeros(4, 6), torch.zeros(5, 6)) == 0


def test_gradient_equals_the_float64_one() -> None:
    x, y = _sets(5.0)
    leaf = x.clone().requires_grad_()
    energy_distance(leaf, y).sum().backward()
    slow = x.double().requires_grad_()
    eye = torch.eye(40, dtype=torch.float64)
    between = (slow.unsqueeze(-2) - y.double().unsqueeze(-3)).norm(dim=-1).mean(dim=(1, 2))
    within = ((slow.unsqueeze(-2) - slow.unsqueeze(-3)).square().sum(-1) + eye).sqrt() - eye
    (2 * between - within.mean(dim=(1, 2)) * 40 / 39).sum().backward()
    assert (leaf.grad - slow.grad).abs().max() < 1e-6
    assert slow.grad.abs().max() > 1e-3


def test_gradient_is_finite_with_duplicated_cells() -> None:
    x, y = _sets()
    x = torch.cat([x, x[:, :10]], dim=1)
    y = torch.cat([y, x[:, :5]], dim=1)  # also in both sets
    for a, b in [(x, y), (x, x.clone()), (torch.zeros_like(x), torch.zeros_like(y))]:
        left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
        energy_distance(left, right).sum().backward()
        assert left.grad.isfinite().all()
        assert right.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    x, y = _sets(30.0)
    plain = energy_distance(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x[0] @ y[0].T).dtype == torch.bfloat16
        inside = energy_distance(x, y)
    assert torch.equal(inside, plain)


def test_half_precision_input_is_computed_in_float32() -> None:
    x, y = (t.bfloat16() for t in _sets())
    ours = energy_distance(x, y)
    assert ours.dtype == torch.float32
    assert np.abs(ours.numpy() - _reference(x.float(), y.float())).max() < 1e-4


def test_on_average_the_same_for_any_size_of_sets() -> None:
    generator = torch.Generator().manual_seed(1)
    averages = []
    for n, m in ((4, 3), (40, 30)):
        x = torch.randn(2000, n, 5, generator=generator)
        y = torch.randn(2000, m, 5, generator=generator) + 0.5
        averages.append(energy_distance(x, y).mean().item())
    assert averages[0] == pytest.approx(averages[1], abs=0.05)


def _grouped_by_hand(x, y, x_members, y_members):
    """Group by group, those with a cell on a side left out, weighted by cells of x."""
    distances, weights = [], []
    for mine, theirs in zip(x_members.T, y_members.T, strict=True):
        if mine.sum() > 1 and theirs.sum() > 1:
            distances.append(energy_distance(x[mine], y[theirs]))
            weights.append(mine.sum().float())
    return (torch.stack(distances) * torch.stack(weights)).sum() / torch.stack(weights).sum()


# Groups of 40 and 30 cells: one side of a single cell, one empty, all cells, and overlaps.
_SIZES = [(0, 12, 0, 9), (12, 40, 9, 30), (5, 20, 3, 12), (0, 1, 0, 10), (0, 40, 0, 30), (7, 9, 4, 4)]


def _members(sizes=_SIZES):
    x, y = torch.arange(40)[:, None], torch.arange(30)[:, None]
    starts_x, stops_x, starts_y, stops_y = torch.tensor(sizes).T
    return (x >= starts_x) & (x < stops_x), (y >= starts_y) & (y < stops_y)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_grouped_equals_the_groups_one_by_one(mean: float) -> None:
    x, y = (cells[0] for cells in _sets(mean))
    ours = grouped_energy_distance(x, y, *_members())
    assert ours.shape == ()
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(_grouped_by_hand(x, y, *_members()).item(), abs=1e-4)
    for sizes in _SIZES[:2]:
        single = grouped_energy_distance(x, y, *_members([sizes]))
        a, b = x[sizes[0] : sizes[1]], y[sizes[2] : sizes[3]]
        assert single.item() == pytest.approx(energy_distance(a, b).item(), abs=1e-4)


def test_grouped_weighs_groups_by_their_cells_of_the_first_set() -> None:
    x, y = torch.tensor([[0.0], [2.0], [0.0], [2.0], [4.0]]), torch.tensor([[1.0], [5.0], [2.0], [2.0]])
    of_x, of_y = torch.tensor([[1, 0]] * 2 + [[0, 1]] * 3).bool(), torch.tensor([[1, 0]] * 2 + [[0, 1]] * 2).bool()
    # The first as in the test by hand above; the second has 4/3 between and 8/3 within x.
    expected = (2 * (2 * 2.5 - 2 - 4) + 3 * (2 * 4 / 3 - 8 / 3)) / 5
    assert grouped_energy_distance(x, y, of_x, of_y).item() == pytest.approx(expected, abs=1e-6)


def test_grouped_gradient_equals_that_of_the_groups_one_by_one() -> None:
    x, y = (cells[0] for cells in _sets(5.0))
    gradients = []
    for loss in (grouped_energy_distance, _grouped_by_hand):
        left, right = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss(left, right, *_members()).backward()
        gradients.append((left.grad, right.grad))
    for ours, expected in zip(*gradients, strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
        assert ours.abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [[(0, 1, 0, 30), (0, 40, 3, 4)], []], ids=["of one cell", "none at all"])
def test_grouped_is_zero_with_gradient_without_a_group(sizes) -> None:
    x, y = (cells[0].requires_grad_() for cells in _sets())
    members = _members(sizes) if sizes else (torch.zeros(40, 0).bool(), torch.zeros(30, 0).bool())
    loss = grouped_energy_distance(x, y, *members)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_grouped_gradient_is_finite_for_cells_that_are_in_both_sets_and_autocast_changes_nothing() -> None:
    x = _sets(30.0)[0][0]
    members = _members()[0], _members()[0].flip(0)
    leaf = x.clone().requires_grad_()
    plain = grouped_energy_distance(leaf, leaf, *members)
    plain.backward()
    assert leaf.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(grouped_energy_distance(x, x, *members), plain)
