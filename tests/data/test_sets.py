from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.data.sets import Group, SetData, SetSampler, WholeGroups, make_groups, windows

N = 400
CONTEXTS = np.random.default_rng(0).choice(["B", "NK", "T"], N).astype(object)
PERTS = np.random.default_rng(1).integers(0, 3, N)
CONTROL = 1
ALL = np.ones(N, dtype=bool)
CODES = np.arange(3, dtype=np.float32)[:, None]


def _sampler(groups, **changed):
    """Expression holds each cell's own number, so that a draw can be traced back."""
    x = sparse.csr_matrix(np.stack([np.arange(N) + 1, np.ones(N)], axis=1).astype(np.float32))
    options = {"n_sets": 6, "set_len": 8, "seed": 0, "unknown": {"day": -1}, "withheld": 0.0, **changed}
    return SetSampler(SetData(x, CODES, {"day": np.arange(N) * 10}), groups, **options)


def _rows(expression):
    return expression[..., 0].astype(int) - 1


def test_groups_pair_perturbed_cells_with_controls_of_their_context():
    groups = make_groups(CONTEXTS, PERTS, CONTROL, ALL, min_cells=1)
    assert [(g.context, g.pert) for g in groups] == [(c, p) for c in ("B", "NK", "T") for p in (0, 2)]
    for group in groups:
        inside = group.context == CONTEXTS
        assert group.perturbed.tolist() == np.flatnonzero(inside & (group.pert == PERTS)).tolist()
        assert group.control.tolist() == np.flatnonzero(inside & (PERTS == CONTROL)).tolist()


def test_groups_contain_only_cells_of_the_split():
    train = np.random.default_rng(2).random(N) < 0.5
    for group in make_groups(CONTEXTS, PERTS, CONTROL, train, min_cells=1):
        assert train[group.control].all()
        assert train[group.perturbed].all()


def test_groups_that_are_too_small_are_left_out():
    few = ALL & ~((CONTEXTS == "NK") & (PERTS == CONTROL))
    assert {g.context for g in make_groups(CONTEXTS, PERTS, CONTROL, few, min_cells=1)} == {"B", "T"}
    few = ALL.copy()
    few[np.flatnonzero((CONTEXTS == "B") & (PERTS == 2))[3:]] = False
    groups = make_groups(CONTEXTS, PERTS, CONTROL, few, min_cells=4)
    assert ("B", 2) not in {(g.context, g.pert) for g in groups}
    assert ("B", 2) in {(g.context, g.pert) for g in make_groups(CONTEXTS, PERTS, CONTROL, few, min_cells=3)}
    assert make_groups(CONTEXTS, PERTS, CONTROL, ~ALL, min_cells=1) == []


def test_a_batch_has_sets_within_one_context():
    groups = make_groups(CONTEXTS, PERTS, CONTROL, ALL, min_cells=1)
    batch = _sampler(groups)[0]
    assert batch["control"].shape == batch["target"].shape == (6, 8, 2)
    assert batch["control"].dtype == batch["target"].dtype == np.float32
    assert batch["pert"].shape == (6, 1)
    assert batch["pert"].dtype == np.float32
    control, target = _rows(batch["control"]), _rows(batch["target"])
    assert (PERTS[control] == CONTROL).all()
    assert (PERTS[target] == batch["pert"]).all()
    assert (CONTEXTS[control] == CONTEXTS[target]).all()
    assert all(len(set(CONTEXTS[cells])) == 1 for cells in target)
    assert (batch["covariates"]["day"] == control * 10).all()


def test_batches_depend_only_on_seed_and_index():
    groups = make_groups(CONTEXTS, PERTS, CONTROL, ALL, min_cells=1)
    sampler = _sampler(groups)
    later = sampler[5]
    again = _sampler(groups)[5]
    assert (later["control"] == again["control"]).all()
    assert (later["target"] == again["target"]).all()
    assert (sampler[4]["target"] != later["target"]).any()
    assert (_sampler(groups, seed=1)[5]["target"] != later["target"]).any()


def test_a_set_repeats_cells_only_if_the_group_is_too_small():
    groups = make_groups(CONTEXTS, PERTS, CONTROL, ALL, min_cells=1)
    assert all(len(set(cells)) == 8 for cells in _rows(_sampler(groups)[0]["target"]))
    small = Group("B", 2, np.arange(20), np.array([30, 31]))
    batch = _sampler([small])[0]
    assert set(_rows(batch["target"]).ravel()) == {30, 31}
    assert all(len(set(cells)) == 8 for cells in _rows(batch["control"]))


def test_groups_are_sampled_by_the_square_root_of_their_size():
    large = Group("B", 2, np.arange(20), np.arange(100, 260))
    small = Group("T", 0, np.arange(20), np.arange(300, 310))
    drawn = np.concatenate([_sampler([large, small], n_sets=100)[i]["pert"] for i in range(10)])
    assert (drawn == 2).mean() == pytest.approx(0.8, abs=0.05)


def test_covariates_are_withheld_at_random_and_nothing_else_changes():
    groups = make_groups(CONTEXTS, PERTS, CONTROL, ALL, min_cells=1)
    plain = _sampler(groups, n_sets=100)[3]
    hiding = _sampler(groups, n_sets=100, withheld=0.3)
    batch = hiding[3]
    for name in ("control", "target", "pert"):
        np.testing.assert_array_equal(batch[name], plain[name])
    hidden = batch["covariates"]["day"] == -1
    assert hidden.mean() == pytest.approx(0.3, abs=0.06)
    np.testing.assert_array_equal(batch["covariates"]["day"][~hidden], plain["covariates"]["day"][~hidden])
    np.testing.assert_array_equal(hiding[3]["covariates"]["day"], batch["covariates"]["day"])
    assert ((hiding[4]["covariates"]["day"] == -1) != hidden).any()


def test_no_groups_raises():
    with pytest.raises(ValueError, match=r"No context has enough control and perturbed cells.*context_keys="):
        _sampler([])


def test_windows_hold_every_cell_once_in_sets_of_nearly_equal_size():
    rows = np.arange(100, 150)
    sets = windows(rows, 16, np.random.default_rng(0))
    assert sorted(len(s) for s in sets) == [12, 12, 13, 13]
    assert sorted(np.concatenate(sets)) == rows.tolist()
    assert np.concatenate(sets).tolist() != rows.tolist()
    assert [len(s) for s in windows(rows[:3], 16, np.random.default_rng(0))] == [3]
    again = windows(rows, 16, np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(sets, again, strict=True))


def test_whole_groups_give_every_group_once_with_each_cell_at_most_once():
    x = sparse.csr_matrix(np.stack([np.arange(N) + 1, np.ones(N)], axis=1).astype(np.float32))
    groups = make_groups(CONTEXTS, PERTS, CONTROL, ALL, min_cells=1)
    sets = WholeGroups(SetData(x, CODES, {"day": np.arange(N) * 10}), groups, set_len=30, seed=0)
    assert sets.steps_per_epoch == len(groups)
    for index, group in enumerate(groups):
        batch = sets[index]
        control, target = _rows(batch["control"])[0], _rows(batch["target"])[0]
        assert len(set(control)) == len(control) == min(30, len(group.control))
        assert len(set(target)) == len(target) == min(30, len(group.perturbed))
        assert set(control) <= set(group.control)
        assert set(target) <= set(group.perturbed)
        assert batch["pert"].tolist() == [[group.pert]]
        np.testing.assert_array_equal(batch["covariates"]["day"][0], control * 10)
        np.testing.assert_array_equal(sets[index]["control"], batch["control"])
