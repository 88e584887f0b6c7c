from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.inference.composition_shift import composition_shift

MEANS = np.array([[3.0, -1, -1, -1], [-1, 3, -1, -1], [-1, -1, 2, 0], [-1, -1, 0, 2]])
BATCH = np.array([-1.2, 0.2, 1.6, -0.6])


def _cells(mix, n=2000, *, batch=BATCH, seed=0):
    """Logits of cells around the means of their classes, moved by a batch; and their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(4, n, p=mix)
    return MEANS[classes] + batch + rng.normal(scale=0.6, size=(n, 4)), classes


@pytest.mark.parametrize("mix", [[0.25] * 4, [0.1, 0.6, 0.1, 0.2]])
def test_a_batch_is_told_from_its_composition(mix):
    logits, classes = _cells(mix)
    found = composition_shift(logits, MEANS, max_changed=1)
    np.testing.assert_allclose(found.offset, BATCH - BATCH.mean(), atol=0.12)
    np.testing.assert_allclose(found.proportions, mix, atol=0.04)
    plain, shifted = (np.mean(x.argmax(axis=1) == classes) for x in (logits, logits - found.offset))
    assert shifted > plain + 0.05
    assert found.scale == 1
    assert found.note == f"on: {found.changed:.1%} of the labels change"


def test_an_unusual_composition_alone_is_no_shift():
    logits, _ = _cells([0.7, 0.1, 0.1, 0.1], batch=np.zeros(4))
    found = composition_shift(logits, MEANS)
    assert np.abs(found.offset).max() < 0.1
    one = composition_shift(_cells([0, 1, 0, 0], batch=np.zeros(4))[0], MEANS)
    assert np.abs(one.offset).max() < 0.1
    assert "look like one type" in one.note


@pytest.mark.parametrize("n", [10, 39, 40, 300])
@pytest.mark.parametrize("max_changed", [0.05, 0.0])
def test_no_more_labels_change_than_allowed(n, max_changed):
    """So that accuracy falls by no more than this, whatever the cells are."""
    logits, _ = _cells([0.25] * 4, n, batch=1.3 * BATCH)
    whole = composition_shift(logits, MEANS, max_changed=1)
    found = composition_shift(logits, MEANS, max_changed=max_changed)
    assert found.changed <= max_changed
    assert found.changed == np.mean(logits.argmax(axis=1) != (logits - found.offset).argmax(axis=1))
    assert (found.scale < 1) == (whole.changed > max_changed)
    if n >= 39:
        assert whole.changed > 0.1
        assert found.note.startswith(f"reduced to {found.scale:.0%}")
        more = found.offset / found.scale * (found.scale + 1e-3)  # it is the largest scale there is
        assert np.mean(logits.argmax(axis=1) != (logits - more).argmax(axis=1)) > max_changed or n > 100


def test_few_cells_are_shrunk_and_fewer_left_alone():
    many = composition_shift(_cells([0.25] * 4)[0], MEANS, max_changed=1).offset
    some = composition_shift(_cells([0.25] * 4, 50)[0], MEANS, max_changed=1).offset
    assert 0.3 < np.linalg.norm(some) / np.linalg.norm(many) < 0.7
    few = composition_shift(_cells([0.25] * 4, 9)[0], MEANS)
    assert (few.offset == 0).all()
    assert few.note == "off: 9 cells, and fewer than 10 say nothing of their batch"
    assert composition_shift(np.empty((0, 4)), MEANS).scale == 0


def test_proportions_that_do_not_settle_turn_it_off():
    # Class means that answer a class by its opposite: every step undoes the one before.
    logits = np.tile([[0.1, -0.1], [-0.1, 0.1], [2, -2]], (40, 1))
    found = composition_shift(logits, np.array([[-40.0, 40], [40, -40]]), n_prior=0)
    assert found.note == "off: the proportions of types did not settle in 50 steps"
    assert (found.offset == 0).all()


def test_a_constant_for_all_classes_changes_nothing():
    logits, _ = _cells([0.25] * 4)
    np.testing.assert_allclose(
        composition_shift(logits + 5, MEANS).offset, composition_shift(logits, MEANS).offset, atol=1e-9
    )


@pytest.mark.parametrize(
    ("logits", "options", "match"),
    [
        (np.zeros((20, 3)), {}, "the same classes"),
        (np.full((20, 4), -np.inf), {}, "finite"),
        (np.zeros((20, 4)), {"max_changed": 1.5}, "max_changed=1.5"),
        (np.zeros((20, 4)), {"n_prior": -1}, "n_prior=-1"),
    ],
)
def test_unusable_input_raises(logits, options, match):
    with pytest.raises(ValueError, match=match):
        composition_shift(logits, MEANS, **options)
