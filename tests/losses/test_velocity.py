from __future__ import annotations

import pytest
import torch

from scstate_lora.losses import VelocityAlignmentLoss, VelocityRegularizationLoss, warmed_up

NAN = float("nan")
# Cosines 0, 1 and -0.6; lengths of the shift 5, 1 and 5, of the velocity 10, 3 and 1.
SHIFT = torch.tensor([[3.0, 4.0], [0.0, 1.0], [3.0, -4.0]])
VELOCITY = torch.tensor([[8.0, -6.0], [0.0, 3.0], [-1.0, 0.0]])


def test_parts_and_loss_by_hand():
    loss, parts = VelocityAlignmentLoss(beta=0.5)(SHIFT, VELOCITY)
    assert parts.direction.item() == pytest.approx((1 + 0 + 1.6) / 3, abs=1e-6)
    assert parts.magnitude.item() == pytest.approx((5 + 2 + 4) / 3, abs=1e-6)
    assert parts.cos_similarity.item() == pytest.approx((0 + 1 - 0.6) / 3, abs=1e-6)
    assert parts.magnitude_st.item() == pytest.approx(11 / 3, abs=1e-6)
    assert parts.magnitude_v.item() == pytest.approx(14 / 3, abs=1e-6)
    assert parts.avg_confidence.item() == 1
    assert loss.item() == pytest.approx(2.6 / 3 + 0.5 * 11 / 3, abs=1e-6)
    assert VelocityAlignmentLoss()(SHIFT, VELOCITY)[0].item() == pytest.approx(2.6 / 3 + 11 / 3, abs=1e-6)
    assert not any(part.requires_grad for part in parts)


def test_l2_by_hand():
    loss, parts = VelocityAlignmentLoss(kind="l2")(SHIFT, VELOCITY)
    assert loss.item() == pytest.approx((125 / 2 + 4 / 2 + 32 / 2) / 3, abs=1e-5)
    assert parts.direction.item() == pytest.approx(2.6 / 3, abs=1e-6)


def test_is_zero_where_shift_and_velocity_agree():
    loss, parts = VelocityAlignmentLoss()(VELOCITY, VELOCITY)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert parts.cos_similarity.item() == pytest.approx(1, abs=1e-6)


def test_confidences_are_weights():
    confidence = torch.tensor([0.25, 0.75, 0.0])
    loss, parts = VelocityAlignmentLoss(beta=0.0)(SHIFT, VELOCITY, confidence)
    assert loss.item() == pytest.approx(0.25 * 1 + 0.75 * 0, abs=1e-6)
    assert parts.magnitude.item() == pytest.approx(0.25 * 5 + 0.75 * 2, abs=1e-6)
    assert parts.avg_confidence.item() == pytest.approx(1 / 3, abs=1e-6)
    # What counts is their ratio.
    assert torch.allclose(VelocityAlignmentLoss(beta=0.0)(SHIFT, VELOCITY, confidence * 10)[0], loss)


def test_cells_under_the_least_confidence_are_dropped():
    loss, parts = VelocityAlignmentLoss(beta=0.0, min_confidence=0.5)(SHIFT, VELOCITY, torch.tensor([0.4, 0.5, NAN]))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert parts.magnitude.item() == pytest.approx(2, abs=1e-6)
    assert parts.avg_confidence.item() == pytest.approx(0.5)


