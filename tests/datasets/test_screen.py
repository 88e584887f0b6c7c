from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.datasets import perturbation_screen, perturbation_screen_truth


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return perturbation_screen(combinations=12, n_cells=4220, seed=1)


@pytest.fixture(scope="module")
def small() -> ad.AnnData:
    return perturbation_screen(6, n_cells=300, n_control=60, n_genes=80, n_cell_types=2, combinations=3, seed=2)


def true_effects(adata: ad.AnnData, **kwargs) -> pd.DataFrame:
    truth = perturbation_screen_truth(adata, **kwargs)
    control = perturbation_screen_truth(adata, perturbations=["control"]).droplevel("perturbation")
    return truth - control.loc[truth.index.get_level_values("cell_type")].to_numpy()


def test_what_a_user_finds(screen):
    assert screen.shape == (4220, 500)
    assert sparse.isspmatrix_csr(screen.X)
    assert screen.X.dtype == np.float32
    np.testing.assert_array_equal(screen.X.data, np.round(screen.X.data))
    assert screen.obs_names.is_unique
    assert screen.var_names.is_unique
    counts = screen.obs["perturbation"].value_counts()
    assert counts["control"] == 500
    assert counts.drop("control").to_list() == [60] * 62
    pairs = [name for name in counts.index if "+" in name]
    singles = set(counts.index) - set(pairs) - {"control"}
    assert len(set(pairs)) == 12
    assert len(singles) == 50
    assert singles == set(screen.var_names[screen.var["is_target"]])
    assert {part for pair in pairs for part in pair.split("+")} <= singles
    assert screen.obs.groupby(["perturbation", "cell_type"], observed=False).size().min() == 20
    features = screen.uns["perturbation_features"]
    assert set(features.index) == singles
    assert features.shape == (50, 10)
    assert 0.8 < features.to_numpy().std() < 1.25


def test_same_seed_same_data_and_another_seed_other_data(small):
    sizes = {"n_cells": 300, "n_control": 60, "n_genes": 80, "n_cell_types": 2, "combinations": 3}
    again, other = perturbation_screen(6, **sizes, seed=2), perturbation_screen(6, **sizes, seed=3)
    assert (again.X != small.X).nnz == 0
    assert again.obs.equals(small.obs)
    pd.testing.assert_frame_equal(again.uns["perturbation_features"], small.uns["perturbation_features"])
    assert (other.X != small.X).nnz > 0


def test_counts_scatter_around_the_truth(screen):
    phi = screen.var["true_dispersion"].to_numpy()
    mean = np.expm1(screen.layers["mean"]) / 1e4 * screen.obs["true_library_size"].to_numpy()[:, None]
    counts = screen.X.toarray()
    z = (counts - mean).sum(0) / np.sqrt((mean + phi * mean**2).sum(0))
    assert np.abs(z).max() < 5
    assert 0.85 < z.std() < 1.15
    estimate = ((counts - mean) ** 2 - mean).sum(0) / (mean**2).sum(0)
    assert np.median(np.abs(estimate / phi - 1)) < 0.15


def test_layers_are_the_truth_of_each_cell(screen):
    truth = perturbation_screen_truth(screen)
    own = pd.MultiIndex.from_frame(screen.obs[["perturbation", "cell_type"]].astype(str))
    np.testing.assert_array_equal(screen.layers["mean"], truth.loc[own])
    control = truth.loc["control"].loc[screen.obs["cell_type"].astype(str)]
    np.testing.assert_array_equal(screen.layers["mean_control"], control)
    np.testing.assert_allclose(np.expm1(truth.to_numpy(dtype=float)).sum(1), 1e4, rtol=1e-4)


def test_knockdown_lowers_its_own_gene(screen):
    singles = list(screen.uns["perturbation_features"].index)
    effects = true_effects(screen, perturbations=singles)
    own = [effects.loc[(name, kind), name] for name in singles for kind in ("type1", "type2", "type3")]
    assert np.mean(np.array(own) < -0.5) > 0.9


