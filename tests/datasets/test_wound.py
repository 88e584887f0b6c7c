from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scstate_lora.datasets import wound_healing, wound_healing_truth
from scstate_lora.datasets.wound_genes import CELL_TYPES, CORE_GENES, PROGRAMMES, SENSITIVITY, SENSORS

DAYS = (10, 14, 19)


@pytest.fixture(scope="module")
def wound() -> ad.AnnData:
    return wound_healing(seed=3)


@pytest.fixture(scope="module")
def small() -> ad.AnnData:
    return wound_healing(600, n_genes=220, seed=1)


@pytest.fixture(scope="module")
def truth(wound: ad.AnnData) -> dict[tuple[str, int], np.ndarray]:
    return {(c, day): wound_healing_truth(wound, condition=c, day=day) for c in ("sham", "burn") for day in DAYS}


def group_means(wound: ad.AnnData, truth: dict[tuple[str, int], np.ndarray], genes: np.ndarray) -> np.ndarray:
    """Noise-free group means, (types, conditions, days, genes): all cells of a type seen under every condition."""
    cell_type = wound.obs["cell_type"].to_numpy()
    return np.array(
        [
            [[truth[c, day][cell_type == name][:, genes].mean(0) for day in DAYS] for c in ("sham", "burn")]
            for name in CELL_TYPES
        ]
    )


def genes_of(adata: ad.AnnData, *programmes: str) -> np.ndarray:
    return np.array([adata.var_names.get_loc(gene) for programme in programmes for gene in PROGRAMMES[programme]])


def expected_counts(adata: ad.AnnData) -> np.ndarray:
    return np.expm1(adata.layers["mean"]) / 1e4 * adata.obs["true_library_size"].to_numpy()[:, None]


def log_expression(adata: ad.AnnData) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def test_tables_of_genes_agree() -> None:
    assert len(CELL_TYPES) == 11
    assert len(set(CORE_GENES)) == len(CORE_GENES)
    assert list(SENSORS) == list(PROGRAMMES)
    assert set(SENSITIVITY) == set(CELL_TYPES)


def test_what_a_user_finds(wound: ad.AnnData) -> None:
    assert wound.shape == (6000, 500)
    assert list(wound.obs["condition"].cat.categories) == ["sham", "burn"]
    assert list(wound.obs["timepoint"].cat.categories) == ["day10", "day14", "day19"]
    assert wound.obs["time_days"].dtype == float
    assert wound.obs["cell_type"].nunique() == 11
    assert wound.obs_names.is_unique
    assert wound.var_names.is_unique
    for matrix in (wound.X, wound.layers["spliced"], wound.layers["unspliced"]):
        assert sparse.isspmatrix_csr(matrix)
        assert matrix.dtype == np.float32
        assert matrix.data.min() >= 1
        np.testing.assert_array_equal(matrix.data, np.round(matrix.data))
    assert wound.X is not wound.layers["spliced"]
    for key in ("mean", "mean_other_condition", "velocity"):
        assert wound.layers[key].dtype == np.float32
        assert np.isfinite(wound.layers[key]).all()


def test_every_group_has_cells(wound: ad.AnnData) -> None:
    assert wound.obs.groupby(["cell_type", "condition", "timepoint"], observed=False).size().min() >= 10
    fewest = wound_healing(198, n_genes=200)
    assert fewest.obs.groupby(["cell_type", "condition", "timepoint"], observed=False).size().min() == 3


def test_mouse_belongs_to_one_condition_and_day(wound: ad.AnnData) -> None:
    groups = wound.obs.groupby("mouse_id", observed=True)[["condition", "timepoint"]].nunique()
    assert len(groups) == 18
    assert (groups == 1).all(axis=None)


def test_composition_changes_with_time(wound: ad.AnnData) -> None:
    sham = wound.obs[wound.obs["condition"] == "sham"]
    share = sham.groupby("timepoint", observed=True)["cell_type"].value_counts(normalize=True).unstack()
    assert share.loc["day10", "neutrophil"] > 1.5 * share.loc["day19", "neutrophil"]
    assert share.loc["day19", "keratinocyte"] > share.loc["day10", "keratinocyte"]


def test_same_seed_same_data_and_another_seed_other_data(small: ad.AnnData) -> None:
    again, other = wound_healing(600, n_genes=220, seed=1), wound_healing(600, n_genes=220, seed=2)
    assert (again.X != small.X).nnz == 0
    assert (again.layers["unspliced"] != small.layers["unspliced"]).nnz == 0
    assert again.obs.equals(small.obs)
    np.testing.assert_array_equal(again.layers["mean"], small.layers["mean"])
    assert (other.X != small.X).nnz > 0


