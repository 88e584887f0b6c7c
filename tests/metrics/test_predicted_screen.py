"""The scores of count tables and profiles on a simulated screen: what is right, and what each is not fooled by."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.datasets import perturbation_screen
from scstate_lora.metrics import (
    count_profiles,
    de_table,
    direction_fidelity_yield,
    direction_reach,
    lfc_nmae,
    pds_cosine,
    sig_jaccard,
    unbiased_errors,
)


@pytest.fixture(scope="module")
def screen():
    cells = perturbation_screen(12, n_cells=3000, n_control=600, n_genes=200, n_cell_types=1)
    label = cells.obs["perturbation"].to_numpy().astype(str)
    names = sorted(set(label) - {"control"})
    is_control = label == "control"
    code = np.array([names.index(name) for name in label[~is_control]])
    share = np.expm1(cells.layers["mean"])[~is_control].astype(np.float64)
    base = np.expm1(cells.layers["mean"])[is_control].mean(axis=0, dtype=np.float64)
    counts = sparse.csr_matrix(cells.X)
    return counts[~is_control], code, counts[is_control], share, base, np.searchsorted(cells.var_names, names)


def _draw(rates, seed=0):
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(4000 * rates / rates.sum(axis=1, keepdims=True)))


def _scores(pred, screen):
    real, code, control, _, _, targets = screen
    table, truth = de_table(pred, code, control), de_table(real, code, control)
    bulk, measured, base = count_profiles(pred, code), count_profiles(real, code), count_profiles(control)
    effects = [side.expression - base.expression for side in (bulk, measured)]
    scores = {
        score.__name__: float(np.nanmean(score(table, truth, targets=targets)))
        for score in (direction_fidelity_yield, direction_reach, sig_jaccard, lfc_nmae)
    }
    scores["pds_cosine"] = float(pds_cosine(*effects, targets=targets).mean())
    return scores | {"mse": unbiased_errors(bulk, measured, base, targets=targets).normalized}


def test_the_true_rates_score_nearly_perfectly(screen):
    scores = _scores(_draw(screen[3]), screen)
    assert scores["pds_cosine"] == 1
    assert abs(scores["mse"]) < 0.05
    assert scores["direction_reach"] > 0.95
    assert scores["direction_fidelity_yield"] > 0.7
    assert scores["sig_jaccard"] > 0.5
    assert scores["lfc_nmae"] < 0.3
    itself = _scores(screen[0], screen)
    assert [itself[name] for name in ("pds_cosine", "direction_reach", "sig_jaccard", "lfc_nmae")] == [1, 1, 1, 0]


def test_controls_as_prediction_score_the_floor(screen):
    control = screen[2]
    rows = np.resize(np.arange(control.shape[0]), len(screen[1]))
    rows = np.random.default_rng(0).permutation(rows)
    scores = _scores(control[rows], screen)
    assert scores["mse"] == pytest.approx(1, abs=0.1)
    assert scores["pds_cosine"] == pytest.approx(0.5, abs=0.2)
    assert scores["sig_jaccard"] < 0.02
    assert scores["direction_reach"] < 0.4
    assert scores["lfc_nmae"] == pytest.approx(1, abs=0.15)


def test_effects_of_twice_the_size_are_caught_by_the_size(screen):
    _, _, _, share, base, _ = screen
    right, twice = _scores(_draw(share), screen), _scores(_draw(base * (share / base) ** 2), screen)
    assert twice["mse"] > right["mse"] + 0.5
    assert twice["lfc_nmae"] > right["lfc_nmae"] + 0.4
    assert twice["pds_cosine"] == 1


def test_effects_of_other_perturbations_are_caught_by_discrimination(screen):
    _, code, _, share, _, _ = screen
    means = np.array([share[code == i].mean(axis=0) for i in range(code.max() + 1)])
    scores = _scores(_draw(np.roll(means, 1, axis=0)[code]), screen)
    assert scores["pds_cosine"] < 0.6
    assert scores["mse"] > 0.3
