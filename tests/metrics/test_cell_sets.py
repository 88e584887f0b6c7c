from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scstate_lora.metrics import (
    mean_distance_between,
    mmd,
    nearest_distance,
    nearest_distance_within,
    relative_nearest_distance,
)


def _sets(offset=0.0):
    rng = np.random.default_rng(0)
    return rng.normal(size=(37, 12)) + offset + 0.4, 1.3 * rng.normal(size=(29, 12)) + offset


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("chunk", [8, 1024])
def test_mmd_by_definition(offset, chunk):
    x, y = _sets(offset)
    width = cdist(y, y).sum() / (29 * 28)
    expected = 0.0
    for scale in (0.5, 1.0, 2.0):
        xx, yy, xy = (
            np.exp(-cdist(a, b, "sqeuclidean") / (2 * (scale * width) ** 2)).mean() for a, b in ((x, x), (y, y), (x, y))
        )
        expected += (xx + yy - 2 * xy) / 3
    assert mmd(x, y, chunk=chunk) == pytest.approx(expected, rel=1e-5)
    assert mmd(x, y, bandwidth=width, scales=[1.0]) < mmd(x + 1, y, bandwidth=width, scales=[1.0])


def test_mmd_of_equal_sets_is_zero_and_sees_the_spread():
    x, y = _sets()
    assert mmd(y, y) == pytest.approx(0, abs=1e-12)
    collapsed = np.tile(y.mean(0), (20, 1))
    assert mmd(collapsed, y) > 2 * mmd(x, y)
    with pytest.raises(ValueError, match="two that differ"):
        mmd(x, collapsed)


@pytest.mark.parametrize("chunk", [8, 1024])
def test_nearest_distance_by_definition(chunk):
    x, y = _sets(30.0)
    expected = cdist(x, y).min(axis=1).mean()
    assert nearest_distance(x, y, chunk=chunk) == pytest.approx(expected)
    between = cdist(y, y).sum() / (29 * 28)
    assert mean_distance_between(y, chunk=chunk) == pytest.approx(between)
    apart = cdist(y, y)
    np.fill_diagonal(apart, np.inf)
    within = apart.min(axis=1).mean()
    assert nearest_distance_within(y, chunk=chunk) == pytest.approx(within)
    assert relative_nearest_distance(x, y, chunk=chunk) == pytest.approx(expected / within)
    assert nearest_distance(y[:4], y) == pytest.approx(0, abs=1e-6)


def test_unusable_sets_raises():
    x, y = _sets()
    for score in (mmd, nearest_distance):
        with pytest.raises(ValueError, match="12 genes and y has 3"):
            score(x, y[:, :3])
        with pytest.raises(ValueError, match="NaN"):
            score(np.full((2, 12), np.nan), y)
    with pytest.raises(ValueError, match="needs two; there is 1"):
        relative_nearest_distance(x, y[:1])
    with pytest.raises(ValueError, match="two that differ; found 5"):
        relative_nearest_distance(x, np.tile(y[:1], (5, 1)))


def test_relative_nearest_distance_is_one_for_a_replicate_and_below_for_a_collapsed_set():
    rng = np.random.default_rng(0)
    y, replicate = rng.poisson(1.0, (300, 40)), rng.poisson(1.0, (300, 40))
    assert relative_nearest_distance(replicate, y) == pytest.approx(1, abs=0.03)
    assert relative_nearest_distance(np.tile(y.mean(axis=0), (50, 1)), y) < 0.9
    assert relative_nearest_distance(y, y) < 1e-6