def _held_out_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Ridge by hand, one perturbation left out in turn; mean correlation of predicted and true effect."""
    found = []
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        mu, mean = x[rest].mean(0), y[rest].mean(0)
        weights = np.linalg.solve(
            (x[rest] - mu).T @ (x[rest] - mu) + 5 * np.eye(x.shape[1]), (x[rest] - mu).T @ y[rest]
        )
        found.append(np.corrcoef((x[i] - mu) @ weights + mean, y[i])[0, 1])
    return float(np.mean(found))


def test_features_foretell_effects_well_but_not_fully(screen):
    features = screen.uns["perturbation_features"]
    effects = true_effects(screen, perturbations=list(features.index))
    rng = np.random.default_rng(0)
    for kind in ("type1", "type2", "type3"):
        y = effects.xs(kind, level="cell_type").loc[features.index].drop(columns=features.index).to_numpy(dtype=float)
        known = _held_out_correlation(features.to_numpy(), y)
        shuffled = _held_out_correlation(rng.permutation(features.to_numpy()), y)
        assert 0.5 < known < 0.95
        assert shuffled < known - 0.25
        assert shuffled > 0.1  # the shared response


def test_cell_types_modulate_effects(screen):
    effects = true_effects(screen, perturbations=list(screen.uns["perturbation_features"].index))
    one, two = (effects.xs(kind, level="cell_type").to_numpy() for kind in ("type1", "type2"))
    agreement = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, two, strict=True)])
    assert 0.4 < agreement < 0.97


def test_pairs_are_near_the_sum_of_their_parts_but_not_on_it(screen):
    pairs = [name for name in screen.obs["perturbation"].cat.categories if "+" in name]
    effects = true_effects(screen)
    agreement = []
    for pair in pairs:
        for kind in ("type1", "type2", "type3"):
            total = sum(effects.loc[(part, kind)].to_numpy() for part in pair.split("+"))
            agreement.append(np.corrcoef(total, effects.loc[(pair, kind)])[0, 1])
    assert 0.8 < np.mean(agreement) < 0.995


def test_truth_of_unsimulated_pairs_and_of_a_subset(small):
    first, second = small.uns["perturbation_features"].index[[4, 5]]
    both = true_effects(small, perturbations=[f"{first}+{second}"])
    swapped = true_effects(small, perturbations=[f"{second}+{first}"])
    np.testing.assert_allclose(both, swapped, atol=1e-6)
    assert both[first].lt(-0.3).all()
    assert both[second].lt(-0.3).all()
    part = small[5:50, ["GENE007", "GENE002"]]
    expected = perturbation_screen_truth(small)[["GENE007", "GENE002"]]
    pd.testing.assert_frame_equal(perturbation_screen_truth(part), expected)


def test_truth_and_features_survive_a_file(small, tmp_path):
    small.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    pd.testing.assert_frame_equal(perturbation_screen_truth(back), perturbation_screen_truth(small))
    pd.testing.assert_frame_equal(
        back.uns["perturbation_features"], small.uns["perturbation_features"], check_names=False
    )
    np.testing.assert_array_equal(back.layers["mean"], small.layers["mean"])


def test_fewest_cells_fill_every_group():
    fewest = perturbation_screen(4, n_cells=36, n_control=6, n_genes=50, combinations=1)
    assert fewest.obs.groupby(["perturbation", "cell_type"], observed=False).size().min() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_perturbations": 1}, "n_perturbations=1 must be a whole number, 2 or more"),
        ({"n_perturbations": 60, "n_genes": 50}, "more than n_genes=50"),
        ({"n_perturbations": 3, "combinations": 4}, "more than the 3 pairs"),
        ({"n_cells": 700}, "give at least 800"),
        ({"n_control": 5}, "give at least 6"),
        ({"depth": 0}, "depth=0 must be a number above 0"),
        ({"feature_noise": -1.0}, "feature_noise=-1.0 must be a number of 0 or more"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_impossible_arguments_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        perturbation_screen(**arguments)


def test_unknown_perturbation_raises(small):
    name = small.uns["perturbation_features"].index[0]
    with pytest.raises(ValueError, match="was not simulated"):
        perturbation_screen_truth(small, perturbations=["nothing"])
    with pytest.raises(ValueError, match="one gene twice"):
        perturbation_screen_truth(small, perturbations=[f"{name}+{name}"])


def test_truth_of_other_data_raises(small):
    with pytest.raises(KeyError, match="not cells of"):
        perturbation_screen_truth(ad.AnnData(np.ones((2, 3))))
    renamed = small.copy()
    renamed.var_names = ["other", *renamed.var_names[1:]]
    with pytest.raises(KeyError, match="1 genes that were not simulated, 'other'"):
        perturbation_screen_truth(renamed)
