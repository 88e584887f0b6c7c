from __future__ import annotations

import logging
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.pp.scvelo_steps import expected_displacement, shared_counts

N_CELLS, N_GENES = 200, 60


def _cells(seed: int = 0) -> ad.AnnData:
    """Cells along one course: half the genes switched on at its start, half switched off, counts by Poisson."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.uniform(0, 3, N_CELLS))[:, None]
    gamma, level = rng.uniform(0.5, 2, N_GENES), rng.uniform(5, 30, N_GENES)
    beta = gamma * rng.uniform(1.5, 3, N_GENES)
    down = np.arange(N_GENES) >= N_GENES // 2
    # Of a gene that is switched on at time 0, approaching u = level / beta and s = level / gamma.
    u = level / beta * (1 - np.exp(-beta * time))
    s = level / gamma * (1 - np.exp(-gamma * time)) + level / (gamma - beta) * (
        np.exp(-gamma * time) - np.exp(-beta * time)
    )
    u, s = np.where(down, level / beta - u, u), np.where(down, level / gamma - s, s)
    order = rng.permutation(N_CELLS)
    spliced, unspliced = (sparse.csr_matrix(rng.poisson(x[order]), dtype=np.float32) for x in (s, u))
    adata = ad.AnnData(
        X=spliced.copy(),
        obs=pd.DataFrame({"time": time[order, 0]}, index=[f"cell{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]),
        layers={"spliced": spliced, "unspliced": unspliced, "truth": (u - gamma / beta * s)[order].astype(np.float32)},
    )
    rotation = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    place = np.column_stack([time[order], 0.05 * rng.normal(size=(N_CELLS, 49))]) @ rotation
    adata.obsm["X_course"] = place.astype(np.float32)
    adata.uns["forwards"] = rotation[0]
    return adata


@pytest.fixture(scope="module")
def computed() -> ad.AnnData:
    adata = _cells()
    ssl.pp.velocity(adata, basis="X_course")
    return adata


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))


def _contents(adata: ad.AnnData) -> set[str]:
    parts = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
    return {f"{part}/{key}" for part in parts for key in getattr(adata, part)}


def test_adds_what_is_documented_and_nothing_else(computed: ad.AnnData):
    before = _cells()
    added = {"layers/velocity", "obs/velocity_confidence", "obsm/velocity_X_course", "uns/scstate_lora"}
    assert _contents(computed) == _contents(before) | added
    assert set(computed.uns["scstate_lora"]) == {"velocity"}
    for one, two in [(computed.X, before.X), *((computed.layers[k], before.layers[k]) for k in before.layers)]:
        assert (one != two).sum() == 0
    assert np.array_equal(computed.obsm["X_course"], before.obsm["X_course"])
    assert computed.obs_names.equals(before.obs_names)
    assert computed.var_names.equals(before.var_names)
    assert computed.layers["velocity"].dtype == computed.obsm["velocity_X_course"].dtype == np.float32
    assert computed.layers["velocity"].shape == computed.shape
    assert computed.obsm["velocity_X_course"].shape == (N_CELLS, 50)
    assert computed.obs["velocity_confidence"].between(0, 1).all()


def test_velocities_are_the_true_ones_in_direction(computed: ad.AnnData):
    values, truth = computed.layers["velocity"], computed.layers["truth"]
    fitted = np.isfinite(values).all(axis=0)
    assert fitted.sum() > N_GENES / 2
    assert np.isnan(values[:, ~fitted]).all()
    values, truth = values[:, fitted], truth[:, fitted]
    assert np.median(_cosines(values, truth)) > 0.7
    # What all cells have in common, even a shuffled truth has.
    values, truth = values - values.mean(0), truth - truth.mean(0)
    assert np.median(_cosines(values, truth)) > 0.5
    shuffled = np.random.default_rng(0).permutation(truth)
    assert abs(np.median(_cosines(values, shuffled))) < 0.2


def test_projection_to_many_dimensions_points_forwards(computed: ad.AnnData):
    projected = computed.obsm["velocity_X_course"]
    assert np.isfinite(projected).all()
    # At the two ends there is nowhere to come from or to go to.
    inside = computed.obs["time"].between(0.3, 2).to_numpy()
    forwards = projected @ computed.uns["forwards"]
    assert (forwards[inside] > 0).mean() > 0.95
    assert np.median(np.abs(forwards[inside]) / np.linalg.norm(projected[inside], axis=1)) > 0.9


def test_record_says_what_was_done_and_survives_a_file(computed: ad.AnnData, tmp_path):
    record = computed.uns["scstate_lora"]["velocity"]["velocity"]
    n_fitted = np.isfinite(computed.layers["velocity"]).all(axis=0).sum()
    assert record["mode"] == "deterministic"
    assert record["n_genes_fitted"] == n_fitted
    assert record["share_fitted"] == pytest.approx(n_fitted / record["n_genes_used"])
    computed.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(read.layers["velocity"], computed.layers["velocity"], equal_nan=True)
    stored = read.uns["scstate_lora"]["velocity"]["velocity"]
    assert stored["n_genes_fitted"] == n_fitted
    assert list(stored["bases"]) == ["X_course"]


def test_velocities_that_exist_are_used_as_they_are(computed: ad.AnnData, caplog):
    adata = _cells()
    adata.layers["velocity"] = computed.layers["velocity"].copy()
    with _heard(caplog):
        ssl.pp.velocity(adata)
    assert "adata.layers['velocity'] exists and is used as it is" in caplog.text
    assert "velocity_confidence" not in adata.obs
    assert "scstate_lora" not in adata.uns

    ssl.pp.velocity(adata, basis="X_course")
    assert np.array_equal(adata.layers["velocity"], computed.layers["velocity"], equal_nan=True)
    assert np.allclose(adata.obsm["velocity_X_course"], computed.obsm["velocity_X_course"], atol=1e-5)
    assert np.allclose(adata.obs["velocity_confidence"], computed.obs["velocity_confidence"], atol=1e-5)
    assert adata.uns["scstate_lora"]["velocity"]["velocity"] == {"mode": "precomputed", "bases": ["X_course"]}

    adata.obsm["velocity_X_course"][:] = 7
    caplog.clear()
    with _heard(caplog):
        ssl.pp.velocity(adata, basis="X_course")
    assert "adata.obsm['velocity_X_course'] exists and is used as it is" in caplog.text
    assert (adata.obsm["velocity_X_course"] == 7).all()


def test_velocities_that_exist_need_no_scvelo(monkeypatch, computed: ad.AnnData):
    monkeypatch.setitem(sys.modules, "scvelo", None)
    ssl.pp.velocity(computed.copy(), basis="X_course")


@pytest.mark.parametrize("stored", [np.asarray, sparse.csr_matrix])
def test_true_velocities_project_forwards_too(stored):
    adata = _cells()
    adata.layers["truth"] = stored(adata.layers["truth"])
    ssl.pp.velocity(adata, key_added="truth", basis="X_course")
    inside = adata.obs["time"].between(0.3, 2).to_numpy()
    assert ((adata.obsm["truth_X_course"] @ adata.uns["forwards"])[inside] > 0).mean() > 0.95
    assert "truth_confidence" in adata.obs


def test_stochastic_runs_and_stands_beside_another_key(computed: ad.AnnData):
    adata = computed.copy()
    ssl.pp.velocity(adata, mode="stochastic", key_added="second", layers=["spliced", "unspliced"])
    values, truth = adata.layers["second"], adata.layers["truth"]
    fitted = np.isfinite(values).all(axis=0)
    assert np.median(_cosines(values[:, fitted], truth[:, fitted])) > 0.8
    assert set(adata.uns["scstate_lora"]["velocity"]) == {"velocity", "second"}
    assert not np.array_equal(values, adata.layers["velocity"], equal_nan=True)


def test_dynamical_runs_with_the_versions_installed_or_names_them():
    adata = _cells()
    if int(pd.__version__.split(".")[0]) >= 3:  # scVelo 0.3.4 does not know it
        with pytest.raises(RuntimeError, match=r"failed with scvelo .*, pandas 3.* install 'pandas<3', or use mode="):
            ssl.pp.velocity(adata, mode="dynamical", n_top_genes=12)
        return
    ssl.pp.velocity(adata, mode="dynamical", n_top_genes=12)
    fitted = np.isfinite(adata.layers["velocity"]).all(axis=0)
    assert 0 < fitted.sum() <= 12
    record = adata.uns["scstate_lora"]["velocity"]["velocity"]
    assert record["mode"] == "dynamical"
    assert record["n_genes_used"] == 12


def test_dynamical_that_does_not_run_raises_and_says_why(monkeypatch):
    import scvelo

    def broken(*args, **kwargs):
        raise TypeError("Cannot set a Series")

    monkeypatch.setattr(scvelo.tl, "recover_dynamics", broken)
    adata = _cells()
    with pytest.raises(RuntimeError, match=r"pandas .*Cannot set a Series.*mode='stochastic'"):
        ssl.pp.velocity(adata, mode="dynamical")
    assert _contents(adata) == _contents(_cells())


def test_neighbours_may_be_found_in_an_embedding(computed: ad.AnnData):
    adata = _cells()
    ssl.pp.velocity(adata, use_rep="X_course", n_neighbors=15)
    assert not np.array_equal(adata.layers["velocity"], computed.layers["velocity"], equal_nan=True)
    assert adata.uns["scstate_lora"]["velocity"]["velocity"]["use_rep"] == "X_course"


def test_same_seed_gives_the_same_and_chosen_genes_are_the_variable_ones(computed: ad.AnnData):
    adata = _cells()
    ssl.pp.velocity(adata, basis="X_course")
    assert np.array_equal(adata.layers["velocity"], computed.layers["velocity"], equal_nan=True)
    assert np.array_equal(adata.obsm["velocity_X_course"], computed.obsm["velocity_X_course"])
    few = _cells()
    ssl.pp.velocity(few, n_top_genes=20)
    assert np.isfinite(few.layers["velocity"]).all(axis=0).sum() <= 20
    assert few.uns["scstate_lora"]["velocity"]["velocity"]["n_genes_used"] == 20


def test_few_genes_with_a_fit_are_warned_of(caplog):
    with _heard(caplog):
        ssl.pp.velocity(_cells(), n_top_genes=10)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "of 10 genes used have a fit" in caplog.text
    assert "the splicing signal is weak" in caplog.text


def test_a_view_gets_velocities_and_its_parent_stays(computed: ad.AnnData):
    parent = computed.copy()
    view = parent[:150, :50]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata says that the view becomes a copy
        ssl.pp.velocity(view, key_added="own")
    assert view.layers["own"].shape == (150, 50)
    assert _contents(parent) == _contents(computed)
    assert set(parent.uns["scstate_lora"]["velocity"]) == {"velocity"}


def test_dense_layers_give_what_sparse_ones_give(computed: ad.AnnData):
    adata = _cells()
    for key in ("spliced", "unspliced"):
        adata.layers[key] = adata.layers[key].toarray().astype(np.int64)
    ssl.pp.velocity(adata)
    assert np.allclose(adata.layers["velocity"], computed.layers["velocity"], atol=1e-4, equal_nan=True)


def test_nothing_is_printed_and_global_settings_stay(capsys):
    import matplotlib as mpl
    import scvelo

    filters, style, verbosity = list(warnings.filters), dict(mpl.rcParams), scvelo.settings.verbosity
    ssl.pp.velocity(_cells())
    assert capsys.readouterr().out == ""
    assert list(warnings.filters) == filters
    assert dict(mpl.rcParams) == style
    assert scvelo.settings.verbosity == verbosity


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "dynamic"}, ValueError, "mode='dynamic' is unknown. Did you mean 'dynamical'"),
        ({"basis": "X_corse"}, KeyError, "basis='X_corse' is not in adata.obsm. Did you mean 'X_course'"),
        ({"basis": 3}, TypeError, "basis=3 must be the name"),
        ({"use_rep": "X_pca"}, KeyError, "use_rep='X_pca'"),
        ({"layers": ("splicd", "unspliced")}, KeyError, r"layers\['splicd'\].*Did you mean 'spliced'"),
        ({"layers": "spliced"}, TypeError, "two names"),
        ({"layers": ("spliced", "spliced")}, ValueError, "one layer twice"),
        ({"n_neighbors": 1}, ValueError, "n_neighbors=1 must be a whole number, 2 or more"),
        ({"n_neighbors": 200}, ValueError, "200 cells are too few.*201 or more"),
        ({"n_top_genes": 3}, ValueError, "n_top_genes=3"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"min_shared_counts": 10**6}, ValueError, "0 of 60 genes have 1000000.*Lower min_shared_counts"),
        ({"key_added": ""}, TypeError, "key_added=''"),
    ],
)
def test_impossible_arguments_raise_and_nothing_is_written(options: dict, error: type[Exception], message: str):
    adata = _cells()
    with pytest.raises(error, match=message):
        ssl.pp.velocity(adata, **options)
    assert _contents(adata) == _contents(_cells())


def _without_unspliced(adata: ad.AnnData) -> None:
    adata.layers["unspliced"] = sparse.csr_matrix(adata.shape, dtype=np.float32)


def _logged(adata: ad.AnnData) -> None:
    adata.layers["unspliced"] = adata.layers["unspliced"].log1p()


def _normalised(adata: ad.AnnData) -> None:
    totals = np.asarray(adata.layers["spliced"].sum(axis=1))
    adata.layers["spliced"] = sparse.csr_matrix(adata.layers["spliced"].multiply(1e4 / totals), dtype=np.float32)


def _negative(adata: ad.AnnData) -> None:
    adata.layers["spliced"] = -adata.layers["spliced"]


def _an_empty_cell(adata: ad.AnnData) -> None:
    spliced = adata.layers["spliced"].toarray()
    spliced[4] = 0
    adata.layers["spliced"] = spliced


def _nan_in_the_basis(adata: ad.AnnData) -> None:
    adata.obsm["X_course"][0, 0] = np.nan


def _no_velocity(adata: ad.AnnData) -> None:
    adata.layers["velocity"] = np.full(adata.shape, np.nan)


def _infinite_velocity(adata: ad.AnnData) -> None:
    adata.layers["velocity"] = np.full(adata.shape, np.inf)


def _words_as_basis(adata: ad.AnnData) -> None:
    adata.obsm["X_course"] = pd.DataFrame({"place": "here"}, index=adata.obs_names)


def _old_projection(adata: ad.AnnData) -> None:
    adata.obsm["velocity_X_course"] = np.zeros((N_CELLS, 2))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_unspliced, r"adata.layers\['unspliced'\] holds only zeros"),
        (_logged, r"adata.layers\['unspliced'\] does not hold counts: it has fractional"),
        (_normalised, r"adata.layers\['spliced'\] does not hold counts: it has fractional"),
        (_negative, r"adata.layers\['spliced'\] holds negative values"),
        (_an_empty_cell, r"1 cells have no counts in adata.layers\['spliced'\], 'cell4'"),
        (_nan_in_the_basis, r"adata.obsm\['X_course'\] holds NaN"),
        (_no_velocity, r"adata.layers\['velocity'\] holds only zeros and NaN"),
        (_infinite_velocity, r"adata.layers\['velocity'\] holds infinite values"),
        (_words_as_basis, r"adata.obsm\['X_course'\] must be a matrix of numbers"),
        (_old_projection, r"has shape \(200, 2\), but its basis has \(200, 50\)"),
    ],
)
def test_unusable_cells_raise(spoil, message: str):
    adata = _cells()
    spoil(adata)
    before = _contents(adata)
    with pytest.raises(ValueError, match=message):
        ssl.pp.velocity(adata, basis="X_course")
    assert _contents(adata) == before


def test_too_few_cells_raise():
    with pytest.raises(ValueError, match=r"30 cells are too few.*50 or more"):
        ssl.pp.velocity(_cells()[:30].copy(), n_neighbors=10)


def test_unrelated_layers_raise():
    adata = _cells()
    rng = np.random.default_rng(0)
    # Unspliced counts fall where spliced ones rise, around a large mean: no ratio explains them.
    adata.layers["unspliced"] = sparse.csr_matrix(rng.poisson(200 / (1 + adata.layers["spliced"].toarray())))
    with pytest.raises(ValueError, match=r"In none of .* genes do unspliced counts follow"):
        ssl.pp.velocity(adata)


def test_shared_counts_by_hand():
    spliced = sparse.csr_matrix(np.array([[1.0, 0.0, 4.0], [2.0, 3.0, 0.0]]))
    unspliced = sparse.csr_matrix(np.array([[5.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
    assert shared_counts(spliced, unspliced).tolist() == [9, 0, 0]


def test_expected_displacement_by_hand():
    place = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    matrix = sparse.csr_matrix(np.array([[0.2, 0.6, 0.2], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]))
    # The first goes to the second with 0.6 and to the third with 0.2, in place of 0.4 each; the second goes both ways
    # alike, and the third has one way only.
    expected = np.array([[0.2 * 2, -0.2 * 4], [0, 0], [0, 0]])
    assert np.allclose(expected_displacement(matrix, place), expected, atol=1e-6)
    assert np.allclose(expected_displacement(matrix, place + 1000), expected, atol=1e-4)
    assert matrix[0, 0] == 0.2
    assert (expected_displacement(sparse.csr_matrix((3, 3)), place) == 0).all()


class _heard:
    """Let pytest hear the package's logger, which does not propagate."""

    def __init__(self, caplog) -> None:
        self.caplog = caplog

    def __enter__(self) -> None:
        logging.getLogger("scstate_lora").addHandler(self.caplog.handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("scstate_lora").removeHandler(self.caplog.handler)
