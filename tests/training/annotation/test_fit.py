from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.config import HeadConfig, LinearStartConfig
from scstate_lora.training.annotation import fit as fit_module
from scstate_lora.training.annotation.baselines import (
    BALANCED,
    MAJORITY,
    NEIGHBOURS,
    PLAIN,
    baseline_labels,
    check_unknown,
)
from scstate_lora.training.annotation.fit import fit_classes, fit_numbers, mean_logits
from scstate_lora.training.annotation.folds import make_folds
from scstate_lora.training.annotation.heads import added_by, make_heads, train_heads

HEAD = HeadConfig(hidden_dim=8, n_members=2, n_steps=30)
OPTIONS = {"start": LinearStartConfig(), "head": HEAD, "lr": 1e-2, "seed": 0}


def _cells(sizes=(60, 60, 60), *, seed=0, n_genes=40, spread=1.0):
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rates = np.tile(np.random.default_rng(7).gamma(1, 0.5, n_genes), (len(sizes), 1))
    for k in range(len(sizes)):
        rates[k, 3 * k : 3 * (k + 1)] += spread
    x = sparse.csr_matrix(np.log1p(rng.poisson(rates[classes])).astype(np.float32))
    embedding = rng.normal(size=(len(classes), 4)).astype(np.float32)
    return x, classes, embedding, rng.integers(0, 3, len(classes))


def _one_hot(classes, n=3):
    return classes[:, None] == np.arange(n)


def _fit(x, classes, embedding, batches, **options):
    folds = make_folds(classes, batches, seed=0)
    return fit_classes(x, _one_hot(classes), embedding, folds, **{"class_weight": "balanced", **OPTIONS, **options})


def test_an_embedding_that_says_nothing_is_not_listened_to():
    fit = _fit(*_cells())
    assert fit.choice.loss <= fit.choice.start_loss
    assert fit.choice.strength < 0.5


def test_an_embedding_that_knows_is_listened_to_and_chosen_by_the_lowest_loss():
    x, classes, embedding, batches = _cells(spread=0.3)
    embedding[:, :3] += 3 * _one_hot(classes)
    fit = _fit(x, classes, embedding, batches)
    choice = fit.choice
    assert choice.loss < 0.7 * choice.start_loss
    assert choice.loss == min(choice.losses.values())
    assert choice.losses[choice.n_steps, choice.strength] == choice.loss
    right = fit.left_out().correct.mean()
    start = (fit.cells.start.argmax(axis=1) == classes).mean()
    assert right > start + 0.05
    assert (added_by(fit.heads, embedding).argmax(axis=1) == classes).mean() > 0.9


def test_no_cell_was_seen_by_what_judges_it():
    """A label that is wrong in one batch alone must not be found again there."""
    x, classes, embedding, batches = _cells(spread=3.0)
    wrong = batches == 1
    labels = np.where(wrong, (classes + 1) % 3, classes)
    fit = _fit(x, labels, embedding, batches, head=HEAD.model_copy(update={"n_steps": 0}))
    found = fit.cells.start[wrong].argmax(axis=1)
    assert (found == classes[wrong]).mean() > 0.9


def test_a_class_of_one_batch_alone_is_not_judged_there():
    x, classes, embedding, _ = _cells()
    batches = np.where(classes == 2, 1, np.arange(len(classes)) % 2)
    fit = _fit(x, classes, embedding, batches)
    np.testing.assert_array_equal(fit.usable, classes != 2)
    assert not fit.cells.weights[classes == 2].any()  # nor do its cells teach heads: their start is a guess
    assert (fit.expression.start.logits(x)[classes == 2].argmax(axis=1) == 2).mean() > 0.9
    assert np.isfinite(fit.left_out().logits).all()


def test_coarse_labels_teach_what_they_say():
    x, classes, embedding, batches = _cells(spread=2.0)
    allowed = _one_hot(classes)
    coarse = np.isin(classes, [0, 1]) & (np.arange(len(classes)) % 3 == 0)
    allowed[coarse] = [True, True, False]
    fit = fit_classes(x, allowed, embedding, make_folds(classes, batches, seed=0), class_weight="balanced", **OPTIONS)
    logits = fit.expression.start.logits(x)
    assert (logits[coarse].argmax(axis=1) == classes[coarse]).mean() > 0.9
    assert fit.left_out().correct[coarse[fit.usable]].mean() > 0.95