def test_counts_scatter_around_the_truth(wound: ad.AnnData) -> None:
    mean, phi = expected_counts(wound), wound.var["true_dispersion"].to_numpy()
    counts = wound.X.toarray()
    z = (counts - mean).sum(0) / np.sqrt((mean + phi * mean**2).sum(0))
    assert np.abs(z).max() < 5
    assert 0.85 < z.std() < 1.15
    # var = mean + phi mean^2, solved for phi over all cells
    estimate = ((counts - mean) ** 2 - mean).sum(0) / (mean**2).sum(0)
    assert np.median(np.abs(estimate / phi - 1)) < 0.1
    assert np.corrcoef(estimate, phi)[0, 1] > 0.9


def test_stored_means_are_the_truth(wound: ad.AnnData) -> None:
    np.testing.assert_array_equal(wound.layers["mean"], wound_healing_truth(wound))
    burned = (wound.obs["condition"] == "burn").to_numpy()
    other = wound.layers["mean_other_condition"]
    np.testing.assert_allclose(wound_healing_truth(wound, condition="sham")[burned], other[burned], atol=1e-6)
    np.testing.assert_allclose(wound_healing_truth(wound, condition="burn")[~burned], other[~burned], atol=1e-6)
    np.testing.assert_allclose(np.expm1(other.astype(float)).sum(1), 1e4, rtol=1e-4)


def test_truth_of_a_subset_is_a_subset_of_the_truth(wound: ad.AnnData) -> None:
    part = wound[5:900:7, ["Mki67", "Gm10050", "Il1b"]]
    expected = wound_healing_truth(wound, condition="burn", day=16)[5:900:7]
    expected = expected[:, [wound.var_names.get_loc(gene) for gene in part.var_names]]
    np.testing.assert_allclose(wound_healing_truth(part, condition="burn", day=16), expected, atol=1e-6)
    assert wound_healing_truth(wound[:0]).shape == (0, 500)


def test_truth_survives_a_file(small: ad.AnnData, tmp_path) -> None:
    small.write_h5ad(tmp_path / "wound.h5ad")
    back = ad.read_h5ad(tmp_path / "wound.h5ad")
    np.testing.assert_array_equal(wound_healing_truth(back), small.layers["mean"])
    unseen = {"condition": "burn", "day": 12}
    np.testing.assert_array_equal(wound_healing_truth(back, **unseen), wound_healing_truth(small, **unseen))
    for programme, genes in PROGRAMMES.items():
        assert list(back.uns["wound_healing"]["markers"][programme]) == list(genes)
    assert back.uns["wound_healing"]["trends"]["remodelling"] == 1


def test_days_between_lie_between(wound: ad.AnnData, truth: dict[tuple[str, int], np.ndarray]) -> None:
    genes = genes_of(wound, "M2")
    macrophages = (wound.obs["cell_type"] == "macrophage").to_numpy()
    by_day = [truth["sham", 10], wound_healing_truth(wound, condition="sham", day=12), truth["sham", 14]]
    levels = [values[macrophages][:, genes].mean() for values in by_day]
    assert levels[0] < levels[1] < levels[2]


def test_burn_delays_polarisation(wound: ad.AnnData, truth: dict[tuple[str, int], np.ndarray]) -> None:
    macrophages = wound.obs["cell_type"] == "macrophage"
    assert wound.obs["polarisation"].notna().equals(macrophages)
    state = wound.obs[macrophages].groupby(["timepoint", "condition"], observed=True)["polarisation"].mean().unstack()
    assert (state["sham"] - state["burn"] > 0.05).all()
    assert (state["sham"] - state["burn"]).loc["day14"] > 0.3
    assert state["sham"].is_monotonic_increasing
    assert state["burn"].is_monotonic_increasing

    m1, m2 = genes_of(wound, "M1"), genes_of(wound, "M2")
    at_14 = (truth["burn", 14] - truth["sham", 14])[macrophages.to_numpy()]
    assert at_14[:, m2].mean() < -0.3 < 0.3 < at_14[:, m1].mean()
    late = wound[macrophages.to_numpy()]
    at_40 = wound_healing_truth(late, condition="burn", day=40) - wound_healing_truth(late, condition="sham", day=40)
    assert abs(at_40[:, m1].mean()) < 0.1
    assert abs(at_40[:, m2].mean()) < 0.1


