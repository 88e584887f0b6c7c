from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scstate_lora.data.sets import Group
from scstate_lora.nn.context_shift import ContextShift
from scstate_lora.training.st.context_prior import fit_contexts
from scstate_lora.training.st.shift_prior import group_statistics, mean_shifts, shifts_of

N_CELLS, N_GENES = 60, 30


def _types(n_types: int, *, depends: float, seed: int = 0):
    """Cell types along a line; the response is a common one plus `depends` times the place on the line."""
    rng = np.random.default_rng(seed)
    along, common, response = rng.normal(size=(3, N_GENES))
    cells, groups, deltas = [], [], []
    for t in range(n_types):
        place = t - (n_types - 1) / 2
        delta = common + depends * place * response
        cells += [
            3 * place * along + rng.normal(size=(N_CELLS, N_GENES)),
            3 * place * along + delta + rng.normal(size=(N_CELLS, N_GENES)),
        ]
        rows = np.arange(2 * N_CELLS * t, 2 * N_CELLS * (t + 1))
        groups.append(Group(f"type{t}", 0, rows[:N_CELLS], rows[N_CELLS:]))
        deltas.append(delta)
    return np.concatenate(cells), groups, np.array(deltas)


def _nowhere(groups) -> np.ndarray:
    return np.zeros((len(groups), 0))


def _error(x, groups, deltas, left: int) -> tuple[float, float]:
    """Squared error for a type that was left out, of the fit and of the mean shift."""
    kept = [g for i, g in enumerate(groups) if i != left]
    perts = np.ones((1, 1))
    mean = perts @ mean_shifts(x, kept, perts)
    fitted = fit_contexts(x, kept, perts, np.zeros((len(kept), 0)), [g.context for g in kept])
    control = x[groups[left].control].mean(axis=0)[None]
    return tuple(
        np.square(p[0] - deltas[left]).sum() for p in (mean + fitted.predict(control, perts, np.zeros((1, 0))), mean)
    )


def test_a_type_that_was_left_out_is_predicted_better_than_by_the_mean_shift() -> None:
    x, groups, deltas = _types(7, depends=0.6)
    for left in range(7):
        fitted, mean = _error(x, groups, deltas, left)
        if left != 3:  # the one in the middle responds as the mean
            assert fitted < 0.6 * mean, left


def test_types_that_respond_alike_get_the_mean_shift() -> None:
    x, groups, _ = _types(7, depends=0.0)
    fitted = fit_contexts(x, groups, np.ones((1, 1)), _nowhere(groups), [g.context for g in groups])
    control = np.array([x[g.control].mean(axis=0) for g in groups])
    assert np.abs(fitted.predict(control, np.ones((7, 1)), _nowhere(groups))).max() < 0.15
    if len(fitted.points) == 0:
        assert "respond alike" in fitted.note


@pytest.mark.parametrize("n_types", [1, 2])
def test_few_types_cannot_tell(n_types: int) -> None:
    x, groups, _ = _types(n_types, depends=1.0)
    fitted = fit_contexts(x, groups, np.ones((1, 1)), _nowhere(groups), [g.context for g in groups])
    assert "too few cell types" in fitted.note
    assert fitted.predict(x[:2], np.ones((2, 1)), np.zeros((2, 0))).tolist() == np.zeros((2, N_GENES)).tolist()


def test_groups_of_one_type_are_left_out_together() -> None:
    """Two donors a type: each donor predicts the other well, which says nothing of other types."""
    x, groups, _ = _types(8, depends=0.0)
    rng = np.random.default_rng(1)
    names = [f"type{i // 2}" for i in range(8)]
    odd = {name: rng.normal(size=N_GENES) for name in names}
    for group, name in zip(groups, names, strict=True):
        x[group.perturbed] += odd[name]  # nothing in the controls tells it
    together = fit_contexts(x, groups, np.ones((1, 1)), _nowhere(groups), names)
    apart = fit_contexts(x, groups, np.ones((1, 1)), _nowhere(groups), [g.context for g in groups])
    size = [
        np.square(f.predict(np.array([x[g.control].mean(0) for g in groups]), np.ones((8, 1)), _nowhere(groups))).sum()
        for f in (together, apart)
    ]
    assert size[0] < size[1]


def test_the_module_computes_what_was_solved_for() -> None:
    x, groups, _ = _types(6, depends=0.6)
    fitted = fit_contexts(sparse.csr_matrix(x), groups, np.ones((1, 1)), _nowhere(groups), [g.context for g in groups])
    assert len(fitted.points) == 6
    module = ContextShift(N_GENES, 1, n_references=6, n_directions=fitted.basis.shape[1])
    names = ("centre", "basis", "points", "perts", "alpha", "width", "slope", "reach")
    module.load_state_dict({n: torch.as_tensor(getattr(fitted, n), dtype=torch.float32) for n in names})
    means = np.random.default_rng(2).normal(size=(4, N_GENES))
    got = module(torch.tensor(means, dtype=torch.float32), torch.ones(4, 1), torch.zeros(0))
    np.testing.assert_allclose(got.numpy(), fitted.predict(means, np.ones((4, 1)), np.zeros((4, 0))), atol=1e-4)


def test_a_covariate_is_used_where_it_tells_contexts_of_left_out_types_apart() -> None:
    """Types along a line, each on two days that differ in the response and not in the controls."""
    x, groups, _ = _types(12, depends=0.0)
    day = np.arange(12) % 2
    response = np.random.default_rng(3).normal(size=N_GENES)
    for group, later in zip(groups, day, strict=True):
        x[group.perturbed] += (2 * later - 1) * response
    names = [f"type{i // 2}" for i in range(12)]
    where = (2.0 * day - 1)[:, None]
    told = fit_contexts(x, groups, np.ones((1, 1)), where, names)
    without = fit_contexts(x, groups, np.ones((1, 1)), np.zeros((12, 1)), names)
    control = np.array([x[g.control].mean(axis=0) for g in groups])
    assert told.reach > 0
    assert "and their covariates" in told.note
    wanted = where * response
    error, other = (
        np.square(f.predict(control, np.ones((12, 1)), w) - wanted).sum()
        for f, w in ((told, where), (without, 0 * where))
    )
    assert error < 0.3 * other


def test_further_columns_get_the_weights_that_they_would_have_among_the_others() -> None:
    x, groups, _ = _types(7, depends=0.6)
    fitted = fit_contexts(x, groups, np.ones((1, 1)), _nowhere(groups), [g.context for g in groups])
    stats, perts = group_statistics(x, groups), np.ones((len(groups), 1))
    centre, alpha = fitted.extend(stats, perts, shifts_of(stats.delta, perts))
    np.testing.assert_allclose(centre, fitted.centre)
    np.testing.assert_allclose(alpha, fitted.alpha, atol=1e-10)
