from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.metrics import (
    cell_cov_corr,
    centered_energy_distance,
    detection_mae,
    detection_r2,
    energy_distance,
    sd_r2,
    sd_ratio,
)


def test_standard_deviations_by_hand():
    real = np.array([[0.0, 0, 0], [2, 4, 6]])  # sample standard deviations: sqrt(2) times 1, 2, 3
    pred = np.array([[1.0, 1, 1], [3, 5, 5]])  # 1, 2, 2
    assert sd_r2(pred, real) == pytest.approx(1 - 1 / 2)
    assert sd_ratio(pred, real) == pytest.approx(5 / 6)
    assert sd_r2(real + 7, real) == sd_ratio(real + 7, real) == pytest.approx(1)
    assert sd_r2(2 * real, real) == pytest.approx(1 - (1 + 4 + 9) / 2)  # right order, wrong size
    assert sd_ratio(np.zeros_like(real), real) == 0
    assert sd_ratio(np.repeat(real, 2, axis=0), real) == pytest.approx(np.sqrt(2 / 3))  # of samples: n - 1


def test_detection_by_hand():
    real = np.array([[0.0, 0, 1, 1], [0, 2, 0, 1]])  # rates 0, 0.5, 0.5, 1
    pred = np.array([[0.0, 1, 1, 1], [1, 0, 1, 3]])  # rates 0.5, 0.5, 1, 1
    assert detection_mae(pred, real) == pytest.approx(0.25)
    assert detection_r2(pred, real) == pytest.approx(1 - 0.5 / 0.5)
    assert detection_mae(9 * real, real) == 0
    assert detection_r2(9 * real, real) == 1


@pytest.fixture(scope="module")
def programme():
    """Cells whose 40 changed genes follow two programmes, cells with the same means and variances that do not."""
    rng = np.random.default_rng(0)
    load = np.zeros((2, 60))
    load[0, :20], load[1, 20:40] = 0.5, -0.5
    load[1, :10] = 0.3

    def draw(n, base):
        return np.log1p(rng.poisson(4 * np.exp(base + rng.normal(size=(n, 2)) @ load))).astype(np.float32)

    base = np.repeat([1.0, 0.0], (40, 20))
    real, pred, control = draw(300, base), draw(260, base), draw(200, 0 * base)
    independent = np.stack([rng.permutation(column) for column in pred.T], axis=1)
    return real, pred, independent, control


def test_genes_that_vary_together(programme):
    real, pred, independent, control = programme
    assert cell_cov_corr(real, real, control) == pytest.approx(1)
    assert cell_cov_corr(pred, real, control, n_genes=40) > 0.9
    assert abs(cell_cov_corr(independent, real, control, n_genes=40)) < 0.1


def test_correlations_are_over_the_most_changed_genes_without_the_excluded(programme):
    real, pred, _, control = programme
    real = real[:260]
    size, base = np.expm1(real.astype(float)).mean(axis=0), np.expm1(control.astype(float)).mean(axis=0)
    change = np.abs(np.log2((size + 1) / (base + 1)))
    best = np.argsort(-change)
    excluded, top = best[:2], best[2:32]
    upper = np.triu_indices(30, k=1)
    sides = [np.corrcoef(cells[:, top].astype(float), rowvar=False)[upper] for cells in (pred, real)]
    score = cell_cov_corr(pred, real, control, excluded=excluded, n_genes=30)
    assert score == pytest.approx(np.corrcoef(*sides)[0, 1], abs=1e-9)
    assert score != pytest.approx(cell_cov_corr(pred, real, control, n_genes=30), abs=1e-4)


def test_both_sides_have_as_many_cells(programme):
    real, pred, _, control = programme
    assert cell_cov_corr(pred, real, control, seed=0) == cell_cov_corr(pred, real, control, seed=0)
    assert cell_cov_corr(pred, real, control, seed=0) != cell_cov_corr(pred, real, control, seed=1)  # 260 of the 300
    assert cell_cov_corr(pred, real, control, max_cells=60) < cell_cov_corr(pred, real, control)  # noisier


def test_genes_that_few_measured_cells_express_or_that_are_constant_are_left_out(programme):
    real, pred, _, control = programme
    real = real[:260]
    score = cell_cov_corr(pred, real, control)

    def with_gene(of_pred, of_real):
        sides = ((pred, of_pred), (real, of_real), (control, np.zeros(len(control))))
        return cell_cov_corr(*(np.column_stack([cells, gene]).astype(np.float32) for cells, gene in sides))

    rare = np.where(np.arange(260) < 9, 8.0, 0.0)
    varying = np.arange(260) % 7.0
    assert with_gene(varying, rare) == pytest.approx(score)
    rare[9] = 8  # the tenth cell
    assert with_gene(varying, rare) != pytest.approx(score, abs=1e-6)
    assert with_gene(np.ones(260), rare) == pytest.approx(score)


def test_energy_distance_of_the_spread_alone():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(80, 5))
    assert centered_energy_distance(real + 3, real) == pytest.approx(0, abs=1e-8)
    collapsed = np.tile(real.mean(axis=0), (80, 1))
    assert centered_energy_distance(collapsed, real) == pytest.approx(energy_distance(collapsed, real))
    assert centered_energy_distance(2 * real, real) > 0.1


def test_what_cannot_be_scored_raises(programme):
    real, pred, _, control = programme
    for score in (sd_r2, sd_ratio, detection_r2, detection_mae, centered_energy_distance):
        with pytest.raises(ValueError, match="must have the same genes"):
            score(pred[:, :5], real)
        with pytest.raises(ValueError, match="NaN or infinite"):
            score(np.full_like(pred, np.nan), real)
    with pytest.raises(ValueError, match="two cells on either side; there are 1 and 300"):
        sd_r2(pred[:1], real)
    with pytest.raises(ValueError, match="detection rate of all genes is the same"):
        detection_r2(np.ones((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="are all equal"):
        sd_ratio(np.eye(3), np.ones((3, 3)))
    with pytest.raises(ValueError, match="needs 50 cells on either side; there are 20 predicted and 300 measured"):
        cell_cov_corr(pred[:20], real, control)
    with pytest.raises(ValueError, match="Only 10 of the genes vary"):
        cell_cov_corr(pred, real, control, n_genes=10)
