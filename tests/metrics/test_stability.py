from __future__ import annotations

import numpy as np
import pytest

from scstate_lora import metrics
from scstate_lora.metrics.stability import spikes


def test_variance_is_of_the_last_tenth_of_the_steps():
    loss = np.r_[np.linspace(100, 1, 90), [1.0, 3.0] * 5]
    assert metrics.loss_variance(loss) == pytest.approx(1.0)
    assert metrics.loss_variance(loss, share=1.0) == pytest.approx(loss.var())
    assert metrics.loss_variance([5.0, 9.0, 1.0, 3.0]) == pytest.approx(1.0)  # two steps at the least


def test_variance_of_a_broken_training_is_nan():
    assert np.isnan(metrics.loss_variance([1.0] * 19 + [np.inf]))


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_share_out_of_range_raises(share):
    with pytest.raises(ValueError, match="share"):
        metrics.loss_variance([1.0, 2.0], share=share)


def test_variance_of_one_step_raises():
    with pytest.raises(ValueError, match="there are 1"):
        metrics.loss_variance([1.0])


def test_spikes_lie_above_the_median_by_five_deviations():
    norms = np.r_[[0.9, 1.0, 1.1] * 10, 1.49, 1.51, np.inf, np.nan]
    assert np.flatnonzero(spikes(norms)).tolist() == [31, 32, 33]
    assert np.flatnonzero(spikes(norms, n_mad=4)).tolist() == [30, 31, 32, 33]


def test_spikes_are_counted_an_epoch():
    norms = np.tile([0.9, 1.0, 1.1, 1.0], 5)
    norms[[3, 7, 11]] = 10
    assert metrics.gradient_spikes(norms, np.repeat(range(5), 4)) == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match="one number per step"):
        metrics.gradient_spikes(norms, [0, 1])
    with pytest.raises(ValueError, match="no step"):
        metrics.gradient_spikes([], [])


def test_constant_gradients_have_no_spikes():
    assert metrics.gradient_spikes([2.0] * 8, [0] * 8) == 0


def test_improvement_is_from_the_first_epoch_to_the_best():
    assert metrics.validation_improvement([2.0, 1.0, 4.0]) == pytest.approx(0.5)
    assert metrics.validation_improvement([2.0, 3.0]) == 0
    assert metrics.validation_improvement([2.0, np.nan, 1.5]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("losses", "match"), [([], "no cell is a validation cell"), ([-0.1, -0.2], "above 0"), ([np.nan], "nan")]
)
def test_improvement_without_a_first_loss_raises(losses, match):
    with pytest.raises(ValueError, match=match):
        metrics.validation_improvement(losses)
