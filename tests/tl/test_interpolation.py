from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.nn.se_encoder import SEEncoder
from tests.builders import QUICK

TINY = {"n_steps": 2, "d_model": 16, "d_hid": 16, "n_layers": 1, "n_heads": 2, "output_dim": 8, "n_tokens": 17}
CONDITIONING = {"hidden_dims": (16,), "n_steps": 2}


def make_cells(n=120, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B", "T"], n)),
            "condition": pd.Categorical(rng.choice(["sham", "burn"], n)),
            "time_days": rng.choice([10.0, 14.0, 19.0], n),
            "mouse": rng.choice(["m1", "m2"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    x = sparse.csr_matrix(rng.poisson(2.0, size=(n, 30)).astype(np.float32))
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))


def make_model(adata, **kwargs):
    setup = {"cell_type_key": "cell_type", "batch_key": "mouse", "covariate_keys": {}} | kwargs.pop("setup", {})
    setup["covariate_keys"] = {"condition": {"embed_dim": 8}, "time_days": {"type": "continuous", "embed_dim": 8}}
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    return ssl.LoRACovariateSE(adata, compact=TINY, conditioning=CONDITIONING, **{"lora": {}, **kwargs})


@pytest.fixture(scope="module")
def trained():
    """A model whose adapters do something, and its cells. Not to be changed."""
    adata = make_cells()
    se = make_model(adata)
    se.train(1, lr=0.02, **QUICK)
    return se, adata


def test_every_cell_is_embedded_at_every_value_as_the_model_itself_would(trained):
    se, adata = trained
    moved = tl.interpolate(se, "time_days", [12, 16.5], covariates={"condition": "burn"})
    assert moved.shape == (2 * adata.n_obs, 8)
    for i, value in enumerate([12, 16.5]):
        wanted = {"condition": "burn", "time_days": value}
        alone = se.get_latent_representation(covariates=wanted, key_added=None)
        here = slice(i * adata.n_obs, (i + 1) * adata.n_obs)
        np.testing.assert_allclose(moved.X[here], alone, atol=2e-6)
    assert np.abs(moved.X[: adata.n_obs] - moved.X[adata.n_obs :]).max() > 1e-4
    np.testing.assert_array_equal(moved.obsm["X_scstate_lora"], moved.X)
    np.testing.assert_allclose(np.linalg.norm(moved.X, axis=1), 1, atol=1e-5)


def test_the_cells_go_through_the_network_once_whatever_the_number_of_values(trained, monkeypatch):
    se, adata = trained
    seen = []
    forward = SEEncoder.forward

    def counted(self, genes, *args, **kwargs):
        seen.append(len(genes))
        return forward(self, genes, *args, **kwargs)

    monkeypatch.setattr(SEEncoder, "forward", counted)
    tl.interpolate(se, "time_days", [11, 12, 13, 15])
    assert sum(seen) == adata.n_obs


def test_obs_says_which_cell_it_is_and_what_it_was_told(trained):
    se, adata = trained
    moved = tl.interpolate(se, "time_days", [12, 16.5], covariates={"condition": "burn"})
    expected = ["source_cell", "time_days", "time_days_own", "condition", "cell_type", "mouse"]
    assert list(moved.obs.columns) == expected
    assert moved.obs_names[0] == "cell0|time_days=12"
    assert moved.obs_names[-1] == f"cell{adata.n_obs - 1}|time_days=16.5"
    assert moved.obs_names.is_unique
    own = adata.obs.loc[moved.obs["source_cell"]]
    assert (moved.obs["time_days_own"].to_numpy() == own["time_days"].to_numpy()).all()
    assert (moved.obs["cell_type"].to_numpy() == own["cell_type"].to_numpy()).all()
    assert (moved.obs["condition"] == "burn").all()
    assert moved.obs["time_days"].value_counts().to_dict() == {12.0: adata.n_obs, 16.5: adata.n_obs}


def test_the_result_survives_the_file_and_joins_the_measured_cells(trained, tmp_path):
    se, adata = trained
    measured = adata.copy()
    se.get_latent_representation(measured)
    moved = tl.interpolate(se, "time_days", 12)
    moved.write_h5ad(tmp_path / "moved.h5ad")
    read = ad.read_h5ad(tmp_path / "moved.h5ad")
    kept = read.uns["scstate_lora"]["interpolate"]
    assert kept["covariate"] == "time_days"
    assert kept["values"].tolist() == [12.0]
    assert kept["observed_range"].tolist() == [10.0, 19.0]
    assert kept["adapter"] == "default"
    assert kept["base"] == se.base.name
    both = ad.concat({"measured": measured, "interpolated": read}, label="source")
    assert both.obsm["X_scstate_lora"].shape == (2 * adata.n_obs, 8)
    assert both.obs["time_days"].notna().all()


def test_cells_and_another_adata(trained):
    se, adata = trained
    b_cells = (adata.obs["cell_type"] == "B").to_numpy()
    whole, part = tl.interpolate(se, "time_days", 12), tl.interpolate(se, "time_days", 12, cells=b_cells)
    np.testing.assert_allclose(part.X, whole.X[b_cells], atol=2e-6)
    assert part.obs["source_cell"].tolist() == adata.obs_names[b_cells].tolist()
    other = adata[::-1].copy()
    del other.obs["time_days"]  # what is asked for need not be known
    reverse = tl.interpolate(se, "time_days", 12, adata=other)
    np.testing.assert_allclose(reverse.X[::-1], whole.X, atol=2e-6)
    assert "time_days_own" not in reverse.obs
    each = pd.DataFrame({"condition": ["sham"] * part.n_obs}, index=adata.obs_names[b_cells])
    told = tl.interpolate(se, "time_days", 12, cells=b_cells, covariates=each)
    assert (told.obs["condition"] == "sham").all()


def test_nothing_is_written_unless_asked_for(trained):
    se, adata = trained
    cells = adata.copy()
    before = set(cells.obsm), set(cells.obs), set(cells.uns["scstate_lora"])
    tl.interpolate(se, "time_days", [12, 16], adata=cells)
    assert (set(cells.obsm), set(cells.obs), set(cells.uns["scstate_lora"])) == before
    moved = tl.interpolate(se, "time_days", [12, 16], adata=cells, key_added="X_at")
    assert set(cells.obsm) - before[0] == {"X_at_12", "X_at_16"}
    np.testing.assert_array_equal(cells.obsm["X_at_16"], moved.X[cells.n_obs :])
    tl.interpolate(se, "time_days", 13, adata=cells, key_added="X_13")
    assert set(cells.uns["scstate_lora"]["interpolate"]) == {"X_at", "X_13"}
    assert "X_13" in cells.obsm


def test_a_base_from_obsm_works():
    adata = make_cells()
    adata.obsm["X_own"] = adata.X.toarray()[:, :5]
    se = make_model(adata, setup={"embed_key": "X_own"})
    se.train(1, **QUICK)
    moved = tl.interpolate(se, "time_days", [12])
    alone = se.get_latent_representation(covariates={"time_days": 12}, key_added=None)
    np.testing.assert_allclose(moved.X, alone, atol=1e-6)


def test_outside_of_the_range_one_warning_names_it(trained):
    se, _ = trained
    with pytest.warns(UserWarning, match="seen from 10 to 19 in training; 5, 25 lie outside") as caught:
        tl.interpolate(se, "time_days", [5, 12, 25])
    assert [warning.filename for warning in caught if warning.category is UserWarning] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tl.interpolate(se, "time_days", [10, 19])


def test_repeated_values_count_once(trained):
    se, adata = trained
    assert tl.interpolate(se, "time_days", [12, 12.0, 12]).n_obs == adata.n_obs


def test_a_categorical_covariate_raises(trained):
    with pytest.raises(ValueError, match=r"'condition' is categorical.*'burn', 'sham'.*get_latent_representation\("):
        tl.interpolate(trained[0], "condition", [1])


def test_an_unknown_covariate_raises(trained):
    with pytest.raises(KeyError, match="Did you mean 'time_days'"):
        tl.interpolate(trained[0], "time_dais", [12])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([12, np.nan], ValueError, "values holds nan"),
        (np.inf, ValueError, "values holds inf"),
        ([], ValueError, "values is empty"),
        ("12", TypeError, r"values holds '12' \(str\)"),
        ([True], TypeError, r"values holds True \(bool\)"),
        ([None], TypeError, r"values holds None"),
        ([[12, 13]], TypeError, r"\(list\)"),
    ],
)
def test_values_that_are_no_numbers_raise(trained, values, error, message):
    with pytest.raises(error, match=message):
        tl.interpolate(trained[0], "time_days", values)