def test_only_validation_cells_are_judged_where_there_are_any():
    x, classes, embedding, batches = _cells()
    is_val = np.arange(len(classes)) % 4 == 0
    folds = make_folds(classes, batches, is_val=is_val, seed=0)
    fit = fit_classes(x, _one_hot(classes), embedding, folds, class_weight="balanced", **OPTIONS)
    np.testing.assert_array_equal(fit.usable, is_val)
    assert len(fit.left_out()) == is_val.sum()


def test_without_a_linear_start_heads_do_all():
    x, classes, embedding, batches = _cells()
    embedding[:, :3] += 3 * _one_hot(classes)
    fit = _fit(x, classes, embedding, batches, start=None)
    assert fit.expression is None
    assert fit.choice.start_loss == pytest.approx(np.log(3), abs=1e-3)
    assert fit.left_out().correct.mean() > 0.8


def test_numbers_are_fitted_on_left_out_cells_too():
    x, _, embedding, batches = _cells()
    values = x[:, :5].toarray().sum(axis=1)
    values = (values - values.mean()) / values.std()
    fit = fit_numbers(x, values, embedding, make_folds(np.zeros(len(values)), batches, seed=0), **OPTIONS)
    assert fit.choice.loss <= fit.choice.start_loss < 0.2  # half of the variance is 0.5
    assert fit.choice.loss == pytest.approx(np.mean((fit.predicted() - values) ** 2) / 2)


def test_means_of_logits_are_of_cells_with_one_label():
    logits = np.array([[2.0, 0], [4, 0], [0, 6], [9, 9]])
    allowed = np.array([[True, False], [True, False], [False, True], [True, True]])
    np.testing.assert_array_equal(mean_logits(logits, allowed), [[3, 0], [0, 6]])
    only_coarse = np.array([[True, False], [True, True], [True, False], [True, True]])
    np.testing.assert_allclose(mean_logits(logits, only_coarse)[1], logits[[1, 3]].mean(axis=0))


def test_baselines_do_what_they_say():
    x, classes, _, batches = _cells((100, 50, 50), spread=3.0)
    found = baseline_labels(x, classes, make_folds(classes, batches, seed=0))
    assert found.keys() == {MAJORITY, PLAIN, BALANCED, NEIGHBOURS}
    assert (found[MAJORITY] == 0).all()
    assert all((found[name] == classes).mean() > 0.8 for name in (PLAIN, BALANCED, NEIGHBOURS))


def test_baselines_do_not_see_the_fold():
    x, classes, _, batches = _cells(spread=3.0)
    wrong = batches == 1
    labels = np.where(wrong, (classes + 1) % 3, classes)
    found = baseline_labels(x, labels, make_folds(classes, batches, seed=0))
    assert all((found[name][wrong] == classes[wrong]).mean() > 0.8 for name in (PLAIN, BALANCED, NEIGHBOURS))
    _, outside = make_folds(classes, None, is_val=wrong, seed=0).rows(0)
    only = baseline_labels(x, classes, make_folds(classes, None, is_val=wrong, seed=0))
    assert (only[PLAIN][outside] >= 0).all()
    assert (np.delete(only[PLAIN], outside) == -1).all()


def test_a_type_that_was_left_out_is_found_if_it_is_unlike_the_others():
    x, classes, embedding, batches = _cells((80, 80, 80), spread=3.0, n_genes=60)
    fit = _fit(x, classes, embedding, batches)
    checks = check_unknown(x, classes, fit.folds, fit.left_out(), config=LinearStartConfig())
    assert checks.keys() == {0, 1, 2}
    assert all(check.auroc > 0.8 for check in checks.values())
    assert checks[0].n_unknown == ((classes == 0) & (fit.folds.number == 0)).sum()


def test_rare_types_are_not_checked():
    x, classes, embedding, batches = _cells((80, 80, 6))
    fit = _fit(x, classes, embedding, batches)
    assert 2 not in check_unknown(x, classes, fit.folds, fit.left_out(), config=LinearStartConfig())


def test_heads_count_as_much_as_was_chosen(monkeypatch):
    monkeypatch.setattr(fit_module, "_STRENGTHS", (0.0, 0.3))
    x, classes, embedding, batches = _cells(spread=0.3)
    embedding[:, 0] += classes == 0
    fit = _fit(x, classes, embedding, batches)
    again = make_heads(fit.cells, HEAD, seed=0)
    train_heads(again, fit.cells, fit.choice.n_steps, lr=1e-2, seed=0)
    expected = fit.choice.strength * added_by(again, embedding)
    assert fit.choice.strength == 0.3
    np.testing.assert_allclose(added_by(fit.heads, embedding), expected, atol=1e-5)