def test_without_any_cell_left_the_loss_is_zero_with_gradient():
    shift = SHIFT.clone().requires_grad_()
    loss, parts = VelocityAlignmentLoss(min_confidence=0.5)(shift, VELOCITY, torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(shift.grad, torch.zeros(3, 2))
    assert all(part.item() == 0 for part in parts)


def test_a_cell_at_rest_counts_by_its_length_alone():
    velocity = VELOCITY.clone()
    velocity[1] = 0
    _, parts = VelocityAlignmentLoss()(SHIFT, velocity)
    assert parts.direction.item() == pytest.approx((1 + 1.6) / 2, abs=1e-6)
    assert parts.magnitude.item() == pytest.approx((5 + 1 + 4) / 3, abs=1e-6)


def test_features_without_velocity_are_left_out_and_cells_without_any_dropped():
    velocity = torch.tensor([[8.0, -6.0, NAN], [NAN, NAN, NAN], [-1.0, 0.0, NAN]])
    shift = torch.cat([SHIFT, torch.full((3, 1), 100.0)], dim=1).requires_grad_()
    for kind, expected in (("direction", (1 + 5 + 1.6 + 4) / 2), ("l2", (125 / 2 + 32 / 2) / 2)):
        shift.grad = None
        loss, _ = VelocityAlignmentLoss(kind=kind)(shift, velocity)
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        assert torch.isfinite(shift.grad).all()
        assert (shift.grad[:, 2] == 0).all()
        assert (shift.grad[1] == 0).all()


@pytest.mark.parametrize("kind", ["direction", "l2"])
def test_gradients_are_finite_at_zero(kind: str):
    shift = torch.zeros(3, 2, requires_grad=True)
    velocity = torch.tensor([[3.0, 4.0], [0.0, 0.0], [NAN, NAN]])
    loss, parts = VelocityAlignmentLoss(kind=kind)(shift, velocity)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(shift.grad).all()
    assert all(torch.isfinite(part) for part in parts)
    # From "no change" a step against the gradient goes along the velocity, and no other cell moves.
    step = -shift.grad[0]
    assert torch.allclose(step / step.norm(), velocity[0] / 5, atol=1e-6)
    assert torch.equal(shift.grad[1:], torch.zeros(2, 2))


def test_gradient_of_tiny_shifts_is_bounded():
    generator = torch.Generator().manual_seed(0)
    velocity = torch.randn(50, 20, generator=generator)
    shift = (1e-9 * torch.randn(50, 20, generator=generator)).requires_grad_()
    VelocityAlignmentLoss(beta=0.0)(shift, velocity)[0].backward()
    bound = 1 / (0.01 * velocity.norm(dim=1)) / 50
    assert (shift.grad.norm(dim=1) <= bound * 1.001).all()


def test_gradient_equals_the_numerical_one():
    shift = SHIFT.double().requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return VelocityAlignmentLoss(beta=0.7)(x, VELOCITY, torch.tensor([0.2, 0.5, 1.0]))[0]

    loss(shift).backward()
    h = 1e-2
    for i in range(3):
        for j in range(2):
            step = torch.zeros(3, 2, dtype=torch.double)
            step[i, j] = h
            numerical = (loss(SHIFT.double() + step) - loss(SHIFT.double() - step)) / (2 * h)
            assert shift.grad[i, j].item() == pytest.approx(numerical.item(), abs=1e-3)


def test_training_with_it_turns_shifts_to_their_velocities():
    generator = torch.Generator().manual_seed(0)
    velocity = torch.randn(30, 5, generator=generator)
    shift = torch.zeros(30, 5, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        loss, parts = VelocityAlignmentLoss()(shift, velocity)
        loss.backward()
        optimiser.step()
    assert parts.cos_similarity > 0.95
    assert parts.magnitude < 0.1


def test_sets_of_cells_count_as_all_their_cells():
    confidence = torch.tensor([0.3, 0.9, 0.5, 0.1, 1.0, 0.7])
    shift, velocity = torch.cat([SHIFT, VELOCITY]), torch.cat([VELOCITY, SHIFT.flip(0)])
    flat = VelocityAlignmentLoss()(shift, velocity, confidence)[0]
    sets = VelocityAlignmentLoss()(shift.view(2, 3, 2), velocity.view(2, 3, 2), confidence.view(2, 3))[0]
    assert torch.equal(flat, sets)


def test_is_computed_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    shift, velocity = torch.randn(2, 20, 30, generator=generator)
    expected, _ = VelocityAlignmentLoss()(shift, velocity)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, parts = VelocityAlignmentLoss()(shift, velocity)
        change = VelocityRegularizationLoss()(shift)
    assert loss.dtype == parts.direction.dtype == change.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert VelocityAlignmentLoss()(shift.bfloat16(), velocity)[0].dtype == torch.float32


def test_velocity_and_confidence_get_no_gradient():
    velocity, confidence = VELOCITY.clone().requires_grad_(), torch.ones(3, requires_grad=True)
    shift = SHIFT.clone().requires_grad_()
    VelocityAlignmentLoss()(shift, velocity, confidence)[0].backward()
    assert velocity.grad is None
    assert confidence.grad is None


def test_unfit_shapes_raise():
    with pytest.raises(ValueError, match=r"shift has shape \(3, 2\) and velocity \(2, 2\)"):
        VelocityAlignmentLoss()(SHIFT, VELOCITY[:2])
    with pytest.raises(ValueError, match=r"confidence has shape \(2,\).*must be \(3,\)"):
        VelocityAlignmentLoss()(SHIFT, VELOCITY, torch.ones(2))
    with pytest.raises(ValueError, match="one value per cell"):
        VelocityRegularizationLoss()(SHIFT, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta=-1.0 must be 0 or more"),
        ({"min_confidence": NAN}, "min_confidence=nan"),
        ({"kind": "cosine"}, "kind='cosine' is unknown"),
    ],
)
def test_impossible_options_raise(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        VelocityAlignmentLoss(**options)


def test_regularisation_by_hand():
    assert VelocityRegularizationLoss()(SHIFT).item() == pytest.approx((3.5 + 0.5 + 3.5) / 3)
    assert VelocityRegularizationLoss("l2")(SHIFT).item() == pytest.approx((12.5 + 0.5 + 12.5) / 3)
    confidence = torch.tensor([1.0, NAN, 0.5])
    assert VelocityRegularizationLoss()(SHIFT, confidence).item() == pytest.approx((0 + 0.5 + 1.75) / 3)


def test_regularisation_spares_cells_that_velocity_vouches_for():
    shift = SHIFT.clone().requires_grad_()
    VelocityRegularizationLoss()(shift, torch.tensor([1.0, 0.0, 0.5])).backward()
    assert torch.equal(shift.grad[0], torch.zeros(2))
    assert shift.grad[2].abs().sum() > 0


def test_regularisation_of_an_unknown_norm_raises():
    with pytest.raises(ValueError, match="norm='l3' is unknown"):
        VelocityRegularizationLoss("l3")


def test_weight_rises_linearly_and_stays():
    assert [warmed_up(step) for step in (0, 250, 500, 1000, 5000)] == pytest.approx([0, 0.025, 0.05, 0.1, 0.1])
    assert warmed_up(3, weight=2.0, warmup_steps=4) == pytest.approx(1.5)
    assert warmed_up(0, weight=2.0, warmup_steps=0) == 2.0
    with pytest.raises(ValueError, match="step=-1"):
        warmed_up(-1)