def test_contradictions_raise(trained):
    se, adata = trained
    with pytest.raises(ValueError, match=r"covariates names 'time_days'.*\[12\.0\]"):
        tl.interpolate(se, "time_days", 12, covariates={"time_days": 14})
    with pytest.raises(ValueError, match="Drop one of them"):
        tl.interpolate(se, "time_days", 12, cells=np.ones(adata.n_obs, dtype=bool), key_added="X_12")
    with pytest.raises(ValueError, match="cells must be 120 bools"):
        tl.interpolate(se, "time_days", 12, cells=np.arange(3))
    with pytest.raises(ValueError, match="False for every cell"):
        tl.interpolate(se, "time_days", 12, cells=np.zeros(adata.n_obs, dtype=bool))
    with pytest.raises(ValueError, match="never seen in training"):
        tl.interpolate(se, "time_days", 12, covariates={"condition": "scald"})


def test_an_untrained_model_or_another_object_raises():
    adata = make_cells()
    with pytest.raises(ValueError, match=r"not trained: call \.train\(\) before ssl\.tl\.interpolate"):
        tl.interpolate(make_model(adata), "time_days", 12)
    with pytest.raises(TypeError, match="needs a LoRACovariateSE, found AnnData"):
        tl.interpolate(adata, "time_days", 12)
