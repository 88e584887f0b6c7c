from __future__ import annotations

import numpy as np
import pytest
import torch

from scstate_lora.config import HeadConfig
from scstate_lora.training.annotation.folds import make_folds
from scstate_lora.training.annotation.heads import HeadCells, added_by, make_heads, scale_heads, train_heads, try_heads

CONFIG = HeadConfig(hidden_dim=8, dropout=0.1, n_members=2, n_steps=9)


def _cells(n=120, *, seed=0):
    """Two classes that the embedding tells apart and the start does not."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, n)
    embedding = rng.normal(size=(n, 5)).astype(np.float32) * 10 + 50
    embedding[:, 0] += 30 * classes
    goal = classes[:, None] == np.arange(2)
    return HeadCells(embedding, np.zeros((n, 2), dtype=np.float32), goal, np.ones(n, dtype=np.float32))


def _state(heads):
    return {name: tensor.clone() for name, tensor in heads.state_dict().items()}


def test_heads_standardise_the_embedding_of_their_cells():
    cells = _cells()
    heads = make_heads(cells, CONFIG, seed=0)
    np.testing.assert_allclose(heads.mean, cells.embedding.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(heads.sd, cells.embedding.std(axis=0, ddof=1), rtol=1e-5)


def test_a_single_cell_has_no_spread_to_divide_by():
    heads = make_heads(_cells(1), CONFIG, seed=0)
    train_heads(heads, _cells(1), 2, lr=1e-2, seed=0)
    assert np.abs(added_by(heads, _cells(3).embedding)).max() < 100


def test_the_seed_decides_and_the_global_state_does_not():
    cells, trained = _cells(), []
    for seed, ambient in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(ambient)
        before = torch.get_rng_state()
        heads = make_heads(cells, CONFIG, seed=seed)
        train_heads(heads, cells, 5, lr=1e-2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        trained.append(added_by(heads, cells.embedding))
    np.testing.assert_array_equal(trained[0], trained[1])
    assert (trained[0] != trained[2]).any()


def test_what_is_learned_lowers_the_loss_of_other_cells():
    cells, new = _cells(), _cells(seed=1)
    heads = make_heads(cells, CONFIG, seed=0)
    assert not added_by(heads, new.embedding).any()
    train_heads(heads, cells, 60, lr=1e-2, seed=0)
    assert (added_by(heads, new.embedding).argmax(axis=1) == new.goal.argmax(axis=1)).mean() > 0.9
    assert not heads.training


def test_cells_of_no_weight_teach_nothing():
    cells = _cells()
    wrong = np.arange(len(cells)) % 2 == 0
    goal = np.where(wrong[:, None], ~cells.goal, cells.goal)
    weights = np.where(wrong, 0, 1).astype(np.float32)
    heads = make_heads(cells, CONFIG, seed=0)
    train_heads(heads, HeadCells(cells.embedding, cells.start, goal, weights), 60, lr=1e-2, seed=0)
    assert (added_by(heads, cells.embedding).argmax(axis=1) == cells.goal.argmax(axis=1)).mean() > 0.9


def test_numbers_are_learned_as_well():
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(200, 5)).astype(np.float32)
    values = embedding[:, 0] - embedding[:, 1]
    cells = HeadCells(embedding, np.zeros((200, 1), np.float32), values, np.ones(200, np.float32))
    heads = make_heads(cells, CONFIG, seed=0)
    train_heads(heads, cells, 150, lr=1e-2, seed=0)
    assert np.corrcoef(added_by(heads, embedding)[:, 0], values)[0, 1] > 0.9


def test_trials_are_trainings_without_the_fold():
    cells = _cells()
    folds = make_folds(cells.goal[:, 0], np.arange(120) % 3, seed=0)
    trials = try_heads(cells, folds, CONFIG, lr=1e-2, seed=4)
    assert trials.steps == (3, 6, 9)
    for number, n_steps in enumerate(trials.steps):
        for fold, (inside, outside) in enumerate(folds):
            part = cells.take(inside)
            heads = make_heads(part, CONFIG, seed=4)
            train_heads(heads, part, n_steps, lr=1e-2, seed=4)
            np.testing.assert_allclose(
                trials.added[number, outside], added_by(heads, cells.embedding[outside]), atol=1e-6
            )
            np.testing.assert_allclose(trials.added_inside[fold][number], added_by(heads, part.embedding), atol=1e-6)
            for name, tensor in _state(heads).items():
                torch.testing.assert_close(trials.states[fold][number][name], tensor, atol=1e-6, rtol=0)


def test_a_strength_multiplies_what_is_added():
    cells = _cells()
    heads = make_heads(cells, CONFIG, seed=0)
    train_heads(heads, cells, 5, lr=1e-2, seed=0)
    whole = added_by(heads, cells.embedding)
    assert whole.any()
    scale_heads(heads, 0.3)
    np.testing.assert_allclose(added_by(heads, cells.embedding), 0.3 * whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_steps", [0, 1])
def test_hardly_any_steps(n_steps):
    cells = _cells()
    trials = try_heads(
        cells, make_folds(np.zeros(120), None, seed=0), CONFIG.model_copy(update={"n_steps": n_steps}), lr=1e-2, seed=0
    )
    assert trials.steps[-1] == n_steps
    assert trials.added[-1].any() == bool(n_steps)


def test_the_seed_of_the_steps_decides_too():
    cells, trained = _cells(), []
    for seed in (0, 1):
        heads = make_heads(cells, CONFIG, seed=0)
        train_heads(heads, cells, 5, lr=1e-2, seed=seed)
        trained.append(added_by(heads, cells.embedding))
    assert (trained[0] != trained[1]).any()