def test_programmes_follow_their_trends(wound: ad.AnnData, truth: dict[tuple[str, int], np.ndarray]) -> None:
    change = truth["sham", 19] - truth["sham", 10]
    for programme, sign in wound.uns["wound_healing"]["trends"].items():
        cells = (wound.obs["cell_type"] == "macrophage").to_numpy() if programme in ("M1", "M2") else slice(None)
        assert sign * change[cells][:, genes_of(wound, programme)].mean() > 0.03, programme


def test_additive_model_is_wrong(wound: ad.AnnData, truth: dict[tuple[str, int], np.ndarray]) -> None:
    """The best sum of a condition and a day effect in each cell type, fitted to the noise-free means themselves."""

    def unexplained_and_wrong_sign(*programmes: str) -> tuple[float, float]:
        means = group_means(wound, truth, genes_of(wound, *programmes))
        grand = means.mean((1, 2), keepdims=True)
        additive = means.mean(1, keepdims=True) + means.mean(2, keepdims=True) - grand
        effect, fitted = means[:, 1] - means[:, 0], (additive[:, 1] - additive[:, 0])
        clear = np.abs(effect) > 0.3
        wrong = np.sign(np.broadcast_to(fitted, effect.shape)) != np.sign(effect)
        return ((means - additive) ** 2).sum() / ((means - grand) ** 2).sum(), wrong[clear].mean()

    unexplained, _ = unexplained_and_wrong_sign(*PROGRAMMES)
    assert unexplained > 0.2
    unexplained, wrong_sign = unexplained_and_wrong_sign("proliferation")
    assert unexplained > 0.45
    assert wrong_sign > 0.3


def test_mean_shift_from_other_cell_types_leaves_room(wound: ad.AnnData) -> None:
    values, cell_type = log_expression(wound), wound.obs["cell_type"].to_numpy()
    burned = (wound.obs["condition"] == "burn").to_numpy()
    delta = {
        name: values[burned & (cell_type == name)].mean(0) - values[~burned & (cell_type == name)].mean(0)
        for name in CELL_TYPES
    }
    scores = [
        np.corrcoef(np.mean([delta[other] for other in CELL_TYPES if other != name], axis=0), delta[name])[0, 1]
        for name in CELL_TYPES
    ]
    assert 0.55 < np.mean(scores) < 0.85
    assert min(scores) > 0.3
    assert max(scores) < 0.95


def test_response_can_be_read_off_the_cell(wound: ad.AnnData) -> None:
    """Within one cell type, cells whose interferon sensors are high answer a burn with more interferon genes."""
    cells = wound[((wound.obs["cell_type"] == "fibroblast") & (wound.obs["condition"] == "sham")).to_numpy()]
    response = wound_healing_truth(cells, condition="burn", day=14) - wound_healing_truth(
        cells, condition="sham", day=14
    )
    sensors = [cells.var_names.get_loc(gene) for gene in SENSORS["interferon"]]
    correlation = np.corrcoef(
        log_expression(cells)[:, sensors].mean(1), response[:, genes_of(cells, "interferon")].mean(1)
    )[0, 1]
    assert correlation > 0.3


@pytest.mark.parametrize("day", DAYS)
def test_velocity_is_the_slope_of_the_truth(wound: ad.AnnData, day: int) -> None:
    cells = wound[(wound.obs["time_days"] == day).to_numpy()][:300]
    step = 0.02
    after, before = (wound_healing_truth(cells, day=day + sign * step).astype(float) for sign in (1, -1))
    slope = (after - before) / (2 * step)
    velocity_of_mean = cells.layers["velocity"] / (1 + np.expm1(cells.layers["mean"]))
    np.testing.assert_allclose(velocity_of_mean, slope, atol=1e-3)
    assert np.abs(slope).max() > 0.2


def test_unspliced_counts_give_the_velocity(wound: ad.AnnData) -> None:
    beta, gamma = wound.var["true_beta"].to_numpy(), wound.var["true_gamma"].to_numpy()
    velocity, spliced = wound.layers["velocity"], np.expm1(wound.layers["mean"])
    unspliced = (velocity + gamma * spliced) / beta
    assert unspliced.min() > 0
    library = wound.obs["true_library_size"].to_numpy()[:, None]
    observed, expected = wound.layers["unspliced"].toarray(), unspliced / 1e4 * library
    assert np.median(np.abs(observed.sum(0) / expected.sum(0) - 1)) < 0.02

    # Group means of the counts alone show where expression is going, where it clearly goes somewhere.
    groups = wound.obs.groupby(["cell_type", "condition", "timepoint"], observed=True).indices.values()
    balance = (beta * observed - gamma * wound.X.toarray()) * 1e4 / library
    counted = np.array([balance[i].mean(0) for i in groups])
    true = np.array([velocity[i].mean(0) for i in groups])
    turnover = np.array([(gamma * spliced[i]).mean(0) for i in groups])
    clear = (np.abs(true) > 0.1 * turnover) & (turnover > 20)
    assert clear.sum() > 200
    assert (np.sign(counted) == np.sign(true))[clear].mean() > 0.8


