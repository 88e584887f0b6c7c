from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from scipy import sparse
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from scstate_lora.training.annotation.linear_start import LinearStart, fit_linear_start

SIZES = [150, 60, 20]


def _cells(sizes=SIZES, *, seed=0, n_genes=80, own=3, spread=1.0):
    """log1p counts, sparse, of types with more of `own` genes each; and the number of each cell's type."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rates = np.tile(np.random.default_rng(7).gamma(1, 0.5, n_genes), (len(sizes), 1))
    for k in range(len(sizes)):
        rates[k, own * k : own * (k + 1)] += 1.5 * spread
    return sparse.csr_matrix(np.log1p(rng.poisson(rates[classes])).astype(np.float32)), classes


def _one_hot(classes, n=None):
    return np.asarray(classes)[:, None] == np.arange(n or classes.max() + 1)


@pytest.mark.parametrize("class_weight", ["balanced", "none"])
def test_it_is_the_regression_of_scikit_learn(class_weight):
    x, classes = _cells()
    ours = fit_linear_start(x, _one_hot(classes), n_top_genes=50, class_weight=class_weight)
    dense = x.toarray()
    genes = np.sort(np.argsort(-dense.var(axis=0))[:50])
    np.testing.assert_array_equal(ours.genes, genes)
    scaler = StandardScaler().fit(dense[:, genes])
    theirs = LogisticRegression(C=0.1, class_weight={"balanced": "balanced", "none": None}[class_weight], tol=1e-7)
    theirs.fit(np.clip(scaler.transform(dense[:, genes]), -3, 3), classes)
    new, _ = _cells(seed=1)
    expected = theirs.predict_proba(np.clip(scaler.transform(new.toarray()[:, genes]), -3, 3))
    np.testing.assert_allclose(softmax(ours.logits(new), axis=1), expected, atol=2e-3)


def test_rare_types_gain_from_weights():
    x, classes = _cells([400, 400, 8], spread=0.6)
    new, truth = _cells([200, 200, 200], seed=1, spread=0.6)

    def found(weight):
        start = fit_linear_start(x, _one_hot(classes), class_weight=weight)
        return np.mean(start.logits(new)[truth == 2].argmax(axis=1) == 2)

    assert found("balanced") > found("root") > found("none") + 0.05


def test_saved_as_tensors_and_computed_by_torch_alike():
    x, classes = _cells()
    start = fit_linear_start(x, _one_hot(classes))
    again = LinearStart.from_arrays(load(save(start.arrays())))
    np.testing.assert_array_equal(again.logits(x), start.logits(x))
    a = {name: torch.from_numpy(array) for name, array in again.arrays().items()}
    z = ((torch.from_numpy(x.toarray())[:, a["genes"]] - a["mean"]) / a["sd"]).clip(-a["clip"], a["clip"])
    np.testing.assert_allclose((z @ a["coef"].T + a["intercept"]).numpy(), start.logits(x), atol=1e-5)
    with pytest.raises(ValueError, match=r"missing: 'coef', not known: 'coefs'"):
        LinearStart.from_arrays({"coefs" if k == "coef" else k: v for k, v in start.arrays().items()})


def test_dense_sparse_and_blocks_agree_and_mean_logits_are_those_of_classes(monkeypatch):
    x, classes = _cells()
    start = fit_linear_start(x, _one_hot(classes))
    other = fit_linear_start(x.toarray(), _one_hot(classes))
    np.testing.assert_allclose(other.coef, start.coef, atol=1e-4)
    whole = start.logits(x)
    monkeypatch.setattr("scstate_lora.training.annotation.linear_start._BLOCK", 7)
    np.testing.assert_allclose(start.logits(x), whole, atol=1e-5)
    assert start.logits(x[:0]).shape == (0, 3)
    means = np.stack([whole[classes == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(start.class_logits, means, atol=1e-3)


def test_an_unmeasured_gene_counts_as_average():
    x, classes = _cells()
    start = fit_linear_start(x, _one_hot(classes))
    lacking, measured = x.toarray(), np.ones(80, dtype=bool)
    lacking[:, 3:6], measured[3:6] = 0, False  # the genes of the second type
    hidden = start.features(lacking, measured=measured)
    assert (hidden[:, np.isin(start.genes, [3, 4, 5])] == 0).all()
    as_zero, as_average = (start.logits(lacking, measured=m)[classes == 1].argmax(axis=1) for m in (None, measured))
    assert np.mean(as_average == 1) > np.mean(as_zero == 1)


def test_coarse_labels_help_as_sums_over_their_classes():
    """Types 1 and 2 share a coarse label: their cells teach what tells both from type 0, not one from the other."""
    x, classes = _cells([300, 300, 300], spread=0.5)
    fine = _one_hot(classes)
    is_fine = np.random.default_rng(0).random(900) < 0.02
    coarse = np.where(is_fine[:, None], fine, fine | (fine[:, 1:].any(axis=1, keepdims=True) & (np.arange(3) > 0)))
    coarse[(classes == 0) & ~is_fine] = [True, False, False]
    new, truth = _cells([300, 300, 300], seed=1, spread=0.5)

    def broad_accuracy(start):
        return np.mean((start.logits(new).argmax(axis=1) > 0) == (truth > 0))

    # At the optimum of the summed probabilities no intercept has a slope: they are not penalised.
    p = softmax(fit_linear_start(x, coarse, class_weight="none").logits(x).astype(np.float64), axis=1)
    share = np.where(coarse, p, 0) / np.where(coarse, p, 0).sum(axis=1, keepdims=True)
    np.testing.assert_allclose((p - share).mean(axis=0), 0, atol=1e-4)
    few = fit_linear_start(x[is_fine], fine[is_fine])
    more = fit_linear_start(x, coarse)
    assert broad_accuracy(more) > broad_accuracy(few) + 0.03
    # By its definition: the loss counts the sum over open classes, so it is lower than that of the fit to fine cells.
    sums = [np.where(coarse, softmax(s.logits(x), axis=1), 0).sum(axis=1) for s in (few, more)]
    assert -np.log(sums[1]).mean() < -np.log(sums[0]).mean()


def test_not_converged_warns():
    x, classes = _cells()
    with pytest.warns(UserWarning, match="not converged after 2 steps"):
        fit_linear_start(x, _one_hot(classes), max_iter=2)


@pytest.mark.parametrize(
    ("allowed", "match"),
    [
        (np.ones((3, 2), dtype=bool), r"must be \(230, n_classes\)"),
        (np.ones((230, 1), dtype=bool), "two classes"),
        (np.arange(2) < np.zeros((230, 1)), "230 of 230 cells have no class"),
        (np.tile([True, False, True], (230, 1)), "No cell is of class 1"),
    ],
)
def test_unusable_classes_raise(allowed, match):
    with pytest.raises(ValueError, match=match):
        fit_linear_start(_cells()[0], allowed)