def test_unspliced_stays_positive_on_any_day() -> None:
    for day in range(0, 40, 3):
        data = wound_healing(198, n_genes=600, days=[day], seed=day)
        beta, gamma = data.var["true_beta"].to_numpy(), data.var["true_gamma"].to_numpy()
        assert ((data.layers["velocity"] + gamma * np.expm1(data.layers["mean"])) / beta).min() > 0


def test_cell_types_are_told_apart_but_not_trivially(wound: ad.AnnData) -> None:
    from sklearn.decomposition import PCA
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    some = wound[:2500]
    components = PCA(50, random_state=0).fit_transform(log_expression(some))
    accuracy = cross_val_score(KNeighborsClassifier(10), components, some.obs["cell_type"].to_numpy(), cv=5).mean()
    assert 0.93 < accuracy < 0.999


def test_markers_mark(wound: ad.AnnData) -> None:
    mean = wound.layers["mean"]
    cell_type = wound.obs["cell_type"].to_numpy()
    markers = wound.uns["wound_healing"]["cell_type_markers"]
    assert set(markers) == set(CELL_TYPES)
    for name, genes in markers.items():
        for gene in genes:
            values = mean[:, wound.var_names.get_loc(gene)]
            assert values[cell_type == name].mean() > values[cell_type != name].mean() + 0.3, (name, gene)
    assert set(wound.var["role"]) >= {*PROGRAMMES, "marker", "sensor", "housekeeping", "background"}


def test_more_genes_and_other_days() -> None:
    data = wound_healing(400, n_genes=2000, days=(3.5, 7), n_mice=2, depth=4000, seed=0)
    assert data.shape == (400, 2000)
    assert list(data.obs["timepoint"].cat.categories) == ["day3.5", "day7"]
    assert data.obs["mouse_id"].nunique() == 8
    assert 2500 < np.median(np.asarray(data.X.sum(1))) < 6000
    np.testing.assert_array_equal(data.layers["mean"], wound_healing_truth(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 100}, "n_cells=100 is too few"),
        ({"n_cells": 0}, "n_cells=0 must be a whole number"),
        ({"n_cells": 6000.0}, "n_cells=6000.0 must be a whole number"),
        ({"n_cells": 300, "n_mice": 200}, "at least 1200"),
        ({"n_genes": 50}, "n_genes=50 is too few"),
        ({"days": (-1, 10)}, "none negative"),
        ({"days": ()}, "one or more numbers"),
        ({"days": ("ten",)}, "one or more numbers"),
        ({"days": (10, 10.0)}, "names a day twice"),
        ({"n_mice": 0}, "n_mice=0"),
        ({"depth": 0}, "depth=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_arguments_raises(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wound_healing(**arguments)


def test_impossible_condition_or_day_raises(small: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"condition='burnt' is not simulated\. Did you mean 'burn'"):
        wound_healing_truth(small, condition="burnt")
    for day in (-2, np.nan, "12"):
        with pytest.raises(ValueError, match="0 or more"):
            wound_healing_truth(small, day=day)


def test_data_of_others_raises(small: ad.AnnData) -> None:
    with pytest.raises(KeyError, match="uns"):
        wound_healing_truth(ad.AnnData(np.ones((2, 2), dtype=np.float32)))
    stripped = small.copy()
    del stripped.obsm["true_state"]
    with pytest.raises(KeyError, match="true_state"):
        wound_healing_truth(stripped)
    renamed = small.copy()
    renamed.obs = renamed.obs.rename(columns={"mouse_id": "mouse"})
    with pytest.raises(KeyError, match=r"mouse_id.*Did you mean 'mouse'"):
        wound_healing_truth(renamed)
    relabelled = small.copy()
    relabelled.obs["cell_type"] = relabelled.obs["cell_type"].cat.rename_categories({"Schwann": "glia"})
    with pytest.raises(ValueError, match=r"cell_type.*'glia'"):
        wound_healing_truth(relabelled)
    foreign = small.copy()
    foreign.var_names = ["Xyz", *foreign.var_names[1:]]
    with pytest.raises(KeyError, match="Xyz"):
        wound_healing_truth(foreign)
